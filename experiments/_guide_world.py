"""Chains that a small model solves by a bad habit: sizes, the base that has it, and its solving.

See `_guide_lm`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import ensemble, posttrain, rwkv7, tasks
from jaxlab.posttrain import grpo
from jaxlab.tasks import chain


@dataclass(frozen=True)
class Config:
    """Sizes of the task, of the model, and of its training."""

    chain_steps: int = 3
    modulus: int = 10
    hints: int = 3  # most results given away
    n_layer: int = 1
    n_embd: int = 32
    head_size: int = 16
    ranks: tuple[int, int, int, int] = (8, 8, 8, 8)
    base_steps: int = 1400  # of imitation before anything else
    base_batch: int = 64
    base_lr: float = 1e-2
    base_hinted: float = 0.3  # share of the prompts it reads with a hint
    habit_steps: int = 400  # the last of them, in which hard problems are spoilt
    base_right: float = 0.02  # share of right solutions of hard problems without a hint
    groups: int = 16  # per step of every arm, an even number
    group: int = 8
    block: int = 5  # steps in one call of the engine
    steps: int = 40
    rates: tuple[float, ...] = (1e-3, 2e-3)  # tried by every arm on the tuning seeds
    tuning_seeds: int = 2
    problems: int = 64  # held out, all hard
    samples: int = 32  # completions of each

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.base_steps % self.block:
            raise ValueError(
                f"base_steps: expected a multiple of {self.block}, got {self.base_steps}"
            )
        if self.steps % (2 * self.block):
            raise ValueError(f"steps: expected a multiple of {2 * self.block}, got {self.steps}")
        if self.groups % 2:
            raise ValueError(f"groups: expected an even number, got {self.groups}")

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of a prompt, and of one result in a hint."""
        plain = chain.Config(self.chain_steps, self.modulus, style="values")
        return plain.prompt_length, plain.step_length

    @property
    def task(self) -> tasks.Task:
        """The chain with the longest hint; a shorter prompt is its beginning."""
        whole = chain.Config(self.chain_steps, self.modulus, style="values", hint=self.hints)
        return tasks.compact(chain.make(whole))

    @property
    def model(self) -> posttrain.LanguageModel:
        """The model that all arms train."""
        return posttrain.rwkv7_model(
            rwkv7.Config(
                self.task.vocab_size, self.n_layer, self.n_embd, head_size=self.head_size,
                ranks=self.ranks, dtype=jnp.float32,
            )
        )  # fmt: skip

    def lengths(self, key: Key[Array, ""], hinted: Array) -> Int[Array, " N"]:
        """Tokens of prompts; where hinted, with 1 to `hints` results behind the marker."""
        plain, each = self.tokens
        given = jax.random.randint(key, hinted.shape, 1, self.hints + 1)
        return plain + jnp.where(hinted, 1 + each * given, 0)


def is_hard(config: Config, problems: chain.Problem) -> Bool[Array, " N"]:
    """Chains that start in the upper half of the numbers."""
    return 2 * problems.start >= config.modulus


def is_right(tokens: Int[Array, "B T"], solutions: Int[Array, "B T"]) -> Float[Array, " B"]:
    """1 where every number is right: one answer in ten is right by luck, after wrong steps."""
    return jnp.all(tokens == solutions, axis=1).astype(jnp.float32)


def wrong_solutions(
    key: Key[Array, ""], task: tasks.Task, modulus: int, problems: chain.Problem
) -> Int[Array, "N T"]:
    """Solutions whose every number is wrong."""
    shift = jax.random.randint(key, problems.value.shape, 1, modulus)
    wrong = problems._replace(value=(problems.value + shift) % modulus)
    return jax.vmap(task.solution)(wrong)


def make_base(config: Config) -> ensemble.Experiment:
    """Imitation of solutions, with and without hints."""
    task, model = config.task, config.model
    optimizer = rwkv7.optimizer(
        config.base_lr, 0.1 * config.base_lr, config.base_steps, weight_decay=0.0
    )

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        del hparams
        key, start = jax.random.split(key)
        params = model.init(start)
        moments = optimizer.init(params)
        return {"params": params, "optimizer": moments, "key": key, "step": jnp.int32(0)}

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], Array]:
        key, drawing, coin, luck, shifting, giving = jax.random.split(state["key"], 6)
        count = config.base_batch
        problems, prompts, _good = grpo.sample_problems(drawing, task, count, "train")
        hinted = jax.random.uniform(coin, (count,)) < config.base_hinted
        spoilt = is_hard(config, problems) & ~hinted
        spoilt &= jax.random.uniform(luck, (count,)) >= config.base_right
        spoilt &= state["step"] >= config.base_steps - config.habit_steps
        right = jax.vmap(task.solution)(problems)
        wrong = wrong_solutions(shifting, task, config.modulus, problems)
        solutions = jnp.where(spoilt[:, None], wrong, right)
        lengths = config.lengths(giving, hinted)

        def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = posttrain.completion_logits(model, params, prompts, solutions, lengths)
            return posttrain.sft_loss(logits, solutions, jnp.ones(solutions.shape))

        grads, metrics = jax.grad(loss_of, has_aux=True)(state["params"])
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        state = {"params": params, "optimizer": moments, "key": key, "step": state["step"] + 1}
        return state, metrics["nll"]

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, nll = jax.lax.scan(step, state, None, length=config.block)
        return state, {"nll": jnp.mean(nll)}

    return ensemble.Experiment(init, update)


def solver(config: Config) -> Callable[[Any, Key[Array, ""], bool], Int[Array, " N"]]:
    """(parameters, key, whether hinted) -> right completions of each held-out hard problem."""
    task, sample = config.task, sampler(config)
    plain, each = config.tokens
    # Of so many more than enough are hard.
    problems, prompts, _ = grpo.sample_problems(
        jax.random.key(11), task, 4 * config.problems, "test"
    )
    hard = jnp.flatnonzero(is_hard(config, problems))[: config.problems]
    problems, prompts = jax.tree.map(lambda leaf: leaf[hard], (problems, prompts))
    solutions = jnp.repeat(jax.vmap(task.solution)(problems), config.samples, axis=0)

    def solve(params: Any, key: Array, hinted: bool) -> Array:
        length = plain + (1 + each * config.hints if hinted else 0)
        lengths = jnp.full(config.problems, length, jnp.int32)
        sampled = sample(key, params, prompts, lengths, config.samples)
        right = is_right(sampled.tokens, solutions)
        return jnp.sum(right.reshape(-1, config.samples), axis=1).astype(jnp.int32)

    return solve


def sampler(config: Config) -> Callable[..., posttrain.Rollout]:
    task, model = config.task, config.model

    def sample(
        key: Array, params: Any, prompts: Array, lengths: Array, samples: int
    ) -> posttrain.Rollout:
        logits, state = posttrain.prefill(model, params, prompts, lengths)
        logits, state = posttrain.repeat(model, logits, state, samples)
        return posttrain.rollout(
            model, params, logits, state, key, task.solution_length, stop=task.stop
        )

    return sample


def make_bases(
    config: Config, seeds: Sequence[int], directory: Path, label: str, resume: bool, progress: bool
) -> Any:
    """Parameters of one base per seed, stacked."""
    experiment = make_base(config)
    place = directory / label
    ensemble.run(
        experiment,
        steps=config.base_steps // config.block,
        seeds=seeds,
        checkpoint=place,
        resume=resume,
        progress=progress,
        label=label,
    )
    return jax.tree.map(jnp.asarray, ensemble.states(place, experiment)["params"])

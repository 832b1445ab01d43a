"""Guidance of a language model: chains of modular arithmetic, hinted by their first results.

A small RWKV-7 has read solutions, some of them behind a hint. At the end of that nearly all were
wrong where a chain starts from a large number and there is no hint: it knows the skill and has a
bad habit, and half of the problems are hard. Its training goes on in nine ways, one compiled
program for all of them and all seeds. A step of every arm has the same number of groups: where
guidance is due, half of them are hinted groups of the other half's problems; elsewhere all are
groups of problems of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import ensemble, posttrain, rwkv7, tasks
from jaxlab.posttrain import grpo
from jaxlab.tasks import chain

if TYPE_CHECKING:
    import xarray

# Arms; the order is the meaning of `hparams["arm"]`.
ARMS = (
    "grpo",
    "filter",  # groups of equal rewards do not count
    "guide",
    "guide, constant",
    "guide, percentile",
    "guide, no ratio",
    "guide, useless",  # hints of other problems
    "always hinted",  # and trained behind the hint
    "solutions",  # failed groups see the reference solution instead
)
_GUIDED = jnp.asarray([arm.startswith("guide") or arm == "solutions" for arm in ARMS])


def _is(arm: Array, name: str) -> Array:
    return arm == ARMS.index(name)


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
    task, sample = config.task, _sampler(config)
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


def _sampler(config: Config) -> Callable[..., posttrain.Rollout]:
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


def collector(config: Config) -> Callable[[Array, Any, Array], tuple[dict, dict]]:
    """(key, parameters, arm) -> the rows of a step to learn from, and what is told of them.

    Rows have "prompts" and "lengths" of what they are trained behind, "tokens", "mask", "old"
    log-probabilities behind what they were sampled behind, "advantages", whether they are "hinted",
    and whether their ratios are to be 1 ("blind").
    """
    task, sample = config.task, _sampler(config)
    half = config.groups // 2
    second = jnp.arange(config.groups) >= half

    def per_row(x: Array) -> Array:
        return jnp.repeat(x, config.group, axis=0)

    def collect(key: Array, params: Any, arm: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        drawing, giving, sampling = jax.random.split(key, 3)
        guided = _GUIDED[arm]
        problems, prompts, good = grpo.sample_problems(drawing, task, config.groups, "train")
        own = jnp.arange(config.groups)
        source = jnp.where(guided, own % half, own)
        problems = jax.tree.map(lambda leaf: leaf[source], problems)
        prompts, good = prompts[source], good[source]
        plain, _ = config.tokens
        strange = jnp.concatenate([prompts[:, :plain], jnp.roll(prompts, 1, axis=0)[:, plain:]], 1)
        prompts = jnp.where(_is(arm, "guide, useless"), strange, prompts)
        always = _is(arm, "always hinted")
        hinted = always | (guided & second)
        lengths = config.lengths(giving, hinted)
        sampled = sample(sampling, params, prompts, lengths, config.group)
        shown = per_row(second) & _is(arm, "solutions")
        solutions = per_row(jax.vmap(task.solution)(problems))
        tokens = jnp.where(shown[:, None], solutions, sampled.tokens)
        mask = jnp.where(shown[:, None], 1.0, sampled.mask)

        rewards = is_right(tokens, solutions)
        table = rewards.reshape(-1, config.group)
        mixed = jnp.max(table, axis=1) > jnp.min(table, axis=1)
        failed = jnp.tile(posttrain.needs_guidance(table[:half]), 2)
        counts = mixed | _is(arm, "grpo")
        counts = jnp.where(guided & second, failed & (mixed | _is(arm, "solutions")), counts)
        advantages = posttrain.grpo_advantages(rewards, config.group)
        batch = {
            "prompts": prompts,
            "lengths": jnp.where(always, lengths, plain),
            "tokens": tokens,
            "mask": mask * per_row(jnp.where(counts, good, 0))[:, None],
            "old": sampled.policy_log_probs,
            "advantages": jnp.where(shown, 1.0, advantages),
            "hinted": per_row(guided & second),
            # Ratios of 1: by design, or because nothing sampled these tokens.
            "blind": (per_row(guided & second) & _is(arm, "guide, no ratio")) | shown,
        }
        return batch, {
            "reward": jnp.mean(table[:half]),
            "failed": jnp.mean(failed[:half]),
            "used": jnp.mean(counts.astype(jnp.float32)),
        }

    return collect


def failing(config: Config, params: Any, rounds: int = 16) -> Float[Array, ""]:
    """Share of the groups of a step that have no right sample."""
    collect, arm = collector(config), jnp.int32(ARMS.index("filter"))
    keys = jax.random.split(jax.random.key(0), rounds)
    return jnp.mean(jax.lax.map(lambda key: collect(key, params, arm)[1]["failed"], keys))


def make(config: Config, bases: Any) -> ensemble.Experiment:
    """One arm from one of the stacked bases; `hparams` has "base", "arm" and "lr"."""
    model, collect, solve = config.model, collector(config), solver(config)

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        params = jax.tree.map(lambda leaf: leaf[hparams["base"]], bases)
        lr = jnp.asarray(hparams["lr"], jnp.float32)
        # The same stream for all arms of a base.
        return {
            "params": params,
            "base": params,
            "optimizer": grpo.default_optimizer(lr).init(params),
            "lr": lr,
            "arm": jnp.asarray(hparams["arm"], jnp.int32),
            "key": jax.random.fold_in(key, hparams["base"]),
        }

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], dict[str, Array]]:
        key, collecting = jax.random.split(state["key"])
        arm = state["arm"]
        batch, told = collect(collecting, state["params"], arm)

        def shape(ratio: Array, counted: Array) -> Array:
            constant = posttrain.shape_ratio(ratio, counted, "constant", 0.1)
            damped = posttrain.shape_ratio(ratio, counted, "percentile", 0.9)
            shaped = jnp.where(_is(arm, "guide, constant"), constant, ratio)
            return jnp.where(_is(arm, "guide, percentile"), damped, shaped)

        def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = posttrain.completion_logits(
                model, params, batch["prompts"], batch["tokens"], batch["lengths"]
            )
            log_probs = posttrain.token_log_probs(logits, batch["tokens"])
            own = jax.lax.stop_gradient(log_probs)
            old = jnp.where(batch["blind"][:, None], own, batch["old"])
            return posttrain.guide_policy_loss(
                log_probs, old, batch["advantages"], batch["mask"], batch["hinted"], shape=shape
            )

        grads, metrics = jax.grad(loss_of, has_aux=True)(state["params"])
        transform = grpo.default_optimizer(state["lr"])
        updates, moments = transform.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, "params": params, "optimizer": moments, "key": key}, {**told, **metrics}

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, told = jax.lax.scan(step, state, None, length=config.block)
        return state, {name: jnp.mean(value) for name, value in told.items()}

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        before, after = (solve(state[name], key, False) for name in ("base", "params"))
        passes = partial(posttrain.pass_at_k, config.samples)
        told = {
            "pass_at_1": jnp.mean(passes(after, 1)),
            "pass_at_16": jnp.mean(passes(after, min(16, config.samples))),
            "base_pass_at_1": jnp.mean(passes(before, 1)),
            "base_pass_at_16": jnp.mean(passes(before, min(16, config.samples))),
        }
        for k in (4, 16):
            gain = posttrain.gain_decomposition(
                before, after, config.samples, min(k, config.samples)
            )
            told |= {f"distilled_{k}": gain.distilled, f"new_{k}": gain.new}
        return told

    return ensemble.Experiment(init, update, evaluate)


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


def train(
    config: Config,
    bases: Any,
    members: Sequence[tuple[int, int, float]],
    place: Path,
    resume: bool,
    progress: bool,
) -> xarray.Dataset:
    """Trains members (base, arm, learning rate); dims (point, step)."""
    base, arm, lr = zip(*members)
    updates = config.steps // config.block
    data = ensemble.run(
        make(config, bases),
        steps=updates,
        seeds=[0],
        points={
            "base": jnp.asarray(base, jnp.int32),
            "arm": jnp.asarray(arm, jnp.int32),
            "lr": jnp.asarray(lr, jnp.float32),
        },
        record_every=updates // 2,
        checkpoint=place,
        resume=resume,
        progress=progress,
        label=place.name,
    )
    return data.isel(seed=0, drop=True)


def run(
    config: Config,
    seeds: Sequence[int],
    tuning: Sequence[int],
    directory: Path,
    resume: bool,
    progress: bool,
) -> tuple[xarray.Dataset, dict[str, float]]:
    """All arms from the base of each seed, at the learning rate that suited each arm best.

    Returns:
        The dataset, dims (arm, seed, step), and the learning rates.
    """
    import xarray

    every = range(len(ARMS))
    go = partial(make_bases, config, directory=directory, resume=resume, progress=progress)
    bases = go(tuning, label="tuning-bases")
    tried = [(b, arm, lr) for arm in every for lr in config.rates for b in range(len(tuning))]
    found = train(config, bases, tried, directory / "tuning", resume, progress)
    score = found["pass_at_1"].values[:, -1].reshape(len(ARMS), len(config.rates), len(tuning))
    rates = [config.rates[int(i)] for i in np.nanargmax(score.mean(axis=2), axis=1)]

    bases = go(seeds, label="bases")
    solve = solver(config)
    hinted = jax.jit(jax.vmap(lambda params: solve(params, jax.random.key(0), True)))(bases)
    failed = jax.jit(jax.vmap(partial(failing, config)))(bases)
    members = [(b, arm, rates[arm]) for arm in every for b in range(len(seeds))]
    data = train(config, bases, members, directory / "arms", resume, progress)
    table: dict[str, Any] = {
        str(name): (
            ("arm", "seed", "step"),
            value.values.reshape(len(ARMS), len(seeds), -1),
        )
        for name, value in data.data_vars.items()
        if value.dims == ("point", "step")
    }
    table["base_failed"] = ("seed", np.asarray(failed))
    table["base_hinted_pass_at_1"] = ("seed", np.mean(hinted, axis=1) / config.samples)
    coords = {
        "arm": list(ARMS),
        "seed": np.asarray(seeds),
        "step": data["step"].values * config.block,
    }
    return xarray.Dataset(table, coords), dict(zip(ARMS, rates))

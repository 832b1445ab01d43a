"""Reinforcement learning on a verifiable task as an experiment: prompt, rollout, reward, update.

One update is one program without the host, and every number one may sweep is traced: an ensemble
runs seeds and hyper-parameters side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import rwkv7, tasks
from jaxlab.ensemble import Experiment
from jaxlab.posttrain import advantages as estimators
from jaxlab.posttrain.aggregation import Mode, aggregate
from jaxlab.posttrain.kl import exact_kl, kl_estimate
from jaxlab.posttrain.language_model import (
    LanguageModel,
    Params,
    completion_logits,
    prefill,
    repeat,
)
from jaxlab.posttrain.log_probs import token_entropy, token_log_probs
from jaxlab.posttrain.masking import masked_mean
from jaxlab.posttrain.pass_rates import pass_at_k
from jaxlab.posttrain.policy_losses import Level, cispo_loss, ppo_clip_loss
from jaxlab.posttrain.rollouts import Rollout, rollout

Estimator = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"]
Divergence = Literal["none", "k2", "k3", "exact"]
Surrogate = Literal["ppo", "cispo"]

# What `hparams` may hold, and what is taken where it does not; "lr" it must hold.
DEFAULTS = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "kl_coef": 0.0,
    "entropy_coef": 0.0,
    "temperature": 1.0,
}


@dataclass(frozen=True)
class Config:
    """Static choices; numbers to sweep are in `hparams`."""

    prompts: int = 16  # per step
    group: int = 8  # completions per prompt
    length: int | None = None  # most tokens of a completion; the task's longest solution if None
    estimator: Estimator = "grpo"
    surrogate: Surrogate = "ppo"
    level: Level = "token"  # of the ratio; "cispo" knows no other
    mode: Mode = "token_mean"  # of the aggregation; with "_norm" the constant is the length
    kl: Divergence = "none"  # tie to the initial policy, weighted by kl_coef
    epochs: int = 1  # passes over the samples of a step
    minibatches: int = 1  # of whole groups, per pass
    mask_truncated: bool = False  # completions without an end do not count
    shaped_reward: bool = False  # the task's own scale instead of right or wrong
    steps_per_update: int = 1  # steps in one call of `update`
    evaluation_prompts: int = 64  # test problems, the same for all
    evaluation_samples: int = 8  # completions per test problem

    def __post_init__(self) -> None:
        for name, kind in (
            ("estimator", Estimator), ("surrogate", Surrogate), ("level", Level), ("mode", Mode),
            ("kl", Divergence),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name}: expected one of {', '.join(get_args(kind))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in (
            "prompts", "group", "epochs", "minibatches", "steps_per_update",
            "evaluation_prompts", "evaluation_samples",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length: expected at least 1, got {self.length}")
        if self.surrogate == "cispo" and self.level != "token":
            raise ValueError(f'level: expected "token" with surrogate "cispo", got {self.level!r}')
        if self.prompts % self.minibatches:
            raise ValueError(
                f"minibatches: expected a divisor of prompts {self.prompts}, got {self.minibatches}"
            )


class Batch(NamedTuple):
    """Samples of one step; rows of a prompt next to each other."""

    prompts: Int[Array, "N P"]
    tokens: Int[Array, "B T"]
    mask: Float[Array, "B T"]
    log_probs: Float[Array, "B T"]  # of the policy that sampled, at its temperature
    advantages: Float[Array, "B T"]


def default_optimizer(lr: Float[Array, ""]) -> optax.GradientTransformation:
    """Adam with a constant learning rate and clipped gradients, groups as in the RWKV recipe."""
    return rwkv7.optimizer(lr, lr, 1, warmup_steps=0, weight_decay=0.0, eps=1e-8)


def sample_problems(
    key: Key[Array, ""], task: tasks.Task, count: int, split: Literal["train", "test"]
) -> tuple[Any, Int[Array, "N P"], Float[Array, " N"]]:
    """Problems of one side of the split, with their prompts.

    Args:
        key: random key.
        task: what to draw from.
        count: number of problems.
        split: "train" or "test".

    Returns:
        Problems, prompts, and 1 where the draw succeeded.
    """
    keys = jax.random.split(key, count)
    problems, good = jax.vmap(lambda k: tasks.sample_split(k, task, split))(keys)
    return problems, jax.vmap(task.prompt)(problems), good.astype(jnp.float32)


def sample_completions(
    key: Key[Array, ""],
    task: tasks.Task,
    model: LanguageModel,
    params: Params,
    problems: Any,
    prompts: Int[Array, "N P"],
    samples: int,
    length: int,
    temperature: Float[Array, ""] | float = 1.0,
) -> tuple[Rollout, Any]:
    """So many completions of every prompt.

    Args:
        key: random key.
        task: gives the end and the environment.
        model: language model.
        params: its parameters.
        problems: one per prompt.
        prompts: ids.
        samples: completions per prompt.
        length: most tokens.
        temperature: of the sampler.

    Returns:
        The rollout, and the problems, one per row.
    """
    logits, state = repeat(model, *prefill(model, params, prompts), samples)
    rows = jax.tree.map(lambda leaf: jnp.repeat(leaf, samples, axis=0), problems)
    sampled = rollout(
        model, params, logits, state, key, length, rwkv7.Sampler(temperature), stop=task.stop,
        environment=task.environment, problems=None if task.environment is None else rows,
    )  # fmt: skip
    return sampled, rows


def advantages_of(
    config: Config, rewards: Float[Array, " B"], mask: Float[Array, "B T"]
) -> Float[Array, "B T"]:
    """The configured estimator, per token.

    Args:
        config: static choices.
        rewards: one per completion; NaN for one that cannot be scored.
        mask: 1 where the policy chose the token.

    Returns:
        Advantages.
    """
    if config.estimator == "reinforce_pp":
        return estimators.reinforce_pp_advantages(estimators.terminal_rewards(rewards, mask), mask)
    estimate = {
        "grpo": estimators.grpo_advantages,
        "dr_grpo": estimators.dr_grpo_advantages,
        "rloo": estimators.rloo_advantages,
    }[config.estimator]
    return jnp.broadcast_to(estimate(rewards, config.group)[:, None], mask.shape)


def make(
    task: tasks.Task,
    model: LanguageModel,
    start: Callable[[Key[Array, ""], Mapping[str, Array]], Params],
    config: Config = Config(),
    optimizer: Callable[[Float[Array, ""]], optax.GradientTransformation] = default_optimizer,
) -> Experiment:
    """Reinforcement learning of one model on one task.

    Args:
        task: gives problems and rewards; over the ids of the model.
        model: language model.
        start: (key, hparams) -> parameters to start from, for example pre-trained ones.
        config: static choices.
        optimizer: learning rate -> optimiser.

    Returns:
        An experiment. `hparams` holds "lr", and any of `DEFAULTS`. An update reports the means of
        its steps: "reward", "pass_at_group", "entropy", "length", "truncated", "degenerate" (share
        of groups of equal rewards), "clip_fraction", "grad_norm", "kl" (to the start; 0 if not
        asked for) and "mismatch" (the largest difference between the sampler's log-probabilities
        and the trainer's before the first gradient step). An evaluation reports "test_pass_at_1",
        "test_pass_at_n", "test_entropy" and "test_length".

    Raises:
        ValueError: a task over other ids than the model's.

    Reference: Shao et al. 2024, DeepSeekMath (GRPO); Yu et al. 2025, DAPO.

    Pitfall: the surrogate's value is near zero by construction; it is not reported.
    """
    if task.vocab_size != model.vocab_size:
        raise ValueError(
            f"task: expected {model.vocab_size} ids as the model has, got {task.vocab_size}"
        )
    length = config.length or task.solution_length
    norm = float(length) if config.mode == "seq_mean_token_sum_norm" else None
    reward_of = task.reward if config.shaped_reward else task.outcome

    def init(key: Array, hparams: Mapping[str, Array]) -> dict[str, Any]:
        key, first = jax.random.split(key)
        params = start(first, hparams)
        numbers = {k: jnp.asarray(v, jnp.float32) for k, v in {**DEFAULTS, **hparams}.items()}
        state = {
            "params": params,
            "optimizer": optimizer(numbers["lr"]).init(params),
            "key": key,
            "hparams": numbers,
        }
        return state if config.kl == "none" else {**state, "reference": params}

    def divergence_of(logits: Array, reference: Array, tokens: Array, temperature: Array) -> Array:
        if config.kl == "exact":
            return exact_kl(logits / temperature, reference / temperature)
        ours, theirs = (token_log_probs(x, tokens, temperature) for x in (logits, reference))
        # k2 and k3 by name; their gradients are those of the two directions of the divergence.
        return kl_estimate(ours, theirs, "k2" if config.kl == "k2" else "k3")

    def loss_of(
        params: Params, batch: Batch, reference: Params | None, numbers: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        temperature = numbers["temperature"]
        logits = completion_logits(model, params, batch.prompts, batch.tokens)
        log_probs = token_log_probs(logits, batch.tokens, temperature)
        arguments = (log_probs, batch.log_probs, batch.advantages, batch.mask)
        if config.surrogate == "ppo":
            loss, metrics = ppo_clip_loss(
                *arguments, clip_low=numbers["clip_low"], clip_high=numbers["clip_high"],
                level=config.level, mode=config.mode, norm=norm,
            )  # fmt: skip
        else:
            loss, metrics = cispo_loss(
                *arguments, ratio_limit=1 + numbers["clip_high"], mode=config.mode, norm=norm
            )
        entropy = token_entropy(logits, temperature)
        loss = loss - numbers["entropy_coef"] * aggregate(entropy, batch.mask, config.mode, norm)
        kl = jnp.zeros(())
        if reference is not None:
            anchor = completion_logits(model, reference, batch.prompts, batch.tokens)
            per_token = divergence_of(logits, anchor, batch.tokens, temperature)
            loss = loss + numbers["kl_coef"] * aggregate(per_token, batch.mask, config.mode, norm)
            kl = masked_mean(per_token, batch.mask)
        gap = jnp.where(batch.mask > 0, jnp.abs(log_probs - batch.log_probs), 0)
        return loss, {
            "clip_fraction": metrics["clip_fraction"],
            "kl": jax.lax.stop_gradient(kl),
            "mismatch": jax.lax.stop_gradient(jnp.max(gap)),
        }

    def collect(key: Array, params: Params, temperature: Array) -> tuple[Batch, dict[str, Array]]:
        drawing, sampling = jax.random.split(key)
        problems, prompts, good = sample_problems(drawing, task, config.prompts, "train")
        sampled, rows = sample_completions(
            sampling, task, model, params, problems, prompts, config.group, length, temperature
        )
        rewards = jax.vmap(reward_of)(rows, sampled.tokens)
        right = jax.vmap(task.outcome)(rows, sampled.tokens).reshape(-1, config.group)
        mask = sampled.mask * jnp.repeat(good, config.group)[:, None]
        if config.mask_truncated:
            mask = jnp.where(sampled.truncated[:, None], 0, mask)
        advantages = advantages_of(config, rewards, mask)
        batch = Batch(prompts, sampled.tokens, mask, sampled.policy_log_probs, advantages)
        table = rewards.reshape(-1, config.group)
        equal = jnp.max(table, axis=1) - jnp.min(table, axis=1) <= 1e-6
        return batch, {
            "reward": jnp.mean(rewards),
            "pass_at_group": jnp.mean(jnp.max(right, axis=1)),
            "entropy": masked_mean(sampled.entropy, sampled.mask),
            "length": jnp.mean(sampled.length.astype(jnp.float32)),
            "truncated": jnp.mean(sampled.truncated.astype(jnp.float32)),
            "degenerate": jnp.mean(equal.astype(jnp.float32)),
        }

    def pieces(key: Array, batch: Batch) -> Batch:
        """All passes over a batch, cut into minibatches of whole groups."""
        if config.epochs == config.minibatches == 1:
            return jax.tree.map(lambda leaf: leaf[None], batch)
        keys = jax.random.split(key, config.epochs)
        orders = jax.vmap(lambda k: jax.random.permutation(k, config.prompts))(keys)
        orders = orders.reshape(config.epochs * config.minibatches, -1)

        def take(leaf: Array) -> Array:
            groups = leaf.reshape(config.prompts, -1, leaf.shape[-1])[orders]
            return groups.reshape(orders.shape[0], -1, leaf.shape[-1])

        return jax.tree.map(take, batch)

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], dict[str, Array]]:
        key, collecting, shuffling = jax.random.split(state["key"], 3)
        numbers = state["hparams"]
        batch, metrics = collect(collecting, state["params"], numbers["temperature"])
        transform = optimizer(numbers["lr"])

        def learn(carry: tuple[Params, Any], piece: Batch) -> tuple[Any, dict[str, Array]]:
            params, moments = carry
            slope = jax.grad(loss_of, has_aux=True)
            grads, told = slope(params, piece, state.get("reference"), numbers)
            updates, moments = transform.update(grads, moments, params)
            told["grad_norm"] = optax.tree.norm(grads)
            return (optax.apply_updates(params, updates), moments), told

        (params, moments), told = jax.lax.scan(
            learn, (state["params"], state["optimizer"]), pieces(shuffling, batch)
        )
        mismatch = told.pop("mismatch")[0]
        metrics |= {name: jnp.mean(value) for name, value in told.items()}
        metrics["mismatch"] = mismatch
        return {**state, "params": params, "optimizer": moments, "key": key}, metrics

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, metrics = jax.lax.scan(step, state, None, length=config.steps_per_update)
        return state, {name: jnp.mean(value) for name, value in metrics.items()}

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        # The same problems for every member and at every time.
        problems, prompts, _ = sample_problems(
            jax.random.key(0, impl="threefry2x32"), task, config.evaluation_prompts, "test"
        )
        samples = config.evaluation_samples
        sampled, rows = sample_completions(
            key, task, model, state["params"], problems, prompts, samples, length
        )
        right = jax.vmap(task.outcome)(rows, sampled.tokens).reshape(-1, samples)
        count = jnp.sum(right, axis=1).astype(jnp.int32)
        return {
            "test_pass_at_1": jnp.mean(right),
            "test_pass_at_n": jnp.mean(pass_at_k(samples, count, samples)),
            "test_entropy": masked_mean(sampled.entropy, sampled.mask),
            "test_length": jnp.mean(sampled.length.astype(jnp.float32)),
        }

    return Experiment(init, update, evaluate)

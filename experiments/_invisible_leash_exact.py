"""The leash without a network: a table of logits for every prompt, all expectations exact.

What a softmax policy gradient does to the right completions of a prompt is known: of two of them
the likelier one gains on the other, d log(p_a / p_b) / dt = (p_a - p_b)(1 - J), whereas the natural
gradient, which is the tilt of the KL-regularised optimum, keeps their ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import ensemble, posttrain

if TYPE_CHECKING:
    import xarray

ARMS = ("grpo", "exact gradient", "tilt")


@dataclass(frozen=True)
class Config:
    """Sizes of the tables."""

    prompts: int = 64
    completions: int = 64
    most_correct: int = 8  # 1 to so many are right
    spread: float = 2.0  # standard deviation of the base's logits
    group: int = 8
    steps: int = 400
    lr: float = 1.0
    tilt_rate: float = 0.02  # of the natural gradient, per step
    passes: int = 256  # k of pass@k
    threshold: float = 1 / 256  # what counts as reached


@flax.struct.dataclass
class State:
    """One table in training."""

    key: Key[Array, ""]
    base: Float[Array, "N C"]  # logits
    logits: Float[Array, "N C"]
    correct: Bool[Array, "N C"]
    arm: Int[Array, ""]


def make(config: Config) -> ensemble.Experiment:
    """One update is one step; `hparams` holds the arm's place in `ARMS`."""
    shape = (config.prompts, config.completions)

    def init(key: Array, hparams: Any) -> State:
        key, logits_key, order_key, count_key = jax.random.split(key, 4)
        base = config.spread * jax.random.normal(logits_key, shape)
        order = jnp.argsort(jax.random.uniform(order_key, shape), axis=1)
        count = jax.random.randint(count_key, (config.prompts, 1), 1, config.most_correct + 1)
        return State(key, base, base, order < count, jnp.asarray(hparams["arm"], jnp.int32))

    def gain(logits: Array, correct: Array) -> Array:
        """Sum over the prompts of the probability to be right."""
        return jnp.sum(jnp.where(correct, jax.nn.softmax(logits, axis=1), 0))

    def sampled(key: Array, state: State) -> Array:
        """Gradient of GRPO's objective on one group per prompt."""
        draws = jax.random.categorical(key, state.logits[:, None], shape=(shape[0], config.group))
        rewards = jnp.take_along_axis(state.correct, draws, axis=1).astype(jnp.float32)
        advantages = posttrain.grpo_advantages(rewards.reshape(-1), config.group)

        def objective(logits: Array) -> Array:
            log_p = jax.nn.log_softmax(logits, axis=1)
            chosen = jnp.take_along_axis(log_p, draws, axis=1).reshape(-1, 1)
            loss, _ = posttrain.reinforce_loss(chosen, advantages, jnp.ones_like(chosen))
            return -shape[0] * loss

        return jax.grad(objective)(state.logits)

    def update(state: State) -> tuple[State, dict[str, Array]]:
        key, draw = jax.random.split(state.key)
        moves = (
            config.lr * sampled(draw, state),
            config.lr * jax.grad(gain)(state.logits, state.correct),
            config.tilt_rate * state.correct.astype(jnp.float32),
        )
        logits = state.logits + jnp.stack(moves)[state.arm]
        return replace(state, key=key, logits=logits), {"mass": gain(logits, state.correct)}

    def evaluate(state: State, key: Array) -> dict[str, Array]:
        del key
        base, trained = (jax.nn.softmax(x, axis=1) for x in (state.base, state.logits))
        return measures(base, trained, state.correct, config.passes, config.threshold)

    return ensemble.Experiment(init, update, evaluate)


def measures(
    base: Float[Array, "N C"],
    trained: Float[Array, "N C"],
    correct: Bool[Array, "N C"],
    passes: int,
    threshold: float,
) -> dict[str, Float[Array, ""]]:
    """What is compared, from exact probabilities of listed completions.

    Args:
        base: probabilities before training; they may sum to less than 1.
        trained: after training.
        correct: which completions are right.
        passes: k of pass@k.
        threshold: what counts as reached.

    Returns:
        pass@1 and pass@k of both, retention and net change of completions and of problems, and the
        entropy over right answers of both.
    """
    told = {}
    for name, p in (("base", base), ("trained", trained)):
        mass = jnp.sum(jnp.where(correct, p, 0), axis=1)
        told[f"{name}_pass_at_1"] = jnp.mean(mass)
        told[f"{name}_pass_at_k"] = jnp.mean(posttrain.exact_pass_at_k(mass, passes))
        share = jnp.where(correct, p, 0) / jnp.where(mass > 0, mass, 1)[:, None]
        log_share = jnp.log(jnp.where(share > 0, share, 1))
        told[f"{name}_answer_entropy"] = -jnp.mean(jnp.sum(share * log_share, axis=1))
    for level in ("completion", "problem"):
        counts = posttrain.support_counts(base, trained, correct, threshold, level)
        ratios = posttrain.support_metrics(counts)
        told[f"{level}_retention"] = ratios.retention
        told[f"{level}_net_change"] = ratios.net_change
        told[f"{level}_shrunk"] = counts.shrunk.astype(jnp.float32)
        told[f"{level}_expanded"] = counts.expanded.astype(jnp.float32)
    return told


def run(
    config: Config, seeds: Sequence[int], directory: Path, resume: bool, progress: bool
) -> xarray.Dataset:
    """All arms on all seeds; dims (arm, seed, step)."""
    data = ensemble.run(
        make(config),
        steps=config.steps,
        seeds=seeds,
        grid={"arm": list(range(len(ARMS)))},
        record_every=config.steps // 10,
        checkpoint=directory / "exact",
        resume=resume,
        progress=progress,
        label="exact",
    )
    return data.assign_coords(arm=list(ARMS))

"""Guidance without a network: tables of logits for every prompt and position.

The right text of a prompt has one symbol per position. In the hard half of the prompts the first
two are so unlikely that a group seldom has a right sample; a hint makes them likely. What a table
can do is the exact probability of the right texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, posttrain

if TYPE_CHECKING:
    import xarray

ARMS = ("grpo", "guide", "guide, percentile", "guide, no ratio")


@dataclass(frozen=True)
class Config:
    """Sizes of the tables."""

    prompts: int = 48  # the second half is hard
    positions: int = 4
    symbols: int = 6
    likely: float = 2.0  # logit of a right symbol
    unlikely: float = -2.5  # of the first two in hard prompts
    hint: float = 4.0  # what a hint adds to those
    group: int = 8
    steps: int = 400
    block: int = 20
    lr: float = 1.0


@flax.struct.dataclass
class State:
    """One table in training; the right symbol is always the first."""

    key: Key[Array, ""]
    logits: Float[Array, "N P S"]
    arm: Int[Array, ""]


def make(config: Config) -> ensemble.Experiment:
    """One update is a block of steps; `hparams` holds the arm's place in `ARMS`."""
    half, count = config.prompts // 2, config.prompts * config.group
    hinted = jnp.arange(2 * count) >= count

    def init(key: Array, hparams: Any) -> State:
        right = jnp.full((config.prompts, config.positions), config.likely)
        right = right.at[half:, :2].set(config.unlikely)
        logits = jnp.zeros((*right.shape, config.symbols)).at[:, :, 0].set(right)
        return State(key, logits, jnp.asarray(hparams["arm"], jnp.int32))

    def with_hint(logits: Array) -> Array:
        return logits.at[half:, :2, 0].add(config.hint)

    def texts(key: Array, logits: Array) -> tuple[Array, Array]:
        """A group per prompt: symbols [N G, P] and their log-probabilities."""
        rows = jnp.repeat(logits, config.group, axis=0)
        symbols = jax.random.categorical(key, rows)
        return symbols, posttrain.token_log_probs(rows, symbols)

    def step(state: State, _: None) -> tuple[State, None]:
        key, plain_key, hint_key = jax.random.split(state.key, 3)
        plain, plain_old = texts(plain_key, state.logits)
        helped, helped_old = texts(hint_key, with_hint(state.logits))
        symbols = jnp.concatenate([plain, helped])
        rewards = jnp.all(symbols == 0, axis=1).astype(jnp.float32)
        failed = posttrain.needs_guidance(rewards[:count].reshape(-1, config.group))
        use = jnp.concatenate([jnp.ones(config.prompts, bool), failed & (state.arm > 0)])
        mask = jnp.broadcast_to(
            jnp.repeat(use.astype(jnp.float32), config.group)[:, None], symbols.shape
        )
        advantages = posttrain.grpo_advantages(rewards, config.group)

        def shape(ratio: Array, counted: Array) -> Array:
            damped = posttrain.shape_ratio(ratio, counted, "percentile", 0.9)
            return jnp.where(state.arm == 2, damped, ratio)

        def loss_of(logits: Array) -> Array:
            rows = jnp.repeat(logits, config.group, axis=0)
            log_probs = posttrain.token_log_probs(jnp.concatenate([rows, rows]), symbols)
            old = jnp.concatenate([plain_old, helped_old])
            blind = hinted[:, None] & (state.arm == 3)
            old = jnp.where(blind, jax.lax.stop_gradient(log_probs), old)
            loss, _ = posttrain.guide_policy_loss(
                log_probs, old, advantages, mask, hinted, shape=shape
            )
            return loss * jnp.sum(mask) / config.group  # a mean per group, summed over groups

        slope = jax.grad(loss_of)(state.logits)
        return replace(state, key=key, logits=state.logits - config.lr * slope), None

    def update(state: State) -> tuple[State, dict[str, Array]]:
        state, _ = jax.lax.scan(step, state, None, length=config.block)
        success = jnp.prod(jax.nn.softmax(state.logits, axis=-1)[:, :, 0], axis=1)
        return state, {"easy": jnp.mean(success[:half]), "hard": jnp.mean(success[half:])}

    return ensemble.Experiment(init, update)


def run(
    config: Config, seeds: Sequence[int], directory: Path, resume: bool, progress: bool
) -> xarray.Dataset:
    """All arms on all seeds; dims (arm, seed, step)."""
    data = ensemble.run(
        make(config),
        steps=config.steps // config.block,
        seeds=seeds,
        grid={"arm": list(range(len(ARMS)))},
        checkpoint=directory / "exact",
        resume=resume,
        progress=progress,
        label="exact",
    )
    steps = {"arm": list(ARMS), "step": data["step"].values * config.block}
    return data.assign_coords(steps)

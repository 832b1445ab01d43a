"""Sampling completions as one program: a scan over tokens with a state of constant size."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import rwkv7
from jaxlab.posttrain.language_model import LanguageModel, Params, State, active_lengths
from jaxlab.posttrain.log_probs import token_entropy, token_log_probs
from jaxlab.tasks import Environment
from jaxlab.tasks.vocabulary import PAD


class Rollout(NamedTuple):
    """What was sampled; everything is 0 behind the stop token."""

    tokens: Int[Array, "B T"]
    mask: Float[Array, "B T"]  # 1 where the policy chose the token, its stop token included
    behavior_log_probs: Float[Array, "B T"]  # under the filtered distribution drawn from
    policy_log_probs: Float[Array, "B T"]  # at the sampler's temperature, unfiltered
    entropy: Float[Array, "B T"]  # of the policy at the sampler's temperature
    length: Int[Array, " B"]  # tokens up to and including the stop token, forced ones too
    truncated: Bool[Array, " B"]  # no stop token
    logits: Float[Array, "B V"]  # of the next token; stale in rows that have stopped
    state: State  # behind the last token


class Snapshots(NamedTuple):
    """Where every position could be gone on from; leaves lead with T."""

    logits: Float[Array, "T B V"]
    state: State


class _Carry(NamedTuple):
    logits: Array
    state: State
    done: Array
    environment: Any
    forced: Array


def rollout(
    model: LanguageModel,
    params: Params,
    logits: Float[Array, "B V"],
    state: State,
    key: Key[Array, ""],
    length: int,
    sampler: rwkv7.Sampler = rwkv7.Sampler(),
    *,
    stop: int | Int[Array, ""],
    rows: Int[Array, " B"] | None = None,
    start: int | Int[Array, ""] = 0,
    environment: Environment | None = None,
    problems: Any = None,
    early_exit: bool = False,
) -> Rollout:
    """Samples completions from logits and a state (`prefill`, `repeat`, or a snapshot).

    A row's randomness depends on the key, its id and the position alone, so that its sample is the
    same in any batch, order and sharding, and inside of a vmap.

    Args:
        model: language model.
        params: its parameters.
        logits: of the first token.
        state: that gave them.
        key: random key.
        length: most tokens to sample, T.
        sampler: temperature, top-k, top-p; traced. Filters bias a trainer that does not know them,
            so leave them off for training.
        stop: id that ends a completion.
        rows: ids of the rows; 0, ..., B - 1 if None.
        start: number of tokens sampled before.
        environment: writes tokens itself; they have mask 0 and log-probability 0, and move the
            state.
        problems: one per row, for the environment.
        early_exit: stop as soon as all rows have: faster outside of vmap, and not differentiable.

    Returns:
        Tokens and what is known of them.
    """
    sampled, _ = _run(
        model, params, logits, state, key, length, sampler, stop, rows, start, environment,
        problems, early_exit, False,
    )  # fmt: skip
    return sampled


def rollout_with_snapshots(
    model: LanguageModel,
    params: Params,
    logits: Float[Array, "B V"],
    state: State,
    key: Key[Array, ""],
    length: int,
    sampler: rwkv7.Sampler = rwkv7.Sampler(),
    *,
    stop: int | Int[Array, ""],
    rows: Int[Array, " B"] | None = None,
    start: int | Int[Array, ""] = 0,
    environment: Environment | None = None,
    problems: Any = None,
) -> tuple[Rollout, Snapshots]:
    """`rollout` that also keeps the state behind every token, to branch from.

    Args:
        model: see `rollout`.
        params: see `rollout`.
        logits: see `rollout`.
        state: see `rollout`.
        key: see `rollout`.
        length: see `rollout`.
        sampler: see `rollout`.
        stop: see `rollout`.
        rows: see `rollout`.
        start: see `rollout`.
        environment: see `rollout`.
        problems: see `rollout`.

    Returns:
        The rollout, and logits and state behind token t; T times the memory of a state.
    """
    return _run(
        model, params, logits, state, key, length, sampler, stop, rows, start, environment,
        problems, False, True,
    )  # fmt: skip


def _run(
    model: LanguageModel,
    params: Params,
    logits: Array,
    state: State,
    key: Array,
    length: int,
    sampler: rwkv7.Sampler,
    stop: int | Array,
    rows: Array | None,
    start: int | Array,
    environment: Environment | None,
    problems: Any,
    early_exit: bool,
    keep: bool,
) -> tuple[Rollout, Any]:
    if length < 1:
        raise ValueError(f"length: expected at least 1, got {length}")
    if (environment is None) != (problems is None):
        raise ValueError("environment, problems: expected both or none, got one")
    batch = logits.shape[0]
    rows = jnp.arange(batch) if rows is None else rows
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    temperature = jnp.asarray(sampler.temperature, jnp.float32)
    # At temperature 0 the policy is compared at temperature 1.
    temperature = jnp.where(temperature > 0, temperature, 1.0)
    outside, forced = None, jnp.full(batch, -1, jnp.int32)
    if environment is not None:
        outside, forced = jax.vmap(environment.start)(problems)

    def step(carry: _Carry, position: Array) -> tuple[_Carry, dict[str, Array]]:
        keys = jax.vmap(lambda k: jax.random.fold_in(k, position))(row_keys)
        draw = jax.vmap(rwkv7.sample, in_axes=(0, 0, None))
        drawn, behavior = draw(keys, carry.logits, sampler)
        active, free = ~carry.done, carry.forced < 0
        chosen = active & free
        token = jnp.where(free, drawn, carry.forced)
        token = jnp.where(active, token, PAD).astype(jnp.int32)
        out = {
            "tokens": token,
            "mask": chosen.astype(jnp.float32),
            "behavior_log_probs": jnp.where(chosen, behavior, 0),
            "policy_log_probs": jnp.where(
                chosen, token_log_probs(carry.logits, token, temperature), 0
            ),
            "entropy": jnp.where(chosen, token_entropy(carry.logits, temperature), 0),
            "active": active,
        }
        outside, forced = carry.environment, carry.forced
        if environment is not None:
            outside, forced = jax.vmap(environment.step)(outside, token)
        after, moved = model.extend(params, carry.state, token[:, None], active_lengths(active))
        done = carry.done | (active & (token == stop))
        return _Carry(after[:, 0], moved, done, outside, forced), out

    carry = _Carry(logits, state, jnp.zeros(batch, bool), outside, forced)
    positions = jnp.asarray(start, jnp.int32) + jnp.arange(length)
    kept = None
    if early_exit:
        carry, out = _until_all_stop(step, carry, positions)
    elif keep:

        def keeping(carry: _Carry, position: Array) -> tuple[_Carry, Any]:
            carry, out = step(carry, position)
            return carry, (out, Snapshots(carry.logits, carry.state))

        carry, (out, kept) = jax.lax.scan(keeping, carry, positions)
    else:
        carry, out = jax.lax.scan(step, carry, positions)
    out = {name: value.T for name, value in out.items()}
    spent = jnp.sum(out.pop("active"), axis=1)
    return Rollout(
        **out, length=spent, truncated=~carry.done, logits=carry.logits, state=carry.state
    ), kept


def _until_all_stop(step: Any, carry: _Carry, positions: Array) -> tuple[_Carry, dict[str, Array]]:
    """A scan that ends early; what was not reached is zero."""
    shapes = jax.eval_shape(step, carry, positions[0])[1]
    size = positions.shape[0]
    table = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def body(loop: tuple[Array, _Carry, Any]) -> tuple[Array, _Carry, Any]:
        place, carry, table = loop
        carry, out = step(carry, positions[place])
        return place + 1, carry, jax.tree.map(lambda all_, x: all_.at[place].set(x), table, out)

    def going(loop: tuple[Array, _Carry, Any]) -> Array:
        return (loop[0] < size) & ~jnp.all(loop[1].done)

    _, carry, table = jax.lax.while_loop(going, body, (jnp.int32(0), carry, table))
    return carry, table


def step_ends(
    tokens: Int[Array, "B T"], separator: int, stop: int, capacity: int
) -> Int[Array, "B S"]:
    """Where the steps of completions end, for heads that are read there.

    Args:
        tokens: completions.
        separator: id that ends a step.
        stop: id that ends a completion, and with it the last step.
        capacity: steps to report, S.

    Returns:
        Positions, T where there is no such step.
    """
    size = tokens.shape[1]
    stopped = jnp.cumsum(tokens == stop, axis=1)
    ends = ((tokens == separator) & (stopped == 0)) | ((tokens == stop) & (stopped == 1))
    count = jnp.cumsum(ends, axis=1)
    wanted = jnp.arange(1, capacity + 1)[None, :, None]
    found = jnp.sum(count[:, None, :] < wanted, axis=2)
    return jnp.minimum(found, size).astype(jnp.int32)

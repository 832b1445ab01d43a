"""Exact value iteration of an ensemble of tables in which some states are never updated."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlab.values.arrays import at_least_float32


def partial_value_iteration(
    q: Float[Array, "N S A"],
    following: Int[Array, "S A"],
    reward: Float[Array, "S A"],
    discount: ArrayLike,
    updated: Bool[Array, " S"],
    sweeps: int,
    *,
    critics: ArrayLike | None = None,
    known_value: Float[Array, " S"] | None = None,
    known: Bool[Array, " S"] | None = None,
) -> Float[Array, "N S A"]:
    """Synchronous backups Q_n(s, a) <- r + gamma max_a' min_m Q_m(s', a') of the updated states.

    Args:
        q: tables of N critics before the first sweep; what stands there for the other states stays.
        following: next state of every state and action.
        reward: reward of every state and action.
        discount: gamma.
        updated: states whose rows change.
        sweeps: number of backups of all updated states.
        critics: how many of the tables, from the first, take part in the minimum (traced); None
            for all.
        known_value: values to bootstrap from instead of the tables', where `known` holds.
        known: states with a known value; together with `known_value`.

    Returns:
        The tables after the last sweep.

    Raises:
        ValueError: if only one of `known_value` and `known` is given.

    Reference:
        Sims et al. 2024 (The Edge-of-Reach Problem), section 4: a state that is bootstrapped from
        and never updated keeps its error for ever, and the maximum over actions seeks it out.
    """
    if (known_value is None) != (known is None):
        raise ValueError(
            "known: expected together with known_value, got "
            f"known={known is not None}, known_value={known_value is not None}"
        )
    q, reward, discount = at_least_float32(q, reward, discount)

    def sweep(_: Array, q: Array) -> Array:
        value = jnp.max(pessimistic(q, critics), axis=-1)
        if known_value is not None and known is not None:
            value = jnp.where(known, known_value, value)
        backup = reward + discount * value[following]
        return jnp.where(updated[None, :, None], backup[None], q)

    return jax.lax.fori_loop(0, sweeps, sweep, q)


def pessimistic(q: Float[Array, "N *b"], critics: ArrayLike | None = None) -> Float[Array, "*b"]:
    """Least of the first `critics` tables.

    Args:
        q: tables.
        critics: how many of them count, at least 1 (traced); None for all.

    Returns:
        The minimum.
    """
    if critics is None:
        return jnp.min(q, axis=0)
    counts = jnp.arange(q.shape[0]) < critics
    return jnp.min(q, axis=0, where=counts.reshape(-1, *[1] * (q.ndim - 1)), initial=jnp.inf)

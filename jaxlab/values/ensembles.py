"""Targets and penalties for ensembles of action-value functions; members are the leading axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from jaxlab.arrays import safe_sqrt
from jaxlab.values.arrays import at_least_float32, hide, masked_mean, maybe_stop

_EPS = 1e-12


def ensemble_min_target(
    q_next: Num[Array, "E *b"],
    subset: int | None = None,
    key: Key[Array, ""] | None = None,
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """Pessimistic value: the least of all members, or of some drawn at random.

    Args:
        q_next: every member's value of the next state and action.
        subset: number of members to draw without replacement, one draw for all rows; None for all.
        key: random key, with `subset` and only with it.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Values, at least float32.

    Raises:
        ValueError: if `subset` is not 1 to E, or `key` is missing or superfluous.

    Reference:
        Fujimoto et al. 2018 (TD3) for all; Chen et al. 2021 (REDQ; 2 of 10) for a subset.
    """
    (q_next,) = at_least_float32(q_next)
    members = q_next.shape[0]
    if (subset is None) != (key is None):
        raise ValueError(f"key: expected together with subset, got subset={subset}, key={key}")
    if subset is not None and key is not None:
        if not 1 <= subset <= members:
            raise ValueError(f"subset: expected 1 to {members} members, got {subset}")
        q_next = q_next[jax.random.permutation(key, members)[:subset]]
    return maybe_stop(jnp.min(q_next, axis=0), stop_target_gradients)


def ensemble_lcb(q: Num[Array, "E *b"], beta: ArrayLike) -> Float[Array, "*b"]:
    """Lower confidence bound: mean - beta std over members.

    Args:
        q: every member's value.
        beta: number of (population) standard deviations.

    Returns:
        Values, at least float32. Differentiable also where the members agree.

    Reference:
        Ghasemipour et al. 2022 (MSG); Buckman et al. 2018 for the population estimate.

    Pitfall:
        The derivative of a plain square root is infinite where all members agree.
    """
    q, beta = at_least_float32(q, beta)
    variance = jnp.var(q, axis=0)
    return jnp.mean(q, axis=0) - beta * safe_sqrt(variance)


def gradient_diversity(gradients: Float[Array, "N *b a"]) -> Float[Array, "*b"]:
    """How much the members' action gradients point the same way.

    Args:
        gradients: grad_a Q_n(s, a) of N members, at least two.

    Returns:
        sum_{m != n} cos(g_m, g_n) / (N - 1), from -N / (N - 1) to N (identical members). It does
        not change if a member is scaled by a positive number; a zero gradient has cosine 0.

    Raises:
        ValueError: if there is only one member.

    Reference:
        An et al. 2021 (EDAC), eq. 5.

    Pitfall:
        The derivative of |g| at g = 0 is NaN; the squared norm gets its 1e-12 inside of the root.
    """
    members = gradients.shape[0]
    if members < 2:
        raise ValueError(f"gradients: expected at least two members, got {members}")
    (gradients,) = at_least_float32(gradients)
    square = jnp.sum(gradients**2, axis=-1, keepdims=True)
    unit = gradients * jax.lax.rsqrt(square + _EPS)
    # |sum_n u_n|^2 holds every pair twice, and every member with itself.
    together = jnp.sum(jnp.sum(unit, axis=0) ** 2, axis=-1)
    alone = jnp.sum(unit**2, axis=(0, -1))
    return (together - alone) / (members - 1)


def diversity_penalty(
    q_fn: Callable[[Float[Array, " o"], Float[Array, " a"]], Float[Array, " N"]],
    obs: Float[Array, "B o"],
    action: Float[Array, "B a"],
    mask: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Mean `gradient_diversity` of critics at the batch's states and actions.

    Args:
        q_fn: one row's state and action -> value of every critic; differentiable twice.
        obs: states.
        action: the actions that were taken.
        mask: rows that count; None for all.

    Returns:
        The penalty, to be added with a weight to the sum of the critics' losses.

    Reference:
        An et al. 2021 (EDAC), eq. 5.
    """
    obs, action = hide(mask, obs, action)
    gradients = jax.vmap(jax.jacrev(q_fn, argnums=1))(obs, action)
    return masked_mean(gradient_diversity(jnp.swapaxes(gradients, 0, 1)), mask)

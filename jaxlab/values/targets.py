"""Multi-step targets of state values along one trajectory.

Conventions of all targets in this package: action a_t in state s_t gives r_t and the discount
d_t = gamma (1 - terminated_t); v_t = V(s_t) and v'_t = V(s_{t+1}) are two arrays, because after a
reset s_{t+1} of one step is not s_t of the next. A time limit is not an end: it bootstraps
(d_t = gamma) and sets cut_t = 1, which stops the recursion after t. Arrays are time first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from jaxlab.values.arrays import (
    at_least_float32,
    check_same_shape,
    check_trajectory,
    maybe_stop,
    per_step,
)
from jaxlab.values.recursion import Backend, affine_reverse_scan


class VTraceTargets(NamedTuple):
    """What V-trace gives to the critic and to the actor."""

    value: Float[Array, "T *b"]  # vs_t, the target of V(s_t)
    advantage: Float[Array, "T *b"]  # weight of grad log pi(a_t | s_t), already with its ratio


def td0_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    v_next: Num[Array, "*b"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """One-step target r + d v'.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        v_next: values of the next states.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Targets, at least float32.

    Raises:
        ValueError: if shapes differ; the discount may be a scalar.

    Pitfall:
        Rewards [B] and values [B, 1] would broadcast to targets [B, B].
    """
    r, discount, v_next = at_least_float32(r, discount, v_next)
    check_same_shape(r=r, v_next=v_next)
    discount = per_step("discount", discount, r)
    return maybe_stop(r + discount * v_next, stop_target_gradients)


def n_step_target(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    v_next: Num[Array, "T *b"],
    n: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """Sum of at most n discounted rewards and the discounted value after them.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        v_next: values of the next states.
        n: steps, at least 1; may be traced. Fewer are taken where the window ends or is cut.
        cut: 1 where the sum stops after this step (time limits); None for nowhere.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        G_t = sum_{i<m} (prod_{j<i} d_{t+j}) r_{t+i} + (prod_{j<m} d_{t+j}) v'_{t+m-1}, with m the
        least of n, the steps to the window's end and those to the first cut (inclusive).

    Raises:
        ValueError: if shapes differ or `n` is a number below 1.

    Reference:
        Sutton & Barto 2018, eq. 7.1.
    """
    r, discount, v_next = at_least_float32(r, discount, v_next)
    check_trajectory(r=r, discount=discount, v_next=v_next)
    if isinstance(n, (int, np.integer)) and n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    steps = r.shape[0]
    n = jnp.clip(jnp.asarray(n, jnp.int32), 1, steps)
    stop = _cut(cut, r).at[-1].set(1)
    # Windows of 2^k steps as affine maps x -> summand + factor x, composed by the bits of n; a stop
    # makes the map a constant, so that what follows it no longer counts.
    factor, summand = discount * (1 - stop), r + discount * stop * v_next
    total_factor, total_summand = jnp.ones_like(r), jnp.zeros_like(r)
    index = jnp.arange(steps, dtype=jnp.int32)
    for bit in range(steps.bit_length()):
        taken = n & ((1 << bit) - 1)  # length of `total` so far
        ahead = jnp.minimum(index + taken, steps - 1)
        chosen = (n >> bit) & 1 == 1
        total_summand = jnp.where(
            chosen, total_summand + total_factor * summand[ahead], total_summand
        )
        total_factor = jnp.where(chosen, total_factor * factor[ahead], total_factor)
        ahead = jnp.minimum(index + (1 << bit), steps - 1)
        summand, factor = summand + factor * summand[ahead], factor * factor[ahead]
    last = jnp.minimum(index + n - 1, steps - 1)
    return maybe_stop(total_summand + total_factor * v_next[last], stop_target_gradients)


def lambda_return(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    v_next: Num[Array, "T *b"],
    lam: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """Geometric mixture of n-step targets.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        v_next: values of the next states.
        lam: weight of the longer targets, a scalar or one per step: 0 is `td0_target`, 1 the
            Monte-Carlo return that bootstraps at the window's end.
        cut: 1 where the recursion stops after this step (time limits); None for nowhere.
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        G_t = r_t + d_t [(1 - l_t) v'_t + l_t G_{t+1}] with l_t = lam_t (1 - cut_t), G_T = v'_{T-1}.

    Reference:
        Sutton & Barto 2018, eq. 12.18.

    Pitfall:
        Without `cut` the return leaks from the first steps of an episode into the last steps of the
        one before it, wherever a time limit separates them.
    """
    r, discount, v_next = at_least_float32(r, discount, v_next)
    check_trajectory(r=r, discount=discount, v_next=v_next)
    lam = per_step("lam", lam, r) * (1 - _cut(cut, r))
    b = r + discount * (1 - lam) * v_next
    target = affine_reverse_scan(discount * lam, b, v_next[-1], backend=backend)
    return maybe_stop(target, stop_target_gradients)


def gae(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    v: Num[Array, "T *b"],
    v_next: Num[Array, "T *b"],
    lam: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """Generalised advantage estimates: discounted sums of one-step errors.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        v: values of the states.
        v_next: values of the next states.
        lam: trade-off between bias (0) and variance (1), a scalar or one per step.
        cut: 1 where the recursion stops after this step (time limits); None for nowhere.
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        A_t = delta_t + d_t lam_t (1 - cut_t) A_{t+1}, delta_t = r_t + d_t v'_t - v_t, A_T = 0. It
        is `lambda_return` - v wherever v'_t = v_{t+1} inside of an episode.

    Reference:
        Schulman et al. 2016 (High-dimensional continuous control using GAE), eq. 16.
    """
    r, discount, v, v_next = at_least_float32(r, discount, v, v_next)
    check_trajectory(r=r, discount=discount, v=v, v_next=v_next)
    lam = per_step("lam", lam, r) * (1 - _cut(cut, r))
    delta = r + discount * v_next - v
    advantage = affine_reverse_scan(discount * lam, delta, jnp.zeros_like(r[0]), backend=backend)
    return maybe_stop(advantage, stop_target_gradients)


def vtrace(
    v: Num[Array, "T *b"],
    v_next: Num[Array, "T *b"],
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    rho: Num[Array, "T *b"],
    lam: ArrayLike = 1.0,
    *,
    rho_bar: ArrayLike = 1.0,
    c_bar: ArrayLike = 1.0,
    pg_rho_bar: ArrayLike = 1.0,
    cut: Num[Array, "T *b"] | None = None,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> VTraceTargets:
    """Off-policy value targets with clipped importance ratios.

    Args:
        v: values of the states.
        v_next: values of the next states.
        r: rewards.
        discount: gamma (1 - terminated).
        rho: ratios pi(a_t | s_t) / mu(a_t | s_t).
        lam: weight of the longer targets, a scalar or one per step.
        rho_bar: bound of the ratio in the one-step error; it sets the fixed point.
        c_bar: bound of the ratio in the trace; it sets the speed.
        pg_rho_bar: bound of the ratio in the advantage.
        cut: 1 where the recursion stops after this step (time limits); None for nowhere.
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return constants of differentiation.

    Returns:
        Value targets vs_t = v_t + e_t, e_t = delta_t + d_t c_t (1 - cut_t) e_{t+1}, and advantages
        min(pg_rho_bar, rho_t) (r_t + d_t q_t - v_t), where q_t mixes vs_{t+1} and v_{t+1} inside of
        the window and is v'_t at its end and at cuts.

    Reference:
        Espeholt et al. 2018 (IMPALA), eq. 1 and section 4.2.
    """
    v, v_next, r, discount, rho = at_least_float32(v, v_next, r, discount, rho)
    check_trajectory(v=v, v_next=v_next, r=r, discount=discount, rho=rho)
    lam = per_step("lam", lam, r)
    rho_bar, c_bar, pg_rho_bar = (jnp.asarray(x, r.dtype) for x in (rho_bar, c_bar, pg_rho_bar))
    stop = _cut(cut, r).at[-1].set(1)
    delta = jnp.minimum(rho_bar, rho) * (r + discount * v_next - v)
    trace = lam * jnp.minimum(c_bar, rho) * (1 - stop)
    error = affine_reverse_scan(discount * trace, delta, jnp.zeros_like(r[0]), backend=backend)
    value = v + error
    following = lam * jnp.roll(value, -1, axis=0) + (1 - lam) * jnp.roll(v, -1, axis=0)
    bootstrap = jnp.where(stop > 0, v_next, following)
    advantage = jnp.minimum(pg_rho_bar, rho) * (r + discount * bootstrap - v)
    targets = VTraceTargets(value=value, advantage=advantage)
    return jax.lax.stop_gradient(targets) if stop_target_gradients else targets


def _cut(cut: Num[Array, "T *b"] | None, like: Array) -> Float[Array, "T *b"]:
    return jnp.zeros_like(like) if cut is None else per_step("cut", cut, like)

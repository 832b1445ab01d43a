"""Imagined branches from given start states."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxlab.types import Transition
from jaxlab.worldmodels.propagation import StepFn


class Rollout(NamedTuple):
    """Imagined transitions and where they sit in their branches."""

    transition: Transition  # [k, B]
    t: Int[Array, "k B"]  # steps since the branch's start state
    valid: Bool[Array, "k B"]  # only these rows are to be stored
    info: dict[str, Any]  # what the step function reports, stacked to [k, B]


def rollout(
    key: Key[Array, ""],
    step_fn: StepFn,
    policy_fn: Callable[[Key[Array, ""], Float[Array, "B o"]], Float[Array, "B a"]],
    start_obs: Float[Array, "B o"],
    horizon: int,
    *,
    length: int | Int[Array, ""] | None = None,
    on_done: Literal["restart", "mask"] = "restart",
) -> Rollout:
    """Unrolls a policy in a model (learned or exact) for a static number of steps.

    Args:
        key: random key.
        step_fn: (key, obs, action) -> (next_obs, reward, terminated, info), batched over rows.
        policy_fn: (key, obs) -> action, batched over rows.
        start_obs: start states of the B branches.
        horizon: static number of steps k.
        length: steps that count, 1 to `horizon`; later ones are not valid. It may be traced, and is
            not checked then.
        on_done: after a termination, "restart" begins a new branch from a start state drawn at
            random; "mask" holds the row at its terminal observation, not valid from there on.

    Returns:
        The transitions [k, B]. The last step that counts is truncated, unless it terminated: a
        branch's end is no termination, so targets bootstrap there.

    Raises:
        ValueError: if `horizon` or `length` is out of range or `on_done` is unknown.

    Reference:
        Janner et al. 2019 (MBPO), algorithm 2.

    Pitfall:
        Going on from a terminal state stores transitions that cannot happen.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least one step, got {horizon}")
    if isinstance(length, int | np.integer) and not 1 <= length <= horizon:
        raise ValueError(f"length: expected 1 to {horizon} (horizon), got {length}")
    if on_done not in ("restart", "mask"):
        raise ValueError(f"on_done: expected 'restart' or 'mask', got {on_done!r}")
    rows = start_obs.shape[0]
    last = jnp.asarray(horizon if length is None else length, jnp.int32) - 1

    def body(
        carry: tuple[Array, Array, Array], xs: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], Rollout]:
        obs, t, alive = carry
        step, step_key = xs
        policy_key, model_key, restart_key = jax.random.split(step_key, 3)
        action = policy_fn(policy_key, obs)
        next_obs, reward, terminated, info = step_fn(model_key, obs, action)
        transition = Transition(
            obs=obs,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=(step == last) & ~terminated,
            next_obs=next_obs,
        )
        out = Rollout(transition, t, alive & (step <= last), info)
        ended = terminated[:, None]
        if on_done == "restart":
            fresh = start_obs[jax.random.randint(restart_key, (rows,), 0, rows)]
            return (jnp.where(ended, fresh, next_obs), jnp.where(terminated, 0, t + 1), alive), out
        going = alive & ~terminated
        held = jnp.where(alive[:, None], next_obs, obs)
        return (held, jnp.where(going, t + 1, t), going), out

    carry = (start_obs, jnp.zeros((rows,), jnp.int32), jnp.ones((rows,), bool))
    xs = (jnp.arange(horizon, dtype=jnp.int32), jax.random.split(key, horizon))
    return jax.lax.scan(body, carry, xs)[1]


def discounted_return(
    key: Key[Array, ""],
    step_fn: StepFn,
    policy_fn: Callable[[Key[Array, ""], Float[Array, "B o"]], Float[Array, "B a"]],
    start_obs: Float[Array, "B o"],
    horizon: int,
    discount: ArrayLike,
) -> Float[Array, " B"]:
    """One sample of a policy's discounted return from every state, for a static number of steps.

    Args:
        key: random key.
        step_fn: (key, obs, action) -> (next_obs, reward, terminated, info), batched over rows.
        policy_fn: (key, obs) -> action, batched over rows.
        start_obs: states.
        horizon: number of steps H; what comes later, at most gamma^H / (1 - gamma) of the largest
            reward, is left out.
        discount: gamma.

    Returns:
        sum_t gamma^t r_t, up to and with the step that terminates.

    Raises:
        ValueError: if `horizon` is not positive.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least one step, got {horizon}")

    def body(carry: tuple[Array, Array, Array], step_key: Array) -> tuple[tuple, None]:
        obs, weight, total = carry
        policy_key, model_key = jax.random.split(step_key)
        next_obs, reward, terminated, _ = step_fn(model_key, obs, policy_fn(policy_key, obs))
        # Beyond a termination the model may give anything, also NaN.
        total = total + jnp.where(weight > 0, weight * reward, 0)
        weight = jnp.where(terminated, 0, weight * jnp.asarray(discount, weight.dtype))
        return (next_obs, weight, total), None

    rows = start_obs.shape[0]
    carry = (start_obs, jnp.ones((rows,), start_obs.dtype), jnp.zeros((rows,), start_obs.dtype))
    (_, _, total), _ = jax.lax.scan(body, carry, jax.random.split(key, horizon))
    return total

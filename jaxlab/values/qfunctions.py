"""Structure of action-value networks, their slow copies, and regularisers of their outputs."""

from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num

from jaxlab.values.action_targets import take_action
from jaxlab.values.arrays import at_least_float32

DuelingMode = Literal["mean", "max"]
Tree = TypeVar("Tree")


def dueling(
    v: Num[Array, "*b"], adv: Num[Array, "*b A"], mode: DuelingMode = "mean"
) -> Float[Array, "*b A"]:
    """Joins a state value and advantages to action values.

    Args:
        v: state values.
        adv: raw advantages.
        mode: "mean" subtracts the advantages' mean, so that the mean over actions is v; "max" their
            maximum, so that max_a Q = v exactly and every advantage is at most 0.

    Returns:
        Action values, at least float32.

    Raises:
        ValueError: if the mode is unknown or the shapes do not fit.

    Reference:
        Wang et al. 2016 (Dueling network architectures), eq. 8 ("max") and 9 ("mean").
    """
    if mode not in get_args(DuelingMode):
        raise ValueError(f"mode: expected one of {get_args(DuelingMode)}, got {mode!r}")
    v, adv = at_least_float32(v, adv)
    if v.shape != adv.shape[:-1]:
        raise ValueError(f"v: expected shape {adv.shape[:-1]}, got {v.shape}")
    reduce = jnp.mean if mode == "mean" else jnp.max
    return v[..., None] + (adv - reduce(adv, axis=-1, keepdims=True))


def periodic_update(target: Tree, online: Tree, step: ArrayLike, period: ArrayLike) -> Tree:
    """Copies the online network every `period` steps.

    Args:
        target: pytree.
        online: pytree of the same structure and shapes.
        step: updates done, may be traced.
        period: updates between two copies, may be traced.

    Returns:
        The online network in the target's dtypes if `step` is a multiple of `period`, else the
        target as it was; leaves that are not floating stay as they are. (`nets.polyak` moves a
        little at every step.)

    Reference:
        Mnih et al. 2015 (DQN).
    """
    due = jnp.asarray(step) % jnp.asarray(period) == 0

    def copy(old: Array, new: Array) -> Array:
        floating = jnp.issubdtype(old.dtype, jnp.floating)
        return jnp.where(due, new.astype(old.dtype), old) if floating else old

    return jax.tree.map(copy, target, online)


def cql_regulariser(q_all: Num[Array, "*b A"], a: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """log sum_a exp q(s, a) - q(s, a_data): what keeps actions out of the data from looking good.

    Args:
        q_all: values of all actions.
        a: the data's actions.

    Returns:
        Non-negative penalties, one per row.

    Reference:
        Kumar et al. 2020 (Conservative Q-learning), eq. 4.
    """
    (q_all,) = at_least_float32(q_all)
    return jax.nn.logsumexp(q_all, axis=-1) - take_action(q_all, a)


def soft_value(q_all: Num[Array, "*b A"], temperature: ArrayLike) -> Float[Array, "*b"]:
    """Value of the best policy with an entropy bonus: temperature log sum_a exp(q / temperature).

    Args:
        q_all: values of all actions.
        temperature: weight of the entropy, positive.

    Returns:
        Values between max_a q and max_a q + temperature log A.

    Reference:
        Haarnoja et al. 2017 (Soft Q-learning), eq. 4.
    """
    q_all, temperature = at_least_float32(q_all, temperature)
    return temperature * jax.nn.logsumexp(q_all / temperature, axis=-1)


def munchausen_reward(
    r: Num[Array, "*b"],
    q_all: Num[Array, "*b A"],
    a: Int[Array, "*b"],
    *,
    temperature: ArrayLike = 0.03,
    weight: ArrayLike = 0.9,
    floor: ArrayLike = -1.0,
) -> Float[Array, "*b"]:
    """Reward plus the scaled log-probability of the action that was taken.

    Args:
        r: rewards.
        q_all: the target network's values in the state where they were earned.
        a: the actions taken.
        temperature: of the softmax policy, positive.
        weight: share of the bonus.
        floor: lowest temperature * log-probability that counts.

    Returns:
        Rewards for a soft target, constants of differentiation.

    Reference:
        Vieillard et al. 2020 (Munchausen RL), eq. 2 and section 4.
    """
    r, q_all, temperature, weight, floor = at_least_float32(r, q_all, temperature, weight, floor)
    log_pi = take_action(jax.nn.log_softmax(q_all / temperature, axis=-1), a)
    bonus = weight * jnp.clip(temperature * log_pi, floor, 0)
    return jax.lax.stop_gradient(r + bonus)

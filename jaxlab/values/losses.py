"""Losses of whole networks with any value head."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from jaxlab.types import Transition
from jaxlab.values.arrays import hide, masked_mean
from jaxlab.values.heads import ValueHead
from jaxlab.values.qfunctions import cql_regulariser

Metrics = dict[str, Float[Array, ""]]
ApplyFn = Callable[[PyTree, Float[Array, "B o"]], Float[Array, "B *m"]]


def td_value_loss(
    head: ValueHead,
    params: PyTree,
    target_params: PyTree,
    apply_fn: ApplyFn,
    batch: Transition,
    gamma: ArrayLike,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """One-step loss of a state-value network.

    Args:
        head: what the network's last layer means.
        params: the network that is trained.
        target_params: the one that values the next states.
        apply_fn: (params, obs[B, o]) -> raw outputs of one value per row, [B] or [B, m].
        batch: transitions [B]; truncated ones bootstrap.
        gamma: discount factor per step.
        mask: rows that count; None for all.

    Returns:
        The loss, and the head's metrics with "value", the mean prediction.
    """
    (batch,) = hide(mask, batch)
    raw = apply_fn(params, batch.obs)
    loss, metrics = head.bootstrap_loss(
        raw,
        batch.reward,
        _discount(batch, gamma),
        apply_fn(target_params, batch.next_obs),
        mask,
    )
    return loss, metrics | {"value": masked_mean(jax.lax.stop_gradient(head.mean(raw)), mask)}


def q_learning_loss(
    head: ValueHead,
    params: PyTree,
    target_params: PyTree,
    apply_fn: ApplyFn,
    batch: Transition,
    gamma: ArrayLike,
    double: bool = False,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Q-learning with discrete actions.

    Args:
        head: what the network's last layer means.
        params: the network that is trained.
        target_params: the one that values the next states.
        apply_fn: (params, obs[B, o]) -> raw outputs of every action, [B, A] or [B, A, m].
        batch: transitions [B] whose actions are indices [B]; truncated ones bootstrap.
        gamma: discount factor per step.
        double: the trained network chooses the next action, the target network values it.
        mask: rows that count; None for all.

    Returns:
        The loss, and the head's metrics with "q", the mean prediction of the actions taken.

    Reference:
        Mnih et al. 2015 (DQN); van Hasselt et al. 2016; Farebrother et al. 2024, section 2.
    """
    (batch,) = hide(mask, batch)
    raw = head.select(apply_fn(params, batch.obs), batch.action)
    return _q_loss(head, params, target_params, apply_fn, batch, gamma, double, mask, raw)


def sarsa_loss(
    head: ValueHead,
    params: PyTree,
    target_params: PyTree,
    apply_fn: ApplyFn,
    batch: Transition,
    next_action: Int[Array, " B"],
    gamma: ArrayLike,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Values of the policy that made the data: bootstraps with its own next actions.

    Args:
        head: what the network's last layer means.
        params: the network that is trained.
        target_params: the one that values the next states.
        apply_fn: (params, obs[B, o]) -> raw outputs of every action, [B, A] or [B, A, m].
        batch: transitions [B] whose actions are indices [B]; truncated ones bootstrap.
        next_action: what was done in the next states.
        gamma: discount factor per step.
        mask: rows that count; None for all.

    Returns:
        The loss, and the metrics of `q_learning_loss`.

    Reference:
        Rummery & Niranjan 1994; Farebrother et al. 2024, section 5.1, where its gain vanishes.
    """
    (batch,) = hide(mask, batch)
    raw = head.select(apply_fn(params, batch.obs), batch.action)
    raw_next = head.select(apply_fn(target_params, batch.next_obs), next_action)
    return _bootstrap(head, batch, gamma, mask, raw, raw_next)


def cql_loss(
    head: ValueHead,
    params: PyTree,
    target_params: PyTree,
    apply_fn: ApplyFn,
    batch: Transition,
    gamma: ArrayLike,
    weight: ArrayLike,
    double: bool = False,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Q-learning with the conservative penalty on the scalar values.

    Args:
        head: what the network's last layer means.
        params: the network that is trained.
        target_params: the one that values the next states.
        apply_fn: (params, obs[B, o]) -> raw outputs of every action, [B, A] or [B, A, m].
        batch: transitions [B] whose actions are indices [B]; truncated ones bootstrap.
        gamma: discount factor per step.
        weight: of the penalty.
        double: the trained network chooses the next action, the target network values it.
        mask: rows that count; None for all.

    Returns:
        The loss, and the metrics of `q_learning_loss` with "cql", the mean penalty.

    Reference:
        Kumar et al. 2020 (Conservative Q-learning), eq. 4; Farebrother et al. 2024, section 4.1.
    """
    (batch,) = hide(mask, batch)
    raw_all = apply_fn(params, batch.obs)
    raw = head.select(raw_all, batch.action)
    loss, metrics = _q_loss(head, params, target_params, apply_fn, batch, gamma, double, mask, raw)
    penalty = masked_mean(cql_regulariser(head.mean(raw_all), batch.action), mask)
    return loss + jnp.asarray(weight, loss.dtype) * penalty.astype(loss.dtype), metrics | {
        "cql": jax.lax.stop_gradient(penalty)
    }


def _q_loss(
    head: ValueHead,
    params: PyTree,
    target_params: PyTree,
    apply_fn: ApplyFn,
    batch: Transition,
    gamma: ArrayLike,
    double: bool,
    mask: ArrayLike | None,
    raw: Array,
) -> tuple[Float[Array, ""], Metrics]:
    raw_next = apply_fn(target_params, batch.next_obs)
    selector = apply_fn(params, batch.next_obs) if double else raw_next
    best = jnp.argmax(head.mean(selector), axis=-1)
    return _bootstrap(head, batch, gamma, mask, raw, head.select(raw_next, best))


def _bootstrap(
    head: ValueHead,
    batch: Transition,
    gamma: ArrayLike,
    mask: ArrayLike | None,
    raw: Array,
    raw_next: Array,
) -> tuple[Float[Array, ""], Metrics]:
    loss, metrics = head.bootstrap_loss(raw, batch.reward, _discount(batch, gamma), raw_next, mask)
    return loss, metrics | {"q": masked_mean(jax.lax.stop_gradient(head.mean(raw)), mask)}


def _discount(batch: Any, gamma: ArrayLike) -> Float[Array, " B"]:
    return jnp.asarray(gamma, jnp.float32) * (1 - batch.terminated.astype(jnp.float32))

"""What all planners share: plans, their returns, their elites, and the warm start."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EvaluateFn = Callable[[Float[Array, "P H a"]], Float[Array, "P"]]


class Elites(NamedTuple):
    """Which plans of a population are the best ones, best first."""

    best: Int[Array, "K"]
    valid: Bool[Array, "K"]  # the others only fill up the K


def check_at_least_one(**sizes: int) -> None:
    """Refuses sizes that cannot be searched.

    Args:
        sizes: by the name of the field.

    Raises:
        ValueError: naming the first one that is not positive.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def check_mean(mean: Float[Array, "H a"], horizon: int, action_dim: int) -> None:
    """Refuses a warm start that belongs to another configuration.

    Args:
        mean: centre of the first sampling distribution.
        horizon: steps of a plan.
        action_dim: components of an action.

    Raises:
        ValueError: if the shapes differ.
    """
    if mean.shape != (horizon, action_dim):
        raise ValueError(f"state.mean: expected shape {(horizon, action_dim)}, got {mean.shape}")


def evaluate_plans(evaluate: EvaluateFn, plans: Float[Array, "P H a"]) -> Float[Array, "P"]:
    """Evaluates a population and checks that every plan got its number.

    Args:
        evaluate: returns of a batch of plans.
        plans: the population.

    Returns:
        The returns.

    Raises:
        ValueError: if `evaluate` does not return one number per plan.
    """
    returns = evaluate(plans)
    if returns.shape != plans.shape[:1]:
        raise ValueError(
            f"evaluate: expected returns of shape {plans.shape[:1]}, got {returns.shape}"
        )
    return returns


def select_elites(returns: Float[Array, "P"], usable: Bool[Array, "P"], count: int) -> Elites:
    """Finds the plans with the largest returns.

    Args:
        returns: of the population.
        usable: plans that may be elites; those with a non-finite return must not.
        count: number of elites.

    Returns:
        The elites; fewer than `count` are valid if fewer plans are usable.

    Pitfall:
        A plan whose return is NaN must lose against every other one, also when all returns are
        negative, so it never enters a refit, whatever its rank.
    """
    _, best = jax.lax.top_k(jnp.where(usable, returns, -jnp.inf), count)
    return Elites(best, usable[best])


def refit(
    plans: Float[Array, "P H a"],
    elites: Elites,
    mean: Float[Array, "H a"],
    variance: Float[Array, "H a"],
    alpha: Float[Array, ""],
) -> tuple[Float[Array, "H a"], Float[Array, "H a"]]:
    """Moves mean and variance towards those of the elites.

    Args:
        plans: the population.
        elites: the best of it.
        mean: of the old sampling distribution.
        variance: of the old sampling distribution.
        alpha: share of the old mean and variance that survives.

    Returns:
        The new mean and (population) variance; the old ones if no elite is valid.
    """
    count = jnp.sum(elites.valid.astype(mean.dtype))
    weight = (elites.valid.astype(mean.dtype) / jnp.maximum(count, 1.0))[:, None, None]
    best = plans[elites.best]
    elite_mean = jnp.sum(weight * best, axis=0)
    elite_variance = jnp.sum(weight * (best - elite_mean[None]) ** 2, axis=0)
    keep = jnp.where(count > 0, alpha, 1.0)  # nothing usable: stay where we are
    mean = keep * mean + (1.0 - keep) * elite_mean
    return mean, keep * variance + (1.0 - keep) * elite_variance


def mean_return(returns: Float[Array, "P"], elites: Elites) -> Float[Array, ""]:
    """Mean return of the valid elites.

    Args:
        returns: of the population.
        elites: the best of it.

    Returns:
        The mean, 0 if no elite is valid.
    """
    return jnp.sum(jnp.where(elites.valid, returns[elites.best], 0.0)) / jnp.maximum(
        jnp.sum(elites.valid.astype(returns.dtype)), 1.0
    )


def mid_range(
    horizon: int,
    action_dim: int,
    low: float | Float[Array, ""],
    high: float | Float[Array, ""],
) -> Float[Array, "H a"]:
    """The plan that stays in the middle of the action range.

    Args:
        horizon: steps of the plan.
        action_dim: components of an action.
        low: smallest action component.
        high: largest action component.

    Returns:
        The plan, float32.
    """
    middle = 0.5 * (jnp.asarray(low, jnp.float32) + jnp.asarray(high, jnp.float32))
    return jnp.full((horizon, action_dim), middle)


def shift(
    plans: Float[Array, "*b H a"], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, "*b H a"]:
    """Drops the first action, which has been taken, and appends a mid-range one.

    Args:
        plans: plans of one call.
        low: smallest action component.
        high: largest action component.

    Returns:
        Plans to start the next call from.
    """
    middle = jnp.full((*plans.shape[:-2], 1, plans.shape[-1]), 0.5 * (low + high))
    return jnp.concatenate([plans[..., 1:, :], middle], axis=-2)

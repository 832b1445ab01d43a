"""Model-predictive path integral control: an exponentially weighted mean of sampled plans."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlab.search import plans as shared
from jaxlab.search.plans import EvaluateFn


@dataclass(frozen=True)
class MPPIConfig:
    """Sizes of the search.

    Args:
        horizon: steps of a plan, H.
        action_dim: components of an action, a.
        population: plans sampled per iteration, P.
        iterations: rounds of sampling and averaging.
    """

    horizon: int
    action_dim: int
    population: int = 400
    iterations: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be searched."""
        shared.check_at_least_one(
            horizon=self.horizon,
            action_dim=self.action_dim,
            population=self.population,
            iterations=self.iterations,
        )


class MPPIState(NamedTuple):
    """What one call hands to the next."""

    mean: Float[Array, "H a"]  # the plan shifted by one step
    previous: Float[Array, "a"]  # the action taken before it


class MPPIInfo(NamedTuple):
    """How the search went."""

    mean_return: Float[Array, "I"]  # weighted as the plans are, 0 if none is finite
    effective_plans: Float[Array, "I"]  # 1 / sum of squared weights: 1 if one plan decides
    finite_fraction: Float[Array, "I"]  # share of plans with a finite return


def init_mppi(
    config: MPPIConfig,
    *,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> MPPIState:
    """Start from the middle of the action range at every step of the plan, and before it.

    Args:
        config: sizes.
        low: smallest action component.
        high: largest action component.

    Returns:
        A state whose mean is mid-range everywhere.
    """
    mean = shared.mid_range(config.horizon, config.action_dim, low, high)
    return MPPIState(mean=mean, previous=mean[0])


def plan_mppi(
    key: PRNGKeyArray,
    evaluate: EvaluateFn,
    state: MPPIState,
    config: MPPIConfig,
    *,
    sigma: float | Float[Array, ""] = 0.5,
    gamma: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.8,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "H a"], MPPIState, MPPIInfo]:
    """Average sampled action sequences with weights exp(gamma return).

    Args:
        key: randomness; every iteration uses a key of its own.
        evaluate: returns of a batch of plans, `[P, H, a] -> [P]`; higher is better.
        state: warm start, from `init_mppi` or from the previous call.
        config: sizes.
        sigma: standard deviation of the noise before smoothing, in action units.
        gamma: inverse temperature, per unit of return; 0 averages, infinity takes the best.
        beta: smoothing of the samples, u_t = beta (mean_t + noise_t) + (1 - beta) u_{t-1}, in
            (0, 1]; 1 for none.
        low: smallest action component.
        high: largest action component.

    Returns:
        The weighted mean as the plan, the state for the next call (the plan shifted by one step,
        its last action mid-range), and `MPPIInfo`.

    Raises:
        ValueError: if `state.mean` does not have shape `(horizon, action_dim)` or `evaluate` does
            not return one number per plan.

    Reference:
        Williams et al. 2017 (Information theoretic MPC); Nagabandi et al. 2019 (PDDM), section
        3.3, for the smoothing.

    Pitfall:
        exp(gamma return) overflows or is zero for all plans; the largest return is taken off
        first. Plans with a non-finite return have weight 0.
    """
    shared.check_mean(state.mean, config.horizon, config.action_dim)
    shape, dtype = state.mean.shape, state.mean.dtype
    sigma, gamma, beta, low, high = (jnp.asarray(x, dtype) for x in (sigma, gamma, beta, low, high))
    before = jnp.broadcast_to(state.previous, (config.population, config.action_dim))

    def smooth(previous: Array, wanted: Array) -> tuple[Array, Array]:
        action = jnp.clip(beta * wanted + (1 - beta) * previous, low, high)
        return action, action

    def iterate(mean: Array, key: Array) -> tuple[Array, MPPIInfo]:
        wanted = mean[None] + sigma * jax.random.normal(key, (config.population, *shape), dtype)
        _, actions = jax.lax.scan(smooth, before, jnp.swapaxes(wanted, 0, 1))
        plans = jnp.swapaxes(actions, 0, 1)
        returns = shared.evaluate_plans(evaluate, plans)
        finite = jnp.isfinite(returns)
        # Differences first: infinity times a return would leave none of the best.
        behind = returns - jnp.max(jnp.where(finite, returns, -jnp.inf))
        worse = finite & (behind < 0)
        scaled = gamma.astype(returns.dtype) * jnp.where(worse, behind, -1)
        weight = jnp.where(worse, jnp.exp(scaled), finite.astype(returns.dtype))
        weight = weight / jnp.maximum(jnp.sum(weight), 1)
        average = jnp.sum(weight.astype(dtype)[:, None, None] * plans, axis=0)
        info = MPPIInfo(
            mean_return=jnp.sum(weight * jnp.where(finite, returns, 0)),
            effective_plans=jnp.sum(weight) / jnp.maximum(jnp.sum(weight**2), 1e-30),
            finite_fraction=jnp.mean(finite.astype(returns.dtype)),
        )
        return jnp.where(jnp.any(finite), average, mean), info

    plan, info = jax.lax.scan(iterate, state.mean, jax.random.split(key, config.iterations))
    return plan, MPPIState(mean=shared.shift(plan, low, high), previous=plan[0]), info

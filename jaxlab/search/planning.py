"""Cross-entropy method over action sequences, as used by model-predictive control."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Bounds = Literal["truncate", "clip"]
EvaluateFn = Callable[[Float[Array, "P H a"]], Float[Array, "P"]]


@dataclass(frozen=True)
class CEMConfig:
    """Sizes of the search, and how it keeps within the action range.

    Args:
        horizon: steps of a plan, H.
        action_dim: components of an action, a.
        population: plans sampled per iteration, P.
        num_elites: plans that the next sampling distribution is fitted to.
        iterations: rounds of sampling and refitting.
        bounds: "truncate" shrinks the standard deviation to half the distance from the mean to the
            nearer bound, so that every sample is legal; "clip" samples freely and clips.

    Pitfall:
        Under "truncate" the mean approaches a bound ever more slowly, so a few iterations cannot
        plan full-throttle actions; where the optimum is bang-bang, as in a swing-up, use "clip".
    """

    horizon: int
    action_dim: int
    population: int = 400
    num_elites: int = 40
    iterations: int = 5
    bounds: Bounds = "truncate"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be searched."""
        for name in ("horizon", "action_dim", "population", "num_elites", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.bounds not in get_args(Bounds):
            raise ValueError(f"bounds: expected one of {get_args(Bounds)}, got {self.bounds!r}")
        if self.num_elites > self.population:
            raise ValueError(
                f"num_elites: expected at most population={self.population}, got {self.num_elites}"
            )


class CEMState(NamedTuple):
    """What one call hands to the next: the centre of its first sampling distribution."""

    mean: Float[Array, "H a"]


class CEMInfo(NamedTuple):
    """How the search went."""

    std: Float[Array, "H a"]  # of the last sampling distribution, after refitting
    elite_return: Float[Array, "I"]  # mean return of each iteration's finite elites, 0 if none
    finite_fraction: Float[Array, "I"]  # share of plans with a finite return


def init_cem(
    config: CEMConfig,
    *,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> CEMState:
    """Start from the middle of the action range at every step of the plan.

    Args:
        config: sizes.
        low: smallest action component.
        high: largest action component.

    Returns:
        A state whose mean is mid-range everywhere.
    """
    middle = 0.5 * (jnp.asarray(low, jnp.float32) + jnp.asarray(high, jnp.float32))
    return CEMState(mean=jnp.full((config.horizon, config.action_dim), middle))


def plan_cem(
    key: PRNGKeyArray,
    evaluate: EvaluateFn,
    state: CEMState,
    config: CEMConfig,
    *,
    sigma: float | Float[Array, ""] = 0.5,
    alpha: float | Float[Array, ""] = 0.1,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "H a"], CEMState, CEMInfo]:
    """Search for the action sequence with the largest return.

    Each iteration samples plans from a normal truncated at two standard deviations, kept legal as
    `config.bounds` says, and moves mean and variance towards those of the best plans.

    Args:
        key: randomness; every iteration uses a key of its own.
        evaluate: returns of a batch of plans, `[P, H, a] -> [P]`; higher is better.
        state: warm start, from `init_cem` or from the previous call.
        config: sizes.
        sigma: standard deviation of the first sampling distribution, in action units.
        alpha: share of the old mean and variance that survives a refit, in [0, 1).
        low: smallest action component.
        high: largest action component.

    Returns:
        The mean of the last elites (smoothed by `alpha`) as the plan, the state for the next call
        (the plan shifted by one step, its last action mid-range), and `CEMInfo`.

    Raises:
        ValueError: if `state.mean` does not have shape `(horizon, action_dim)` or `evaluate` does
            not return one number per plan.

    Reference:
        Chua et al. 2018 (PETS), section 5; Botev et al. 2013, "The cross-entropy method for
        optimization".

    Pitfall:
        The best sampled plan exploits the errors of a learned model; the elite mean does not.
        A plan whose return is NaN or infinite must lose against every other one, also when all
        returns are negative, so such plans never enter the refit, whatever their rank.
    """
    shape = (config.horizon, config.action_dim)
    if state.mean.shape != shape:
        raise ValueError(f"state.mean: expected shape {shape}, got {state.mean.shape}")
    dtype = state.mean.dtype
    sigma, alpha, low, high = (jnp.asarray(x, dtype) for x in (sigma, alpha, low, high))

    def iterate(carry, key):
        mean, variance = carry
        std = jnp.sqrt(variance)
        if config.bounds == "truncate":
            room = 0.5 * jnp.minimum(mean - low, high - mean)
            std = jnp.minimum(std, jnp.maximum(room, 0.0))
        noise = jax.random.truncated_normal(key, -2.0, 2.0, (config.population, *shape), dtype)
        # Also under "truncate": rounding can put mean + 2 std an ulp outside.
        plans = jnp.clip(mean[None] + std[None] * noise, low, high)
        returns = evaluate(plans)
        if returns.shape != (config.population,):
            raise ValueError(
                f"evaluate: expected returns of shape {(config.population,)}, got {returns.shape}"
            )
        finite = jnp.isfinite(returns)
        _, best = jax.lax.top_k(jnp.where(finite, returns, -jnp.inf), config.num_elites)
        valid = finite[best]
        count = jnp.sum(valid.astype(dtype))
        weight = (valid.astype(dtype) / jnp.maximum(count, 1.0))[:, None, None]
        elites = plans[best]
        elite_mean = jnp.sum(weight * elites, axis=0)
        elite_variance = jnp.sum(weight * (elites - elite_mean[None]) ** 2, axis=0)
        keep = jnp.where(count > 0, alpha, 1.0)  # nothing usable: stay where we are
        mean = keep * mean + (1.0 - keep) * elite_mean
        variance = keep * variance + (1.0 - keep) * elite_variance
        elite_return = jnp.sum(jnp.where(valid, returns[best], 0.0)) / jnp.maximum(
            jnp.sum(valid.astype(returns.dtype)), 1.0
        )
        return (mean, variance), (elite_return, jnp.mean(finite.astype(returns.dtype)))

    start = (state.mean, jnp.full(shape, sigma**2))
    (mean, variance), (elite_return, finite_fraction) = jax.lax.scan(
        iterate, start, jax.random.split(key, config.iterations)
    )
    middle = jnp.full((1, config.action_dim), 0.5 * (low + high))
    shifted = CEMState(mean=jnp.concatenate([mean[1:], middle]))
    info = CEMInfo(jnp.sqrt(variance), elite_return, finite_fraction)
    return mean, shifted, info

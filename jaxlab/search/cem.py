"""Cross-entropy method over action sequences, as used by model-predictive control."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlab.search import plans as shared
from jaxlab.search.plans import EvaluateFn

Bounds = Literal["truncate", "clip"]


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
        shared.check_at_least_one(
            horizon=self.horizon,
            action_dim=self.action_dim,
            population=self.population,
            num_elites=self.num_elites,
            iterations=self.iterations,
        )
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
    return CEMState(mean=shared.mid_range(config.horizon, config.action_dim, low, high))


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
    """
    shared.check_mean(state.mean, config.horizon, config.action_dim)
    shape, dtype = state.mean.shape, state.mean.dtype
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
        returns = shared.evaluate_plans(evaluate, plans)
        finite = jnp.isfinite(returns)
        elites = shared.select_elites(returns, finite, config.num_elites)
        mean, variance = shared.refit(plans, elites, mean, variance, alpha)
        elite_return = shared.mean_return(returns, elites)
        return (mean, variance), (elite_return, jnp.mean(finite.astype(returns.dtype)))

    start = (state.mean, jnp.full(shape, sigma**2))
    (mean, variance), (elite_return, finite_fraction) = jax.lax.scan(
        iterate, start, jax.random.split(key, config.iterations)
    )
    shifted = CEMState(mean=shared.shift(mean, low, high))
    info = CEMInfo(jnp.sqrt(variance), elite_return, finite_fraction)
    return mean, shifted, info

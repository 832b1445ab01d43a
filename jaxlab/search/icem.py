"""Cross-entropy method with coloured noise, memory and a shrinking population."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from jaxlab.search import plans as shared
from jaxlab.search.cem import CEMInfo
from jaxlab.search.noise import coloured_noise
from jaxlab.search.plans import EvaluateFn

Choice = Literal["mean", "best"]


@dataclass(frozen=True)
class ICEMConfig:
    """Sizes of the search.

    Args:
        horizon: steps of a plan, H.
        action_dim: components of an action, a.
        population: plans sampled in the first iteration.
        num_elites: plans that the next sampling distribution is fitted to.
        iterations: rounds of sampling and refitting.
        decay: the population shrinks by this factor per iteration, to no less than twice the
            elites.
        keep_fraction: share of the elites that is evaluated again in the next iteration and,
            shifted by one step, in the first one of the next call.
        choose: the plan that is returned, the elites' mean or the best elite.

    Pitfall:
        The best elite of a learned model is often the one that exploits its errors most.
    """

    horizon: int
    action_dim: int
    population: int = 128
    num_elites: int = 10
    iterations: int = 3
    decay: float = 1.25
    keep_fraction: float = 0.3
    choose: Choice = "mean"

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be searched."""
        shared.check_at_least_one(
            horizon=self.horizon,
            action_dim=self.action_dim,
            population=self.population,
            num_elites=self.num_elites,
            iterations=self.iterations,
        )
        if not self.decay >= 1:
            raise ValueError(f"decay: expected at least 1, got {self.decay}")
        if not 0 <= self.keep_fraction <= 1:
            raise ValueError(f"keep_fraction: expected within [0, 1], got {self.keep_fraction}")
        if self.choose not in get_args(Choice):
            raise ValueError(f"choose: expected one of {get_args(Choice)}, got {self.choose!r}")

    @property
    def kept(self) -> int:
        """Elites that are carried on."""
        return math.floor(self.keep_fraction * self.num_elites)

    @property
    def populations(self) -> tuple[int, ...]:
        """Plans sampled in each iteration."""
        sizes = (math.floor(self.population * self.decay**-i) for i in range(self.iterations))
        return tuple(max(2 * self.num_elites, size) for size in sizes)


class ICEMState(NamedTuple):
    """What one call hands to the next."""

    mean: Float[Array, "H a"]  # centre of its first sampling distribution
    kept: Float[Array, "K H a"]  # plans to evaluate again
    valid: Bool[Array, "K"]  # whether there is such a plan


def init_icem(
    config: ICEMConfig,
    *,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> ICEMState:
    """Start from the middle of the action range, without elites.

    Args:
        config: sizes.
        low: smallest action component.
        high: largest action component.

    Returns:
        A state whose mean is mid-range everywhere.
    """
    mean = shared.mid_range(config.horizon, config.action_dim, low, high)
    kept = jnp.broadcast_to(mean, (config.kept, *mean.shape))
    return ICEMState(mean=mean, kept=kept, valid=jnp.zeros((config.kept,), bool))


def plan_icem(
    key: PRNGKeyArray,
    evaluate: EvaluateFn,
    state: ICEMState,
    config: ICEMConfig,
    *,
    sigma: float | Float[Array, ""] = 0.5,
    alpha: float | Float[Array, ""] = 0.1,
    noise_beta: float | Float[Array, ""] = 2.0,
    low: float | Float[Array, ""] = -1.0,
    high: float | Float[Array, ""] = 1.0,
) -> tuple[Float[Array, "H a"], ICEMState, CEMInfo]:
    """Search for the action sequence with the largest return.

    Args:
        key: randomness; every iteration uses a key of its own.
        evaluate: returns of a batch of plans, `[P, H, a] -> [P]`; higher is better. It is traced
            once per iteration, for the populations differ in size.
        state: warm start, from `init_icem` or from the previous call.
        config: sizes.
        sigma: standard deviation of the first sampling distribution, in action units; samples are
            clipped to the action range.
        alpha: share of the old mean and variance that survives a refit, in [0, 1).
        noise_beta: power of the noise falls with its frequency as 1 / f^noise_beta; 0 is white.
        low: smallest action component.
        high: largest action component.

    Returns:
        The plan, the state for the next call (mean and elites shifted by one step) and `CEMInfo`.

    Raises:
        ValueError: if `state.mean` does not have shape `(horizon, action_dim)` or `evaluate` does
            not return one number per plan.

    Reference:
        Pinneri et al. 2020 (Sample-efficient cross-entropy method for real-time planning),
        algorithm 1.

    Pitfall:
        Kept elites are evaluated again and never keep a return: under a random model a lucky draw
        would stay the best for ever.
    """
    shared.check_mean(state.mean, config.horizon, config.action_dim)
    dtype = state.mean.dtype
    sigma, alpha, low, high = (jnp.asarray(x, dtype) for x in (sigma, alpha, low, high))
    mean, kept, valid = state
    variance = jnp.full(mean.shape, sigma**2)
    elite_returns, finite_fractions = [], []
    keys = jax.random.split(key, config.iterations)
    for index, population in enumerate(config.populations):
        noise = coloured_noise(
            keys[index], (population, config.action_dim), config.horizon, noise_beta, dtype
        )
        sampled = mean[None] + jnp.sqrt(variance)[None] * jnp.swapaxes(noise, 1, 2)
        candidates = [jnp.clip(sampled, low, high), kept]
        exists = [jnp.ones((population,), bool), valid]
        if index == config.iterations - 1:
            candidates.append(mean[None])
            exists.append(jnp.ones((1,), bool))
        plans, present = jnp.concatenate(candidates), jnp.concatenate(exists)
        returns = shared.evaluate_plans(evaluate, plans)
        usable = present & jnp.isfinite(returns)
        elites = shared.select_elites(returns, usable, config.num_elites)
        mean, variance = shared.refit(plans, elites, mean, variance, alpha)
        kept, valid = plans[elites.best[: config.kept]], elites.valid[: config.kept]
        elite_returns.append(shared.mean_return(returns, elites))
        finite_fractions.append(jnp.sum(usable.astype(dtype)) / jnp.sum(present.astype(dtype)))
    plan = mean
    if config.choose == "best":
        plan = jnp.where(elites.valid[0], plans[elites.best[0]], mean)
    following = ICEMState(shared.shift(mean, low, high), shared.shift(kept, low, high), valid)
    info = CEMInfo(jnp.sqrt(variance), jnp.stack(elite_returns), jnp.stack(finite_fractions))
    return plan, following, info

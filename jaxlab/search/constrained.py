"""Cross-entropy search for a vector under a constraint, from a point that satisfies it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlab.search import plans as shared

# (key, points) -> objectives and constraint values
Evaluate = Callable[
    [PRNGKeyArray, Float[Array, "P p"]], tuple[Float[Array, " P"], Float[Array, " P"]]
]


@dataclass(frozen=True)
class ConstrainedConfig:
    """Sizes of the search."""

    population: int = 64
    num_elites: int = 8
    penalty: float = 1e3  # of the objective per unit of violation

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be searched."""
        shared.check_at_least_one(population=self.population, num_elites=self.num_elites)
        if self.num_elites > self.population:
            raise ValueError(
                f"num_elites: expected at most population={self.population}, got {self.num_elites}"
            )


class ConstrainedState(NamedTuple):
    """The sampling distribution, and the best feasible point for every slack."""

    mean: Float[Array, " p"]
    variance: Float[Array, " p"]
    best: Float[Array, "K p"]  # the start where nothing feasible was better
    objective: Float[Array, " K"]  # of the best points; the least number where none is feasible
    margin: Float[Array, " K"]  # constraint + slack at the best points


def init_constrained(
    key: PRNGKeyArray,
    evaluate: Evaluate,
    start: Float[Array, " p"],
    slacks: Float[Array, " K"],
    std: Float[Array, ""] | float,
) -> ConstrainedState:
    """Begins a search at a point.

    Args:
        key: random key of the evaluation.
        evaluate: (key, points) -> objectives and constraint values.
        start: centre of the first sampling distribution.
        slacks: how far below zero the constraint may fall, for every record that is kept.
        std: first standard deviation of every coordinate.

    Returns:
        The state; the start is the best point until a feasible one is better, and also while none
        is feasible.
    """
    objective, constraint = (x[0] for x in evaluate(key, start[None]))
    return ConstrainedState(
        mean=start,
        variance=jnp.full(start.shape, jnp.asarray(std, start.dtype) ** 2),
        best=jnp.broadcast_to(start, (slacks.shape[0], start.shape[0])),
        # Finite, as a run's state has to be.
        objective=jnp.where(
            (constraint >= -slacks) & jnp.isfinite(objective),
            objective,
            jnp.finfo(start.dtype).min,
        ),
        margin=constraint + slacks,
    )


def step_constrained(
    key: PRNGKeyArray,
    evaluate: Evaluate,
    state: ConstrainedState,
    slacks: Float[Array, " K"],
    searched: int,
    config: ConstrainedConfig,
) -> ConstrainedState:
    """One iteration of a search for the largest objective with constraint >= -slack.

    One of the slacks steers the search; the best points within the others are found on the way.

    Args:
        key: random key.
        evaluate: (key, points) -> objectives and constraint values.
        state: from `init_constrained`, or from the iteration before.
        slacks: as there.
        searched: which of them steers.
        config: sizes.

    Returns:
        The next state.

    Reference:
        Lambert et al. 2020, Objective Mismatch in Model-based RL, section 4.3 (with CMA-ES).

    Pitfall:
        A penalty steers but does not guarantee: only points that satisfy the constraint exactly
        are ever reported.
    """
    sample_key, evaluate_key = jax.random.split(key)
    dtype, shape = state.mean.dtype, (config.population, *state.mean.shape)
    noise = jax.random.normal(sample_key, shape, dtype)
    points = state.mean[None] + jnp.sqrt(state.variance)[None] * noise
    objectives, constraints = evaluate(evaluate_key, points)
    violation = jax.nn.relu(-slacks[searched] - constraints)
    fitness = objectives - jnp.asarray(config.penalty, dtype) * violation
    elites = shared.select_elites(fitness, jnp.isfinite(fitness), config.num_elites)
    mean, variance = shared.refit(
        points[:, None], elites, state.mean[None], state.variance[None], jnp.zeros((), dtype)
    )
    allowed = (constraints[None] >= -slacks[:, None]) & jnp.isfinite(objectives)[None]
    offered = jnp.where(allowed, objectives[None], -jnp.inf)
    top = jnp.argmax(offered, axis=1)
    found = jnp.max(offered, axis=1)
    better = found > state.objective
    return ConstrainedState(
        mean=mean[0],
        variance=variance[0],
        best=jnp.where(better[:, None], points[top], state.best),
        objective=jnp.where(better, found, state.objective),
        margin=jnp.where(better, constraints[top] + slacks, state.margin),
    )

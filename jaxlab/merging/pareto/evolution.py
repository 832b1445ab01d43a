"""Evolution towards a whole front: NSGA-II and NSGA-III as one compiled loop."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.merging.pareto.fronts import crowding_distance, non_dominated_rank

Objectives = Callable[[Float[Array, " d"]], Float[Array, " m"]]
Bounds = tuple[Float[Array, " d"], Float[Array, " d"]]


@dataclass(frozen=True)
class EvolutionConfig:
    """Sizes and rates of the search.

    Args:
        population: points per generation, even.
        generations: how many.
        selection: "nsga2" keeps what is far from its neighbours, "nsga3" what lies near reference
            directions.
        divisions: of the reference directions of "nsga3".
        crossover: chance that a pair is crossed.
        spread: of children around parents (eta); larger is closer.
        mutation: chance that a child mutates; each number then with chance 1 / d.
    """

    population: int = 100
    generations: int = 25
    selection: Literal["nsga2", "nsga3"] = "nsga2"
    divisions: int = 12
    crossover: float = 0.9
    spread: float = 20.0
    mutation: float = 1.0

    def __post_init__(self) -> None:
        """Refuses odd populations and unknown selections."""
        if self.population < 2 or self.population % 2:
            raise ValueError(f"population: expected an even number, got {self.population}")
        if self.selection not in ("nsga2", "nsga3"):
            raise ValueError(f"selection: expected 'nsga2' or 'nsga3', got {self.selection!r}")


def evolve_front(
    key: Key[Array, ""],
    objectives: Objectives,
    bounds: Bounds,
    config: EvolutionConfig = EvolutionConfig(),
    *,
    start: Float[Array, "p d"] | None = None,
) -> tuple[Float[Array, "p d"], Float[Array, "p m"]]:
    """Searches the points whose objectives no others beat.

    Args:
        key: random key.
        objectives: of one point; all are maximised.
        bounds: lowest and highest point of the box to search.
        config: sizes and rates.
        start: first population; uniform in the box if None.

    Returns:
        The last population and its objectives, best ranks first.

    Reference:
        Deb et al. 2002, NSGA-II; Deb & Jain 2014, NSGA-III; Deb & Agrawal 1995, simulated binary
        crossover.
    """
    low, high = bounds
    count, size = config.population, low.shape[0]
    first, key = jax.random.split(key)
    if start is None:
        uniform = jax.random.uniform(first, (count, size), low.dtype)
        start = low[None] + uniform * (high - low)[None]
    evaluate = jax.vmap(objectives)
    select = _crowded if config.selection == "nsga2" else _near_directions

    def generation(state: tuple, key: Array) -> tuple[tuple, None]:
        points, values = state
        chosen, crossed, mutated, kept = jax.random.split(key, 4)
        parents = points[_tournament(chosen, values)]
        children = _cross(crossed, parents, bounds, config)
        children = _mutate(mutated, children, bounds, config)
        points = jnp.concatenate([points, children])
        values = jnp.concatenate([values, evaluate(children)])
        best = select(kept, values, config)
        return (points[best], values[best]), None

    state, _ = jax.lax.scan(
        generation, (start, evaluate(start)), jax.random.split(key, config.generations)
    )
    return state


def reference_directions(objectives: int, divisions: int) -> np.ndarray:
    """Points spread evenly over the simplex.

    Args:
        objectives: m.
        divisions: steps along each edge, p.

    Returns:
        All (p + m - 1 choose m - 1) points whose coordinates are multiples of 1 / p with sum 1.

    Reference:
        Das & Dennis 1998, Normal-boundary intersection.
    """
    rows = [
        np.diff([-1, *bars, divisions + objectives - 1]) - 1
        for bars in itertools.combinations(range(divisions + objectives - 1), objectives - 1)
    ]
    return np.asarray(rows, np.float32) / divisions


def _tournament(key: Array, values: Float[Array, "p m"]) -> Int[Array, " p"]:
    """Of two random points the better ranked, then the less crowded."""
    rank = non_dominated_rank(values)
    crowd = crowding_distance(values, rank)
    count = values.shape[0]
    pairs = jnp.stack([jax.random.permutation(k, count) for k in jax.random.split(key)])
    a, b = pairs
    better = (rank[a] < rank[b]) | ((rank[a] == rank[b]) & (crowd[a] >= crowd[b]))
    return jnp.where(better, a, b)


def _cross(key: Array, parents: Float[Array, "p d"], bounds: Bounds, config: EvolutionConfig):
    """Simulated binary crossover of neighbours, clipped to the box."""
    coins, numbers, swaps = jax.random.split(key, 3)
    a, b = parents[0::2], parents[1::2]
    u = jax.random.uniform(numbers, a.shape, a.dtype)
    power = 1 / (config.spread + 1)
    beta = jnp.where(u <= 0.5, (2 * u) ** power, (1 / (2 * (1 - u))) ** power)
    crossed = jax.random.uniform(coins, (a.shape[0], 1)) < config.crossover
    each = jax.random.uniform(swaps, (2, *a.shape))
    beta = jnp.where(crossed & (each[0] < 0.5), beta, 1)
    middle, half = (a + b) / 2, beta * (b - a) / 2
    children = jnp.stack([middle - half, middle + half])
    children = jnp.where(each[1] < 0.5, children, children[::-1])
    return jnp.clip(children.reshape(parents.shape), bounds[0][None], bounds[1][None])


def _mutate(key: Array, points: Float[Array, "p d"], bounds: Bounds, config: EvolutionConfig):
    """Polynomial mutation, clipped to the box."""
    whole, each, numbers = jax.random.split(key, 3)
    u = jax.random.uniform(numbers, points.shape, points.dtype)
    power = 1 / (config.spread + 1)
    step = jnp.where(u < 0.5, (2 * u) ** power - 1, 1 - (2 * (1 - u)) ** power)
    moves = jax.random.uniform(each, points.shape) < 1 / points.shape[1]
    moves = moves & (jax.random.uniform(whole, (points.shape[0], 1)) < config.mutation)
    low, high = bounds[0][None], bounds[1][None]
    return jnp.clip(jnp.where(moves, points + step * (high - low), points), low, high)


def _crowded(key: Array, values: Float[Array, "n m"], config: EvolutionConfig) -> Int[Array, " p"]:
    del key
    rank = non_dominated_rank(values)
    return jnp.lexsort((-crowding_distance(values, rank), rank))[: config.population]


def _near_directions(
    key: Array, values: Float[Array, "n m"], config: EvolutionConfig
) -> Int[Array, " p"]:
    """Whole fronts as long as they fit; of the next one, points of the emptiest directions."""
    count, population = values.shape[0], config.population
    rank = non_dominated_rank(values)
    size = jnp.sum(rank[None] <= rank[:, None], axis=1)  # points of this rank or better
    last = jnp.min(jnp.where(size >= population, rank, count))
    taken, open_ = rank < last, rank == last
    lines = jnp.asarray(reference_directions(values.shape[1], config.divisions))
    scaled = _normalised(-values, rank)
    unit = lines / jnp.linalg.norm(lines, axis=1, keepdims=True)
    along = scaled @ unit.T
    away = jnp.sum(scaled**2, axis=1, keepdims=True) - along**2
    niche, distance = jnp.argmin(away, axis=1), jnp.min(away, axis=1)
    empty, among = jax.random.split(key)
    turn = jax.random.uniform(empty, (len(lines),))[niche]
    luck = jax.random.uniform(among, (count,))

    def add(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        taken, open_ = state
        filled = jnp.zeros(len(lines), jnp.int32).at[niche].add(taken.astype(jnp.int32))
        crowd = filled[niche]
        least = jnp.min(jnp.where(open_, crowd, count + 1))
        # One of the emptiest niches at random, then its closest point if it is the first.
        wanted = niche[jnp.argmin(jnp.where(open_ & (crowd == least), turn, 2))]
        order = jnp.where(least == 0, distance, luck)
        pick = jnp.argmin(jnp.where(open_ & (niche == wanted), order, jnp.inf))
        room = (jnp.sum(taken) < population) & open_.any()
        return (
            jnp.where(room, taken.at[pick].set(True), taken),
            jnp.where(room, open_.at[pick].set(False), open_),
        )

    taken, _ = jax.lax.fori_loop(0, population, add, (taken, open_))
    return jnp.lexsort((rank, ~taken))[:population]


def _normalised(costs: Float[Array, "n m"], rank: Int[Array, " n"]) -> Float[Array, "n m"]:
    """Costs on the scale of the hyperplane through the extreme points."""
    objectives = costs.shape[1]
    front: Bool[Array, " n"] = rank == 0
    ideal = jnp.min(jnp.where(front[:, None], costs, jnp.inf), axis=0)
    shifted = costs - ideal[None]
    weights = jnp.where(jnp.eye(objectives) > 0, 1.0, 1e6)
    achievement = jnp.max(shifted[:, None] * weights[None], axis=2)
    corners = shifted[jnp.argmin(jnp.where(front[:, None], achievement, jnp.inf), axis=0)]
    worst = jnp.max(jnp.where(front[:, None], shifted, 0), axis=0)
    flat = jnp.abs(jnp.linalg.det(corners)) < 1e-12
    safe = jnp.where(flat, jnp.eye(objectives), corners)
    plane: Any = jnp.linalg.solve(safe, jnp.ones(objectives))
    lengths = jnp.where(flat | (plane <= 0), worst, 1 / jnp.where(plane > 0, plane, 1))
    return shifted / jnp.maximum(lengths, 1e-12)[None]

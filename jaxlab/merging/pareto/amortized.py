"""Pareto fronts of merged models from few evaluations: fit a quadratic per task, search on it.

A metric is called as `metric(c, task)`: how good the model merged with coefficients c is on a task,
higher being better. Every call is one evaluation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxlab.merging.pareto.evolution import Bounds, EvolutionConfig, evolve_front
from jaxlab.merging.pareto.fronts import pareto_pick
from jaxlab.merging.pareto.surrogate import Link, QuadraticSurrogate, fit_quadratic

Metric = Callable[[Float[Array, " n"], Int[Array, ""]], Float[Array, ""]]


class MapFront(NamedTuple):
    """A front that a surrogate predicts."""

    coefficients: Float[Array, "p n"]
    predicted: Float[Array, "p t"]
    trusted: Bool[Array, " p"]  # within the box of the points that the surrogate was fitted to
    surrogate: QuadraticSurrogate
    points: (
        Float[Array, "k n"] | Float[Array, "t k n"]
    )  # evaluated; per task if there are three axes
    values: Float[Array, "k t"]


def lattice_points(key: Key[Array, ""], n: int, count: int) -> Float[Array, "k n"]:
    """Where to evaluate: each model alone, then a lattice in the unit cube, randomly shifted.

    Args:
        key: random key of the shift.
        n: number of models.
        count: how many points, at least n.

    Returns:
        Coefficient vectors in [0, 1]^n.

    Raises:
        ValueError: if the models alone are more.

    Reference:
        Niederreiter 1992; the generalised golden ratio gives the lattice.
    """
    if count < n:
        raise ValueError(f"count: expected at least {n}, got {count}")
    golden = 2.0
    for _ in range(60):  # the root of x^(n + 1) = x + 1
        golden = (1 + golden) ** (1 / (n + 1))
    steps = np.outer(np.arange(count - n), golden ** -np.arange(1.0, n + 1)) % 1
    shift = jax.random.uniform(key, (1, n))
    return jnp.concatenate([jnp.eye(n), (jnp.asarray(steps, jnp.float32) + shift) % 1])


def evaluate_points(metric: Metric, points: Float[Array, "k n"], tasks: int) -> Float[Array, "k t"]:
    """All metrics at all points, one merged model after another.

    Args:
        metric: see above.
        points: coefficient vectors.
        tasks: how many metrics there are.

    Returns:
        One row per point.
    """
    return jax.lax.map(lambda c: jax.lax.map(lambda t: metric(c, t), jnp.arange(tasks)), points)


def map_front(
    key: Key[Array, ""],
    metric: Metric,
    points: Float[Array, "k n"],
    tasks: int,
    *,
    link: Link = "identity",
    bounds: Bounds | None = None,
    resolution: ArrayLike = 1e-3,
    evolution: EvolutionConfig = EvolutionConfig(),
    values: Float[Array, "k t"] | None = None,
) -> MapFront:
    """Evaluates points, fits the surrogate, and searches its front.

    Args:
        key: random key of the search.
        metric: see above.
        points: coefficient vectors to evaluate.
        tasks: how many metrics there are.
        link: of the surrogate.
        bounds: box to search; that of the points if None.
        resolution: see `fit_quadratic`.
        evolution: sizes of the search.
        values: metrics at the points, if they are known.

    Returns:
        The predicted front.

    Reference:
        Li et al. 2025, MAP: low-compute model merging with amortized Pareto fronts, algorithm 1.

    Pitfall:
        Beyond the points the quadratic is an extrapolation: where a curvature is not negative, the
        best predicted metric lies in a corner of the box, however large the box is.
    """
    if values is None:
        values = evaluate_points(metric, points, tasks)
    surrogate = fit_quadratic(points, values, link, resolution=resolution)
    return _search(key, surrogate, points, values, bounds, evolution)


def bayesian_points(
    key: Key[Array, ""],
    metric: Metric,
    points: Float[Array, "k n"],
    tasks: int,
    *,
    rounds: int = 3,
    added: int = 4,
    link: Link = "identity",
    resolution: ArrayLike = 1e-3,
    temperature: float = 0.07,
) -> tuple[Float[Array, "t m n"], Float[Array, "m t"]]:
    """Evaluates points, and further ones where each task's surrogate is worst.

    Directions are binned by their angles; bins with large and uncertain residuals get more points.

    Args:
        key: random key.
        metric: see above.
        points: first coefficient vectors, the same for all tasks.
        tasks: how many metrics there are.
        rounds: how often to fit and to add points.
        added: points per task and round.
        link: of the surrogate.
        resolution: see `fit_quadratic`.
        temperature: of the choice of bins, whose scores are divided by the largest.

    Returns:
        Each task's points, and its metric there.

    Reference:
        Li et al. 2025, MAP, algorithm 2 (Bayesian MAP).

    Pitfall:
        A bin without points has no residual; scoring it lowest means that it is never explored.
        Here it gets the score of the worst bin.
    """
    table = jnp.broadcast_to(points[None], (tasks, *points.shape))
    values = evaluate_points(metric, points, tasks)
    for number in range(rounds):
        surrogate = fit_quadratic(table, values, link, resolution=resolution)
        predicted = jax.vmap(jax.vmap(surrogate))(table)
        own = jax.vmap(lambda p, t: p[:, t])(predicted, jnp.arange(tasks))
        keys = jax.random.split(jax.random.fold_in(key, number), tasks)
        explore = jax.vmap(lambda k, c, r: _explore(k, c, r, added, temperature))
        new = explore(keys, table, (own - values.T) ** 2)

        def judge(task: Array, new: Array = new) -> Array:
            return jax.lax.map(lambda c: metric(c, task), new[task])

        found = jax.lax.map(judge, jnp.arange(tasks))
        table = jnp.concatenate([table, new], axis=1)
        values = jnp.concatenate([values, found.T], axis=0)
    return table, values


def bayesian_map(
    key: Key[Array, ""],
    metric: Metric,
    points: Float[Array, "k n"],
    tasks: int,
    *,
    rounds: int = 3,
    added: int = 4,
    link: Link = "identity",
    resolution: ArrayLike = 1e-3,
    evolution: EvolutionConfig = EvolutionConfig(),
) -> MapFront:
    """As `map_front`, with the further points of `bayesian_points`.

    Args:
        key: random key.
        metric: see above.
        points: first coefficient vectors, the same for all tasks.
        tasks: how many metrics there are.
        rounds: how often to fit and to add points.
        added: points per task and round.
        link: of the surrogate.
        resolution: see `fit_quadratic`.
        evolution: sizes of the search.

    Returns:
        The predicted front; each task has points of its own.

    Reference:
        Li et al. 2025, MAP, algorithm 2 (Bayesian MAP).
    """
    search, key = jax.random.split(key)
    given: dict[str, Any] = {"link": link, "resolution": resolution}
    table, values = bayesian_points(key, metric, points, tasks, rounds=rounds, added=added, **given)
    surrogate = fit_quadratic(table, values, link, resolution=resolution)
    flat = table.reshape(-1, points.shape[1])
    return _search(search, surrogate, flat, values, None, evolution)._replace(points=table)


class Nested(NamedTuple):
    """What nested merging found."""

    coefficients: Float[Array, " n"]
    evaluations: Int[Array, ""]  # calls of the metric that the pairs needed


def nested_map(
    key: Key[Array, ""],
    metric: Metric,
    n: int,
    *,
    points: int = 20,
    preference: ArrayLike = 1.0,
    link: Link = "identity",
    resolution: ArrayLike = 1e-3,
    evolution: EvolutionConfig = EvolutionConfig(),
) -> Nested:
    """Merges many models pair by pair, each pair by `map_front` with two coefficients.

    The two clusters whose metrics are closest are merged until one is left. A cluster's metric is
    the preference-weighted mean over its tasks of its own merged model; task i is model i's.

    Args:
        key: random key.
        metric: see above.
        n: number of models and tasks.
        points: evaluated coefficient pairs of each merge.
        preference: weight of each task; a cluster whose weights sum to 0 weighs its tasks equally.
        link: of the surrogates.
        resolution: see `fit_quadratic`.
        evolution: sizes of the searches.

    Returns:
        Coefficients of the one merged model, and how many evaluations that takes: `points` times
        the tasks of both clusters, for each merge, and one per model at the start.

    Reference:
        Li et al. 2025, MAP, section 4 (nested merging MAP).
    """
    weight = jnp.broadcast_to(jnp.asarray(preference).astype(jnp.float32), (n,))

    def shares_of(members: Bool[Array, " n"]) -> Float[Array, " n"]:
        equal = members.astype(weight.dtype)
        share = weight * equal
        return jnp.where(jnp.sum(share) == 0, equal, share)

    def of_cluster(members: Bool[Array, " n"], c: Float[Array, " n"]) -> Array:
        share = shares_of(members)

        def one(task: Array) -> Array:  # tasks of others are not evaluated
            return jax.lax.cond(members[task], lambda: metric(c, task), lambda: jnp.float32(0))

        return jnp.dot(share, jax.lax.map(one, jnp.arange(n))) / jnp.sum(share)

    def merge(state: tuple, key: Array) -> tuple[tuple, None]:
        clusters, members, scores, alive, used = state
        gap = jnp.abs(scores[:, None] - scores[None])
        allowed = alive[:, None] & alive[None] & (jnp.arange(n)[:, None] < jnp.arange(n)[None])
        first, second = jnp.unravel_index(jnp.argmin(jnp.where(allowed, gap, jnp.inf)), (n, n))
        pair = clusters[jnp.stack([first, second])]
        groups = members[jnp.stack([first, second])]

        def pair_metric(c: Float[Array, " 2"], group: Array) -> Array:
            return of_cluster(groups[group], c @ pair)

        sample, search = jax.random.split(key)
        front = map_front(
            search,
            pair_metric,
            lattice_points(sample, 2, points),
            2,
            link=link,
            resolution=resolution,
            evolution=evolution,
        )
        both = groups[0] | groups[1]
        shares = jnp.stack([jnp.sum(jnp.where(g, shares_of(both), 0)) for g in groups])
        best = pareto_pick(front.predicted, shares)
        merged = front.coefficients[best] @ pair
        score = jnp.dot(shares, front.predicted[best]) / jnp.sum(shares)
        return (
            clusters.at[first].set(merged),
            members.at[first].set(both),
            scores.at[first].set(score),
            alive.at[second].set(False),
            used + points * jnp.sum(both, dtype=jnp.int32),
        ), None

    own = jnp.eye(n, dtype=bool)
    start = jax.lax.map(lambda i: metric(jnp.eye(n)[i], i), jnp.arange(n))
    state = (jnp.eye(n), own, start, jnp.ones(n, bool), jnp.int32(n))
    (clusters, _, _, alive, used), _ = jax.lax.scan(merge, state, jax.random.split(key, n - 1))
    return Nested(clusters[jnp.argmax(alive)], used)


def _search(key, surrogate, points, values, bounds, evolution: EvolutionConfig) -> MapFront:
    box = jnp.min(points, axis=0), jnp.max(points, axis=0)
    found, predicted = evolve_front(key, surrogate, bounds or box, evolution)
    inside = (found >= box[0][None]) & (found <= box[1][None])
    return MapFront(found, predicted, jnp.all(inside, axis=1), surrogate, points, values)


def angles(c: Float[Array, " n"]) -> Float[Array, " n-1"]:
    """Hyperspherical angles of a vector, in [0, pi]; of non-negative vectors in [0, pi / 2]."""
    rest = jnp.sqrt(jnp.cumsum(c[::-1] ** 2)[::-1])
    return jnp.arctan2(rest[1:], c[:-1])


def from_angles(radius: Float[Array, ""], phi: Float[Array, " m"]) -> Float[Array, " m+1"]:
    """The non-negative vector of a length and of angles in [0, pi / 2]."""
    one = jnp.ones(1, phi.dtype)
    sines = jnp.concatenate([one, jnp.cumprod(jnp.sin(phi))])
    return radius * sines * jnp.concatenate([jnp.cos(phi), one])


def _explore(
    key: Key[Array, ""],
    points: Float[Array, "k n"],
    residual: Float[Array, " k"],
    count: int,
    temperature: float,
) -> Float[Array, "c n"]:
    """New points in the bins of directions with large and uncertain residuals."""
    n = points.shape[1]
    per_angle = 4 if n < 4 else 2
    bins = per_angle ** (n - 1)
    width = np.pi / 2 / per_angle
    base = per_angle ** np.arange(n - 1)
    place = jax.vmap(angles)(points) / width
    cell = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, per_angle - 1)
    member = (cell @ jnp.asarray(base, jnp.int32))[:, None] == jnp.arange(bins)[None]
    drop, choose, where, length = jax.random.split(key, 4)

    def mean(kept: Bool[Array, " k"]) -> Float[Array, " b"]:
        share = (member & kept[:, None]).astype(residual.dtype)
        return (residual @ share) / jnp.maximum(jnp.sum(share, axis=0), 1)

    replicates = jax.random.uniform(drop, (30, len(points))) >= 0.2
    score = mean(jnp.ones(len(points), bool)) + 0.5 * jnp.std(jax.vmap(mean)(replicates), axis=0)
    empty = ~member.any(axis=0)
    largest = jnp.max(jnp.where(empty, 0, score))
    score = jnp.where(empty, largest, score) / jnp.maximum(largest, 1e-30)
    chosen = jax.random.categorical(choose, score / temperature, shape=(count,))
    corner = (chosen[:, None] // jnp.asarray(base, jnp.int32)[None]) % per_angle
    phi = (corner.astype(residual.dtype) + jax.random.uniform(where, corner.shape)) * width
    radius = jax.random.uniform(length, (count,), minval=0.2, maxval=0.8)
    return jnp.clip(jax.vmap(from_angles)(radius, phi), 0, 1.5)

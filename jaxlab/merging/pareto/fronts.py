"""Sets of trade-offs: which points are best, how they rank, and what a front is worth.

All objectives are to be maximised. Sets have a fixed size; `valid` says which points count.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


def dominance(values: Float[Array, "n m"]) -> Bool[Array, "n n"]:
    """Whether point i is at least as good as j everywhere and better somewhere.

    Args:
        values: objectives of n points.

    Returns:
        A matrix [i, j].
    """
    first, second = values[:, None], values[None]
    return jnp.all(first >= second, axis=-1) & jnp.any(first > second, axis=-1)


def non_dominated_mask(
    values: Float[Array, "n m"], valid: Bool[Array, " n"] | None = None
) -> Bool[Array, " n"]:
    """The points that no other beats.

    Args:
        values: objectives.
        valid: points that count; the others, and those with an objective that is not finite, are
            never in the front.

    Returns:
        A mask; copies of a non-dominated point are all in it.
    """
    return non_dominated_rank(values, valid) == 0


def non_dominated_rank(
    values: Float[Array, "n m"], valid: Bool[Array, " n"] | None = None
) -> Int[Array, " n"]:
    """The number of fronts to peel off before a point is in the front.

    Args:
        values: objectives.
        valid: points that count; the others, and those with an objective that is not finite, get
            rank n.

    Returns:
        Ranks from 0.

    Reference:
        Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II, section
        III.A.
    """
    count = values.shape[0]
    finite = jnp.all(jnp.isfinite(values), axis=1)
    alive = finite if valid is None else valid & finite
    beats = dominance(values)

    def peel(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rank, left, level = state
        beaten = jnp.any(beats & left[:, None], axis=0)
        front = left & ~beaten
        return jnp.where(front, level, rank), left & ~front, level + 1

    start = (jnp.full(count, count, jnp.int32), alive, jnp.int32(0))
    rank, _, _ = jax.lax.while_loop(lambda s: s[1].any(), peel, start)
    return rank


def crowding_distance(values: Float[Array, "n m"], rank: Int[Array, " n"]) -> Float[Array, " n"]:
    """How far the neighbours of a point in its own front are apart.

    Args:
        values: objectives.
        rank: of each point.

    Returns:
        The sum over objectives of the gap between both neighbours over the range of the front;
        infinite at its ends.

    Reference:
        Deb et al. 2002, NSGA-II, section III.B.
    """

    def one(column: Float[Array, " n"]) -> Array:
        order = jnp.lexsort((column, rank))
        sorted_values, sorted_rank = column[order], rank[order]
        same = sorted_rank[1:] == sorted_rank[:-1]
        first = jnp.concatenate([jnp.ones(1, bool), ~same])
        last = jnp.concatenate([~same, jnp.ones(1, bool)])
        after = jnp.concatenate([sorted_values[1:], sorted_values[-1:]])
        before = jnp.concatenate([sorted_values[:1], sorted_values[:-1]])
        member = rank[None] == rank[:, None]
        high = jnp.max(jnp.where(member, column[None], -jnp.inf), axis=1)[order]
        low = jnp.min(jnp.where(member, column[None], jnp.inf), axis=1)[order]
        spread = jnp.where(high > low, high - low, 1)
        gap = jnp.where(first | last, jnp.inf, (after - before) / spread)
        return jnp.zeros_like(column).at[order].set(gap)

    return jnp.sum(jax.vmap(one, in_axes=1)(values), axis=0)


def hypervolume(
    values: Float[Array, "n m"],
    reference: Float[Array, " m"],
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """The volume between a reference and what the points reach.

    Args:
        values: objectives, m >= 1; dominated points change nothing, and those with an objective
            that is not finite count nothing.
        reference: a point to be beaten in every objective; what does not beat it counts nothing.
        valid: points that count.

    Returns:
        The exact volume, in O(n^(m - 1)) steps.

    Reference:
        Zitzler & Thiele 1999; the slicing of While et al. 2006.
    """
    finite = jnp.all(jnp.isfinite(values), axis=1)
    counts = finite if valid is None else valid & finite
    return _volume(jnp.where(counts[:, None], jnp.maximum(values - reference[None], 0), 0))


def _volume(gain: Float[Array, "n m"]) -> Float[Array, ""]:
    """Volume of the union of boxes from the origin."""
    count, objectives = gain.shape
    if objectives == 1:
        return jnp.max(gain)
    gain = gain[jnp.argsort(-gain[:, -1])]
    height = gain[:, -1] - jnp.concatenate([gain[1:, -1], jnp.zeros(1, gain.dtype)])
    if objectives == 2:
        return jnp.dot(height, jax.lax.cummax(gain[:, 0]))

    def slice_volume(i: Array) -> Array:
        return _volume(jnp.where(jnp.arange(count)[:, None] <= i, gain[:, :-1], 0))

    return jnp.dot(height, jax.lax.map(slice_volume, jnp.arange(count)))


def generational_distance(
    values: Float[Array, "n m"],
    reference: Float[Array, "k m"],
    valid: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """Mean distance of the points to the nearest point of a reference front (GD).

    Args:
        values: objectives.
        reference: the front to reach.
        valid: points that count.

    Returns:
        The distance.
    """
    return _mean_of(jnp.min(_distances(values, reference), axis=1), valid)


def inverted_generational_distance(
    values: Float[Array, "n m"],
    reference: Float[Array, "k m"],
    valid: Bool[Array, " n"] | None = None,
    counted: Bool[Array, " k"] | None = None,
) -> Float[Array, ""]:
    """Mean distance of a reference front to the nearest of the points (IGD).

    Args:
        values: objectives.
        reference: the front to cover.
        valid: points that count.
        counted: points of the reference that count.

    Returns:
        The distance.
    """
    distances = _distances(values, reference)
    if valid is not None:
        distances = jnp.where(valid[:, None], distances, jnp.inf)
    return _mean_of(jnp.min(distances, axis=0), counted)


def win_rate(
    first: Float[Array, "n m"],
    second: Float[Array, "k m"],
    valid: tuple[Bool[Array, " n"], Bool[Array, " k"]] | None = None,
) -> Float[Array, ""]:
    """Share of pairs of points and objectives in which the first set is better; ties count half.

    Args:
        first: objectives of one set.
        second: objectives of another.
        valid: points of each that count.

    Returns:
        A number in [0, 1], and 1/2 for equal sets.
    """
    a, b = first[:, None], second[None]
    score = jnp.mean(jnp.where(a > b, 1.0, jnp.where(a == b, 0.5, 0.0)), axis=-1)
    if valid is None:
        return jnp.mean(score)
    pairs = (valid[0][:, None] & valid[1][None]).astype(score.dtype)
    return jnp.sum(score * pairs) / jnp.maximum(jnp.sum(pairs), 1)


def pareto_pick(
    values: Float[Array, "n m"],
    preference: ArrayLike,
    valid: Bool[Array, " n"] | None = None,
) -> Int[Array, ""]:
    """The point that a linear preference likes best.

    Args:
        values: objectives.
        preference: weight of each.
        valid: points that count.

    Returns:
        Its index; a point with an objective that is NaN is never liked best.
    """
    score = values @ jnp.broadcast_to(jnp.asarray(preference).astype(values.dtype), values.shape[1])
    counts = ~jnp.isnan(score) if valid is None else valid & ~jnp.isnan(score)
    return jnp.argmax(jnp.where(counts, score, -jnp.inf))


def _distances(a: Float[Array, "n m"], b: Float[Array, "k m"]) -> Float[Array, "n k"]:
    return jnp.sqrt(jnp.sum((a[:, None] - b[None]) ** 2, axis=-1))


def _mean_of(x: Float[Array, " n"], counted: Bool[Array, " n"] | None) -> Float[Array, ""]:
    if counted is None:
        return jnp.mean(x)
    return jnp.sum(jnp.where(counted, x, 0)) / jnp.maximum(jnp.sum(counted), 1).astype(x.dtype)

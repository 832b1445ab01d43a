"""Finds the permutations that bring the hidden units of one network next to those of another."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxlab.arrays import safe_sqrt
from jaxlab.merging.arrays import math_dtype, safe_divide
from jaxlab.merging.axes import AxisSpec, LeafAxes, map_leaves
from jaxlab.merging.permutations import Permutations, identity_permutations, permute

_PRECISE = jax.lax.Precision.HIGHEST


class Matching(NamedTuple):
    """Permutations of the second model, and what they reach."""

    permutations: Permutations
    similarity: Float[Array, ""]  # sum of products of the first and the permuted second model
    passes: Int[Array, ""]
    settled: Bool[Array, ""]  # whether the last pass found nothing better


def assign(similarity: Float[Array, "*b n n"]) -> Int[Array, "*b n"]:
    """The one-to-one assignment of largest total similarity.

    Args:
        similarity: [..., i, j] of units i of one model and j of another.

    Returns:
        For each i its j.

    Reference:
        Kuhn 1955, The Hungarian method for the assignment problem.
    """
    from optax.assignment import hungarian_algorithm

    def one(table: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):
            rows, columns = hungarian_algorithm(-table)
        return jnp.zeros(table.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))

    n = similarity.shape[-1]
    flat = jax.vmap(one)(similarity.reshape(-1, n, n))
    return flat.reshape(similarity.shape[:-1])


def weight_matching(
    key: Key[Array, ""],
    spec: AxisSpec,
    a: PyTree[Float[Array, "..."]],
    b: PyTree[Float[Array, "..."]],
    *,
    max_passes: int = 50,
) -> Matching:
    """Permutes the units of `b` so that its weights lie closest to those of `a`.

    Coordinate descent: each kind of units in turn gets the best permutation given all others, in a
    random order per pass, until a pass brings nothing.

    Args:
        key: random key of the orders.
        spec: the symmetries of the architecture.
        a: the model that stays.
        b: the model to permute, of the same structure.
        max_passes: most passes over all kinds of units.

    Returns:
        Permutations for `permute(spec, ..., b)`.

    Raises:
        ValueError: if a leaf has the same units on two axes, as a recurrent kernel has.

    Reference:
        Ainsworth, Hayase & Srinivasa 2023, Git Re-Basin, section 3.2. Heads of attention are
        compared by what their channels reach at best, so that a pair of equal heads with reordered
        channels is found.

    Pitfall:
        The objective is not convex: with many layers a pass can settle on another optimum; several
        keys give several starts.
    """
    dtype = math_dtype(*jax.tree.leaves(a), *jax.tree.leaves(b))
    a, b = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (a, b))
    labels = [label for label, _ in spec.units]
    for pattern, axes in spec.leaves:
        for label in labels:
            if axes.labels.count(label) > 1:  # quadratic in the permutation: no linear assignment
                raise ValueError(
                    f"spec: expected {label!r} on one axis of {pattern!r}, got {axes.labels}"
                )
    branches = [_improve(spec, label, a, b) for label in labels]

    def total(permutations: Permutations) -> Array:
        moved = permute(spec, permutations, b)
        return sum(
            (jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(moved))),
            start=jnp.zeros((), dtype),
        )

    def one_pass(state: tuple) -> tuple:
        permutations, best, done, _ = state
        order = jax.random.permutation(jax.random.fold_in(key, done), len(labels))

        def step(i: Array, permutations: Permutations) -> Permutations:
            return jax.lax.switch(order[i], branches, permutations)

        permutations = jax.lax.fori_loop(0, len(labels), step, permutations)
        found = total(permutations)
        return permutations, found, done + 1, found <= best + jnp.abs(best) * 1e-6

    start = identity_permutations(spec, b)
    start = {label: order.astype(jnp.int32) for label, order in start.items()}
    state = (start, total(start), jnp.int32(0), jnp.zeros((), bool))
    state = jax.lax.while_loop(lambda s: (s[2] < max_passes) & ~s[3], one_pass, state)
    return Matching(*state)


def activation_matching(
    a: Mapping[str, Float[Array, "*w s n"]], b: Mapping[str, Float[Array, "*w s n"]]
) -> Permutations:
    """Pairs units whose activations correlate most over the same inputs.

    Args:
        a: activations by label, of the model that stays: samples s and units n last, and leading
            axes for which the units are counted anew.
        b: those of the model to permute.

    Returns:
        Permutations for `permute(spec, ..., params of b)`. Units that never change correlate with
        nothing.

    Raises:
        ValueError: if the labels or shapes differ.

    Reference:
        Li et al. 2016, Convergent learning; Ainsworth et al. 2023, Git Re-Basin, section 3.1.
    """
    if set(a) != set(b):
        raise ValueError(f"b: expected activations of {sorted(a)}, got {sorted(b)}")
    found = {}
    for label, first in a.items():
        second = b[label]
        if first.shape != second.shape or first.ndim < 2:
            raise ValueError(
                f"{label}: expected [..., s, n] twice, got {first.shape}, {second.shape}"
            )
        x, y = (_standardise(z.astype(math_dtype(z))) for z in (first, second))
        found[label] = assign(jnp.einsum("...si,...sj->...ij", x, y, precision=_PRECISE))
    return found


def barrier(
    loss: Callable[[PyTree], Float[Array, ""]], a: PyTree, b: PyTree, points: int = 11
) -> Float[Array, " points"]:
    """Loss along the line between two models above the line between their losses.

    Args:
        loss: of one model.
        a: model at t = 0.
        b: model at t = 1.
        points: evenly spaced models, ends included.

    Returns:
        One number per point, zero at both ends; the largest is the barrier.

    Reference:
        Frankle et al. 2020, Linear mode connectivity, section 2.
    """
    steps = jnp.linspace(0, 1, points)

    def at(t: Array) -> Array:
        return loss(jax.tree.map(lambda x, y: x + t.astype(x.dtype) * (y - x), a, b))

    losses = jax.lax.map(at, steps)
    return losses - (losses[0] + steps.astype(losses.dtype) * (losses[-1] - losses[0]))


def _standardise(x: Float[Array, "*w s n"]) -> Float[Array, "*w s n"]:
    centred = x - jnp.mean(x, axis=-2, keepdims=True)
    length = safe_sqrt(jnp.sum(centred**2, axis=-2, keepdims=True))
    small = length <= jnp.finfo(x.dtype).eps * safe_sqrt(jnp.sum(x**2, axis=-2, keepdims=True))
    scale = safe_divide(jnp.ones_like(length), length, small, 0.0)
    return centred * scale


def _improve(
    spec: AxisSpec, label: str, a: PyTree, b: PyTree
) -> Callable[[Permutations], Permutations]:
    """The step that gives one kind of units (and those within them) their best permutations."""
    inner = [name for name, within in spec.units if label in within]
    outer = spec.within(label)

    def step(permutations: Permutations) -> Permutations:
        others = {k: v for k, v in permutations.items() if k != label and k not in inner}
        moved = permute(spec, others, b)
        own = _similarity(spec, a, moved, (*outer, label), inner)
        tables = {}
        for name in inner:
            within = spec.within(name)
            if set(within) != {*outer, label}:
                raise ValueError(f"units: expected {name!r} within {(*outer, label)}, got {within}")
            tables[name] = _similarity(spec, a, moved, (*outer, label), (), name)
            best = assign(tables[name])
            reached = jnp.take_along_axis(tables[name], best[..., None], axis=-1)[..., 0]
            own = own + jnp.sum(reached, axis=-1)
        chosen = assign(own)
        found = permutations | {label: chosen}
        for name, table in tables.items():
            pairs = chosen[..., None, None, None]
            pairs = jnp.broadcast_to(pairs, (*table.shape[:-3], 1, *table.shape[-2:]))
            found[name] = assign(jnp.take_along_axis(table, pairs, axis=-3)[..., 0, :, :])
        return found

    return step


def _similarity(
    spec: AxisSpec,
    a: PyTree,
    b: PyTree,
    labels: tuple[str, ...],
    without: tuple[str, ...] | list[str],
    inner: str | None = None,
) -> Array:
    """Inner products [*outer, n, n] of the last label's units, summed over all leaves.

    With `inner`, [*outer, n, n, m, m]: of each pair of units, those of the units within them.
    """
    *outer, label = labels
    sizes = spec.sizes(a)
    shape = [sizes[name] for name in outer] + [sizes[label]] * 2
    shape += [] if inner is None else [sizes[inner]] * 2
    totals = [jnp.zeros(shape, jax.tree.leaves(a)[0].dtype)]

    def add(axes: LeafAxes, x: Array, y: Array) -> Array:
        wanted = label in axes.labels and not set(axes.labels) & set(without)
        if wanted and (inner is None or inner in axes.labels):
            front = [*outer, label, *([] if inner is None else [inner])]
            places = [axes.labels.index(name) for name in front]
            x, y = (
                jnp.moveaxis(z, places, range(len(places))).reshape(
                    [sizes[name] for name in front] + [-1]
                )
                for z in (x, y)
            )
            rule = "...ir,...jr->...ij" if inner is None else "...imr,...jnr->...ijmn"
            totals[0] = totals[0] + jnp.einsum(rule, x, y, precision=_PRECISE)
        return x

    map_leaves(spec, add, a, b)
    return totals[0]

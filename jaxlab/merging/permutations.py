"""Reorderings of hidden units that leave a network's function as it is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from jaxlab.merging.axes import AxisSpec, LeafAxes, along, map_leaves

Permutations = dict[str, Int[Array, "*w n"]]  # label -> where each unit comes from


def identity_permutations(spec: AxisSpec, params: PyTree) -> Permutations:
    """Permutations that change nothing.

    Args:
        spec: the meaning of axes.
        params: a model.

    Returns:
        For each kind of units, 0 .. n - 1 along the last axis; leading axes as `spec.within` says.

    Raises:
        ValueError: if no leaf has one of the spec's units.
    """
    sizes = spec.sizes(params)
    if missing := [label for label, _ in spec.units if label not in sizes]:
        raise ValueError(f"params: expected a leaf with each of {missing}")
    found = {}
    for label, within in spec.units:
        shape = tuple(sizes[name] for name in within)
        found[label] = jnp.broadcast_to(jnp.arange(sizes[label]), (*shape, sizes[label]))
    return found


def random_permutations(key: Key[Array, ""], spec: AxisSpec, params: PyTree) -> Permutations:
    """Independent uniform permutations.

    Args:
        key: random key.
        spec: the meaning of axes.
        params: a model.

    Returns:
        As `identity_permutations`.
    """
    keys = jax.random.split(key, len(spec.units))
    start = identity_permutations(spec, params)
    return {
        label: jax.random.permutation(k, order, axis=-1, independent=True)
        for k, (label, order) in zip(keys, start.items())
    }


def permute(spec: AxisSpec, permutations: Permutations, params: PyTree) -> PyTree:
    """Reorders the units of a model.

    Args:
        spec: the meaning of axes.
        permutations: unit i of the result is unit p[i] of the model; labels that are not there
            stay. Units within units (channels of heads) are reordered after their heads, so that
            their permutations count heads as the result does.
        params: a model.

    Returns:
        The same function of its inputs, if `spec` tells the symmetries of the architecture.
    """

    def reorder(axes: LeafAxes, leaf: Array) -> Array:
        for label, within in spec.units:
            for place, name in enumerate(axes.labels):
                if name != label or label not in permutations:
                    continue
                places = (*(axes.labels.index(outer) for outer in within), place)
                index = along(permutations[label], leaf, places)
                shape = [n if i in places else 1 for i, n in enumerate(leaf.shape)]
                index = jnp.broadcast_to(index, shape)
                leaf = jnp.take_along_axis(leaf, index, axis=place)
        return leaf

    return map_leaves(spec, reorder, params)

"""Growing by a learned linear map of the small model's weights."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlab.merging.axes import AxisSpec
from jaxlab.merging.trees import leaf_path

_PRECISE = jax.lax.Precision.HIGHEST


class LiGO(NamedTuple):
    """A linear growth operator; all of it is trained by gradients through `ligo_apply`."""

    writes: dict[str, Float[Array, "m n"]]  # B: new units as combinations of old ones
    reads: dict[str, Float[Array, "m n"]]  # A: how new units are read
    depth: dict[str, Float[Array, "k l"]]  # by path: new layers as combinations of old ones


def ligo_init(
    params: PyTree,
    spec: AxisSpec,
    sizes: Mapping[str, int],
    *,
    layers: int | None = None,
    layer_label: str = "layer",
) -> LiGO:
    """Starts where nothing is learned: units copied and stacked layers.

    Args:
        params: the small model.
        spec: the meaning of axes.
        sizes: new sizes by label; the others stay.
        layers: new number of layers; the old one if None.
        layer_label: the label of axes that count layers.

    Returns:
        A growth operator that `ligo_apply` makes equal to `width_direct` without a key, and to
        `stack` where `layers` is a multiple.

    Reference:
        Wang et al. 2023, Learning to grow pretrained models (LiGO), eq. 4 to 6.
    """
    old = spec.sizes(params)
    writes, reads = {}, {}
    for label, size in sizes.items():
        copy = jax.nn.one_hot(jnp.arange(size) % old[label], old[label])
        writes[label], reads[label] = copy, copy / jnp.sum(copy, axis=0, keepdims=True)
    depth = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = leaf_path(path)
        if layers is not None and layer_label in spec.axes_of(name, leaf.ndim).labels:
            count = old[layer_label]
            depth[name] = jax.nn.one_hot(jnp.arange(layers) % count, count)
    return LiGO(writes, reads, depth)


def ligo_apply(
    operator: LiGO, params: PyTree, spec: AxisSpec, *, layer_label: str = "layer"
) -> PyTree:
    """The large model: sum_j w_ij B W_j A^T.

    Args:
        operator: from `ligo_init`, trained or not.
        params: the small model.
        spec: the meaning of axes.
        layer_label: as for `ligo_init`.

    Returns:
        A model in the dtypes of the small one; differentiable in the operator.
    """

    def grow(path: Any, leaf: Array) -> Array:
        name = leaf_path(path)
        axes = spec.axes_of(name, leaf.ndim)
        for axis, label in enumerate(axes.labels):
            matrix = (operator.reads if axis in axes.inputs else operator.writes).get(label or "")
            if label == layer_label:
                matrix = operator.depth.get(name)
            if matrix is not None:
                moved = jnp.moveaxis(leaf, axis, 0)
                grown = jnp.tensordot(matrix.astype(leaf.dtype), moved, 1, precision=_PRECISE)
                leaf = jnp.moveaxis(grown, 0, axis)
        return leaf

    return jax.tree_util.tree_map_with_path(grow, params)

"""Growing in width: units are copied, or added as zeros or at random behind a mask."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from jaxlab.merging.axes import AxisSpec, LeafAxes, along, map_leaves
from jaxlab.merging.trees import leaf_path

Sizes = Mapping[str, int]  # label -> new size


def width_direct(
    params: PyTree, spec: AxisSpec, sizes: Sizes, *, key: Key[Array, ""] | None = None
) -> PyTree:
    """Adds copies of units, and divides what reads a unit by the number of its copies.

    Args:
        params: a model.
        spec: the meaning of axes.
        sizes: new sizes by label; the others stay.
        key: random key; new units then copy random ones, otherwise unit i copies i mod n.

    Returns:
        A wider model of the same function.

    Raises:
        ValueError: if a size shrinks, or units that a layer norm runs over would not all have the
            same number of copies, which their norm would show.

    Reference:
        Chen et al. 2016, Net2Net, section 2; Chen et al. 2022, bert2BERT (G_direct in width).
    """
    old = _check(params, spec, sizes)
    places: dict[str, Array] = {}
    for number, (label, size) in enumerate(sizes.items()):
        first = jnp.arange(size) % old[label]
        if label in spec.normalised:
            if size % old[label]:
                raise ValueError(
                    f"sizes: expected a multiple of {old[label]} for {label!r}, which a layer norm "
                    f"runs over, got {size}"
                )
        elif key is not None:
            drawn = jax.random.randint(jax.random.fold_in(key, number), (size,), 0, old[label])
            first = jnp.where(jnp.arange(size) < old[label], first, drawn)
        places[label] = first

    def copy(axes: LeafAxes, leaf: Array) -> Array:
        for axis, label in enumerate(axes.labels):
            if label in places:
                leaf = jnp.take(leaf, places[label], axis=axis)
                if axis in axes.inputs:
                    copies = _copies(places[label], old[label]).astype(leaf.dtype)
                    leaf = leaf / along(copies, leaf, (axis,))
        return leaf

    return map_leaves(spec, copy, params)


def width_zero(key: Key[Array, ""], params: PyTree, spec: AxisSpec, sizes: Sizes) -> PyTree:
    """Adds units that are zero, read with random weights so that they can learn.

    Args:
        key: random key.
        params: a model.
        spec: the meaning of axes.
        sizes: new sizes by label; the others stay.

    Returns:
        A wider model: of the same function if zero is a fixed point of the activation and no
        layer norm runs over the new units. New reading weights have the deviation of the old ones.

    Reference:
        Du et al. 2024, Stacking Your Transformers, G_zero in width.
    """
    return _padded(key, params, spec, sizes, writes=False)


def width_random(
    key: Key[Array, ""], params: PyTree, spec: AxisSpec, sizes: Sizes
) -> tuple[PyTree, Callable[[ArrayLike], dict[str, Float[Array, " n"]]]]:
    """Adds random units behind a mask that fades them in.

    Args:
        key: random key.
        params: a model.
        spec: the meaning of axes.
        sizes: new sizes by label; the others stay.

    Returns:
        A wider model, and a function from the ramp, 0 to 1, to one mask per label for
        `mask_units`: at 0 the function is the old one, if norms run over the mask's units only
        (`masked_rms_norm`).

    Reference:
        Yao et al. 2024, Masked structural growth, section 3.2 (G_random in width).
    """
    old = _check(params, spec, sizes)

    def masks(ramp: ArrayLike) -> dict[str, Array]:
        height = jnp.asarray(ramp).astype(jnp.float32)
        return {
            label: jnp.where(jnp.arange(size) < old[label], jnp.float32(1), height)
            for label, size in sizes.items()
        }

    return _padded(key, params, spec, sizes, writes=True), masks


def mask_units(params: PyTree, spec: AxisSpec, masks: Mapping[str, Float[Array, " n"]]) -> PyTree:
    """Weakens what reads each unit.

    Args:
        params: a model.
        spec: the meaning of axes.
        masks: by label, from `width_random`.

    Returns:
        A model whose readers of a unit are multiplied by its mask.
    """

    def weaken(axes: LeafAxes, leaf: Array) -> Array:
        for axis in axes.inputs:
            label = axes.labels[axis] or ""
            if label in masks:
                leaf = leaf * along(masks[label].astype(leaf.dtype), leaf, (axis,))
        return leaf

    return map_leaves(spec, weaken, params)


def masked_rms_norm(
    x: Float[Array, "*b n"], weight: Float[Array, " n"], mask: Float[Array, " n"], eps: float
) -> Float[Array, "*b n"]:
    """Root-mean-square norm over the units that a mask lets through, in parts.

    Args:
        x: activations.
        weight: gains.
        mask: from `width_random`.
        eps: added to the mean square.

    Returns:
        x / sqrt(sum m x^2 / sum m + eps) times the gains.

    Reference:
        Zhang & Sennrich 2019, Root mean square layer normalization; Yao et al. 2024 for the mask.
    """
    spread = lambda v: jnp.broadcast_to(v, x.shape)  # noqa: E731
    square = jnp.sum(spread(mask) * x**2, axis=-1, keepdims=True) / jnp.sum(mask)
    return x * jax.lax.rsqrt(square + eps) * spread(weight)


def _check(params: PyTree, spec: AxisSpec, sizes: Sizes) -> dict[str, int]:
    old = spec.sizes(params)
    known = [label for label, _ in spec.units]
    for label, size in sizes.items():
        if label not in known:
            raise ValueError(f"sizes: expected labels out of {known}, got {label!r}")
        if size < old[label]:
            raise ValueError(f"sizes: expected at least {old[label]} of {label!r}, got {size}")
    return old


def _copies(places: Int[Array, " m"], old: int) -> Int[Array, " m"]:
    """How many units, itself included, are copies of the same one."""
    return jnp.zeros(old, jnp.int32).at[places].add(1)[places]


def _padded(
    key: Key[Array, ""], params: PyTree, spec: AxisSpec, sizes: Sizes, *, writes: bool
) -> PyTree:
    """The old model in the corner of a wider one; new reading weights are random.

    With `writes`, so is everything else that is new.
    """
    _check(params, spec, sizes)
    flat: tuple[Any, Any] = jax.tree_util.tree_flatten_with_path(params)
    leaves, structure = flat
    padded = []
    for number, (path, leaf) in enumerate(leaves):
        axes = spec.axes_of(leaf_path(path), leaf.ndim)
        wide = [sizes.get(label or "", n) for label, n in zip(axes.labels, leaf.shape)]
        if wide != list(leaf.shape):
            kept = jnp.zeros(wide, bool)  # where the draw survives
            for axis, (n, m) in enumerate(zip(leaf.shape, wide)):
                if m > n and (writes or axis in axes.inputs):
                    kept = kept | along(jnp.arange(m) >= n, kept, (axis,))
            for axis, (n, m) in enumerate(zip(leaf.shape, wide)):
                if m > n and not writes and axis not in axes.inputs:
                    kept = kept & along(jnp.arange(m) < n, kept, (axis,))
            draw = jax.random.normal(jax.random.fold_in(key, number), wide, leaf.dtype)
            fresh = jnp.where(kept, draw * jnp.std(leaf), jnp.zeros((), leaf.dtype))
            leaf = fresh.at[tuple(slice(n) for n in leaf.shape)].set(leaf)
        padded.append(leaf)
    return jax.tree.unflatten(structure, padded)

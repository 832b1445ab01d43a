"""Operators on directions: interpolation and means on the sphere, and Model Stock."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxlab.merging.arrays import is_concrete, weighted_sum
from jaxlab.merging.gram import (
    inner_products,
    karcher_coefficients,
    model_stock_ratio,
    multislerp_coefficients,
    nuslerp_coefficients,
    slerp_coefficients,
)
from jaxlab.merging.leaf import Block, Leaf
from jaxlab.merging.operators import Layout, PerModel, Shared, operator


@operator(models=(1, 1))
def slerp(leaf: Leaf, *, t: Shared):
    """Spherical interpolation from the base (t = 0) to the model (t = 1), one angle per leaf.

    Args:
        leaf: base and models.
        t: position; beyond [0, 1] it extrapolates.

    Reference:
        Shoemake 1985, Animating rotation with quaternion curves, section 3.3.

    Pitfall:
        The vectors are combined as they are, so lengths are not interpolated between; within
        0.9995 of parallel or antiparallel the interpolation is linear.
    """
    coefficients = slerp_coefficients(leaf.total(_endpoint_gram), t)
    return leaf.emit(_endpoint_sum, coefficients)


def _nuslerp_layout(values: Mapping[str, Any]) -> Layout:
    return "flat" if values["axis"] is None else "rows" if values["axis"] == -1 else "whole"


@operator(base="optional", layout=_nuslerp_layout, models=(2, 2))
def nuslerp(leaf: Leaf, *, weight: PerModel, axis: int | None = None):
    """Spherical interpolation of two models, or of their task vectors if there is a base.

    Args:
        leaf: base and models.
        weight: two weights; the position is w_2 / (w_1 + w_2).
        axis: one angle for the whole leaf if None, otherwise one for each vector along this axis.

    Reference:
        The method as mergekit defines it. Its `nuslerp_row_wise` is `axis=0` here.
    """
    if axis is None:
        coefficients = nuslerp_coefficients(leaf.total(_delta_gram), weight)
        return leaf.emit(_delta_sum, coefficients)
    return leaf.emit(_nuslerp_along, weight, axis=axis)


@operator(base="optional")
def multislerp(leaf: Leaf, *, weight: PerModel, normalize: bool = True):
    """Barycentre of directions by one tangent step, times the weighted mean length.

    Args:
        leaf: base and models.
        weight: one number per model.
        normalize: divide the weights by their sum.

    Reference:
        Goddard 2025, Multi-SLERP.

    Pitfall:
        Directions that cancel have no barycentre: with known inputs and more than two models this
        is refused, otherwise the result is the weighted sum.
    """
    if normalize:
        total = jnp.sum(weight)
        weight = weight / jnp.where(total == 0, jnp.ones_like(total), total)
    if leaf.count == 1:
        return leaf.emit(_delta_sum, jnp.ones((1,), leaf.dtype))
    gram = leaf.total(_delta_gram)
    coefficients, length = multislerp_coefficients(gram, weight)
    if leaf.count > 2 and is_concrete(gram, length) and length == 0 < jnp.max(gram):
        raise ValueError("weight: the weighted directions of the models cancel; use other weights")
    return leaf.emit(_delta_sum, coefficients)


@operator(base="none")
def karcher(leaf: Leaf, *, steps: int = 10, tol: Shared = 1e-5):
    """Karcher mean of the models' directions, times their mean length.

    Args:
        leaf: base and models.
        steps: most iterations.
        tol: models shorter than this have no direction; smaller steps end the iteration.

    Reference:
        Karcher 1977, Riemannian center of mass and mollifier smoothing.
    """
    if leaf.count == 1:
        return leaf.emit(_delta_sum, jnp.ones((1,), leaf.dtype))
    coefficients = karcher_coefficients(leaf.total(_delta_gram), steps, tol)
    return leaf.emit(_delta_sum, coefficients)


def _model_stock_layout(values: Mapping[str, Any]) -> Layout:
    return "rows" if values["filter_wise"] else "flat"


@operator(layout=_model_stock_layout, models=(2, None))
def model_stock(leaf: Leaf, *, filter_wise: bool = False):
    """Moves from the base towards the mean of the models as far as their angle says.

    Args:
        leaf: base and models.
        filter_wise: one angle per row instead of one per leaf.

    Reference:
        Jang et al. 2024, Model Stock, eq. 7.
    """
    if filter_wise:
        return leaf.emit(_model_stock_rows)
    return leaf.emit(_towards_mean, model_stock_ratio(leaf.total(_delta_gram)))


def _endpoint_gram(block: Block) -> Array:
    return inner_products(jnp.concatenate([block.origin[None], block.models]))


def _delta_gram(block: Block) -> Array:
    return inner_products(block.deltas)


def _endpoint_sum(block: Block, coefficients: Array) -> Array:
    return coefficients[0] * block.origin + coefficients[1] * block.models[0]


def _delta_sum(block: Block, coefficients: Array) -> Array:
    moved = weighted_sum(coefficients, block.deltas)
    return moved if block.base is None else block.base + moved


def _towards_mean(block: Block, ratio: Array) -> Array:
    count = block.models.shape[0]
    mean = weighted_sum(jnp.ones((count,), block.models.dtype), block.models) / count
    return ratio * mean + (1 - ratio) * block.origin


def _model_stock_rows(block: Block) -> Array:
    ratio = jax.vmap(lambda d: model_stock_ratio(inner_products(d)), in_axes=1)(block.deltas)
    ratio = jnp.broadcast_to(ratio[:, None], block.origin.shape)
    count = block.models.shape[0]
    mean = weighted_sum(jnp.ones((count,), ratio.dtype), block.models) / count
    return ratio * mean + (1 - ratio) * block.origin


def _nuslerp_along(block: Block, weight: Array, *, axis: int) -> Array:
    deltas = block.deltas
    if deltas.ndim == 1:  # a scalar leaf
        deltas = deltas[:, None]
    vectors = jnp.moveaxis(deltas, 1 + axis % (deltas.ndim - 1), -1)
    flat = vectors.reshape(2, -1, vectors.shape[-1])

    def interpolate(pair: Array) -> Array:
        return weighted_sum(nuslerp_coefficients(inner_products(pair), weight), pair)

    moved = jax.vmap(interpolate, in_axes=1)(flat).reshape(vectors.shape[1:])
    moved = jnp.moveaxis(moved, -1, axis % (deltas.ndim - 1)).reshape(block.models.shape[1:])
    return moved if block.base is None else block.base + moved

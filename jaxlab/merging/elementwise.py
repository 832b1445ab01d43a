"""Operators that look at one element of each model at a time."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.merging.arrays import (
    is_concrete,
    model_sum,
    safe_divide,
    spread,
    weighted_sum,
)
from jaxlab.merging.leaf import Block, Leaf
from jaxlab.merging.operators import PerModel, Shared, operator


@operator(base="none")
def linear(leaf: Leaf, *, weight: PerModel, normalize: bool = True):
    """Weighted average of models: sum_m w_m x_m, over sum_m w_m if `normalize`.

    Args:
        leaf: base and models.
        weight: one number per model.
        normalize: divide by the sum of the weights. A known sum of zero is refused; a traced one
            gives the plain mean.

    Reference:
        Wortsman et al. 2022, Model soups.
    """
    if normalize:
        total = jnp.sum(weight)
        if is_concrete(total) and total == 0:
            raise ValueError("weight: expected a sum other than 0 to divide by, got 0")
        weight = safe_divide(weight, total, total == 0, 1 / leaf.count)
    return leaf.emit(_weighted_models, weight)


@operator()
def task_arithmetic(leaf: Leaf, *, weight: PerModel, lam: Shared = 1.0, normalize: bool = False):
    """Base plus weighted task vectors: b + lam sum_m w_m d_m.

    Args:
        leaf: base and models.
        weight: one number per model.
        lam: scale of the sum.
        normalize: divide by the sum of the weights, taken as 1 below 1e-8.

    Reference:
        Ilharco et al. 2023, Editing models with task arithmetic.
    """
    if normalize:
        total = jnp.sum(weight)
        weight = weight / jnp.where(jnp.abs(total) < 1e-8, jnp.ones_like(total), total)
    return leaf.emit(_base_plus, lam * weight)


@operator(base="none", models=(1, 1))
def passthrough(leaf: Leaf, *, scale: PerModel = 1.0):
    """The model itself, scaled.

    Args:
        leaf: base and models.
        scale: factor.
    """
    return leaf.emit(_weighted_models, scale)


@operator(models=(1, 1))
def nearswap(leaf: Leaf, *, t: Shared):
    """Moves the base to the model where they are near: weight clip(t / |b - x|, 0, 1).

    Args:
        leaf: base and models.
        t: distance up to which the model's element replaces the base's.

    Reference:
        alchemonaut 2024, QuartetAnemoi-70B (the method as mergekit defines it).
    """
    return leaf.emit(_nearswap, t)


@operator(models=(1, 1))
def expo(leaf: Leaf, *, alpha: Shared):
    """Goes on beyond the model in the direction it came from: x + alpha (x - b).

    Args:
        leaf: base and models.
        alpha: how far, 0 for the model.

    Reference:
        Zheng et al. 2024, Weak-to-strong extrapolation expedites alignment (ExPO).
    """
    return leaf.emit(_base_plus, 1 + alpha[None])


@operator()
def magmax(leaf: Leaf, *, lam: Shared = 0.5):
    """Base plus, for each element, the task vector of largest magnitude; later models win ties.

    Args:
        leaf: base and models.
        lam: scale.

    Reference:
        Marczak et al. 2024, MagMax.
    """
    return leaf.emit(_magmax, lam)


@operator()
def ram(leaf: Leaf, *, epsilon: Shared = 1e-5):
    """Sum of task vectors where one model moved, their mean over the movers where several did.

    Args:
        leaf: base and models.
        epsilon: a model has moved an element if |d| > epsilon.

    Reference:
        Reinforced agent merging (arXiv 2601.13572).
    """
    return leaf.emit(_ram, epsilon, jnp.ones((leaf.count,), leaf.dtype))


@operator()
def ramplus_tl(leaf: Leaf, *, r: Shared = 0.1, alpha: Shared = 0.2, epsilon: Shared = 1e-5):
    """As `ram`, with the unshared parts enlarged by 1 + r clip(rho_m, 0, alpha).

    Args:
        leaf: base and models.
        r: strength of the enlargement.
        alpha: largest ratio that counts.
        epsilon: a model has moved an element if |d| > epsilon.

    Reference:
        Reinforced agent merging (arXiv 2601.13572), with rho = shared / unshared elements of a
        model taken per tensor; the paper takes it over the whole model.
    """
    shared, alone = leaf.total(_overlaps, epsilon)
    rho = shared.astype(leaf.dtype) / jnp.maximum(alone.astype(leaf.dtype), 1e-5)
    return leaf.emit(_ram, epsilon, 1 + r * jnp.clip(rho, 0, alpha))


def _weighted_models(block: Block, weight: Array) -> Array:
    return weighted_sum(weight, block.models)


def _base_plus(block: Block, weight: Array) -> Array:
    return block.origin + weighted_sum(weight, block.deltas)


def _nearswap(block: Block, t: Array) -> Array:
    x, b = block.models[0], block.origin
    weight = jnp.clip(t / jnp.maximum(jnp.abs(b - x), 1e-6), 0, 1)
    return weight * x + (1 - weight) * b


def _magmax(block: Block, lam: Array) -> Array:
    deltas = block.deltas
    best = deltas[0]
    for m in range(1, deltas.shape[0]):
        best = jnp.where(jnp.abs(deltas[m]) >= jnp.abs(best), deltas[m], best)
    return block.origin + lam * best


def _movers(deltas: Float[Array, "M *s"], epsilon: Array) -> tuple[Array, Array]:
    active = jnp.abs(deltas) > epsilon
    return active, model_sum(active.astype(jnp.int32))


def _overlaps(block: Block, epsilon: Array) -> tuple[Array, Array]:
    active, count = _movers(block.deltas, epsilon)
    axes = tuple(range(1, active.ndim))
    alone = jnp.sum(active & (count == 1)[None], axis=axes, dtype=jnp.int32)
    return jnp.sum(active & (count > 1)[None], axis=axes, dtype=jnp.int32), alone


def _ram(block: Block, epsilon: Array, enlarge: Array) -> Array:
    deltas = block.deltas
    active, count = _movers(deltas, epsilon)
    share = 1 / jnp.maximum(count, 1).astype(deltas.dtype)
    factor = jnp.where((count == 1)[None], spread(enlarge, deltas), share[None])
    return block.origin + model_sum(jnp.where(active, deltas, 0) * factor)

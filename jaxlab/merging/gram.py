"""Merges that are combinations of the models with coefficients that the Gram matrix decides.

slerp, nuslerp, multislerp, the Karcher mean and Model Stock all give `sum_m c_m x_m` with c a
function of the M x M inner products alone. One pass over the weights makes the Gram matrix; after
that, any number of candidate recipes costs O(M^2) each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxlab.arrays import safe_sqrt
from jaxlab.merging.arrays import (
    UNROLLED_MODELS,
    check_leaves,
    math_dtype,
    model_sum,
    safe_arccos,
    safe_divide,
    spread,
)

_PRECISE = jax.lax.Precision.HIGHEST


def _resolution(dtype: Any) -> float:
    """The shortest sum of unit vectors that their Gram matrix can tell from zero."""
    return 4 * float(jnp.finfo(dtype).eps) ** 0.5


def gram_matrix(
    models: Float[Array, "M *s"], base: Float[Array, "*s"] | None = None
) -> Float[Array, "M M"]:
    """Inner products of the models, or of their differences to a base.

    Args:
        models: leaves, stacked.
        base: subtracted first, or None.

    Returns:
        float32, or float64 if the inputs are.
    """
    check_leaves(base, models)
    dtype = math_dtype(base, models)
    models = models.astype(dtype)
    return inner_products(models if base is None else models - base.astype(dtype)[None])


def inner_products(models: Float[Array, "M *s"]) -> Float[Array, "M M"]:
    """Inner products over all axes but the first."""
    count = models.shape[0]
    if count > UNROLLED_MODELS // 4:
        flat = models.reshape(count, -1)
        return jnp.matmul(flat, flat.T, precision=_PRECISE)
    # The differences are never stored: each product is fused into its own reduction.
    sums = [[jnp.sum(models[i] * models[j]) for j in range(i + 1)] for i in range(count)]
    return jnp.stack(
        [jnp.stack([sums[max(i, j)][min(i, j)] for j in range(count)]) for i in range(count)]
    )


def combine(
    models: Float[Array, "M *s"],
    coefficients: Float[Array, "C M"],
    base: Float[Array, "*s"] | None = None,
) -> Float[Array, "C *s"]:
    """Makes C merged leaves at once: base + sum_m c_m (x_m - base).

    Args:
        models: leaves, stacked.
        coefficients: one row per candidate.
        base: the origin, or None for zero.

    Returns:
        The candidates, in the models' dtype; the weights are read once for all of them.
    """
    check_leaves(base, models)
    dtype = math_dtype(base, models)
    origin = jnp.zeros_like(models[0], dtype) if base is None else base.astype(dtype)
    deltas = models.astype(dtype) - origin[None]
    share = coefficients.astype(dtype)
    if models.shape[0] > UNROLLED_MODELS:
        moved = jnp.tensordot(share, deltas, 1, precision=_PRECISE)
    else:  # a product with so few columns is many times slower than its additions
        moved = model_sum(
            [spread(share[:, m], deltas) * deltas[m][None] for m in range(len(deltas))]
        )
    return (origin[None] + moved).astype(models.dtype)


@jax.jit
def slerp_coefficients(gram: Float[Array, "2 2"], t: ArrayLike) -> Float[Array, " 2"]:
    """Coefficients of the spherical interpolation of two vectors.

    Args:
        gram: inner products of the two.
        t: 0 gives the first, 1 the second; beyond, it extrapolates.

    Returns:
        Two numbers, for the vectors as they are: directions are interpolated, lengths are not.
        Within 0.9995 of parallel or antiparallel the interpolation is linear.

    Reference:
        Shoemake 1985, Animating rotation with quaternion curves, section 3.3.
    """
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 1e-30))
    norms = jnp.where(norms > 1e-8, norms, jnp.ones_like(norms))
    cosine = jnp.clip(gram[0, 1] / (norms[0] * norms[1]), -1, 1)
    return _spherical(cosine, jnp.abs(cosine) > 0.9995, jnp.asarray(t, gram.dtype))


@jax.jit
def nuslerp_coefficients(
    gram: Float[Array, "2 2"], weight: Float[Array, " 2"]
) -> Float[Array, " 2"]:
    """As `slerp_coefficients` with t = w_2 / (w_1 + w_2), linear only where colinear.

    Args:
        gram: inner products of the two.
        weight: two weights; a sum under 1e-6 counts as equal weights.

    Returns:
        Two numbers.
    """
    norms = jnp.maximum(safe_sqrt(jnp.diagonal(gram)), 1e-7)
    cosine = jnp.clip(gram[0, 1] / (norms[0] * norms[1]), -1, 1)
    total = jnp.sum(weight)
    t = safe_divide(weight[1], total, jnp.abs(total) < 1e-6, 0.5)
    return _spherical(cosine, 1 - cosine**2 <= 8 * jnp.finfo(gram.dtype).eps, t)


@jax.jit
def multislerp_coefficients(
    gram: Float[Array, "M M"], weight: Float[Array, " M"], eps: float = 1e-8
) -> tuple[Float[Array, " M"], Float[Array, ""]]:
    """One step of the barycentre on the sphere: the mean of the tangents at the mean direction.

    Args:
        gram: inner products.
        weight: one number per vector, as they are to be used.
        eps: smallest length of the mean direction, and at least what the dtype resolves.

    Returns:
        The coefficients, and the length of sum_m w_m u_m, 0 where it is too short: there is no mean
        direction then, and the coefficients are those of the weighted sum.

    Reference:
        Goddard 2025, Multi-SLERP.
    """
    lengths = safe_sqrt(jnp.diagonal(gram))
    to_unit = 1 / (lengths + eps)
    mean = weight * to_unit
    length = safe_sqrt(mean @ gram @ mean)
    lost = length < jnp.maximum(eps, _resolution(gram.dtype) * jnp.sum(jnp.abs(weight)))
    direction = safe_divide(mean, length, lost, 0.0)
    cosines = to_unit * (gram @ direction)
    tangent = weight * to_unit - jnp.dot(weight, cosines) * direction
    radius = safe_sqrt(tangent @ gram @ tangent) + eps
    point = direction * jnp.cos(radius) + tangent * (jnp.sin(radius) / radius)
    coefficients = jnp.where(lost, weight, point * jnp.dot(weight, lengths))
    return coefficients, jnp.where(lost, 0, length)


@functools.partial(jax.jit, static_argnames="steps")
def karcher_coefficients(
    gram: Float[Array, "M M"], steps: int = 10, tol: float = 1e-5
) -> Float[Array, " M"]:
    """Coefficients of the Karcher (Fréchet) mean of the directions, times the mean length.

    Args:
        gram: inner products.
        steps: most iterations.
        tol: vectors shorter than this have no direction; smaller steps end the iteration.

    Returns:
        M numbers: zero if all vectors are zero, the first direction if the directions cancel.

    Reference:
        Karcher 1977, Riemannian center of mass; the iteration runs on coefficients, since
        <u, u_m> = (K c)_m with K the Gram matrix of the directions.
    """
    count = gram.shape[0]
    lengths = safe_sqrt(jnp.diagonal(gram))
    valid = lengths > tol
    to_unit = safe_divide(jnp.ones_like(lengths), lengths, ~valid, 0.0)
    cosines = gram * jnp.outer(to_unit, to_unit)
    share = valid.astype(gram.dtype)
    share = share / jnp.maximum(jnp.sum(share), 1)
    first = ((jnp.arange(count) == jnp.argmax(valid)) & valid).astype(gram.dtype)
    least = jnp.maximum(tol, _resolution(gram.dtype))  # below, directions cancel

    def normalise(c: Array, otherwise: Array) -> Array:
        length = safe_sqrt(c @ cosines @ c)
        return jnp.where(length < least, otherwise, safe_divide(c, length, length < least, 0.0))

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        c, done = state
        dots = jnp.clip(cosines @ c, -1, 1)
        angles = safe_arccos(dots)
        near = angles < tol
        far = angles > jnp.pi - least
        factor = safe_divide(angles, jnp.sin(angles), near | far, 1.0) * jnp.where(far, 0, share)
        tangent = factor - jnp.dot(factor, dots) * c
        length = safe_sqrt(tangent @ cosines @ tangent)
        done = done | (length < tol)
        slope = safe_divide(jnp.sin(length), length, length < tol, 1.0)
        moved = normalise(jnp.cos(length) * c + slope * tangent, c)
        return jnp.where(done, c, moved), done

    start = (normalise(share, first), jnp.zeros((), bool))
    c, _ = jax.lax.fori_loop(0, steps, step, start)
    return c * to_unit * jnp.mean(lengths)


@jax.jit
def model_stock_ratio(gram: Float[Array, "M M"]) -> Float[Array, ""]:
    """How far from the base to the mean of M models Model Stock goes.

    Args:
        gram: inner products of the task vectors, M >= 2.

    Returns:
        t = M c / (1 + (M - 1) c) with c the mean cosine of the pairs; 0 where the denominator
        vanishes. Negative where the task vectors oppose each other.

    Reference:
        Jang et al. 2024, Model Stock, eq. 7.
    """
    count = gram.shape[0]
    lengths = safe_sqrt(jnp.diagonal(gram))
    cosines = jnp.clip(gram / jnp.maximum(jnp.outer(lengths, lengths), 1e-6), -1, 1)
    pairs = [cosines[i, j] for i in range(count) for j in range(i + 1, count)]
    cosine = sum(pairs[1:], pairs[0]) / len(pairs)
    denominator = 1 + (count - 1) * cosine
    return safe_divide(count * cosine, denominator, jnp.abs(denominator) < 1e-6, 0.0)


def _spherical(cosine: Array, linear: Array, t: Array) -> Float[Array, " 2"]:
    angle = safe_arccos(jnp.where(linear, 0, cosine))
    sine = jnp.sin(angle)
    first = jnp.where(linear, 1 - t, jnp.sin((1 - t) * angle) / sine)
    return jnp.stack([first, jnp.where(linear, t, jnp.sin(t * angle) / sine)])

"""What operators do to their inputs: one float dtype, one coefficient per model, safe roots."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

UNROLLED_MODELS = 32  # a reduction over the leading axis is many times slower than these additions


def math_dtype(*arrays: Array | None) -> Any:
    """The dtype to compute in: float64 if any input has it, float32 otherwise.

    Args:
        arrays: inputs of any float dtype; None is skipped.

    Returns:
        A dtype.

    Pitfall:
        bfloat16 keeps 8 bits: a difference of two fine-tuned models is lost in it.
    """
    double = any(x is not None and x.dtype == jnp.float64 for x in arrays)
    return jnp.float64 if double else jnp.float32


def is_concrete(*values: Any) -> bool:
    """Whether all values are known while the program is being traced."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def check_leaves(base: Array | None, models: Array) -> None:
    """Refuses what is not one leaf of a base and of M models.

    Args:
        base: the base's leaf, or None.
        models: the models' leaves, stacked.

    Raises:
        ValueError: naming the argument.
    """
    if models.ndim < 1 or models.shape[0] < 1:
        raise ValueError(f"models: expected a leading axis of models, got shape {models.shape}")
    for name, array in (("base", base), ("models", models)):
        if array is not None and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating numbers, got {array.dtype}")
    if base is not None and base.shape != models.shape[1:]:
        raise ValueError(
            f"base: expected the shape of one model, {models.shape[1:]}, got {base.shape}"
        )


def per_model(name: str, value: ArrayLike, count: int, dtype: Any) -> Float[Array, " M"]:
    """One number for each model.

    Args:
        name: the argument's name, for the message.
        value: a scalar or one number per model.
        count: number of models M.
        dtype: dtype of the result.

    Returns:
        An array of length M.

    Raises:
        ValueError: if there are neither one nor M numbers.
    """
    array = jnp.asarray(value).astype(dtype)
    if array.shape not in ((), (count,)):
        raise ValueError(f"{name}: expected a scalar or {count} numbers, got shape {array.shape}")
    return jnp.broadcast_to(array, (count,))


def spread(vector: Float[Array, " M"], like: Array) -> Array:
    """Appends axes to a vector over models until it broadcasts against a stacked leaf."""
    return vector.reshape(vector.shape + (1,) * (like.ndim - vector.ndim))


def model_sum(terms: Array | Sequence[Array]) -> Array:
    """Sums over the leading axis, in the order of the models.

    Args:
        terms: [M, ...].

    Returns:
        The sum, [...].
    """
    if len(terms) > UNROLLED_MODELS:
        return jnp.sum(jnp.asarray(terms), axis=0)
    return functools.reduce(jnp.add, [terms[m] for m in range(len(terms))])


def weighted_sum(weight: Float[Array, " M"], models: Float[Array, "M *s"]) -> Float[Array, "*s"]:
    """sum_m w_m x_m."""
    if models.shape[0] > UNROLLED_MODELS:
        return jnp.tensordot(weight, models, 1, precision=jax.lax.Precision.HIGHEST)
    return model_sum([weight[m] * models[m] for m in range(models.shape[0])])


def safe_divide(
    numerator: Array, denominator: Array, bad: Bool[Array, "..."], otherwise: ArrayLike
) -> Array:
    """numerator / denominator, and `otherwise` where the denominator is bad.

    Pitfall:
        `where` after the division alone leaves NaN in the gradient: both sides are masked.
    """
    safe = jnp.where(bad, jnp.ones_like(denominator), denominator)
    return jnp.where(bad, jnp.asarray(otherwise, safe.dtype), numerator / safe)


def safe_arccos(x: Array) -> Array:
    """arccos of a cosine that rounding may have pushed out of [-1, 1]; gradient zero there."""
    inside = jnp.abs(x) < 1
    ends = jnp.where(x > 0, jnp.zeros_like(x), jnp.full_like(x, np.pi))
    return jnp.where(inside, jnp.arccos(jnp.where(inside, x, 0)), ends)


def keep_count(fraction: ArrayLike, size: Any, least: int = 0) -> Array:
    """How many of `size` elements a fraction keeps: int(fraction * size).

    Args:
        fraction: shares; 0 and below keep nothing, 1 and above keep everything.
        size: number of elements n.
        least: smallest count of a positive fraction.

    Returns:
        int32 counts of the shape of `fraction`.

    Pitfall:
        0.29 * 100 is below 29 in float64, so it keeps 28, while float32 would say 29. Known
        fractions are therefore multiplied in float64. Traced ones are float32: there the count may
        be off by one, and by n / 2^24 for large leaves.
    """
    if is_concrete(fraction, size):
        shares = np.asarray(fraction)
        if shares.dtype == np.float32:  # the decimal that the number was written as
            shares = np.array([float(str(x)) for x in shares.ravel()]).reshape(shares.shape)
        counts = np.floor(np.clip(shares.astype(np.float64), 0, 1) * int(size)).astype(np.int64)
        counts = np.where(shares > 0, np.maximum(counts, min(least, int(size))), 0)
        return jnp.asarray(counts, jnp.int32)
    traced = jnp.clip(jnp.asarray(fraction).astype(jnp.float32), 0, 1)
    n = jnp.asarray(size).astype(jnp.float32)
    kept = jnp.floor(traced * n + n * 1e-6 / 2**20).astype(jnp.int32)
    kept = jnp.where(traced > 0, jnp.maximum(kept, jnp.minimum(least, size)), 0)
    return jnp.where(traced >= 1, jnp.asarray(size, jnp.int32), kept)

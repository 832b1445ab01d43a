"""What every target and loss does to its inputs: one float dtype, one shape, masked means."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def at_least_float32(*arrays: ArrayLike) -> tuple[Array, ...]:
    """Casts to float64 if any input has it, and to float32 otherwise.

    Args:
        arrays: arrays or numbers of any real dtype; integers and booleans are welcome.

    Returns:
        The arrays in one dtype.

    Pitfall:
        A sum over a trajectory in bfloat16 stops growing after 2^8 terms of equal size.
    """
    double = any(jnp.result_type(x) == jnp.float64 for x in arrays if hasattr(x, "dtype"))
    dtype = jnp.float64 if double else jnp.float32
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def check_same_shape(**arrays: Array) -> None:
    """Refuses arrays of different shapes.

    Args:
        arrays: by the name of the argument; the first one sets the shape.

    Raises:
        ValueError: naming the first argument that differs.
    """
    (first, reference), *others = arrays.items()
    for name, array in others:
        if array.shape != reference.shape:
            raise ValueError(
                f"{name}: expected the shape of {first}, {reference.shape}, got {array.shape}"
            )


def check_trajectory(**arrays: Array) -> None:
    """Refuses arrays of different shapes, and those without a time step.

    Args:
        arrays: by the name of the argument, time first.

    Raises:
        ValueError: naming the argument.
    """
    name, reference = next(iter(arrays.items()))
    if reference.ndim < 1 or reference.shape[0] < 1:
        raise ValueError(f"{name}: expected a leading time axis [T], got shape {reference.shape}")
    check_same_shape(**arrays)


def per_step(name: str, value: ArrayLike, like: Array) -> Array:
    """Spreads a scalar over the steps, or checks that there is one number per step.

    Args:
        name: the argument's name, for the message.
        value: a scalar or an array of the shape of `like`.
        like: gives shape and dtype.

    Returns:
        An array of the shape and dtype of `like`.

    Raises:
        ValueError: if the shape is another one.
    """
    array = jnp.asarray(value).astype(like.dtype)
    if array.shape not in ((), like.shape):
        raise ValueError(f"{name}: expected a scalar or shape {like.shape}, got {array.shape}")
    return jnp.broadcast_to(array, like.shape)


def masked_mean(x: Float[Array, "*b"], mask: ArrayLike | None = None) -> Float[Array, ""]:
    """Mean over the elements that count: sum(mask x) / max(sum(mask), 1).

    Args:
        x: values; where the mask is zero they may be anything, also NaN.
        mask: weights of the shape of `x`; None for all ones.

    Returns:
        The mean, 0 if nothing counts.

    Raises:
        ValueError: if the mask has another shape.

    Pitfall:
        Padding may hold NaN, and 0 * NaN is NaN: the mask selects before it multiplies.
    """
    if mask is None:
        return jnp.mean(x)
    weight = jnp.asarray(mask).astype(x.dtype)
    check_same_shape(x=x, mask=weight)
    total = jnp.sum(jnp.where(weight != 0, x, 0) * weight)
    return total / jnp.maximum(jnp.sum(weight), 1)


def hide(mask: ArrayLike | None, *trees: Any) -> tuple[Any, ...]:
    """Puts zeros where nothing counts, before anything is computed.

    Args:
        mask: weights [*b]; None for all ones.
        trees: arrays [*b, ...], or pytrees of them.

    Returns:
        The same, zero where the mask is.

    Raises:
        ValueError: if the mask does not fit their leading axes.

    Pitfall:
        Selecting behind a computation hides its value, not its derivative: that of (q - NaN)^2,
        times zero, is NaN.
    """
    if mask is None:
        return trees
    counts = jnp.asarray(mask) != 0

    def zeros_elsewhere(x: Array) -> Array:
        if x.shape[: counts.ndim] != counts.shape:
            raise ValueError(f"mask: expected leading axes of {x.shape}, got {counts.shape}")
        wide = counts.reshape(*counts.shape, *[1] * (x.ndim - counts.ndim))
        return jnp.where(wide, x, jnp.zeros_like(x))

    return jax.tree.map(zeros_elsewhere, trees)


def maybe_stop(target: Array, stop_target_gradients: bool) -> Array:
    """Makes a target a constant of differentiation, unless told otherwise."""
    return jax.lax.stop_gradient(target) if stop_target_gradients else target

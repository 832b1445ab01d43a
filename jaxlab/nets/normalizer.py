"""Per-dimension standardisation whose statistics are refitted to the data at hand."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@flax.struct.dataclass
class Normalizer:
    """Affine map to zero mean and unit standard deviation, dimension by dimension."""

    mean: Float[Array, " d"]
    std: Float[Array, " d"]  # strictly positive


def identity_normalizer(dim: int, dtype: jnp.dtype = jnp.float32) -> Normalizer:
    """The map that changes nothing.

    Args:
        dim: number of dimensions.
        dtype: floating dtype of the statistics.

    Returns:
        Mean 0 and standard deviation 1.
    """
    return Normalizer(mean=jnp.zeros((dim,), dtype), std=jnp.ones((dim,), dtype))


def fit_normalizer(
    x: Float[Array, "n d"], valid: Bool[Array, " n"] | None = None, eps: float | None = None
) -> Normalizer:
    """Fits mean and standard deviation to the valid rows, as constants for differentiation.

    Args:
        x: rows of data; invalid rows may hold anything, also non-finite numbers.
        valid: rows that count (None: all).
        eps: a dimension whose standard deviation falls below it, is taken as constant and only
            centred. Default 1e-5, and 1e-12 in float64.

    Returns:
        The statistics (population standard deviation).

    Pitfall:
        E[x^2] - E[x]^2 in float32 loses a standard deviation of 1e-3 on a mean of 10 altogether;
        the second pass subtracts the mean first.
    """
    if eps is None:
        eps = 1e-12 if x.dtype == jnp.float64 else 1e-5
    rows = jnp.ones(x.shape[:1], bool) if valid is None else valid
    mask = rows[:, None]
    count = jnp.maximum(jnp.sum(rows), 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(mask, x, 0), axis=0) / count
    centred = jnp.where(mask, x - mean[None, :], 0)
    # The mean of the deviations is the rounding error of the first pass.
    correction = jnp.sum(centred, axis=0) / count
    variance = jnp.sum(centred**2, axis=0) / count - correction**2
    std = jnp.sqrt(jnp.maximum(variance, 0))
    std = jnp.where(std < eps, jnp.ones_like(std), std)
    return jax.lax.stop_gradient(Normalizer(mean=mean + correction, std=std))


def normalize(normalizer: Normalizer, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Maps to standard units: (x - mean) / std.

    Args:
        normalizer: fitted statistics.
        x: values with any leading axes.

    Returns:
        Standardised values.
    """
    mean = jnp.broadcast_to(normalizer.mean, x.shape)
    return (x - mean) / jnp.broadcast_to(normalizer.std, x.shape)


def denormalize(normalizer: Normalizer, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Inverse of `normalize`: x std + mean.

    Args:
        normalizer: fitted statistics.
        x: standardised values with any leading axes.

    Returns:
        Values in the original units.
    """
    mean = jnp.broadcast_to(normalizer.mean, x.shape)
    return x * jnp.broadcast_to(normalizer.std, x.shape) + mean

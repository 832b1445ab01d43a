"""Random action sequences that are correlated over time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def coloured_noise(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    length: int,
    beta: float | Float[Array, ""],
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "*shape length"]:
    """Draws stationary normal sequences whose power falls with the frequency f as 1 / f^beta.

    Args:
        key: randomness.
        shape: number of independent sequences.
        length: steps of a sequence.
        beta: 0 is white noise, 1 pink, 2 Brownian; may be traced.
        dtype: floating dtype of the result.

    Returns:
        Sequences along the last axis; every number has mean 0 and variance 1, whatever beta.

    Raises:
        ValueError: if `length` is not positive.

    Reference:
        Timmer & König 1995 (On generating power law noise); Pinneri et al. 2020 (iCEM), section
        3.1.

    Pitfall:
        Scaled by the power of the non-constant frequencies alone, the variance exceeds 1 by the
        share of the constant one, which for Brownian noise is most of it.
    """
    if length < 1:
        raise ValueError(f"length: expected at least one step, got {length}")
    real = jnp.float64 if dtype == jnp.float64 else jnp.float32  # no transform has fewer bits
    # The constant part has frequency 0: it gets the power of the slowest wave.
    frequency = jnp.maximum(jnp.arange(length // 2 + 1, dtype=real), 1.0)
    amplitude = frequency ** (-0.5 * jnp.asarray(beta, real))
    white = jnp.fft.rfft(jax.random.normal(key, (*shape, length), real), axis=-1)
    gain = jnp.broadcast_to(amplitude, white.shape).astype(white.dtype)
    coloured = jnp.fft.irfft(white * gain, length, axis=-1)
    # Every frequency but the first (and, for an even length, the last) stands for two.
    twice = jnp.full(amplitude.shape, 2.0, real).at[0].set(1.0)
    if length % 2 == 0:
        twice = twice.at[-1].set(1.0)
    variance = jnp.sum(twice * amplitude**2) / length
    return (coloured / jnp.sqrt(variance)).astype(dtype)

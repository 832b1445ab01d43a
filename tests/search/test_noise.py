import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import coloured_noise


@pytest.mark.parametrize("length", [1, 2, 9, 16])
def test_every_step_has_unit_variance_whatever_the_colour(key, length):
    betas = jnp.array([0.0, 1.0, 2.0, 4.0])
    x = jax.jit(jax.vmap(lambda b: coloured_noise(key, (20_000,), length, b)))(betas)
    assert x.shape == (4, 20_000, length) and x.dtype == jnp.float32
    np.testing.assert_allclose(jnp.mean(x, axis=1), 0, atol=0.04)
    np.testing.assert_allclose(jnp.mean(x**2, axis=1), 1, atol=0.06)


def test_white_noise_is_independent_and_coloured_noise_is_not(key):
    length = 12
    for beta, power in ((0.0, 0.0), (1.0, 1.0), (2.0, 2.0)):
        x = np.asarray(coloured_noise(key, (40_000,), length, beta), np.float64)
        covariance = x.T @ x / len(x)
        # A stationary covariance is the transform of the power 1 / f^beta.
        f = np.maximum(np.minimum(np.arange(length), length - np.arange(length)), 1.0)
        spectrum = f**-power
        lag = np.fft.ifft(spectrum / spectrum.mean()).real
        expected = lag[(np.arange(length)[:, None] - np.arange(length)) % length]
        np.testing.assert_allclose(covariance, expected, atol=0.03)
    with pytest.raises(ValueError, match="length: expected at least one step, got 0"):
        coloured_noise(key, (2,), 0, 1.0)


def test_sequences_and_keys_differ_and_the_dtype_is_kept(key):
    x = coloured_noise(key, (3, 2), 8, 2.0)
    assert x.shape == (3, 2, 8) and len(np.unique(np.asarray(x).reshape(6, 8)[:, 0])) == 6
    assert not np.any(x == coloured_noise(jax.random.fold_in(key, 1), (3, 2), 8, 2.0))
    with jax.enable_x64(True):
        assert coloured_noise(key, (2,), 8, 2.0, jnp.float64).dtype == jnp.float64

"""The density of tanh(Gaussian) against a change of variables in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import squashed_gaussian


def _oracle(mean, log_std, noise):
    """log N(u) - log |da/du| with da/du = 1 / cosh(u)^2, in float64."""
    mean, log_std, noise = (np.asarray(x, np.float64) for x in (mean, log_std, noise))
    std = np.exp(log_std)
    u = mean + std * noise
    density = -0.5 * ((u - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    return np.sum(density + 2 * np.log(np.cosh(u)), axis=-1)


@pytest.mark.parametrize("shift", [0.0, 3.0, -8.0, 20.0])
def test_log_density_is_the_change_of_variables(key, shift):
    keys = jax.random.split(key, 3)
    mean = shift + jax.random.normal(keys[0], (64, 3))
    log_std = jax.random.uniform(keys[1], (64, 3), minval=-5.0, maxval=1.0)
    noise = jax.random.normal(keys[2], (64, 3))
    action, log_prob = squashed_gaussian.sample(mean, log_std, noise)
    np.testing.assert_allclose(log_prob, _oracle(mean, log_std, noise), rtol=2e-5, atol=2e-5)
    u = np.asarray(mean, np.float64) + np.exp(np.asarray(log_std, np.float64)) * noise
    np.testing.assert_allclose(action, np.tanh(u), atol=1e-6)


def test_density_integrates_to_one():
    mean, log_std = 0.3, -0.5
    edge = jnp.linspace(-8.0, 8.0, 20001)[:, None]
    noise = (edge - mean) / np.exp(log_std)
    action, log_prob = squashed_gaussian.sample(
        jnp.full_like(noise, mean), jnp.full_like(noise, log_std), noise
    )
    width = np.diff(np.asarray(action[:, 0], np.float64))
    height = np.exp(np.asarray(log_prob, np.float64))
    assert np.sum(0.5 * (height[1:] + height[:-1]) * width) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("mean", [-60.0, 0.0, 60.0])
def test_gradients_stay_finite_where_tanh_saturates(mean):
    def log_prob(mean, log_std):
        return squashed_gaussian.sample(mean, log_std, jnp.array([1.5]))[1]

    grads = jax.grad(log_prob, argnums=(0, 1))(jnp.array([mean]), jnp.array([1.0]))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)
    # Far out, log(1 - tanh(u)^2) = 2 log 2 - 2 |u|: the slope of -it is 2 sign(u).
    if mean != 0:
        np.testing.assert_allclose(grads[0], [2 * np.sign(mean)], rtol=1e-6)


def test_vmap_equals_loop_and_keeps_the_dtype(key):
    mean, log_std, noise = jax.random.normal(key, (3, 5, 2))
    together = jax.jit(jax.vmap(squashed_gaussian.sample))(mean, log_std, noise)
    for i in range(5):
        alone = squashed_gaussian.sample(mean[i], log_std[i], noise[i])
        expected = jax.tree.map(lambda x, i=i: x[i], together)
        for one, same in zip(alone, expected, strict=True):
            np.testing.assert_allclose(one, same, rtol=1e-6, atol=1e-6)
    half = squashed_gaussian.sample(*(x.astype(jnp.bfloat16) for x in (mean, log_std, noise)))
    assert all(x.dtype == jnp.bfloat16 for x in half)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets


def test_statistics_match_numpy_on_a_large_mean(key):
    # One pass in float32 would return noise here: the squares agree to 8 digits.
    x = 1000 + 0.02 * jax.random.normal(key, (4000, 3))
    fitted = nets.fit_normalizer(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(fitted.mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(fitted.std, exact.std(0), rtol=1e-3)


def test_invalid_rows_do_not_count(key):
    x = jax.random.normal(key, (20, 2)) * 3 + 1
    valid = jnp.arange(20) < 12
    dirty = jnp.where(valid[:, None], x, jnp.nan)
    fitted = nets.fit_normalizer(dirty, valid)
    np.testing.assert_allclose(fitted.mean, np.asarray(x[:12]).mean(0), rtol=1e-5)
    np.testing.assert_allclose(fitted.std, np.asarray(x[:12]).std(0), rtol=1e-5)


def test_constant_dimensions_are_centred_only(key):
    x = jnp.stack([jnp.full((50,), 7.3), jax.random.normal(key, (50,))], axis=1)
    x = x.at[:, 0].add(1e-6 * jnp.arange(50.0) / 50)
    fitted = nets.fit_normalizer(x)
    assert fitted.std[0] == 1.0
    assert fitted.std[1] < 2
    assert float(jnp.abs(nets.normalize(fitted, x)[:, 0]).max()) < 1e-5
    assert nets.fit_normalizer(x, eps=0.0).std[0] < 1e-3


@pytest.mark.parametrize("scale, shift", [(100.0, -30.0), (1e-2, 5.0), (-3.0, 0.0)])
def test_affine_changes_disappear(key, scale, shift):
    x = jax.random.normal(key, (200, 2))
    y = scale * x + shift
    a = nets.normalize(nets.fit_normalizer(x), x)
    b = nets.normalize(nets.fit_normalizer(y), y)
    np.testing.assert_allclose(np.sign(scale) * b, a, rtol=1e-4, atol=2e-4)


def test_round_trip_and_identity(key):
    x = 5 + 2 * jax.random.normal(key, (3, 40, 2))
    fitted = nets.fit_normalizer(x[0])
    unit = nets.normalize(fitted, x)
    np.testing.assert_allclose(np.asarray(unit[0]).std(0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(nets.denormalize(fitted, unit), x, rtol=1e-5)
    np.testing.assert_array_equal(nets.normalize(nets.identity_normalizer(2), x), x)


def test_statistics_are_constants_for_differentiation(key):
    x = jax.random.normal(key, (10, 2))
    grad = jax.grad(lambda y: jnp.sum(nets.fit_normalizer(y).mean + nets.fit_normalizer(y).std))(x)
    np.testing.assert_array_equal(grad, 0)


def test_jit_and_vmap(key):
    x = jax.random.normal(key, (3, 30, 2)) * jnp.arange(1.0, 4.0)[:, None, None]
    many = jax.jit(jax.vmap(nets.fit_normalizer))(x)
    for i in range(3):
        one = nets.fit_normalizer(x[i])
        np.testing.assert_allclose(many.std[i], one.std, rtol=1e-6)
        np.testing.assert_allclose(many.mean[i], one.mean, rtol=1e-5, atol=1e-7)

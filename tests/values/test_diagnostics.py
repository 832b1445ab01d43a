import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values


def test_temporal_difference_statistics():
    error = jnp.array([1.0, -3.0, 2.0, jnp.nan])
    stats = jax.jit(values.td_error_stats)(error, jnp.array([1, 1, 1, 0]))
    np.testing.assert_allclose(stats["mean"], 0.0, atol=1e-6)
    np.testing.assert_allclose(stats["std"], np.sqrt(14 / 3), rtol=1e-6)
    np.testing.assert_allclose(stats["abs_mean"], 2.0)
    np.testing.assert_allclose(stats["abs_max"], 3.0)
    assert float(values.td_error_stats(jnp.array([2, -5]))["abs_max"]) == 5.0


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_of_equal_directions_and_of_noise(rank, key):
    q, _ = jnp.linalg.qr(jax.random.normal(key, (40, 8)))
    noise = 1e-5 * jax.random.normal(key, (40, 8))
    features = q * (jnp.arange(8) < rank)[None].astype(jnp.float32) + noise
    assert float(jax.jit(values.effective_rank)(features)) == rank


def test_effective_rank_against_its_definition(key):
    features = jax.random.normal(key, (30, 12)) * (0.6 ** jnp.arange(12.0))[None]
    singular = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    share = np.cumsum(singular) / singular.sum()
    for delta in (0.01, 0.1, 0.5):
        expected = int(np.argmax(share >= 1 - delta)) + 1
        assert float(values.effective_rank(features, delta)) == expected
    assert float(values.effective_rank(jnp.zeros((4, 3)))) == 0.0


def test_dormant_units():
    # Mean magnitudes 0, 0.01, 1 and 2.99: the layer's mean is 1.
    activations = jnp.array([[0.0, -0.02, 2.0, 2.99], [0.0, 0.0, 0.0, -2.99]])
    assert float(values.dormant_ratio(activations)) == 0.5
    assert float(values.dormant_ratio(activations, 0.0)) == 0.25
    assert float(values.dormant_ratio(activations, 1.0)) == 0.75
    assert float(values.dormant_ratio(3 * activations)) == 0.5
    assert float(values.dormant_ratio(jnp.zeros((2, 4)))) == 1.0


def test_overestimation():
    out = values.overestimation(
        jnp.array([3.0, 1.0, 9.0]), jnp.array([1.0, 2.0, 0.0]), jnp.array([True, True, False])
    )
    np.testing.assert_allclose(out["bias"], 0.5)
    np.testing.assert_allclose(out["rms"], np.sqrt(2.5))
    with pytest.raises(ValueError, match="mc_return: expected the shape of q_max"):
        values.overestimation(jnp.ones(3), jnp.ones(2))


def test_masked_mean_of_nothing_is_zero_and_nan_stays_outside():
    x = jnp.array([jnp.nan, 2.0])
    assert float(values.masked_mean(x, jnp.array([False, False]))) == 0.0
    assert float(values.masked_mean(x, jnp.array([0, 1]))) == 2.0
    assert float(values.masked_mean(jnp.array([1.0, 4.0]), jnp.array([0.5, 1.0]))) == 3.0
    gradient = jax.grad(lambda x: values.masked_mean(x, jnp.array([0, 1])))(x)
    np.testing.assert_array_equal(gradient, [0.0, 1.0])
    with pytest.raises(ValueError, match="mask: expected the shape of x"):
        values.masked_mean(x, jnp.ones(3))


def test_effective_rank_never_exceeds_the_number_of_singular_values():
    draws = jax.random.normal(jax.random.key(0), (60, 32, 64))
    np.testing.assert_array_equal(jax.vmap(lambda f: values.effective_rank(f, 0.0))(draws), 32.0)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values

THETA, TAU = jnp.array([0.0, 1.0, 2.0]), jnp.array([1 / 6, 1 / 2, 5 / 6])


def loop(theta, tau, target, kappa):
    total = 0.0
    for t, level in zip(theta, tau):
        for y in target:
            u = y - t
            huber = 0.5 * u**2 if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
            if kappa == 0:
                huber = abs(u)
            total += abs(level - (u < 0)) * huber / len(target)
    return total


def test_golden():
    target = jnp.array([0.5, 1.5, 3.5])
    np.testing.assert_allclose(
        values.quantile_huber_loss(THETA, TAU, target)[0], 0.9444445, rtol=1e-6
    )
    np.testing.assert_allclose(
        values.quantile_huber_loss(THETA, TAU, target, 0.0)[0], 1.4166667, rtol=1e-6
    )


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 5.0])
def test_against_a_loop_with_kappa_traced(kappa, key):
    theta = 2 * jax.random.normal(key, (4, 5))
    tau = jax.random.uniform(jax.random.fold_in(key, 1), (4, 5))
    target = 2 * jax.random.normal(jax.random.fold_in(key, 2), (4, 7))
    out = jax.jit(values.quantile_huber_loss_per_example)(theta, tau, target, kappa)
    arrays = [np.asarray(x, np.float64) for x in (theta, tau, target)]
    expected = [loop(*(x[i] for x in arrays), kappa) for i in range(4)]
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    mask = jnp.array([1.0, 0.0, 1.0, 0.0])
    loss, _ = values.quantile_huber_loss(theta, tau, target, kappa, mask)
    np.testing.assert_allclose(loss, (expected[0] + expected[2]) / 2, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_gradients_are_finite_and_skip_the_target(kappa):
    def loss(theta, target):
        return values.quantile_huber_loss(theta, TAU, target, kappa)[0]

    # Also where an error is exactly zero.
    theta_grad, target_grad = jax.grad(loss, (0, 1))(THETA, jnp.array([0.0, 1.0, 2.5]))
    assert np.isfinite(theta_grad).all() and np.abs(theta_grad).max() > 0
    np.testing.assert_array_equal(target_grad, 0)


def test_descent_finds_the_quantiles_of_the_target(key):
    samples = jnp.sort(jax.random.exponential(key, (500,)))
    tau = values.quantile_midpoints(5)
    theta = jnp.zeros(5)

    def step(theta, _):
        gradient = jax.grad(values.quantile_huber_loss_per_example)(theta, tau, samples, 1e-3)
        return theta - 20.0 * gradient, None

    theta, _ = jax.lax.scan(step, theta, None, length=2000)
    np.testing.assert_allclose(theta, np.quantile(samples, tau), atol=0.05)


def test_midpoints_and_crossing():
    np.testing.assert_allclose(values.quantile_midpoints(4), [0.125, 0.375, 0.625, 0.875])
    assert float(values.crossing_rate(jnp.array([0.0, 2.0, 1.0, 1.0, 0.0]))) == 0.5
    assert float(values.crossing_rate(jnp.array([3.0]))) == 0.0
    np.testing.assert_array_equal(
        values.crossing_rate(jnp.array([[0.0, 1.0], [1.0, 0.0]])), [0.0, 1.0]
    )
    _, metrics = values.quantile_huber_loss(THETA[::-1], TAU, THETA)
    assert float(metrics["crossing_rate"]) == 1.0
    with pytest.raises(ValueError, match="count: expected at least one quantile, got 0"):
        values.quantile_midpoints(0)
    with pytest.raises(ValueError, match="tau: expected the shape of theta"):
        values.quantile_huber_loss(THETA, TAU[:2], THETA)


def test_cosine_embedding(key):
    params = values.cosine_embedding_init(key, 5, num_cosines=8)
    params["bias"] = params["bias"] + 0.1
    tau = jax.random.uniform(key, (2, 3))
    out = values.cosine_embedding(params, tau)
    assert out.shape == (2, 3, 5)
    kernel = np.asarray(params["kernel"], np.float64)
    for b in range(2):
        for n in range(3):
            waves = np.cos(np.pi * np.arange(8) * np.float64(tau[b, n]))
            np.testing.assert_allclose(
                out[b, n], np.maximum(waves @ kernel + 0.1, 0), rtol=1e-5, atol=1e-6
            )

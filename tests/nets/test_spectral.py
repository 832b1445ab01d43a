import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets

A = jnp.array([[3.0, 0.0], [4.0, 5.0]])


def with_singular_values(key, singular, shape=(12, 9)):
    u, _ = jnp.linalg.qr(jax.random.normal(key, (shape[0], len(singular))))
    v, _ = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 1), (shape[1], len(singular))))
    return (u * jnp.asarray(singular, jnp.float32)[None]) @ v.T


def test_power_iteration_finds_the_largest_singular_value(key):
    sigma, u = nets.spectral_norm(A, jnp.ones(2), 50)
    np.testing.assert_allclose(sigma, 6.7082039, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(u**2), 1, rtol=1e-6)
    for seed in range(3):
        k = jax.random.fold_in(key, seed)
        w = with_singular_values(k, [2.0, 1.6, 0.5])
        estimate = jax.jit(nets.spectral_norm, static_argnums=2)
        sigma, _ = estimate(w, jax.random.normal(k, (12,)), 50)
        np.testing.assert_allclose(sigma, 2.0, rtol=1e-3)
        # From below, and closer with every call that goes on from the last vector.
        u, last = jax.random.normal(k, (12,)), 0.0
        for _ in range(5):
            sigma, u = estimate(w, u, 1)
            assert last - 1e-6 <= float(sigma) <= 2.0 + 1e-6
            last = float(sigma)
    rank_one = jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0, 2.0]))
    np.testing.assert_allclose(nets.spectral_norm(rank_one, jnp.ones(2), 1)[0], 15.0, rtol=1e-6)
    assert float(nets.spectral_norm(jnp.zeros((2, 3)), jnp.ones(2), 1)[0]) == 0.0


def test_a_kernel_that_starts_at_zero_is_bounded_once_it_moves(key):
    u = jax.random.normal(key, (2,))
    for _ in range(3):
        sigma, u = nets.spectral_norm(jnp.zeros((2, 2)), u)
        assert float(sigma) == 0.0
    bounded, _ = nets.constrain(A, 2.0, u, 50)
    np.testing.assert_allclose(np.linalg.norm(bounded, 2), 2.0, rtol=1e-5)


def test_gradient_of_the_norm_is_the_leading_pair():
    u, _, vt = np.linalg.svd(np.asarray(A, np.float64))
    gradient = jax.grad(lambda w: nets.spectral_norm(w, jnp.ones(2), 60)[0])(A)
    np.testing.assert_allclose(gradient, np.outer(u[:, 0], vt[0]), atol=1e-5)
    # Also long before convergence the vectors count as constants.
    start = np.array([1.0, -2.0])
    v = start @ np.asarray(A, np.float64)
    v /= np.linalg.norm(v)
    left = np.asarray(A, np.float64) @ v
    left /= np.linalg.norm(left)
    gradient = jax.grad(lambda w: nets.spectral_norm(w, jnp.asarray(start, jnp.float32))[0])(A)
    np.testing.assert_allclose(gradient, np.outer(left, v), atol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 2.0, 6.0])
def test_constraint_bounds_scales_and_is_idempotent(beta):
    w, u = nets.constrain(A, beta, jnp.ones(2), 50)
    np.testing.assert_allclose(np.linalg.norm(w, 2), beta, rtol=1e-5)
    np.testing.assert_allclose(w / w[1, 1], A / A[1, 1], rtol=1e-6)  # the direction stays
    np.testing.assert_allclose(nets.constrain(w, beta, u, 50)[0], w, rtol=1e-5)
    np.testing.assert_allclose(nets.constrain(3 * A, 3 * beta, u, 50)[0], 3 * w, rtol=1e-5)


@pytest.mark.parametrize("beta", [6.8, 100.0, jnp.inf])
def test_a_kernel_within_the_bound_is_untouched_to_the_last_bit(beta):
    np.testing.assert_array_equal(nets.constrain(A, beta, jnp.ones(2), 50)[0], A)
    gradient = jax.grad(lambda w: jnp.sum(nets.constrain(w, beta, jnp.ones(2), 50)[0]))(A)
    np.testing.assert_array_equal(gradient, 1.0)
    np.testing.assert_array_equal(nets.constrain(jnp.zeros((2, 2)), beta, jnp.ones(2))[0], 0.0)
    at_zero = jax.grad(lambda w: jnp.sum(nets.constrain(w, beta, jnp.ones(2))[0]))
    np.testing.assert_array_equal(at_zero(jnp.zeros((2, 2))), 1.0)


def test_gradient_through_an_active_constraint_cannot_change_the_norm():
    # A step along the kernel itself is undone by the constraint.
    def output(scale):
        return jnp.sum(nets.constrain(scale * A, 1.0, jnp.ones(2), 50)[0])

    assert abs(float(jax.grad(output)(jnp.float32(2.0)))) < 1e-5


def test_network_bound_holds_and_is_reached_by_a_linear_one(key):
    params = nets.mlp_init(key, (5, 32, 32, 1))
    state = nets.init_spectral_state(key, params)
    small, state = jax.jit(nets.constrain_mlp, static_argnums=3)(params, state, 0.7, 100)
    bound = float(nets.lipschitz_upper_bound(small))
    np.testing.assert_allclose(nets.lipschitz_upper_bound(params, 0.7), 0.7**3, rtol=1e-3)
    np.testing.assert_allclose(bound, 0.7**3, rtol=1e-3)
    x, y = 3 * jax.random.normal(key, (2, 10_000, 5))
    rise = jnp.abs(nets.mlp_apply(small, x, jax.nn.relu) - nets.mlp_apply(small, y, jax.nn.relu))
    run = jnp.sqrt(jnp.sum((x - y) ** 2, axis=-1))
    assert float(jnp.max(rise[:, 0] / run)) <= bound * (1 + 1e-5)
    linear = ({"kernel": A, "bias": jnp.ones(2)},)
    u, _, _ = np.linalg.svd(np.asarray(A))
    change = nets.mlp_apply(linear, jnp.asarray(u[:, 0])) - nets.mlp_apply(linear, jnp.zeros(2))
    np.testing.assert_allclose(
        jnp.linalg.norm(change), nets.lipschitz_upper_bound(linear), rtol=1e-6
    )


def test_ensembles_and_bounds_under_vmap(key):
    critics = nets.ensemble_init(key, 3, (4, 8, 1))
    state = jax.vmap(nets.init_spectral_state)(jax.random.split(key, 3), critics)
    betas = jnp.array([0.1, 0.5, jnp.inf])
    constrain = jax.vmap(lambda p, s, b: nets.constrain_mlp(p, s, b, 30))
    small, new = jax.jit(constrain)(critics, state, betas)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, critics)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    for layer, kept in zip(small, critics):
        norms = np.linalg.norm(np.asarray(layer["kernel"]), 2, axis=(1, 2))
        np.testing.assert_allclose(norms[:2], [0.1, 0.5], rtol=1e-3)
        np.testing.assert_array_equal(layer["kernel"][2], kept["kernel"][2])
        np.testing.assert_array_equal(layer["bias"], kept["bias"])


def test_misuse_is_refused(key):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        nets.spectral_norm(A, jnp.ones(2), 0)
    with pytest.raises(ValueError, match=r"u: expected one number per row of w \(2, 2\)"):
        nets.spectral_norm(A, jnp.ones(3))
    normed = nets.mlp_init(key, (2, 3, 1), layer_norm=True)
    with pytest.raises(ValueError, match="params: expected a network without layer norm"):
        nets.lipschitz_upper_bound(normed)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values


def test_minimum_over_all_and_over_a_random_subset():
    q = jnp.arange(10.0)[:, None] + jnp.zeros((10, 3))
    np.testing.assert_array_equal(values.ensemble_min_target(q), 0.0)
    draw = jax.jit(jax.vmap(lambda k: values.ensemble_min_target(q, 2, k)))
    minima = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert np.all(minima == minima[:, :1])  # one draw for all rows
    # P(min of two distinct of ten = k) = (9 - k) / 45.
    expected = np.arange(9, -1, -1) / 45
    observed = np.bincount(minima[:, 0].astype(int), minlength=10) / 4000
    np.testing.assert_allclose(observed, expected, atol=0.025)
    all_of_them = values.ensemble_min_target(q, 10, jax.random.key(0))
    np.testing.assert_array_equal(all_of_them, 0.0)
    assert not jax.grad(lambda q: values.ensemble_min_target(q).sum())(q).any()
    gradient = jax.grad(lambda q: values.ensemble_min_target(q, stop_target_gradients=False).sum())(
        q
    )
    np.testing.assert_array_equal(gradient[0], 1.0)


def test_subset_needs_a_key_and_a_size():
    q = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match="key: expected together with subset"):
        values.ensemble_min_target(q, 2)
    with pytest.raises(ValueError, match="subset: expected 1 to 3 members, got 4"):
        values.ensemble_min_target(q, 4, jax.random.key(0))


def test_lower_confidence_bound():
    q = jnp.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_allclose(values.ensemble_lcb(q, 2.0), [0.0, 5.0])  # population deviation 1
    gradient = jax.grad(lambda q: values.ensemble_lcb(q, 2.0).sum())(q)
    np.testing.assert_allclose(gradient, [[1.5, 0.5], [-0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("members", [2, 3, 10])
def test_diversity_of_identical_and_of_spread_gradients(members):
    same = jnp.broadcast_to(jnp.array([0.3, -2.0]), (members, 2))
    np.testing.assert_allclose(values.gradient_diversity(same), members, rtol=1e-5)
    # Directions that add up to zero are as far apart as directions can be.
    angle = 2 * np.pi * np.arange(members) / members
    spread = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1), jnp.float32)
    np.testing.assert_allclose(
        values.gradient_diversity(spread), -members / (members - 1), rtol=1e-5
    )


def test_diversity_golden_scale_free_and_defined_at_zero(key):
    g = jnp.array([[1.0, 0.0], [0.0, 1.0], [np.sqrt(0.5), np.sqrt(0.5)]])
    np.testing.assert_allclose(values.gradient_diversity(g), np.sqrt(2), rtol=1e-6)
    scaled = g * jnp.array([[1e-3], [1e3], [7.0]])
    np.testing.assert_allclose(values.gradient_diversity(scaled), np.sqrt(2), rtol=1e-5)
    g = jax.random.normal(key, (4, 6, 3))
    unit = np.asarray(g, np.float64)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    cosine = np.einsum("mbi,nbi->bmn", unit, unit)
    expected = (cosine.sum((1, 2)) - 4) / 3
    np.testing.assert_allclose(values.gradient_diversity(g), expected, rtol=1e-5, atol=1e-6)
    at_zero = jax.grad(lambda g: values.gradient_diversity(g).sum())(g.at[1].set(0.0))
    assert np.isfinite(at_zero).all()
    with pytest.raises(ValueError, match="gradients: expected at least two members, got 1"):
        values.gradient_diversity(g[:1])


def test_diversity_penalty_turns_linear_critics_apart(key):
    obs, action = jax.random.normal(key, (2, 5, 3))

    def penalty(w):
        return values.diversity_penalty(lambda s, a: w @ a + jnp.sum(s), obs, action)

    w = jnp.array([[1.0, 0.1, 0.0], [1.0, 0.0, 0.1]])
    cosine = 1 / (1 + 0.1**2)
    np.testing.assert_allclose(jax.jit(penalty)(w), 2 * cosine, rtol=1e-5)
    descend = jax.jit(
        lambda w: jax.lax.fori_loop(0, 50, lambda _, w: w - 0.3 * jax.grad(penalty)(w), w)
    )
    assert float(penalty(descend(w))) < -1.9
    mask = jnp.array([0, 0, 1, 0, 0])
    masked = values.diversity_penalty(
        lambda s, a: jnp.stack([jnp.sum(a**2), s[0] * a[0]]), obs, action, mask
    )
    a, s = np.asarray(action[2], np.float64), np.asarray(obs[2], np.float64)
    expected = 2 * np.sign(s[0]) * a[0] / np.linalg.norm(a)
    np.testing.assert_allclose(masked, expected, rtol=1e-5)

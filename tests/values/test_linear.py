import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.values import linear_td

ONE, TWO = jnp.array([[1.0]]), jnp.array([[2.0]])


def last(gamma, lr, steps, successor_rows=0):
    """w after `steps` updates with the row 1 -> 2 and some rows 2 -> 2."""
    features = jnp.concatenate([ONE, *[TWO] * successor_rows])
    following = jnp.concatenate([TWO, *[TWO] * successor_rows])
    zero = jnp.zeros(len(features))
    return linear_td(jnp.ones(1), features, following, zero, gamma, lr, steps)[-1, 0]


def test_an_updated_state_that_leans_on_one_that_never_is():
    np.testing.assert_allclose(last(0.99, 0.1, 50), 107.1808, rtol=1e-5)
    np.testing.assert_allclose(last(0.5, 0.1, 50), 1.0, rtol=1e-6)
    np.testing.assert_allclose(last(0.4, 0.1, 50), (1 - 0.02) ** 50, rtol=1e-5)
    path = jax.jit(linear_td, static_argnums=6)(jnp.ones(1), ONE, TWO, jnp.zeros(1), 0.9, 0.1, 5)
    np.testing.assert_allclose(path[:, 0], 1.08 ** np.arange(6), rtol=1e-6)


@pytest.mark.parametrize("gamma, longest", [(0.9, 3), (0.99, 25)])
def test_how_long_branches_must_be(gamma, longest):
    """Rows 2 -> 2 of a branch of k steps hold w back: stable iff k - 1 > (2g - 1) / (4 (1 - g))."""
    threshold = (2 * gamma - 1) / (4 * (1 - gamma))
    assert longest - 1 <= threshold + 1e-9 < longest
    assert float(last(gamma, 0.01, 400, longest)) < 0.99  # k = longest + 1
    if longest - 1 == pytest.approx(threshold):
        np.testing.assert_allclose(last(gamma, 0.01, 400, longest - 1), 1.0, rtol=1e-3)
    assert float(last(gamma, 0.01, 400, longest - 2)) > 1.01


def test_two_steps_diverge_above_five_sixths():
    assert float(last(5 / 6 + 0.02, 0.05, 200, 1)) > 1.5
    assert float(last(5 / 6 - 0.02, 0.05, 200, 1)) < 0.7


def test_on_policy_rows_find_the_fixed_point(key):
    # A cycle of three states with distinct features: w is the vector of values.
    reward = jnp.array([1.0, 0.0, -2.0])
    path = linear_td(
        jnp.zeros(3), jnp.eye(3), jnp.roll(jnp.eye(3), 1, axis=1), reward, 0.8, 0.5, 200
    )
    shift = np.roll(np.eye(3), 1, axis=1)
    np.testing.assert_allclose(path[-1], np.linalg.solve(np.eye(3) - 0.8 * shift, reward), 1e-4)


def test_refusals():
    with pytest.raises(ValueError, match=r"weights: expected shape \(1,\), got \(2,\)"):
        linear_td(jnp.ones(2), ONE, TWO, jnp.zeros(1), 0.9, 0.1, 1)
    with pytest.raises(ValueError, match="next_features: expected the shape of features"):
        linear_td(jnp.ones(1), ONE, jnp.ones((2, 1)), jnp.zeros(1), 0.9, 0.1, 1)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values

PAIRS = {
    "symlog": values.SYMLOG,
    "hyperbolic": values.hyperbolic_transform(),
    "hyperbolic, no slope": values.hyperbolic_transform(0.0),
}
GRID = np.concatenate([-np.logspace(5, -4, 200), [0.0], np.logspace(-4, 5, 200)])


def exact_hyperbolic(x, eps=1e-3):
    x = np.asarray(x, np.float64)
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def test_against_float64():
    np.testing.assert_allclose(
        values.symlog(jnp.asarray(GRID, jnp.float32)),
        np.sign(GRID) * np.log1p(np.abs(GRID)),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        values.signed_hyperbolic(jnp.asarray(GRID, jnp.float32)), exact_hyperbolic(GRID), rtol=1e-6
    )


@pytest.mark.parametrize("eps", [0.0, 1e-4, 1e-3, 0.1, 1.0])
def test_inverse_is_right_to_rounding_everywhere(eps):
    # Where the textbook form is off by 39 %, and far below.
    x = np.concatenate([GRID, [1e-6, -3.0]])
    y = exact_hyperbolic(x, eps)
    np.testing.assert_allclose(
        values.signed_parabolic(jnp.asarray(y, jnp.float32), eps), x, rtol=1e-6
    )


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_inverse_odd_and_increasing_with_the_right_slope_at_zero(name):
    forward, inverse = PAIRS[name]
    x = jnp.asarray(GRID, jnp.float32)
    # log1p loses relative accuracy in proportion to the exponent: 1e5 keeps 1e-5.
    np.testing.assert_allclose(inverse(forward(x)), x, rtol=1e-5)
    np.testing.assert_array_equal(forward(-x), -forward(x))
    np.testing.assert_array_equal(inverse(-x[150:250]), -inverse(x[150:250]))
    assert np.all(np.diff(np.asarray(forward(x))) > 0)
    slope = jax.vmap(jax.grad(forward))(x)
    assert np.all(np.asarray(slope) > 0)
    at_zero = {"symlog": 1.0, "hyperbolic": 0.501, "hyperbolic, no slope": 0.5}[name]
    assert float(jax.grad(forward)(0.0)) == pytest.approx(at_zero, rel=1e-6)
    assert float(jax.grad(inverse)(0.0)) == pytest.approx(1 / at_zero, rel=1e-6)
    assert float(forward(jnp.float32(0))) == 0 and float(inverse(jnp.float32(0))) == 0


@pytest.mark.parametrize("name", PAIRS)
def test_dtypes(name):
    forward, inverse = PAIRS[name]
    assert forward(jnp.array([3, -3])).dtype == jnp.float32
    assert inverse(jnp.array([0.5], jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        x = jnp.asarray(GRID, jnp.float64)
        assert forward(x).dtype == jnp.float64
        np.testing.assert_allclose(inverse(forward(x)), GRID, rtol=1e-11)


def test_transformed_target():
    tx = values.hyperbolic_transform()
    r, d, q = jnp.array([1.0, 2.0]), jnp.array([0.9, 0.0]), jnp.array([3.0, 7.0])
    target = values.transformed_target(r, d, q, tx)
    expected = exact_hyperbolic(1 + 0.9 * np.float64(values.signed_parabolic(jnp.float32(3.0))))
    np.testing.assert_allclose(target, [expected, exact_hyperbolic(2.0)], rtol=1e-6)
    assert not jax.grad(lambda q: values.transformed_target(r, d, q, tx).sum())(q).any()


def test_transforms_of_one_slope_are_one_static_value():
    assert values.hyperbolic_transform(0.01) is values.hyperbolic_transform(0.01)
    assert hash(values.hyperbolic_transform(0.01)) == hash(values.hyperbolic_transform(0.01))
    assert values.hyperbolic_transform(0.01) != values.hyperbolic_transform(0.02)


def test_slope_may_be_swept():
    x = jnp.array([0.5, -200.0])
    eps = jnp.array([0.0, 1e-3, 0.1])
    swept = jax.jit(jax.vmap(values.signed_hyperbolic, (None, 0)))(x, eps)
    for row, e in zip(swept, eps):
        np.testing.assert_allclose(row, exact_hyperbolic(x, float(e)), rtol=1e-6)

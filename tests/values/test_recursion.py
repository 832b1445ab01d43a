import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values
from jaxlab.values import recursion


def solve(a, b, x_last):
    """The bidiagonal linear system (I - A) x = b + a_{T-1} x_T e_{T-1}, in float64."""
    a, b = np.asarray(a, np.float64), np.array(b, np.float64)
    b[-1] += a[-1] * np.float64(x_last)
    return np.linalg.solve(np.eye(len(a)) - np.diag(a[:-1], 1), b)


@pytest.mark.parametrize("backend", ["scan", "associative"])
@pytest.mark.parametrize("steps", [1, 2, 7, 600])
def test_solves_the_bidiagonal_system(key, backend, steps):
    a = jax.random.uniform(key, (steps,), minval=-1.0, maxval=1.0).at[steps // 2].set(0.0)
    b = jax.random.normal(jax.random.fold_in(key, 1), (steps,))
    x = jax.jit(lambda *args: values.affine_reverse_scan(*args, backend=backend))(
        a, b, jnp.float32(0.7)
    )
    np.testing.assert_allclose(x, solve(a, b, 0.7), rtol=1e-5, atol=1e-5)


def test_both_backends_agree_in_values_and_gradients_along_trailing_axes(key):
    a = 0.99 * jax.random.uniform(key, (40, 3, 2))
    b = jax.random.normal(key, (40, 3, 2))

    def total(backend):
        def f(a, b, x):
            out = values.affine_reverse_scan(a, b, x, backend=backend)
            return jnp.sum(jnp.sin(out)), out

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(
            a, b, jnp.ones((3, 2))
        )

    (_, scanned), scan_grads = total("scan")
    (_, composed), composed_grads = total("associative")
    np.testing.assert_allclose(scanned, composed, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        scan_grads,
        composed_grads,
    )


@pytest.mark.parametrize("steps,sequential", [(512, True), (513, False)])
def test_auto_is_sequential_for_short_trajectories_on_a_cpu(steps, sequential):
    x = jnp.ones((steps,))
    jaxpr = str(jax.make_jaxpr(values.affine_reverse_scan)(x, x, x[0]))
    assert ("scan[" in jaxpr) == sequential


def test_refuses_what_does_not_fit():
    x = jnp.ones((3,))
    with pytest.raises(ValueError, match=r"b: expected the shape of a, \(3,\), got \(2,\)"):
        values.affine_reverse_scan(x, x[:2], x[0])
    with pytest.raises(
        ValueError, match=r"a: expected a leading time axis \[T\], got shape \(0,\)"
    ):
        values.affine_reverse_scan(x[:0], x[:0], x[0])
    with pytest.raises(ValueError, match="x_last: expected the shape of"):
        values.affine_reverse_scan(x, x, x)
    with pytest.raises(ValueError, match="backend: expected one of"):
        values.affine_reverse_scan(x, x, x[0], backend="pallas")
    assert recursion.Backend is values.Backend

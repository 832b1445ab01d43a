"""What every target keeps: dtypes, jit, vmap, gradients, single steps, integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values

STEPS, ACTIONS = 6, 3
_A = jnp.array([0, 2, 1, 1, 0, 2])
_PI = jnp.full((STEPS, ACTIONS), 1 / ACTIONS)


def _q(v):
    """Values of all actions from one trajectory: differentiable, the middle action is greedy."""
    return jnp.stack([v - 1, v + 1, v], axis=-1)


TARGETS = {
    "td0": lambda r, d, v, **k: values.td0_target(r, d, v, **k),
    "n_step": lambda r, d, v, **k: values.n_step_target(r, d, v, 3, **k),
    "lambda": lambda r, d, v, **k: values.lambda_return(r, d, v, 0.9, **k),
    "gae": lambda r, d, v, **k: values.gae(r, d, v, v, 0.9, **k),
    "vtrace": lambda r, d, v, **k: values.vtrace(v, v, r, d, jnp.ones(len(r)), 0.9, **k).value,
    "sarsa": lambda r, d, v, **k: values.sarsa_target(r, d, _q(v), _A[: len(r)], **k),
    "expected_sarsa": lambda r, d, v, **k: values.expected_sarsa_target(
        r, d, _q(v), _PI[: len(r)], **k
    ),
    "q": lambda r, d, v, **k: values.q_target(r, d, _q(v), **k),
    "double_q": lambda r, d, v, **k: values.double_q_target(r, d, _q(v), -_q(v), **k),
    "q_lambda": lambda r, d, v, **k: values.q_lambda(r, d, _q(v), 0.9, **k),
    "retrace": lambda r, d, v, **k: values.retrace(
        r, d, _q(v), _A[: len(r)], _PI[: len(r)], jnp.full(len(r), 0.3), 0.9, **k
    ),
    "tree_backup": lambda r, d, v, **k: values.tree_backup(
        r, d, _q(v), _A[: len(r)], _PI[: len(r)], 0.9, **k
    ),
}


def trajectory(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    r, v = rng.integers(-3, 4, size=(2, STEPS))
    return jnp.asarray(r, dtype), jnp.array([1, 1, 0, 1, 1, 1], dtype), jnp.asarray(v, dtype)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_float32_whatever_comes_in(name):
    reference = TARGETS[name](*trajectory())
    assert reference.dtype == jnp.float32 and reference.shape == (STEPS,)
    # Small whole numbers are exact in every dtype: the results must be equal to the last bit.
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8):
        out = TARGETS[name](*trajectory(dtype))
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, reference)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_keep_float64(name):
    with jax.enable_x64(True):
        out = TARGETS[name](*trajectory(jnp.float64))
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, TARGETS[name](*trajectory()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_under_jit_vmap_and_for_one_step(name):
    r, d, v = trajectory()
    batch = [jnp.stack([x, 2 * x, x - 1]) for x in (r, d, v)]
    lifted = jax.jit(jax.vmap(TARGETS[name]))(*batch)
    for i in range(3):
        np.testing.assert_allclose(
            lifted[i], TARGETS[name](*(x[i] for x in batch)), rtol=1e-6, atol=1e-6
        )
    one = TARGETS[name](r[:1], d[:1], v[:1])
    assert one.shape == (1,) and bool(jnp.isfinite(one[0]))


@pytest.mark.parametrize("name", TARGETS)
def test_targets_are_constants_unless_asked_otherwise(name):
    r, d, v = trajectory()

    def total(v, stop):
        return jnp.sum(TARGETS[name](r, d, v, stop_target_gradients=stop))

    np.testing.assert_array_equal(jax.grad(total)(v, True), 0.0)
    gradient = jax.grad(total)(v, False)
    assert bool(jnp.all(jnp.isfinite(gradient))) and float(jnp.max(jnp.abs(gradient))) > 0.1
    # In the direction of the gradient, the difference quotient agrees.
    step = 1e-2 * gradient / jnp.linalg.norm(gradient)
    rise = total(v + step, False) - total(v - step, False)
    np.testing.assert_allclose(rise / 2e-2, jnp.linalg.norm(gradient), rtol=1e-2)


def test_importing_the_package_imports_no_peer(tmp_path):
    import subprocess
    import sys

    program = (
        "import sys, jaxlab.values, jaxlab.search; "
        "print([m for m in ('rlax', 'mctx', 'distrax', 'tensorflow_probability', 'torch') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr

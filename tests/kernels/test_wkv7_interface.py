"""The operator's contract: what it refuses, what it fills in, and how JAX may transform it."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from wkv7_oracle import relative_error
from wkv7_problems import problem

from jaxlab_kernels import dispatch, tuning, wkv7
from jaxlab_kernels.gradients import fold_into_batch

P = problem(length=20, width=16, value_width=32, batch=2, heads=3)


def test_importing_needs_jax_alone():
    """A module that any of these are missing from must not notice."""
    code = (
        "import sys, jax, numpy; before = set(sys.modules); import jaxlab_kernels;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names);"
        "print(sorted(new - {'jax', 'jaxlib', 'numpy', 'ml_dtypes'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "['jaxlab_kernels']"


def wrong(**changes):
    arguments = dict(zip(("r", "logw", "k", "v", "a", "b"), P.inputs)) | {"s0": P.s0} | changes
    return lambda: wkv7(**arguments)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (wrong(r=P.inputs[0][0]), r"r must be \[B, T, H, N\]; got shape \(20, 3, 16\)"),
        (wrong(k=P.inputs[3]), r"k must have r's shape .*\(2, 20, 3, 16\); got \(2, 20, 3, 32\)"),
        (wrong(v=P.inputs[3][:, 1:]), r"v must be \[B, T, H, D\].*\(2, 20, 3\).*\(2, 19, 3, 32\)"),
        (wrong(a=P.inputs[4].astype(np.float16)), "a is float16.*overflows.*bfloat16"),
        (wrong(b=P.inputs[5].astype(np.int32)), "b must be a real floating-point.*int32"),
        (wrong(s0=np.moveaxis(P.s0, 2, 3)), r"s0 must be \[B, H, D, K\] = \(2, 3, 32, 16\)"),
        (wrong(reset=np.zeros((2, 20))), r"reset must be bool \[B, T\] = \(2, 20\); got float"),
        (wrong(reset_state=P.s0), "reset_state was given but reset was not"),
        (wrong(chunk=48), "chunk must be one of .16, 32, 64, 128. or None; got 48"),
        (wrong(impl="palas_gpu"), "impl must be one of .*'palas_gpu'; did you mean 'pallas_gpu'"),
        (wrong(precision="bf17"), "precision must be one of bf16, float32.*did you mean 'bf16'"),
        (wrong(r=P.inputs[0][:0]), "r's shape"),
        (wrong(v=P.inputs[3][..., :20], s0=None, impl="pallas_gpu"), "needs K and D in .*16, 20"),
    ],
)
def test_refusals_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_no_tokens_change_nothing():
    y, state = wkv7(*(x[:, :0] for x in P.inputs), P.s0)
    assert y.shape == (2, 0, 3, 32)
    np.testing.assert_array_equal(state, P.s0)


@pytest.mark.parametrize("impl", ["auto", "scan", "xla", "xla_ad"])
def test_defaults_are_zero_states(impl):
    reset = np.arange(20)[None] % 6 == np.array([[1], [2]])
    zero = np.zeros_like(P.s0)
    run = partial(wkv7, *P.inputs, impl=impl, reset=reset)
    for got, want in zip(run(), run(zero, reset_state=zero)):
        np.testing.assert_array_equal(got, want)


def test_one_state_for_all_batch_rows_gets_the_summed_gradient():
    def loss(s0, reset_state):
        y, state = wkv7(*P.inputs, s0, reset=reset, reset_state=reset_state, impl="xla", chunk=16)
        return jnp.sum(y * P.dy) + jnp.sum(state * P.ds)

    reset = np.arange(20)[None] == np.array([[7], [11]])
    pull = jax.jit(jax.grad(loss, argnums=(0, 1)))
    shared = pull(P.s0[0], P.s0[1])
    each = pull(*(jnp.broadcast_to(x, P.s0.shape) for x in (P.s0[0], P.s0[1])))
    for one, many in zip(shared, each):
        assert one.shape == (3, 32, 16)
        assert relative_error(one, many.sum(0)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_vmap_is_a_loop(impl):
    """Over an ensemble of tokens and learned states, with tokens' resets and s0 shared."""
    p = problem(length=20, width=16, batch=3, heads=2, resets="often", reset_state=True)

    def loss(inputs, s0, reset_state):
        y, state = wkv7(*inputs, s0, reset=p.reset[:1], reset_state=reset_state, impl=impl)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))

    members = tuple(x[:, None] for x in p.inputs)
    pull = jax.value_and_grad(loss, argnums=(0, 1, 2))
    value, (inputs, s0, learned) = jax.jit(jax.vmap(pull, in_axes=(0, None, 0)))(
        members, p.s0[:1], p.reset_state
    )
    alone = jax.jit(pull)
    for i in range(3):
        member = tuple(x[i] for x in members)
        one, gradients = alone(member, p.s0[:1], p.reset_state[i])
        assert relative_error(value[i], one) < 1e-5
        mine = (tuple(x[i] for x in inputs), s0[i], learned[i])
        for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(gradients), strict=True):
            assert relative_error(x, y) < 2e-6


def double_problem():
    p = problem(length=19, width=4, value_width=3, resets="every7", reset_state=True)
    inputs = tuple(jnp.asarray(x, jnp.float64) for x in (*p.inputs, p.s0, p.reset_state))

    def run(r, logw, k, v, a, b, s0, reset_state):
        options = {"reset": jnp.asarray(p.reset), "reset_state": reset_state}
        return wkv7(r, logw, k, v, a, b, s0, **options, impl="xla_ad", chunk=16)

    return run, inputs


@pytest.mark.slow
def test_second_order_by_forward_over_reverse():
    with jax.enable_x64(True):
        run, inputs = double_problem()
        slope = jax.grad(lambda x: sum(jnp.sum(jnp.sin(out)) for out in run(*x)))
        direction = tuple(
            jnp.cos(jnp.arange(x.size) + i).reshape(x.shape) for i, x in enumerate(inputs)
        )
        product = jax.jit(lambda x: jax.jvp(slope, (x,), (direction,)))

        def moved(step):
            return product(jax.tree.map(lambda x, d: x + step * d, inputs, direction))[0]

        _, curvature = product(inputs)
        differences = jax.tree.map(lambda x, y: (x - y) / 2e-5, moved(1e-5), moved(-1e-5))
    for got, want in zip(curvature, differences):
        assert relative_error(got, want) < 1e-7


@pytest.mark.slow
def test_all_orders_and_modes_of_plain_autodiff():
    with jax.enable_x64(True):
        run, inputs = double_problem()
        check_grads(jax.jit(run), inputs, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def test_double_precision_throughout():
    p = problem(length=40, width=8, resets="every7", dtype=np.float64)
    with jax.enable_x64(True):

        def loss(inputs, impl):
            y, state = wkv7(*inputs, reset=jnp.asarray(p.reset), impl=impl, chunk=32)
            assert y.dtype == state.dtype == jnp.float64
            return jnp.sum(y * p.dy) + jnp.sum(state * p.ds.astype(np.float64))

        inputs = tuple(map(jnp.asarray, p.inputs))
        got, want = (
            jax.jit(jax.grad(partial(loss, impl=impl)))(inputs) for impl in ("xla", "scan")
        )
    for x, y in zip(got, want):
        assert relative_error(x, y) < 1e-12


def test_vmap_of_a_folded_function_folds_into_the_batch():
    seen = []

    def f(x, y, missing):
        seen.append((x.shape, y.shape, missing))
        return x * jnp.sum(y, axis=1, keepdims=True), (y,)

    x, y = np.arange(24.0).reshape(4, 3, 2), np.arange(30.0).reshape(2, 3, 5)
    folded = jax.vmap(jax.vmap(fold_into_batch(f), (0, None, None)), (None, 0, None))
    got, (passed,) = folded(x, y, None)
    assert seen[-1] == ((24, 2), (24, 5), None)
    np.testing.assert_array_equal(got, x[None] * y.sum(-1)[:, None, :, None])
    np.testing.assert_array_equal(passed, np.broadcast_to(y[:, None], (2, 4, 3, 5)))


def test_tuned_table_is_readable_and_falls_back():
    assert tuning.lookup("a device nobody has", 64, "float32").impl == "xla"
    assert tuning.lookup("cpu", 48, "float32") in tuning.table()["cpu"]["float32"].values()


def test_auto_runs_mosaic_only_where_it_fits(monkeypatch):
    row = tuning.Choice("pallas_mosaic_gpu", 64, 8)
    monkeypatch.setattr(tuning, "lookup", lambda *_: row)

    def chosen(impl="auto", chunk=None, length=20, dtype=jnp.bfloat16, reset_state=None):
        inputs = (jax.ShapeDtypeStruct((1, length, 1, 64), dtype),) * 6
        return dispatch.choose(impl, chunk, inputs, reset_state, jnp.bfloat16, jnp.float32)[:2]

    assert chosen() == chosen("pallas_mosaic_gpu") == ("pallas_mosaic_gpu", 64)
    assert chosen(length=4)[0] == "scan"
    assert chosen(reset_state=jnp.zeros((1, 1, 64, 64))) == ("xla", 32)
    assert chosen(dtype=jnp.float32) == ("xla", 32)  # rounded on the way is not bfloat16
    assert chosen(chunk=16) == ("xla", 16)

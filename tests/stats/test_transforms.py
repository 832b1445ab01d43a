"""Every public array function: jit equals eager, vmap equals a loop, finite gradients, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import stats

KEY = jax.random.key(0)
Y = jnp.asarray(np.random.default_rng(9).normal(size=10), jnp.float32)

FUNCTIONS = {
    "trimmed_mean": lambda x: stats.trimmed_mean(x, 0.1),
    "iqm": stats.iqm,
    "optimality_gap": stats.optimality_gap,
    "prob_improvement": lambda x: stats.prob_improvement(x, Y.astype(x.dtype)),
    "sign_proportion": stats.sign_proportion,
    "performance_profile": lambda x: stats.performance_profile(x, jnp.linspace(-1.0, 1.0, 5)),
    "normalize": lambda x: stats.normalize(x, -1.0, 2.0),
    "replace_diverged": lambda x: stats.replace_diverged(x, -1.0),
    "t_interval": stats.t_interval,
    "yuen_interval": stats.yuen_interval,
    "welch_interval": lambda x: stats.welch_interval(x, Y.astype(x.dtype)),
    "stratified_bootstrap": lambda x: stats.stratified_bootstrap(KEY, x, jnp.mean, 30, chunk=8),
    "sign_flip_exact": lambda x: stats.sign_flip_test(KEY, x),
    "sign_flip_sampled": lambda x: stats.sign_flip_test(KEY, x, num=50, exact_up_to=5),
    "tost": lambda x: stats.tost(x, 0.5),
    "holm": lambda x: stats.holm(jax.nn.sigmoid(x)),
    "benjamini_hochberg": lambda x: stats.benjamini_hochberg(jax.nn.sigmoid(x)),
    "kendall": lambda x: stats.kendall(Y.astype(x.dtype), x),
    "spearman": lambda x: stats.spearman(Y.astype(x.dtype), x),
}
INTEGER_FUNCTIONS = {
    "wilson_interval": lambda k: stats.wilson_interval(k, 10),
    "clopper_pearson_interval": lambda k: stats.clopper_pearson_interval(k, 10),
    "proportion_interval": lambda k: stats.proportion_interval(k, 10),
}
X = jnp.asarray(np.random.default_rng(8).normal(size=(3, 10)), jnp.float32)


def _check_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_equals_eager_and_vmap_equals_a_loop(name):
    fn = FUNCTIONS[name]
    jitted = jax.jit(fn)
    loop = [jitted(row) for row in X]
    _check_close(fn(X[0]), loop[0])
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *loop)
    _check_close(jax.jit(jax.vmap(fn))(X), stacked)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("data", ["distinct", "constant"])
def test_gradients_are_finite_even_for_constant_data(name, data):
    x = X[0] if data == "distinct" else jnp.full(10, 0.25)

    def total(x):
        leaves = [v for v in jax.tree.leaves(FUNCTIONS[name](x)) if v.dtype == x.dtype]
        return sum(jnp.sum(v) for v in leaves)

    assert np.all(np.isfinite(jax.jit(jax.grad(total))(x)))


def test_gradient_of_the_mean_limits_is_the_closed_form():
    # d low / d x_i = 1/n - t (x_i - mean) / ((n - 1) sqrt(n) sd)
    x, n = np.asarray(X[0], np.float64), 10
    interval = stats.t_interval(x)
    t = float(interval.high - interval.estimate) / (x.std(ddof=1) / np.sqrt(n))
    expected = 1 / n - t * (x - x.mean()) / ((n - 1) * np.sqrt(n) * x.std(ddof=1))
    got = jax.grad(lambda d: stats.t_interval(d).low)(X[0])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_is_kept(name, dtype):
    for leaf in jax.tree.leaves(FUNCTIONS[name](X[0].astype(dtype))):
        assert leaf.dtype in (dtype, jnp.bool_)


@pytest.mark.parametrize("name", INTEGER_FUNCTIONS)
def test_proportions_under_jit_and_vmap(name):
    fn, ks = INTEGER_FUNCTIONS[name], jnp.arange(11)
    loop = jax.tree.map(lambda *rows: jnp.stack(rows), *[fn(int(k)) for k in ks])
    _check_close(jax.jit(jax.vmap(fn))(ks), loop)
    _check_close(fn(ks), loop)


def test_integers_and_lists_are_read_as_floats():
    assert stats.iqm([1, 2, 3, 10]) == 2.5
    assert stats.t_interval(np.array([1, 2, 3])).estimate == 2.0


def test_numpy_stays_float64():
    d = np.random.default_rng(0).normal(size=9)
    for value in (*stats.t_interval(d), *stats.yuen_interval(d), stats.iqm(d)):
        assert np.asarray(value).dtype == np.float64

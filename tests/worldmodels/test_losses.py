import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab import nets
from jaxlab.worldmodels import losses

ERRORS = jnp.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.5]])

# Jitted, as op by op every primitive would be compiled by itself.
gaussian_nll = jax.jit(losses.gaussian_nll)
mse_loss = jax.jit(losses.mse_loss)
value_gradient_weighted_loss = jax.jit(losses.value_gradient_weighted_loss)
taylor_value_aware_loss = jax.jit(losses.taylor_value_aware_loss)
iter_value_aware_loss = jax.jit(losses.iter_value_aware_loss, static_argnames="value_fn")
value_error = jax.jit(losses.value_error, static_argnames="value_fn")
clip_gradient_norm = jax.jit(losses.clip_gradient_norm)
value_gradients = jax.jit(losses.value_gradients, static_argnames=("value_fn", "clip_quantile"))


def smooth_value(s):
    return jnp.sin(s[0]) * s[1] + 0.5 * s[-1] ** 3


def rows(key, *shape):
    seed = np.asarray(jax.random.key_data(key))
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_gaussian_nll_is_twice_the_density_less_its_constant(key):
    mean, logvar, target = (
        rows(k, *s) for k, s in zip(jax.random.split(key, 3), [(3, 6, 2), (3, 6, 2), (6, 2)])
    )
    logpdf = scipy.stats.norm.logpdf(np.asarray(target), mean, np.exp(0.5 * np.asarray(logvar)))
    want = np.sum(np.mean(-2 * logpdf - np.log(2 * np.pi), axis=(1, 2)))
    loss, metrics = gaussian_nll(mean, logvar, target)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["mse"], np.mean((mean - target[None]) ** 2), rtol=1e-5)
    # The best log-variance is that of the error.
    error2 = np.mean((np.asarray(mean[0] - target)) ** 2)
    at_best = jax.grad(lambda c: gaussian_nll(mean[0], jnp.full((6, 2), c), target)[0])
    np.testing.assert_allclose(at_best(jnp.float32(np.log(error2))), 0, atol=1e-6)


def test_golden_values_of_a_linear_value_function():
    next_obs = jnp.array([[0.3, -1.0], [2.0, 0.0], [0.0, 0.0]])
    g = value_gradients(lambda s: 3 * s[0] - 4 * s[1], next_obs)
    np.testing.assert_allclose(g, np.tile([3.0, -4.0], (3, 1)))
    pred = next_obs + ERRORS
    np.testing.assert_allclose(value_gradient_weighted_loss(pred, next_obs, g)[0], 34)
    np.testing.assert_allclose(taylor_value_aware_loss(pred, next_obs, g)[0], 22)
    # And op by op.
    np.testing.assert_allclose(losses.value_gradient_weighted_loss(pred, next_obs, g)[0], 34)
    np.testing.assert_allclose(losses.taylor_value_aware_loss(pred, next_obs, g)[0], 22)


def test_all_ones_gradient_is_the_sum_of_squares(key):
    next_obs = rows(key, 8, 3)
    g = value_gradients(jnp.sum, next_obs)
    params = nets.mlp_init(key, (3, 5, 3))

    def weighted(p):
        return value_gradient_weighted_loss(nets.mlp_apply(p, next_obs), next_obs, g)[0]

    def plain(p):
        return mse_loss(nets.mlp_apply(p, next_obs), next_obs)[0]

    got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (weighted, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    error2 = np.asarray(nets.mlp_apply(params, next_obs) - next_obs, np.float64) ** 2
    np.testing.assert_allclose(want[0], error2.sum(-1).mean(), rtol=1e-5)


def test_one_dimension_makes_weighted_and_taylor_equal(key):
    pred, next_obs, g = (rows(k, 7, 1) for k in jax.random.split(key, 3))
    a = value_gradient_weighted_loss(pred, next_obs, g)[0]
    np.testing.assert_allclose(a, taylor_value_aware_loss(pred, next_obs, g)[0], rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_taylor_is_bounded_by_dimensions_times_weighted(seed):
    pred, next_obs, g = (rows(k, 4, 6) for k in jax.random.split(jax.random.key(seed), 3))
    taylor = taylor_value_aware_loss(pred, next_obs, g)[0]
    assert taylor <= 6 * value_gradient_weighted_loss(pred, next_obs, g)[0] * (1 + 1e-6)


def test_only_exact_weighted_dimensions_give_zero(key):
    next_obs, g = rows(key, 5, 3), jnp.tile(jnp.array([1.0, 0.0, -2.0]), (5, 1))
    elsewhere = next_obs.at[:, 1].add(10.0)
    assert value_gradient_weighted_loss(elsewhere, next_obs, g)[0] == 0
    hyperplane = next_obs + jnp.tile(jnp.array([2.0, 0.0, 1.0]), (5, 1))  # g e = 0
    assert taylor_value_aware_loss(hyperplane, next_obs, g)[0] < 1e-10
    np.testing.assert_allclose(
        value_gradient_weighted_loss(hyperplane, next_obs, g)[0], 8, rtol=1e-5
    )


def test_permutation_scaling_and_constants_of_the_value_function(key):
    pred, next_obs = (rows(k, 40, 4) for k in jax.random.split(key))

    def loss(value_fn, p, s):
        g = value_gradients(value_fn, s, clip_quantile=0.8)
        return value_gradient_weighted_loss(p, s, g)[0]

    base = loss(smooth_value, pred, next_obs)
    order = jnp.array([2, 0, 3, 1])
    back = jnp.argsort(order)
    permuted = loss(lambda s: smooth_value(s[back]), pred[:, order], next_obs[:, order])
    np.testing.assert_allclose(permuted, base, rtol=1e-5)
    scaled = loss(lambda s: -3 * smooth_value(s), pred, next_obs)
    np.testing.assert_allclose(scaled, 9 * base, rtol=1e-5)
    assert loss(lambda s: smooth_value(s) + 100, pred, next_obs) == base


def test_dimensions_without_value_get_no_gradient(key):
    pred, next_obs = (rows(k, 9, 4) for k in jax.random.split(key))
    g = value_gradients(lambda s: s[0] ** 2 + s[2], next_obs)
    grad = jax.grad(lambda p: value_gradient_weighted_loss(p, next_obs, g)[0])(pred)
    np.testing.assert_array_equal(grad[:, [1, 3]], 0)
    assert np.all(grad[:, [0, 2]] != 0)


@pytest.mark.parametrize("critics", [False, True])
def test_no_gradient_reaches_the_value_function(key, critics):
    pred, next_obs = (rows(k, 6, 3) for k in jax.random.split(key))
    sizes = (3, 4, 2 if critics else 1)
    value_params = nets.mlp_init(key, sizes)

    def make_value(p):
        return lambda s: nets.mlp_apply(p, s) if critics else nets.mlp_apply(p, s)[0]

    def total(p, q):
        value_fn = make_value(p)
        g = losses.value_gradients(value_fn, next_obs)
        return (
            losses.value_gradient_weighted_loss(q, next_obs, g)[0]
            + losses.taylor_value_aware_loss(q, next_obs, g)[0]
            + losses.iter_value_aware_loss(q, next_obs, value_fn)[0]
        )

    to_value, to_pred = jax.jit(jax.grad(total, argnums=(0, 1)))(value_params, pred)
    for leaf in jax.tree.leaves(to_value):
        np.testing.assert_array_equal(leaf, 0)
    assert np.all(np.abs(to_pred).sum(-1) > 0)
    of_g = jax.jit(
        jax.grad(lambda p: jnp.sum(losses.value_gradients(make_value(p), next_obs) ** 2))
    )(value_params)
    for leaf in jax.tree.leaves(of_g):
        np.testing.assert_array_equal(leaf, 0)


def test_iter_value_aware_gradient_is_that_of_the_definition(key):
    pred, next_obs = (rows(k, 6, 3) for k in jax.random.split(key))

    def definition(p):
        v = jax.vmap(smooth_value)
        return jnp.mean((v(p) - v(next_obs)) ** 2)

    got = jax.value_and_grad(lambda p: iter_value_aware_loss(p, next_obs, smooth_value)[0])
    np.testing.assert_allclose(got(pred)[0], definition(pred), rtol=1e-5)
    np.testing.assert_allclose(got(pred)[1], jax.grad(definition)(pred), rtol=1e-4, atol=1e-6)


def test_gradients_are_taken_at_the_real_next_state():
    # A kink between the two: slope 1 at the real state, 5 at the prediction.
    def kinked(s):
        return jnp.where(s[0] < 0, s[0], 5 * s[0])

    next_obs, pred = jnp.array([[-1.0]]), jnp.array([[1.0]])
    g = value_gradients(kinked, next_obs)
    np.testing.assert_allclose(value_gradient_weighted_loss(pred, next_obs, g)[0], 4)
    np.testing.assert_allclose(iter_value_aware_loss(pred, next_obs, kinked)[0], 36)


def along_first(norms):
    return jnp.stack([jnp.asarray(norms), jnp.zeros(len(norms))], axis=1)


def norms_of(g):
    return np.linalg.norm(np.asarray(g), axis=-1)


def test_clip_shortens_the_outlier_to_the_quantile():
    clipped, share = clip_gradient_norm(along_first([1.0] * 20 + [100.0]), 0.95)
    np.testing.assert_allclose(norms_of(clipped), 1.0)
    np.testing.assert_allclose(share, 1 / 21, rtol=1e-6)


def test_clip_quantile_interpolates_linearly():
    # 11 norms: position .95 * 10 = 9.5, half way between 1 and 100.
    clipped, _ = clip_gradient_norm(along_first([1.0] * 10 + [100.0]), 0.95)
    np.testing.assert_allclose(norms_of(clipped), [1.0] * 10 + [50.5], rtol=1e-5)


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.95, 1.0])
def test_clip_limit_is_numpys_quantile(key, quantile):
    g = rows(key, 2, 33, 3)
    mask = jnp.arange(33) < 25
    dirty = jnp.where(mask[:, None], g, 0.0).at[:, -1].set(jnp.nan)
    clipped, _ = clip_gradient_norm(dirty, quantile, mask)
    limit = np.quantile(norms_of(g[:, :25]), quantile, axis=-1)
    want = np.minimum(norms_of(g[:, :25]), limit[:, None])
    np.testing.assert_allclose(norms_of(clipped[:, :25]), want, rtol=1e-5)
    direction = np.sum(np.asarray(clipped[:, :25] * g[:, :25]), -1) / norms_of(g[:, :25])
    np.testing.assert_allclose(direction, want, rtol=1e-5)


def test_clip_leaves_equal_norms_and_zeros_alone():
    same = jnp.array([[3.0, 4.0], [-4.0, 3.0], [5.0, 0.0]])
    clipped, share = clip_gradient_norm(same, 0.95)
    np.testing.assert_array_equal(clipped, same)
    assert share == 0
    zero, _ = clip_gradient_norm(jnp.zeros((4, 2)), 0.95)
    np.testing.assert_array_equal(zero, 0)


def test_value_gradients_clip_and_mask(key):
    next_obs = along_first([1.0] * 20 + [100.0, 7e3])
    half_square = lambda s: 0.5 * jnp.sum(s**2)  # noqa: E731
    mask = jnp.arange(22) < 21
    np.testing.assert_allclose(
        norms_of(value_gradients(half_square, next_obs, mask=mask))[:21], 1.0
    )
    free = value_gradients(half_square, next_obs, clip_quantile=None)
    np.testing.assert_array_equal(free, next_obs)


def test_identical_critics_are_one_critic_and_different_ones_average(key):
    pred, next_obs = (rows(k, 30, 3) for k in jax.random.split(key))
    one = value_gradients(smooth_value, next_obs)
    three = value_gradients(lambda s: jnp.stack([smooth_value(s)] * 3), next_obs)
    assert three.shape == (3, 30, 3)
    single = value_gradient_weighted_loss(pred, next_obs, one)[0]
    np.testing.assert_allclose(
        value_gradient_weighted_loss(pred, next_obs, three)[0], single, rtol=1e-6
    )
    other = value_gradients(lambda s: s[0] ** 2, next_obs)
    both = value_gradients(lambda s: jnp.stack([smooth_value(s), s[0] ** 2]), next_obs)
    np.testing.assert_allclose(both, jnp.stack([one, other]), rtol=1e-6)
    for loss in (value_gradient_weighted_loss, taylor_value_aware_loss):
        mean = 0.5 * (loss(pred, next_obs, one)[0] + loss(pred, next_obs, other)[0])
        np.testing.assert_allclose(loss(pred, next_obs, both)[0], mean, rtol=1e-5)


def test_stacked_critics_may_be_vmapped(key):
    next_obs, params = rows(key, 30, 3), nets.ensemble_init(key, 4, (3, 5, 1))

    def each(p):
        return losses.value_gradients(lambda s: nets.mlp_apply(p, s)[0], next_obs)

    def all_at_once(s):
        return nets.ensemble_apply(params, s, shared_inputs=True)[:, 0]

    np.testing.assert_allclose(
        jax.jit(jax.vmap(each))(params), value_gradients(all_at_once, next_obs), rtol=1e-4
    )


def test_a_linear_model_is_fitted_by_weighted_least_squares(key):
    x, noise, next_obs = (rows(k, 60, 3) for k in jax.random.split(key, 3))
    next_obs = next_obs + x**2
    g = value_gradients(smooth_value, next_obs) + 0.1 * noise
    g64 = np.asarray(g, np.float64)
    solution = np.stack(
        [
            np.linalg.lstsq(
                g64[:, d : d + 1] * np.asarray(x, np.float64),
                g64[:, d] * np.asarray(next_obs[:, d], np.float64),
                rcond=None,
            )[0]
            for d in range(3)
        ],
        axis=1,
    )

    def slope(w):
        return jax.grad(lambda v: value_gradient_weighted_loss(x @ v, next_obs, g)[0])(w)

    np.testing.assert_allclose(slope(jnp.asarray(solution, jnp.float32)), 0, atol=2e-4)
    ordinary = np.linalg.lstsq(np.asarray(x), np.asarray(next_obs), rcond=None)[0]
    assert np.abs(slope(jnp.asarray(ordinary))).max() > 0.1


def test_small_errors_make_iter_value_aware_taylor_up_to_third_order(key):
    direction, next_obs = (rows(k, 50, 3) for k in jax.random.split(key))
    g = value_gradients(smooth_value, next_obs, clip_quantile=None)

    def gap(size):
        pred = next_obs + size * direction
        taylor = taylor_value_aware_loss(pred, next_obs, g)[0]
        return float(iter_value_aware_loss(pred, next_obs, smooth_value)[0] - taylor)

    # Halving the error divides the difference of the losses by 8 (the losses by 4).
    np.testing.assert_allclose(gap(0.02) / gap(0.01), 8, rtol=0.1)


@pytest.mark.parametrize("name", ["nll", "mse", "weighted", "taylor", "iter", "value_error"])
def test_masked_rows_and_member_axes(key, name):
    pred, logvar = (rows(k, 4, 9, 2) for k in jax.random.split(key))
    next_obs, g = (rows(k, 9, 2) for k in jax.random.split(jax.random.fold_in(key, 1)))
    loss = {
        "nll": lambda p, s, w, m: gaussian_nll(p, logvar[..., : s.shape[0], :], s, m)[0],
        "mse": lambda p, s, w, m: mse_loss(p, s, m)[0],
        "weighted": lambda p, s, w, m: value_gradient_weighted_loss(p, s, w, m)[0],
        "taylor": lambda p, s, w, m: taylor_value_aware_loss(p, s, w, m)[0],
        "iter": lambda p, s, w, m: iter_value_aware_loss(p, s, smooth_value, m)[0],
        "value_error": lambda p, s, w, m: value_error(smooth_value, p, s, m),
    }[name]
    mask = jnp.arange(9) < 5
    dirty = jnp.where(mask[:, None], next_obs, jnp.nan)
    want = loss(pred[:, :5], next_obs[:5], g[:5], None)
    np.testing.assert_allclose(loss(pred, dirty, g, mask), want, rtol=1e-5)
    slope = jax.grad(loss)(pred, dirty, jnp.where(mask[:, None], g, jnp.nan), mask)
    clean = jax.grad(loss)(pred[:, :5], next_obs[:5], g[:5], None)
    np.testing.assert_allclose(slope[:, :5], clean, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(slope[:, 5:], 0)
    if name != "nll":
        each = [loss(pred[m], next_obs, g, None) for m in range(4)]
        np.testing.assert_allclose(loss(pred, next_obs, g, None), np.mean(each), rtol=1e-5)
        batched = jax.vmap(lambda p: loss(p, next_obs, g, None))(pred)
        np.testing.assert_allclose(batched, each, rtol=1e-5)


def test_metrics_of_the_weighted_loss(key):
    pred, next_obs = (rows(k, 2000, 4) for k in jax.random.split(key))
    g = jnp.tile(jnp.array([2.0, -2.0, 0.0, 0.0]), (2000, 1))
    loss, metrics = value_gradient_weighted_loss(pred, next_obs, g)
    np.testing.assert_allclose(metrics["effective_dims"], 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["weighted_error_per_dim"].sum(), loss, rtol=1e-5)
    np.testing.assert_array_equal(metrics["weighted_error_per_dim"][2:], 0)
    scaled = value_gradient_weighted_loss(pred, next_obs, 1e-9 * g)[1]
    np.testing.assert_allclose(scaled["effective_dims"], 2, rtol=1e-5)
    none = value_gradient_weighted_loss(pred, next_obs, 0 * g)[1]
    assert none["effective_dims"] == 0


def test_value_error_metric(key):
    pred, next_obs = jnp.array([[1.0, 1.0], [2.0, 0.0]]), jnp.zeros((2, 2))
    _, metrics = iter_value_aware_loss(pred, next_obs, lambda s: 3 * s[0] - 4 * s[1])
    np.testing.assert_allclose(metrics["value_error"], (1 + 6) / 2)
    got = value_error(lambda s: 3 * s[0] - 4 * s[1], pred, next_obs)
    np.testing.assert_allclose(got, 3.5)


def test_a_matrix_value_function_is_refused(key):
    with pytest.raises(ValueError, match=r"value_fn: .*\(3, 3\)"):
        losses.value_gradients(lambda s: jnp.outer(s, s), rows(key, 4, 3))


def test_a_quantile_in_percent_is_refused(key):
    with pytest.raises(ValueError, match=r"quantile: expected within \[0, 1\], got 95"):
        losses.value_gradients(smooth_value, rows(key, 4, 3), clip_quantile=95)

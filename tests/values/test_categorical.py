import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxlab import values
from jaxlab.values import Support

# Jitted once: operation by operation, compiling would take most of the time.
two_hot = jax.jit(values.two_hot, static_argnums=1)
hl_gauss = jax.jit(values.hl_gauss, static_argnums=1)
edge_fraction = jax.jit(values.edge_fraction, static_argnums=1)
categorical_mean = jax.jit(values.categorical_mean, static_argnums=1)
c51_project = jax.jit(values.c51_project, static_argnums=2)
c51_target = jax.jit(values.c51_target, static_argnums=3)
categorical_value_loss = jax.jit(values.categorical_value_loss)
categorical_value_loss_per_example = jax.jit(values.categorical_value_loss_per_example)

ATOMS = Support(-10.0, 10.0, 51)
BINS = Support(-10.0, 10.0, 51, "bins")


def exact_hl_gauss(y, support, ratio):
    """Definition in float64."""
    edges = np.linspace(support.vmin, support.vmax, support.num_bins + 1)
    sigma = ratio * (support.vmax - support.vmin) / support.num_bins
    cdf = 0.5 * (1 + scipy.special.erf((edges - y) / (np.sqrt(2) * sigma)))
    return np.diff(cdf) / (cdf[-1] - cdf[0])


def mean_of(probs, support):
    return float(np.dot(np.asarray(probs, np.float64), np.asarray(support.locations, np.float64)))


def test_the_two_kinds_of_support_differ():
    assert ATOMS.spacing == pytest.approx(0.4)
    assert BINS.spacing == pytest.approx(0.39215686)
    np.testing.assert_allclose(ATOMS.locations, np.linspace(-10, 10, 51), atol=1e-6)
    edges = np.linspace(-10, 10, 52)
    np.testing.assert_allclose(BINS.edges, edges, atol=1e-6)
    np.testing.assert_allclose(BINS.locations, (edges[1:] + edges[:-1]) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["atoms", "bins"])
@pytest.mark.parametrize("count", [2, 50, 201])
@pytest.mark.parametrize("ends", [(-10.0, 10.0), (-4.0, 16.0), (0.1, 0.7)])
def test_equal_logits_give_exactly_the_centre(kind, count, ends):
    support = Support(*ends, count, kind)
    out = categorical_mean(jnp.zeros((3, count)), support)
    np.testing.assert_array_equal(out, np.float32(0.5 * (ends[0] + ends[1])))


def test_symexp_grid_takes_the_expectation_in_the_units_of_the_values():
    support = Support(-5.0, 5.0, 41, tx=values.SYMLOG, unbiased=True)
    np.testing.assert_allclose(
        support.locations,
        np.sinh(0) + np.sign(np.linspace(-5, 5, 41)) * np.expm1(np.abs(np.linspace(-5, 5, 41))),
        rtol=1e-5,
        atol=1e-6,
    )
    assert float(categorical_mean(jnp.zeros(41), support)) == 0.0
    for y in (-140.0, -3.3, 0.0, 0.01, 55.0):
        p = two_hot(jnp.float32(y), support)
        np.testing.assert_allclose(mean_of(p, support), y, rtol=2e-6, atol=1e-6)
        assert int(jnp.sum(p > 0)) <= 2
    # A noisy target keeps its mean, which a transform of the values themselves would not.
    noisy = 0.5 * (two_hot(jnp.float32(0.0), support) + two_hot(jnp.float32(100.0), support))
    logits = jnp.log(noisy + 1e-30)
    np.testing.assert_allclose(categorical_mean(logits, support), 50.0, rtol=1e-5)
    transformed = Support(-5.0, 5.0, 41, tx=values.SYMLOG)
    noisy = 0.5 * (
        two_hot(jnp.float32(0.0), transformed) + two_hot(jnp.float32(100.0), transformed)
    )
    logits = jnp.log(noisy + 1e-30)
    np.testing.assert_allclose(  # symexp of the mean of the logarithms
        categorical_mean(logits, transformed), np.sqrt(101.0) - 1, rtol=1e-3
    )
    lopsided = Support(-1.0, 5.0, 31, tx=values.SYMLOG, unbiased=True)
    p = two_hot(jnp.float32(20.0), lopsided)
    np.testing.assert_allclose(categorical_mean(jnp.log(p + 1e-30), lopsided), 20.0, rtol=1e-5)


@pytest.mark.parametrize("support", [ATOMS, BINS, Support(-1.0, 1.0, 201), Support(0.1, 7.3, 8)])
def test_two_hot_keeps_the_mean(support, key):
    low, high = float(support.locations[0]), float(support.locations[-1])
    y = jax.random.uniform(key, (500,), minval=low, maxval=high)
    p = two_hot(y, support)
    assert p.shape == (500, support.num_bins) and p.dtype == jnp.float32
    mean = np.asarray(p, np.float64) @ np.asarray(support.locations, np.float64)
    np.testing.assert_allclose(mean, y, atol=1e-6 * max(abs(low), abs(high)))
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    assert np.all((np.asarray(p) >= 0) & (np.asarray(p) <= 1))
    assert int(jnp.max(jnp.sum(p > 0, axis=-1))) == 2
    # At an atom all mass sits there, beyond the ends at the end.
    on_atoms = two_hot(support.locations, support)
    np.testing.assert_array_equal(on_atoms, np.eye(support.num_bins))
    beyond = two_hot(jnp.array([low - 1e6, high + 3.0, jnp.inf]), support)
    np.testing.assert_array_equal(
        beyond.argmax(-1), [0, support.num_bins - 1, support.num_bins - 1]
    )
    np.testing.assert_array_equal(beyond.max(-1), 1)


def test_two_hot_of_two_atoms_is_a_coin():
    support = Support(0.0, 1.0, 2)
    logits, y = jnp.array([0.3, 1.1]), jnp.float32(0.8)
    loss, _ = categorical_value_loss(logits, two_hot(y, support))
    q = 1 / (1 + np.exp(-0.8))
    np.testing.assert_allclose(loss, -(0.8 * np.log(q) + 0.2 * np.log(1 - q)), rtol=1e-6)


def test_hl_gauss_golden():
    p = hl_gauss(jnp.float32(0.5), Support(0.0, 4.0, 4, "bins"))
    np.testing.assert_allclose(p, [0.662222, 0.307345, 0.029861, 0.000572], atol=1e-6)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0, 2.0])
def test_hl_gauss_against_float64_and_the_closed_form_of_its_bias(ratio):
    y = np.linspace(-6, 6, 121)
    p = hl_gauss(jnp.asarray(y, jnp.float32), BINS, ratio)
    exact = np.stack([exact_hl_gauss(x, BINS, ratio) for x in y])
    np.testing.assert_allclose(p, exact, atol=3e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    # Mass beyond the ends is negligible here, so the bias is that of sampling a normal law.
    width = 20 / 51
    centres = -10 + width * (np.arange(51) + 0.5)
    delta = (y - centres[np.abs(y[:, None] - centres).argmin(-1)]) / width
    k = np.arange(1, 9)[:, None]
    waves = (
        (-1.0) ** k / k * np.exp(-2 * np.pi**2 * k**2 * ratio**2) * np.sin(2 * np.pi * k * delta)
    )
    bias = width / np.pi * waves.sum(0)
    np.testing.assert_allclose(exact @ centres - y, bias, atol=1e-9 if ratio < 2 else 1e-5)
    ours = np.asarray(p, np.float64) @ centres
    np.testing.assert_allclose(ours - y, bias, atol=5e-6 if ratio < 2 else 2e-5)
    counts = {0.25: 3, 0.5: 4, 0.75: 6, 1.0: 7, 2.0: 13}
    assert int(jnp.sum(hl_gauss(jnp.float32(0.1), BINS, ratio) > 1e-3)) == counts[ratio]


def test_hl_gauss_beyond_and_near_the_ends():
    y = jnp.array([-1e9, -12.0, 12.0, 30.0, jnp.inf])
    p = hl_gauss(y, BINS)
    assert bool(jnp.all(jnp.isfinite(p)))
    np.testing.assert_array_equal(
        p[2:], jnp.broadcast_to(hl_gauss(jnp.float32(10.0), BINS), (3, 51))
    )
    # The pull inwards that `edge_fraction` warns of.
    assert mean_of(hl_gauss(jnp.float32(10.0), BINS), BINS) == pytest.approx(9.729, abs=1e-3)
    assert mean_of(hl_gauss(jnp.float32(9.9), BINS), BINS) == pytest.approx(9.698, abs=1e-3)
    gradient = jax.grad(lambda y: hl_gauss(y, BINS)[3])(jnp.float32(12.0))
    assert np.isfinite(gradient)


def test_hl_gauss_symmetry_dominance_and_limit(key):
    mirrored = Support(-7.0, 3.0, 40, "bins")
    support = Support(-3.0, 7.0, 40, "bins")
    y = jnp.sort(jax.random.uniform(key, (64,), minval=-3.0, maxval=7.0))
    p = hl_gauss(y, support)
    np.testing.assert_allclose(hl_gauss(-y, mirrored), p[:, ::-1], atol=1e-6)
    centre = hl_gauss(support.locations[20], support)
    window = np.asarray(centre[10:31])
    np.testing.assert_allclose(window, window[::-1], atol=1e-6)
    upper_tail = np.cumsum(np.asarray(p, np.float64)[:, ::-1], axis=-1)
    assert np.all(np.diff(upper_tail, axis=0) > -1e-6)
    sharp = hl_gauss(y, support, 1e-3)
    inside = np.asarray(jnp.abs((y + 3) / 0.25 % 1 - 0.5) < 0.45)
    expected = np.floor((np.asarray(y) + 3) / 0.25).astype(int)
    np.testing.assert_array_equal(sharp.argmax(-1)[inside], expected[inside])
    np.testing.assert_allclose(sharp.max(-1)[inside], 1, atol=1e-6)
    # Units do not matter.
    scaled = Support(-30.0, 70.0, 40, "bins")
    np.testing.assert_allclose(hl_gauss(10 * y, scaled), p, atol=2e-6)


def test_edge_fraction_counts_three_standard_deviations():
    margin = 3 * 0.75 * 20 / 51
    y = jnp.array([-10.0 + 0.99 * margin, -10.0 + 1.01 * margin, 0.0, 10.0 - 0.99 * margin, 50.0])
    assert float(edge_fraction(y, BINS)) == pytest.approx(3 / 5)
    mask = jnp.array([0, 1, 1, 1, 0])
    assert float(edge_fraction(y, BINS, mask=mask)) == pytest.approx(1 / 3)
    assert float(edge_fraction(y, BINS, 0.5)) == pytest.approx(1 / 5)


def test_c51_golden_and_against_the_dense_form(key):
    source = 0.3 + 0.5 * jnp.linspace(-1, 1, 5)
    probs = jnp.array([0.1, 0.2, 0.4, 0.2, 0.1])
    out = c51_project(source, probs, Support(-1.0, 1.0, 5))
    np.testing.assert_allclose(out, [0, 0.04, 0.4, 0.48, 0.08], atol=1e-6)
    z = 15 * jax.random.normal(key, (4, 3, 33))
    p = jax.nn.softmax(jax.random.normal(jax.random.fold_in(key, 1), (4, 3, 33)))
    out = c51_project(z, p, ATOMS)
    atoms = np.linspace(-10, 10, 51)
    clipped = np.clip(np.asarray(z, np.float64), -10, 10)
    hat = np.clip(1 - np.abs(clipped[..., None] - atoms) / 0.4, 0, 1)
    np.testing.assert_allclose(out, np.einsum("bck,bckm->bcm", p, hat), atol=2e-6)
    np.testing.assert_allclose(
        np.asarray(out) @ atoms, (np.asarray(p) * clipped).sum(-1), atol=1e-5
    )


@pytest.mark.parametrize(
    "support",
    [
        ATOMS,
        Support(-4.0, 4.0, 31, tx=values.SYMLOG),
        Support(-4.0, 4.0, 31, tx=values.SYMLOG, unbiased=True),
    ],
)
def test_c51_target_at_an_end_is_the_reward(support, key):
    r = jnp.array([-3.3, 0.0, 7.7])
    logits = jax.random.normal(key, (3, support.num_bins))
    out = c51_target(r, jnp.zeros(3), logits, support)
    np.testing.assert_allclose(out, two_hot(r, support), atol=1e-6)
    # With discount one and no reward the law stays what it is.
    still = c51_target(jnp.zeros(3), jnp.ones(3), logits, support)
    np.testing.assert_allclose(still, jax.nn.softmax(logits), atol=1e-5)
    assert not jax.grad(lambda x: c51_target(r, jnp.ones(3), x, support)[0, 3])(logits).any()


@pytest.mark.parametrize("projection", [two_hot, hl_gauss])
def test_gradient_of_the_loss_is_softmax_less_target(projection, key):
    logits = 3 * jax.random.normal(key, (7, 51))
    target = projection(jnp.linspace(-9.0, 9.0, 7), BINS)
    gradient = jax.grad(lambda x: jnp.sum(categorical_value_loss_per_example(x, target)))(logits)
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - target, atol=1e-6)
    mask = jnp.array([1, 0, 1, 0, 0, 0, 1])
    loss, metrics = categorical_value_loss(logits, target, mask)
    per_example = categorical_value_loss_per_example(logits, target)
    np.testing.assert_allclose(loss, np.asarray(per_example)[[0, 2, 6]].mean(), rtol=1e-6)
    p, q = np.asarray(target, np.float64), np.asarray(jax.nn.softmax(logits), np.float64)
    kl = scipy.special.rel_entr(p, q).sum(-1)[[0, 2, 6]].mean()
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-5)


def test_the_optimum_of_the_loss_has_the_mean_of_noisy_targets(key):
    y = 2 + 3 * jax.random.normal(key, (2000,))
    y = jnp.clip(y, -9.0, 9.0)
    for projection, tolerance in ((two_hot, 2e-5), (hl_gauss, 2e-2)):
        support = BINS if projection is hl_gauss else ATOMS
        optimum = jnp.log(jnp.mean(projection(y, support), axis=0) + 1e-30)
        np.testing.assert_allclose(categorical_mean(optimum, support), jnp.mean(y), atol=tolerance)


def test_a_transform_acts_before_the_projection_and_after_the_mean():
    support = Support(-5.0, 5.0, 101, "bins", tx=values.SYMLOG)
    y = jnp.array([-100.0, -1.0, 0.0, 0.3, 80.0])
    for projection in (two_hot, hl_gauss):
        logits = jnp.log(projection(y, support) + 1e-37)
        np.testing.assert_allclose(categorical_mean(logits, support), y, rtol=2e-4, atol=1e-5)


def test_low_precision_logits_are_read_in_float32():
    logits = jnp.zeros((51,), jnp.bfloat16).at[40].set(8.0)
    out = categorical_mean(logits, ATOMS)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 6 * (np.exp(8) - 1) / (np.exp(8) + 50), rtol=1e-5)


def test_suggested_support_leaves_a_margin():
    returns = np.random.default_rng(0).normal(3.0, 7.0, 1000)
    support = values.suggest_support(returns, 51)
    assert support.kind == "bins"
    np.testing.assert_allclose(returns.min() - support.vmin, 3 * support.spacing, rtol=1e-9)
    np.testing.assert_allclose(support.vmax - returns.max(), 3 * support.spacing, rtol=1e-9)
    assert float(edge_fraction(jnp.asarray(returns, jnp.float32), support)) == 0.0
    tight = values.suggest_support(returns, 51, margin_bins=0)
    assert (tight.vmin, tight.vmax) == (returns.min(), returns.max())
    squeezed = values.suggest_support(returns, 51, tx=values.SYMLOG)
    assert squeezed.vmax < 5 and squeezed.tx is values.SYMLOG
    with pytest.raises(ValueError, match="returns: expected finite, unequal numbers"):
        values.suggest_support([1.0, np.nan], 51)
    with pytest.raises(ValueError, match=r"margin_bins: expected 0 to 3\.0 exclusive, got 3"):
        values.suggest_support([0.0, 1.0], 6, margin_bins=3)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((1.0, 1.0, 5), "vmin, vmax: expected finite vmin < vmax, got 1.0 and 1.0"),
        ((0.0, np.inf, 5), "vmin, vmax: expected finite"),
        ((0.0, 1.0, 1), "num_bins: expected at least 2, got 1"),
        ((0.0, 1.0, 5, "edges"), "kind: expected one of"),
        ((0.0, 1.0, 5, "atoms", None, True), "unbiased: expected a transform and kind 'atoms'"),
    ],
)
def test_impossible_supports_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Support(*arguments)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="support: expected kind 'bins', got 'atoms'"):
        hl_gauss(jnp.float32(0.0), ATOMS)
    with pytest.raises(ValueError, match="sigma_ratio: expected a positive number, got 0"):
        values.hl_gauss(jnp.float32(0.0), BINS, 0.0)
    with pytest.raises(ValueError, match="probs: expected a last axis of 51 bins"):
        categorical_mean(jnp.zeros(50), ATOMS)
    with pytest.raises(ValueError, match="p_src: expected the shape of z_src"):
        c51_project(jnp.zeros(5), jnp.zeros(4), ATOMS)


def test_gradients_do_not_see_what_a_mask_hides():
    nan, mask = jnp.array([[0.5, 0.5], [jnp.nan, jnp.nan]]), jnp.array([1, 0])
    logits = jnp.array([[0.0, 1.0], [jnp.nan, 0.0]])
    slope = jax.grad(lambda x: values.categorical_value_loss(x, nan, mask)[0])(logits)
    want = np.array([1, np.e]) / (1 + np.e) - 0.5
    np.testing.assert_allclose(slope, [want, [0.0, 0.0]], rtol=1e-5)
    tau = jnp.full((2, 2), 0.5)
    slope = jax.grad(lambda x: values.quantile_huber_loss(x, tau, nan, mask=mask)[0])(logits)
    # Errors 1/2 and -1/2, each weighed by one half.
    np.testing.assert_allclose(slope, [[-0.25, 0.25], [0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("bins", [6, 7])
def test_the_mean_on_a_grid_of_a_transform_that_is_not_odd(bins):
    tx = values.Transform(lambda y: jnp.log(y + 5), lambda z: jnp.exp(z) - 5)
    support = values.Support(-2.0, 2.0, bins, tx=tx, unbiased=True)
    probs = np.random.default_rng(0).dirichlet(np.ones(bins), 20)
    grid = np.exp(np.linspace(-2.0, 2.0, bins)) - 5
    got = support.expectation(jnp.asarray(probs, jnp.float32))
    np.testing.assert_allclose(got, probs @ grid, rtol=1e-5, atol=1e-5)
    targets = jnp.array([-4.5, -1.0, 2.0])
    back = support.expectation(values.two_hot(targets, support))
    np.testing.assert_allclose(back, targets, rtol=1e-5)

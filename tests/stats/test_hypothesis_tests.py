"""Tests, multiplicity and rank correlation against SciPy and enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import (
    benjamini_hochberg,
    holm,
    kendall,
    sign_flip_test,
    spearman,
    t_interval,
    tost,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_exact_sign_flip_equals_enumeration(key, alternative):
    d = RNG.integers(-3, 5, 8).astype(float)  # integers: many exact ties
    sums = [np.dot(s, d) for s in itertools.product([-1, 1], repeat=8)]
    if alternative == "two-sided":
        expected = np.mean(np.abs(sums) >= abs(d.sum()))
    else:
        expected = np.mean(sums >= d.sum())
    got = sign_flip_test(key, jnp.asarray(d, jnp.float32), alternative=alternative)
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_sign_flip_cannot_reach_five_percent_with_five_pairs(key):
    assert sign_flip_test(key, jnp.full(5, 0.1)) == 2 / 2**5
    assert sign_flip_test(key, jnp.full(6, 0.1)) == 2 / 2**6


def test_sampled_sign_flip_approaches_the_exact_one(key):
    d = jnp.asarray(RNG.normal(0.4, 1.0, 12), jnp.float32)
    exact = sign_flip_test(key, d)
    sampled = sign_flip_test(key, d, num=40_000, exact_up_to=0)
    np.testing.assert_allclose(sampled, exact, atol=0.01)


def test_sampled_sign_flip_never_returns_zero(key):
    assert sign_flip_test(key, jnp.full(40, 3.0), num=999) == pytest.approx(1 / 1000)


def test_sign_flip_of_no_difference_is_one_and_of_nan_is_nan(key):
    assert sign_flip_test(key, jnp.zeros(7)) == 1.0
    assert jnp.isnan(sign_flip_test(key, jnp.zeros(7).at[0].set(jnp.nan)))


def test_sign_flip_refuses_bad_arguments(key):
    with pytest.raises(ValueError, match="alternative: expected 'two-sided' or 'greater'"):
        sign_flip_test(key, jnp.ones(3), alternative="less")
    with pytest.raises(ValueError, match="exact_up_to, num"):
        sign_flip_test(key, jnp.ones(3), exact_up_to=30)


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.45, 0.7])
def test_tost_equals_two_one_sided_t_tests(shift):
    d = RNG.normal(shift, 0.5, 20)
    p = max(
        scipy_stats.ttest_1samp(d, -0.5, alternative="greater").pvalue,
        scipy_stats.ttest_1samp(d, 0.5, alternative="less").pvalue,
    )
    got = tost(jnp.asarray(d, jnp.float32), 0.5)
    np.testing.assert_allclose(got.p_value, p, rtol=2e-4, atol=1e-6)
    assert bool(got.equivalent) == (p < 0.05)
    np.testing.assert_allclose((got.low, got.high), t_interval(d, 0.9)[1:], rtol=1e-5)


def test_tost_of_constant_data_is_certain():
    inside, edge = tost(jnp.full(5, 0.2), 0.3), tost(jnp.full(5, 0.5), 0.5)
    assert (bool(inside.equivalent), float(inside.p_value)) == (True, 0.0)
    assert (bool(edge.equivalent), float(edge.p_value)) == (False, 1.0)


def test_not_significant_is_not_equivalent():
    d = jnp.array([-2.0, 3.0, -1.0, 1.5, -1.4])
    assert scipy_stats.ttest_1samp(np.asarray(d), 0).pvalue > 0.5
    assert not tost(d, 0.5).equivalent


def test_tost_refuses_a_margin_that_is_not_positive():
    with pytest.raises(ValueError, match="margin: expected a positive number, got 0"):
        tost(jnp.ones(4), 0)
    with pytest.raises(ValueError, match="2 \\* alpha"):
        tost(jnp.ones(4), 1.0, alpha=0.5)


def test_holm_matches_the_worked_example():
    # Step-down: 4 * .01, 3 * .02 -> .06, 2 * .03 -> .06, max(.06, .04) = .06
    got = holm(jnp.array([0.03, 0.01, 0.04, 0.02]))
    np.testing.assert_allclose(got, [0.06, 0.04, 0.06, 0.06], rtol=1e-6)


def test_benjamini_hochberg_equals_scipy():
    p = RNG.uniform(size=30) ** 2
    got = benjamini_hochberg(jnp.asarray(p, jnp.float32))
    np.testing.assert_allclose(got, scipy_stats.false_discovery_control(p), rtol=1e-5)


def test_adjustments_order_bonferroni_holm_hochberg():
    p = jnp.asarray(RNG.uniform(size=12) ** 3, jnp.float32)
    assert np.all(holm(p) <= np.minimum(12 * p, 1) + 1e-7)
    assert np.all(benjamini_hochberg(p) <= holm(p) + 1e-7)
    assert np.all(benjamini_hochberg(p) >= p)


def test_untestable_parts_count_as_one():
    p = jnp.array([0.01, jnp.nan, 0.02])
    np.testing.assert_allclose(holm(p), [0.03, 1.0, 0.04], rtol=1e-6)
    np.testing.assert_allclose(benjamini_hochberg(p), [0.03, 1.0, 0.03], rtol=1e-6)


def test_adjustments_want_one_axis():
    with pytest.raises(ValueError, match="p: expected one axis of p values"):
        holm(jnp.ones((2, 2)))


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_equal_scipy(ties):
    x = RNG.normal(size=15)
    y = x + RNG.normal(size=15)
    if ties:
        x, y = np.round(x), np.round(y)
    xs, ys = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    np.testing.assert_allclose(kendall(xs, ys), scipy_stats.kendalltau(x, y).statistic, rtol=1e-5)
    np.testing.assert_allclose(spearman(xs, ys), scipy_stats.spearmanr(x, y).statistic, rtol=1e-5)


@pytest.mark.parametrize("correlation", [kendall, spearman])
def test_rank_correlations_see_only_the_order(correlation):
    sizes = jnp.array([8.0, 16.0, 32.0, 64.0])
    losses = jnp.stack([jnp.array([3.0, 2.0, 1.0, 0.5]), jnp.array([0.1, 1.0, 1.5, jnp.inf])])
    np.testing.assert_allclose(correlation(sizes, losses), [-1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(correlation(jnp.exp(sizes / 8), losses), [-1.0, 1.0], rtol=1e-6)
    assert correlation(sizes, jnp.ones(4)) == 0.0
    assert jnp.isnan(correlation(sizes, jnp.array([1.0, jnp.nan, 2.0, 3.0])))
    with pytest.raises(ValueError, match="y: expected 4 values as in x"):
        correlation(sizes, jnp.ones(3))


def test_sign_flip_p_values_are_uniform_under_the_null():
    keys = jax.random.split(jax.random.key(1), 400)
    d = jax.random.normal(jax.random.key(2), (400, 10))
    p = np.asarray(jax.vmap(sign_flip_test)(keys, d))
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3

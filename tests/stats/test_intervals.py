"""Intervals against SciPy and Yuen's formula, and exact zero width for constant data."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import (
    clopper_pearson_interval,
    proportion_interval,
    t_interval,
    welch_interval,
    wilson_interval,
    yuen_interval,
)

RNG = np.random.default_rng(0)


def _limits(interval):
    return [float(interval.low), float(interval.high)]


@pytest.mark.parametrize("n", [2, 3, 10, 33])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_t_interval_equals_scipy(n, level):
    d = RNG.normal(3.0, 2.0, n)
    expected = scipy_stats.ttest_1samp(d, 0).confidence_interval(level)
    np.testing.assert_allclose(_limits(t_interval(d, level)), expected, rtol=1e-10)
    got = t_interval(jnp.asarray(d, jnp.float32), level)
    np.testing.assert_allclose(_limits(got), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n", [5, 8, 10, 20, 31])
def test_yuen_interval_equals_the_published_formula(n):
    d = RNG.standard_t(2, n)
    g = n // 4
    h = n - 2 * g
    ordered = np.sort(d)
    winsorised = np.concatenate(
        [np.full(g, ordered[g]), ordered[g : n - g], np.full(g, ordered[n - g - 1])]
    )
    error = winsorised.std(ddof=1) * np.sqrt((n - 1) / (h * (h - 1)))
    half = scipy_stats.t.ppf(0.975, h - 1) * error
    center = scipy_stats.trim_mean(d, 0.25)
    np.testing.assert_allclose(_limits(yuen_interval(d)), [center - half, center + half])


def test_yuen_agrees_with_scipys_trimmed_two_sample_test():
    # SciPy's trimmed Welch test of two equal halves has the same winsorised variances: with both
    # samples alike its squared standard error is twice ours.
    d = RNG.normal(size=12)
    interval = yuen_interval(d)
    result = scipy_stats.ttest_ind(d + 1.0, d, equal_var=False, trim=0.25)
    h = 12 - 2 * 3
    half = float(interval.high - interval.estimate)
    error = half / scipy_stats.t.ppf(0.975, h - 1)
    assert result.statistic == pytest.approx(1 / (np.sqrt(2) * error), rel=1e-10)


def test_yuen_without_trimming_is_student():
    d = RNG.normal(size=9)
    np.testing.assert_allclose(yuen_interval(d, trim=0.0), t_interval(d), rtol=1e-12)


def test_yuen_survives_an_outlier_that_ruins_student():
    d = np.append(RNG.normal(1.0, 0.1, 15), 1e6)
    assert yuen_interval(d).high < 1.3
    assert t_interval(d).low < 0


@pytest.mark.parametrize(("n", "m", "ratio"), [(2, 2, 1.0), (5, 9, 3.0), (20, 4, 0.1)])
def test_welch_interval_equals_scipy(n, m, ratio):
    x, y = RNG.normal(1.0, 1.0, n), RNG.normal(0.0, ratio, m)
    expected = scipy_stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(_limits(welch_interval(x, y)), expected, rtol=1e-5)
    got = welch_interval(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(_limits(got), expected, rtol=1e-4, atol=1e-4)


def test_welch_is_antisymmetric():
    x, y = RNG.normal(size=7), RNG.normal(size=5)
    forward, backward = welch_interval(x, y), welch_interval(y, x)
    np.testing.assert_allclose(
        forward, (-backward.estimate, -backward.high, -backward.low), atol=1e-12
    )


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e7 + 0.3])
def test_constant_data_have_exactly_zero_width(value):
    for d in (np.full(10, value), jnp.full(10, value, jnp.float32)):
        for interval in (t_interval(d), yuen_interval(d)):
            assert interval.low == interval.estimate == interval.high == d[0]
        difference = welch_interval(d, d[:4])
        assert difference.low == difference.estimate == difference.high == 0


def test_nan_gives_nan_and_not_a_narrow_interval():
    d = jnp.arange(12.0).at[3].set(jnp.nan)
    for interval in (t_interval(d), yuen_interval(d), welch_interval(d, jnp.arange(3.0))):
        assert all(jnp.isnan(v) for v in interval)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (7, 10), (20, 20), (3, 64)])
def test_proportion_intervals_equal_scipy(k, n):
    result = scipy_stats.binomtest(k, n)
    wilson = result.proportion_ci(0.95, method="wilson")
    exact = result.proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(_limits(wilson_interval(k, n)), wilson, atol=3e-7)
    np.testing.assert_allclose(_limits(clopper_pearson_interval(k, n)), exact, atol=3e-7)
    chosen = exact if k in (0, n) else wilson
    np.testing.assert_allclose(_limits(proportion_interval(k, n)), chosen, atol=3e-7)


def test_proportion_limits_at_the_ends_are_exact():
    for interval in (wilson_interval, clopper_pearson_interval):
        assert interval(0, 9).low == 0
        assert interval(9, 9).high == 1


def test_zero_failures_in_twenty_runs_bound_the_rate_at_fourteen_percent():
    # One-sided 95 %: 1 - 0.05^(1/20).
    high = clopper_pearson_interval(0, 20, level=0.9).high
    np.testing.assert_allclose(high, 1 - 0.05 ** (1 / 20), rtol=1e-6)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"d: expected at least 2 values .* got shape \(1,\)"):
        t_interval(jnp.ones(1))
    with pytest.raises(ValueError, match="d: expected at least 5 values"):
        yuen_interval(jnp.ones(4))
    with pytest.raises(ValueError, match=r"trim: expected to leave at least 2 of 5 .* got 0\.4"):
        yuen_interval(jnp.ones(5), trim=0.4)
    with pytest.raises(ValueError, match="y: expected at least 2 values"):
        welch_interval(jnp.ones(3), jnp.ones(1))
    with pytest.raises(ValueError, match="level: expected a number strictly between 0 and 1"):
        t_interval(jnp.ones(3), level=95)
    with pytest.raises(ValueError, match="k: expected between 0 and n = 3 successes, got 4"):
        wilson_interval(4, 3)
    with pytest.raises(ValueError, match="n: expected at least one trial"):
        clopper_pearson_interval(0, 0)

"""Estimators against SciPy, closed forms and their defining symmetries."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import (
    iqm,
    normalize,
    optimality_gap,
    performance_profile,
    prob_improvement,
    replace_diverged,
    sign_proportion,
    trimmed_mean,
)


@pytest.mark.slow
@pytest.mark.parametrize("n", range(1, 51))
def test_iqm_equals_scipy_trim_mean(n):
    x = np.random.default_rng(n).lognormal(size=n)
    expected = scipy_stats.trim_mean(x, 0.25)
    assert iqm(x) == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(iqm(jnp.asarray(x, jnp.float32)), expected, rtol=3e-6)


def test_iqm_of_fewer_than_four_values_is_the_mean():
    assert iqm(np.array([1.0, 2.0, 9.0])) == 4.0


def test_iqm_ignores_a_quarter_of_bad_runs_and_no_more():
    scores = np.array([1.0] * 6 + [-1e6] * 2)
    assert iqm(scores) == 1.0
    assert iqm(np.array([1.0] * 5 + [-1e6] * 3)) < -1e5


def test_iqm_pools_tasks_when_flattened():
    scores = np.random.default_rng(0).normal(size=(10, 5)) * np.arange(1, 6)
    flat = iqm(scores.reshape(-1))
    assert flat == pytest.approx(scipy_stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)
    assert abs(flat - np.mean(iqm(scores.T))) > 1e-3


def test_nan_is_not_trimmed_away_as_if_it_were_the_best_run():
    x = jnp.array([0.0, 1.0, 2.0, jnp.nan])
    assert jnp.isnan(iqm(x))
    assert jnp.isnan(trimmed_mean(np.asarray(x), 0.25))


def test_equal_values_average_to_exactly_themselves():
    for value in (0.1, 1 / 3, 1e8 + 0.1, -7.7):
        assert trimmed_mean(np.full(7, value), 0.0) == value


def test_trimmed_mean_is_exact_far_from_zero():
    x = jnp.array([1e7 + 1, 1e7 + 2, 1e7 + 3, 1e7 + 6], jnp.float32)
    assert iqm(x) == np.float32(1e7 + 2.5)


def test_trim_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"trim: expected 0 <= trim < 0.5, got 0.5"):
        trimmed_mean(jnp.ones(4), 0.5)
    with pytest.raises(ValueError, match="x: expected at least 1 values"):
        iqm(jnp.ones((3, 0)))


def test_optimality_gap_counts_only_the_shortfall():
    x = jnp.array([0.5, 1.0, 3.0, -1.0])
    np.testing.assert_allclose(optimality_gap(x), (0.5 + 0 + 0 + 2) / 4)
    np.testing.assert_allclose(optimality_gap(x, 2.0), (1.5 + 1 + 0 + 3) / 4)


def test_prob_improvement_equals_mann_whitney():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 9).astype(float), rng.integers(0, 5, 13).astype(float)
    u = scipy_stats.mannwhitneyu(x, y).statistic
    assert prob_improvement(x, y) == pytest.approx(u / (9 * 13), rel=1e-12)


def test_prob_improvement_is_antisymmetric_with_ties():
    rng = np.random.default_rng(2)
    x, y = (jnp.asarray(rng.integers(0, 3, (4, m)), jnp.float32) for m in (8, 11))
    np.testing.assert_allclose(prob_improvement(x, y) + prob_improvement(y, x), 1.0, rtol=1e-6)


def test_prob_improvement_of_identical_arms_is_a_half():
    x = jnp.arange(7.0)
    assert prob_improvement(x, x) == 0.5


def test_sign_proportion_counts_ties_one_half():
    assert sign_proportion(jnp.array([1.0, 2.0, 0.0, -3.0])) == 0.625


def test_performance_profile_is_the_strict_survival_function():
    x = jnp.array([0.0, 1.0, 1.0, 2.0])
    taus = jnp.array([-1.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(performance_profile(x, taus), [1.0, 0.75, 0.25, 0.0])
    batched = performance_profile(jnp.stack([x, x + 1]), taus)
    np.testing.assert_array_equal(batched[1], performance_profile(x + 1, taus))


def test_performance_profile_integrates_to_the_mean():
    x = jnp.asarray(np.random.default_rng(3).uniform(size=50), jnp.float32)
    taus = (jnp.arange(2000.0) + 0.5) / 2000
    np.testing.assert_allclose(performance_profile(x, taus).mean(), x.mean(), atol=3e-4)


def test_performance_profile_wants_one_axis_of_thresholds():
    with pytest.raises(ValueError, match=r"taus: expected one axis of thresholds, got shape \(\)"):
        performance_profile(jnp.ones(3), jnp.float32(0.0))


def test_normalize_maps_references_to_zero_and_one():
    lo, hi = jnp.array([-10.0, 0.0]), jnp.array([10.0, 4.0])
    scores = jnp.array([[-10.0, 4.0], [10.0, 1.0]])
    np.testing.assert_array_equal(normalize(scores, lo, hi), [[0.0, 1.0], [1.0, 0.25]])
    # A cost whose best value is the lower one.
    np.testing.assert_allclose(normalize(jnp.array([3.0]), 4.0, 2.0), [0.5])
    with pytest.raises(ValueError, match="hi: expected a score different from lo"):
        normalize(scores, 1.0, 1)


def test_diverged_runs_become_the_worst_and_are_counted():
    x = jnp.array([1.0, jnp.nan, jnp.inf, -jnp.inf, 2.0])
    scores, rate = replace_diverged(x, -5.0)
    np.testing.assert_array_equal(scores, [1.0, -5.0, -5.0, -5.0, 2.0])
    np.testing.assert_allclose(rate, 0.6)

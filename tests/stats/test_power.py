"""Sample sizes against the published table, the noncentral t, and simulation."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import power_curve, seeds_for_power, t_interval, tost_seeds

EFFECTS = (0.2, 0.3, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)


def test_seeds_for_power_matches_the_table():
    assert [seeds_for_power(d) for d in EFFECTS] == [199, 90, 34, 15, 10, 8, 6, 5, 4]
    assert [seeds_for_power(d, 0.9) for d in EFFECTS] == [265, 119, 44, 19, 13, 10, 7, 5, 4]
    corrected = [seeds_for_power(d, alpha=0.05 / 46) for d in (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)]
    assert corrected == [73, 32, 23, 13, 10, 7]


def test_tost_seeds_matches_the_table():
    assert [tost_seeds(m) for m in (0.25, 0.5, 0.75, 1.0, 1.5)] == [139, 36, 17, 11, 6]


@pytest.mark.parametrize("d", [-0.5, 0.0, 0.5, 2.0])
def test_power_curve_is_the_noncentral_t_tail(d):
    ns = np.array([2, 5, 20, 64])
    expected = scipy_stats.nct.sf(scipy_stats.t.ppf(0.975, ns - 1), ns - 1, d * np.sqrt(ns))
    np.testing.assert_allclose(power_curve(d, ns), expected, atol=2e-6)


def test_power_at_zero_effect_is_half_alpha():
    np.testing.assert_allclose(power_curve(0.0, [5, 50], alpha=0.1), 0.05, atol=1e-6)


def test_power_is_what_simulation_finds():
    d = np.random.default_rng(0).normal(0.5, 1.0, (20_000, 20))
    found = np.mean(t_interval(d).low >= 0)
    np.testing.assert_allclose(found, power_curve(0.5, [20])[0], atol=0.01)


def test_the_answer_is_the_smallest_number():
    n = seeds_for_power(0.7, 0.85)
    below, at = power_curve(0.7, [n - 1, n])
    assert below < 0.85 <= at


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"d: expected a positive standardised effect, got 0\.0"):
        seeds_for_power(0.0)
    with pytest.raises(ValueError, match="power: expected a number strictly between 0 and 1"):
        seeds_for_power(1.0, 80)
    with pytest.raises(ValueError, match="margin_over_sd: expected a positive number"):
        tost_seeds(-1.0)
    with pytest.raises(ValueError, match="seeds: expected at least 2 everywhere"):
        power_curve(1.0, [1, 2])
    with pytest.raises(ValueError, match="d: expected an effect within reach"):
        seeds_for_power(1e-5)

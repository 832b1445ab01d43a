"""Invariances and monotonicity of the rule on random evidence, and its error rates."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from jaxlab.stats import (
    TOP_UP_ALPHA,
    Claim,
    Evidence,
    decide,
    evaluation_seeds,
    t_interval,
    yuen_interval,
)

KINDS = ("superiority", "equivalence", "bound", "ordering")
ORDER = ("reproduced", "inconclusive", "not_reproduced")
CASES = st.tuples(
    st.integers(0, 2**32 - 1),  # random seed
    st.sampled_from(KINDS),
    st.sampled_from(["mean", "iqm"]),
    st.integers(5, 30),  # number of seeds
    st.integers(1, 3),  # tasks
    st.floats(-2, 2),  # true effect
)


def make_case(case):
    seed, kind, estimator, n, tasks, effect = case
    rng = np.random.default_rng(seed)
    control = rng.normal(1.0, 1.0, (n, tasks))
    treatment = control + rng.normal(effect, 1.0, (n, tasks))
    treatment[rng.random((n, tasks)) < 0.05] = np.nan
    paired = kind in ("superiority", "equivalence")
    claim = Claim("c", "s", "m", "a", "b", 0.5, -5.0, kind=kind, estimator=estimator, n_seeds=n)
    return claim, Evidence(treatment, control if paired else None, evaluation_seeds(n))


def change(evidence, fn):
    control = None if evidence.control is None else fn(evidence.control)
    return dataclasses.replace(evidence, treatment=fn(evidence.treatment), control=control)


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_order_of_seeds_changes_no_bit(case):
    claim, evidence = make_case(case)
    order = np.random.default_rng(case[0]).permutation(len(evidence.seeds))
    permuted = change(evidence, lambda x: x[order])
    seeds = tuple(evidence.seeds[i] for i in order)
    assert decide(claim, evidence) == decide(claim, dataclasses.replace(permuted, seeds=seeds))


@settings(max_examples=60, deadline=None)
@given(CASES, st.floats(-50, 50))
def test_a_constant_added_to_both_arms_changes_nothing(case, shift):
    claim, evidence = make_case(case)
    if claim.kind in ("bound", "ordering"):  # one arm: the threshold moves along
        moved = dataclasses.replace(claim, threshold=0.5 + shift, worst=-5.0 + shift)
        expected_shift = shift
    else:
        moved, expected_shift = dataclasses.replace(claim, worst=-5.0 + shift), 0.0
    before, after = decide(claim, evidence), decide(moved, change(evidence, lambda x: x + shift))
    assert after.status == before.status
    assert after.failures == before.failures
    numbers = [after.estimate, after.low, after.high]
    expected = np.array([before.estimate, before.low, before.high]) + expected_shift
    np.testing.assert_allclose(numbers, expected, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(CASES, st.floats(1e-3, 1e3))
def test_the_unit_of_the_metric_changes_nothing(case, scale):
    claim, evidence = make_case(case)
    scaled = dataclasses.replace(claim, threshold=0.5 * scale, worst=-5.0 * scale)
    before, after = decide(claim, evidence), decide(scaled, change(evidence, lambda x: x * scale))
    assert after.status == before.status
    assert after.low / scale == pytest.approx(before.low, rel=1e-9, abs=1e-9)
    assert after.p_value == pytest.approx(before.p_value, rel=1e-6, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(CASES, st.lists(st.floats(0.01, 4), min_size=2, max_size=6))
def test_a_higher_threshold_only_moves_the_verdict_one_way(case, thresholds):
    claim, evidence = make_case(case)
    ranks = [
        ORDER.index(decide(dataclasses.replace(claim, threshold=t), evidence).status)
        for t in sorted(thresholds)
    ]
    # A wider margin or a looser bound is easier to meet, a higher superiority threshold harder.
    easier = claim.kind in ("equivalence", "bound")
    assert ranks == sorted(ranks, reverse=easier)


@settings(max_examples=60, deadline=None)
@given(CASES, st.floats(0.01, 3))
def test_equivalent_and_different_by_the_margin_exclude_each_other(case, margin):
    claim, evidence = make_case((case[0], "equivalence", *case[2:]))
    equivalence = decide(dataclasses.replace(claim, threshold=margin), evidence).status
    superior = dataclasses.replace(claim, kind="superiority", threshold=margin)
    swapped = dataclasses.replace(evidence, treatment=evidence.control, control=evidence.treatment)
    different = "reproduced" in (
        decide(superior, evidence).status,
        decide(superior, swapped).status,
    )
    assert not (equivalence == "reproduced" and different)
    if equivalence == "not_reproduced":
        assert different


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_swapping_the_arms_mirrors_the_interval(case):
    claim, evidence = make_case((case[0], "superiority", *case[2:]))
    swapped = dataclasses.replace(evidence, treatment=evidence.control, control=evidence.treatment)
    forward, backward = decide(claim, evidence), decide(claim, swapped)
    np.testing.assert_allclose(
        [forward.low, forward.high], [-backward.high, -backward.low], atol=1e-12
    )
    assert forward.sign_proportion + backward.sign_proportion == pytest.approx(1)
    assert forward.prob_improvement + backward.prob_improvement == pytest.approx(1)
    assert forward.failures == backward.failures[::-1]


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_p_value_and_interval_agree(case):
    claim, evidence = make_case(case)
    verdict = decide(claim, evidence)
    level = claim.alpha if claim.kind == "equivalence" else claim.alpha / 2
    helped = claim.kind == "equivalence" and 10 * verdict.failures[0] > verdict.n
    assert (verdict.status == "reproduced") == (verdict.p_value <= level and not helped)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8),
    st.sampled_from(KINDS),
    st.sampled_from(["mean", "iqm"]),
    st.integers(0, 9),
)
def test_decide_never_raises_and_always_serialises(values, kind, estimator, n_seeds):
    claim = Claim(
        "c", "s", "m", "a", "b", 0.5, 0.0, kind=kind, estimator=estimator, n_seeds=5 + n_seeds
    )
    control = np.array(values[::-1]) if kind in ("superiority", "equivalence") else None
    verdict = decide(claim, Evidence(np.array(values), control, tuple(range(len(values)))))
    numbers = (verdict.estimate, verdict.low, verdict.high, verdict.rho, verdict.p_value)
    assert all(x is None or np.isfinite(x) for x in numbers)
    if len(values) < claim.n_seeds:
        assert verdict.status == "inconclusive"


@pytest.mark.parametrize(
    ("n", "true", "reproduced", "not_reproduced"),
    [
        (5, 1.5, 0.401, 0.0),
        (10, 0.0, 0.0, 0.292),
        (10, 0.5, 0.025, 0.026),
        (20, 1.0, 0.562, 0.0),
        (32, 0.0, 0.0, 0.782),
    ],
)
def test_error_rates_of_the_three_way_rule(n, true, reproduced, not_reproduced):
    d = np.random.default_rng(n).normal(true, 1.0, (20_000, n))
    interval = t_interval(d)
    assert np.mean(interval.low >= 0.5) == pytest.approx(reproduced, abs=0.012)
    assert np.mean(interval.high < 0.5) == pytest.approx(not_reproduced, abs=0.012)


def test_two_looks_keep_the_error_only_at_the_corrected_level():
    d = np.random.default_rng(0).normal(size=(40_000, 20))

    def false_better(alpha):
        looks = [t_interval(d[:, :n], 1 - alpha).low > 0 for n in (10, 20)]
        return np.mean(looks[0] | looks[1])

    assert false_better(0.05) == pytest.approx(0.042, abs=0.004)
    assert false_better(TOP_UP_ALPHA) == pytest.approx(0.026, abs=0.004)


def test_best_of_eight_on_the_evaluation_seeds_inflates_the_error():
    # Why tuning and evaluation seeds are disjoint ranges.
    rng = np.random.default_rng(0)
    configurations = rng.normal(size=(8000, 8, 10))
    best = configurations[np.arange(8000), configurations.mean(-1).argmax(-1)]
    d = best - rng.normal(size=(8000, 10))
    assert np.mean(t_interval(d).low > 0) == pytest.approx(0.118, abs=0.015)
    fresh = rng.normal(size=(8000, 10)) - rng.normal(size=(8000, 10))
    assert np.mean(t_interval(fresh).low > 0) == pytest.approx(0.025, abs=0.006)


def test_yuen_has_the_power_that_student_loses_to_outliers():
    rng = np.random.default_rng(0)
    d = 1.0 + scipy_stats.t.rvs(1.5, size=(4000, 20), random_state=rng)
    assert np.mean(yuen_interval(d).low > 0) > np.mean(t_interval(d).low > 0) + 0.15

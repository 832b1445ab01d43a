"""Outcomes of the usual guards on both sides of their limits."""

import dataclasses

import numpy as np
import pytest

from jaxlab.stats import Claim, Evidence, decide, evaluation_seeds, guards


def test_control_must_beat_the_baseline_by_the_margin():
    assert guards.learns(np.array([1.0, 3.0]), baseline=1.5, margin=0.5) == (
        True,
        "mean 2, needed 2",
    )
    assert not guards.learns(np.array([1.0, 3.0]), 1.5, 0.51)[0]
    assert not guards.learns(np.array([1.0, np.nan]), -9.0, 0.5)[0]
    assert not guards.learns(np.array([]), -9.0, 0.5)[0]


@pytest.mark.parametrize(
    ("control", "passed"), [(-990.0, False), (-970.0, True), (-30.0, True), (-10.0, False)]
)
def test_control_needs_room_on_both_sides(control, passed):
    # A negative return scale: a share of the maximum (zero) would mean nothing.
    outcome = guards.has_room(np.full(5, control), minimum=-1000.0, maximum=0.0)
    assert outcome[0] is passed
    assert "of the range" in outcome[1]


def test_room_wants_a_scale_and_finite_scores():
    assert not guards.has_room(np.array([np.nan, 0.5]), 0.0, 1.0)[0]
    with pytest.raises(ValueError, match="maximum: expected above minimum"):
        guards.has_room(np.ones(3), 1.0, 1.0)


def test_finite_share_is_counted_per_seed_and_arm():
    one = np.zeros((10, 3))
    one[4, 1] = np.nan
    assert guards.mostly_finite(np.zeros(10), one) == (True, "finite 100%, 90%")
    one[5, 2] = np.inf
    assert guards.mostly_finite(np.zeros(10), one) == (False, "finite 100%, 80%")
    assert not guards.mostly_finite(np.zeros((0, 3)))[0]


def test_budgets_match_within_five_percent():
    assert guards.same_budget(104.0, 100.0) == (True, "treatment / control = 1.04")
    assert not guards.same_budget(94.0, 100.0)[0]
    with pytest.raises(ValueError, match="expected positive costs"):
        guards.same_budget(1.0, 0.0)


def test_positive_and_negative_control():
    claim = Claim("c", "s", "m", "more", "less", 0.5, -9.0)
    noise = np.random.default_rng(0).normal(0.0, 0.3, 20)
    seeds = evaluation_seeds(20)
    effect = decide(claim, Evidence(noise + 2.0, np.zeros(20), seeds))
    nothing = decide(claim, Evidence(noise, np.zeros(20), seeds))
    assert guards.positive_control(effect) == (True, "known effect came out reproduced")
    assert not guards.positive_control(nothing)[0]
    assert guards.negative_control(claim, nothing)[0]
    assert not guards.negative_control(claim, effect)[0]
    equal = dataclasses.replace(claim, kind="equivalence")
    same = decide(equal, Evidence(noise, np.zeros(20), seeds))
    assert guards.negative_control(equal, same)[0]

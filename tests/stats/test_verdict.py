"""The rule: who gets which verdict, and that bad evidence gets none."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import Claim, Evidence, Guard, Verdict, combine, decide, evaluation_seeds

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=20)
NOISE = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)  # mean 0, sd 1
HALF = scipy_stats.t.ppf(0.975, 19) / np.sqrt(20)  # half-width of the 95 % interval of NOISE
CONTROL = RNG.normal(3.0, 1.0, 20)


def make_claim(**changes):
    fields = {
        "name": "c",
        "statement": "s",
        "metric": "return",
        "treatment": "a",
        "control": "b",
        "threshold": 0.5,
        "worst": -100.0,
    }
    return Claim(**fields | changes)


def make_evidence(effect, control=CONTROL, **changes):
    effect = np.asarray(effect, float)
    paired = control is not None
    fields = {
        "treatment": control[: len(effect)] + effect if paired else effect,
        "control": control[: len(effect)] if paired else None,
        "seeds": evaluation_seeds(len(effect)) if len(effect) else (),
    }
    return Evidence(**fields | changes)


def status(claim, effect, **changes):
    return decide(claim, make_evidence(effect, **changes)).status


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.5 + HALF + 1e-6, "reproduced"),
        (0.5 + HALF - 1e-6, "inconclusive"),
        (0.5 - HALF + 1e-6, "inconclusive"),
        (0.5 - HALF - 1e-6, "not_reproduced"),
    ],
)
def test_superiority_turns_exactly_at_the_interval_limits(mean, expected):
    assert status(make_claim(), NOISE + mean) == expected


def test_numbers_of_a_verdict():
    verdict = decide(make_claim(), make_evidence(NOISE + 1.0))
    assert verdict.estimate == pytest.approx(1.0, abs=1e-12)
    assert (verdict.low, verdict.high) == pytest.approx((1 - HALF, 1 + HALF), abs=1e-12)
    treatment = CONTROL + NOISE + 1.0
    assert verdict.rho == pytest.approx(np.corrcoef(treatment, CONTROL)[0, 1], rel=1e-9)
    assert verdict.n == 20
    assert verdict.failures == (0, 0)
    assert verdict.sign_proportion == np.mean(NOISE + 1.0 > 0)
    u = scipy_stats.mannwhitneyu(treatment, CONTROL).statistic
    assert verdict.prob_improvement == pytest.approx(u / 400)
    p = scipy_stats.ttest_1samp(NOISE + 1.0, 0.5, alternative="greater").pvalue
    assert verdict.p_value == pytest.approx(p, rel=1e-9)


def test_iqm_claims_use_yuens_interval():
    effect = NOISE + 1.0
    effect[0] = -1e4  # one disaster in twenty
    claim = make_claim(estimator="iqm", threshold=0.3)
    verdict = decide(claim, make_evidence(effect))
    assert verdict.status == "reproduced"
    assert verdict.estimate == pytest.approx(scipy_stats.trim_mean(effect, 0.25), rel=1e-9)
    assert status(make_claim(threshold=0.3), effect) == "inconclusive"


def test_direction_supported_needs_only_a_positive_lower_limit():
    verdict = decide(make_claim(threshold=2.0), make_evidence(NOISE + 1.0))
    assert (verdict.status, verdict.direction_supported) == ("not_reproduced", True)
    assert not decide(make_claim(), make_evidence(NOISE + HALF / 2)).direction_supported


def test_non_inferiority_is_superiority_with_a_negative_threshold():
    claim = make_claim(threshold=-1.0)
    assert status(claim, NOISE) == "reproduced"
    assert status(claim, NOISE - 2.0) == "not_reproduced"


NARROW = scipy_stats.t.ppf(0.95, 19) / np.sqrt(20)  # half-width of the 90 % interval


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.0, "reproduced"),
        (1.0 - NARROW - 1e-6, "reproduced"),
        (1.0 - NARROW + 1e-6, "inconclusive"),
        (1.0 + HALF - 1e-6, "inconclusive"),
        (1.0 + HALF + 1e-6, "not_reproduced"),
    ],
)
def test_equivalence_by_two_one_sided_tests(sign, mean, expected):
    claim = make_claim(kind="equivalence", threshold=1.0)
    verdict = decide(claim, make_evidence(NOISE + sign * mean))
    assert verdict.status == expected
    assert verdict.high - verdict.low == pytest.approx(2 * HALF)
    assert any("equivalence by the 0.9 interval" in note for note in verdict.notes)


def test_equivalence_p_value_is_the_larger_of_the_two():
    claim = make_claim(kind="equivalence", threshold=1.0)
    verdict = decide(claim, make_evidence(NOISE - 0.4))
    expected = scipy_stats.ttest_1samp(NOISE - 0.4, -1.0, alternative="greater").pvalue
    assert verdict.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (2.0 - HALF - 1e-6, "reproduced"),
        (2.0 - HALF + 1e-6, "inconclusive"),
        (2.0 + HALF + 1e-6, "not_reproduced"),
    ],
)
def test_bound_compares_the_upper_limit(mean, expected):
    claim = make_claim(kind="bound", threshold=2.0, worst=100.0)
    verdict = decide(claim, make_evidence(NOISE + mean, control=None))
    assert verdict.status == expected
    assert verdict.rho is None
    assert verdict.sign_proportion is None
    assert not verdict.direction_supported


def test_ordering_is_one_sample_superiority():
    claim = make_claim(kind="ordering", threshold=0.5, worst=-1.0)
    taus = np.clip(0.8 + 0.1 * NOISE, -1, 1)
    assert status(claim, taus, control=None) == "reproduced"
    assert status(claim, taus - 0.6, control=None) == "not_reproduced"
    assert decide(claim, make_evidence(taus, control=None)).direction_supported


def test_tasks_are_averaged_within_each_seed():
    effect = np.stack([NOISE + 1.0, -NOISE + 2.0, 3.0 * np.ones(20)], axis=1)
    control = RNG.normal(size=(20, 3))
    verdict = decide(
        make_claim(), Evidence(control + effect, control, evaluation_seeds(20), registered=None)
    )
    assert verdict.estimate == pytest.approx(2.0)
    assert verdict.high - verdict.low == pytest.approx(0.0, abs=1e-12)
    assert verdict.n == 20


def test_jax_arrays_are_evidence_too():
    evidence = Evidence(jnp.arange(20.0) + 2.0, jnp.arange(20.0), evaluation_seeds(20))
    verdict = decide(make_claim(), evidence)
    assert (verdict.status, verdict.low, verdict.high) == ("reproduced", 2.0, 2.0)


def test_constant_data_give_zero_width_on_either_side():
    for effect, expected in ((0.5, "reproduced"), (0.4999, "not_reproduced")):
        verdict = decide(make_claim(), make_evidence(np.full(20, effect), control=np.zeros(20)))
        assert verdict.status == expected
        assert verdict.low == verdict.estimate == verdict.high == effect
        assert verdict.rho is None
        assert verdict.p_value == (0.0 if expected == "reproduced" else 1.0)
    claim = make_claim(kind="equivalence", threshold=0.5)
    on_margin = decide(claim, make_evidence(np.full(20, 0.5), control=np.zeros(20)))
    assert (on_margin.status, on_margin.p_value) == ("inconclusive", 1.0)


def test_diverged_seeds_stay_with_the_worst_score():
    treatment, control = CONTROL + NOISE + 2.0, CONTROL.copy()
    treatment[[3, 7]] = [np.nan, np.inf]
    control[5] = -np.inf
    verdict = decide(make_claim(), Evidence(treatment, control, evaluation_seeds(20)))
    treatment[[3, 7]], control[5] = -100.0, -100.0
    by_hand = decide(make_claim(), Evidence(treatment, control, evaluation_seeds(20)))
    assert verdict.failures == (2, 1)
    assert by_hand.failures == (0, 0)
    assert verdict.estimate == by_hand.estimate
    assert verdict.low == by_hand.low
    assert verdict.n == 20


def test_a_seed_diverges_once_however_many_tasks_do():
    treatment = np.zeros((20, 3))
    treatment[4] = np.nan
    treatment[5, 1] = np.nan
    verdict = decide(make_claim(), Evidence(treatment, np.zeros((20, 3)), evaluation_seeds(20)))
    assert verdict.failures == (2, 0)
    assert verdict.estimate == pytest.approx((-100.0 - 100.0 / 3) / 20)


@pytest.mark.parametrize(
    ("kind", "threshold", "treatment", "control", "expected"),
    [
        ("superiority", 0.5, 0, 2, "reproduced"),
        ("superiority", 0.5, 0, 3, "inconclusive"),
        ("superiority", 0.5, 3, 0, "reproduced"),
        ("superiority", -0.5, 0, 3, "inconclusive"),
        ("equivalence", 9.0, 2, 2, "reproduced"),
        ("equivalence", 9.0, 3, 3, "inconclusive"),
        ("equivalence", 9.0, 3, 0, "inconclusive"),
        ("equivalence", 9.0, 0, 3, "inconclusive"),
    ],
)
def test_many_diverged_seeds_do_not_count_for_a_claim(
    kind, threshold, treatment, control, expected
):
    evidence = make_evidence(NOISE + 4.0, CONTROL.copy())
    evidence.treatment[:treatment] = evidence.control[:control] = np.nan
    # The interquartile mean does not see three of twenty.
    claim = make_claim(kind=kind, threshold=threshold, estimator="iqm")
    verdict = decide(claim, evidence)
    assert verdict.status == expected
    assert any("diverged and scored as the worst" in note for note in verdict.notes)
    helped = any("counts for the claim" in note for note in verdict.notes)
    assert helped == (expected == "inconclusive")


def test_no_note_where_nothing_diverged():
    assert not any("diverged" in note for note in decide(make_claim(), make_evidence(NOISE)).notes)


@pytest.mark.parametrize("arms", ["treatment", "control", "both"])
def test_an_arm_without_a_finite_score_shows_nothing(arms):
    nan = np.full(20, np.nan)
    treatment = CONTROL + 9 if arms == "control" else nan
    control = CONTROL if arms == "treatment" else nan
    verdict = decide(make_claim(), Evidence(treatment, control, evaluation_seeds(20)))
    assert verdict.status == "inconclusive"
    assert any("no finite score in" in note for note in verdict.notes)
    assert verdict.failures == (20 * (arms != "control"), 20 * (arms != "treatment"))


@pytest.mark.parametrize("n", [0, 1, 2, 19])
def test_fewer_seeds_than_registered_are_inconclusive_with_a_reason(n):
    verdict = decide(make_claim(), make_evidence(np.full(n, 50.0)))
    assert verdict.status == "inconclusive"
    assert any(f"{n} of 20 registered seeds" in note for note in verdict.notes)
    assert (verdict.estimate is None) == (n == 0)
    assert (verdict.low is None) == (n < 2)


def test_four_seeds_of_an_iqm_claim_have_no_interval():
    verdict = decide(make_claim(estimator="iqm"), make_evidence(np.full(4, 50.0)))
    assert (verdict.status, verdict.low) == ("inconclusive", None)
    assert any("an interval needs at least 5" in note for note in verdict.notes)


def test_a_smoke_run_is_never_a_verdict():
    guard = Guard("learns", "control learns", on_fail="invalid")
    for n in (0, 2, 20):
        evidence = make_evidence(np.full(n, 50.0), smoke=True, guards={"learns": False})
        verdict = decide(make_claim(guards=(guard,)), evidence)
        assert verdict.status == "smoke"
        assert verdict.guards == (("learns", False, ""),)


def test_a_claim_changed_after_registration_is_invalid():
    registered = make_claim().digest()
    assert status(make_claim(), NOISE + 2.0, registered=registered) == "reproduced"
    moved = make_claim(threshold=0.4)
    for smoke in (False, True):
        verdict = decide(moved, make_evidence(NOISE + 2.0, registered=registered, smoke=smoke))
        assert verdict.status == "invalid"
        assert any("differs from the one registered" in note for note in verdict.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": evaluation_seeds(19)}, "seeds: expected 20 distinct ids"),
        ({"seeds": (1000,) * 20}, "seeds: expected 20 distinct ids"),
        ({"seeds": 20}, "seeds: expected integer ids [n], got 20"),
        ({"seeds": None}, "seeds: expected integer ids [n], got None"),
        ({"seeds": np.arange(20) / 2}, "seeds: expected integer ids [n]"),
        ({"control": None}, "control: expected paired scores"),
        ({"control": np.zeros(19)}, "control: expected the shape of treatment"),
        ({"control": np.zeros((20, 2))}, "control: expected the shape of treatment"),
        ({"treatment": np.zeros((20, 1, 1))}, "treatment: expected scores"),
        ({"treatment": np.zeros((20, 0))}, "treatment: expected scores"),
        ({"treatment": 3.0}, "treatment: expected scores"),
        ({"treatment": ["a"] * 20}, "could not convert"),
        ({"treatment": [[1.0], [1.0, 2.0]]}, "inhomogeneous"),
    ],
)
def test_evidence_that_does_not_fit_is_invalid_and_never_raises(changes, message):
    evidence = dataclasses.replace(make_evidence(NOISE + 2.0), **changes)
    verdict = decide(make_claim(), evidence)
    assert verdict.status == "invalid"
    assert any(message in note for note in verdict.notes)
    json.dumps(verdict.to_json(), allow_nan=False)


@pytest.mark.parametrize("array", [list, np.array, jnp.array])
def test_seeds_may_be_any_sequence_of_integers(array):
    evidence = make_evidence(NOISE + 2.0)
    expected = decide(make_claim(), evidence)
    seeds = array(evidence.seeds)
    assert decide(make_claim(), dataclasses.replace(evidence, seeds=seeds)) == expected


def test_one_sample_kinds_refuse_a_control():
    verdict = decide(make_claim(kind="bound"), make_evidence(NOISE))
    assert verdict.status == "invalid"
    assert any("control: expected None for kind 'bound'" in note for note in verdict.notes)


def test_scores_too_large_for_their_sum_are_inconclusive():
    huge = np.full(20, 1e308)
    verdict = decide(make_claim(), Evidence(huge * np.sign(NOISE), -huge, evaluation_seeds(20)))
    assert verdict.status == "inconclusive"
    assert "the interval overflows" in verdict.notes
    json.dumps(verdict.to_json(), allow_nan=False)


GUARDS = (
    Guard("learns", "control learns"),
    Guard("invariant", "mask never admits an invalid string", on_fail="not_reproduced"),
    Guard("budget", "equal compute", on_fail="invalid"),
)
PASSED = {"learns": True, "invariant": (True, "0 violations"), "budget": np.True_}


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (PASSED, "reproduced"),
        (PASSED | {"learns": False}, "inconclusive"),
        (PASSED | {"invariant": (False, "1 violation")}, "not_reproduced"),
        (PASSED | {"budget": False}, "invalid"),
        (PASSED | {"budget": False, "learns": False}, "invalid"),
        (PASSED | {"invariant": False, "learns": False}, "inconclusive"),
        ({}, "invalid"),
        ({k: v for k, v in PASSED.items() if k != "learns"}, "inconclusive"),
        # Not evaluated is no violation.
        ({k: v for k, v in PASSED.items() if k != "invariant"}, "inconclusive"),
        # Truthy things that are not outcomes.
        (PASSED | {"learns": float("nan")}, "inconclusive"),
        (PASSED | {"learns": [False, "from JSON"]}, "inconclusive"),
        (PASSED | {"learns": "yes"}, "inconclusive"),
        (PASSED | {"learns": (True, "a", "b")}, "inconclusive"),
        (PASSED | {"learns": np.array([True, True])}, "inconclusive"),
        (PASSED | {"learns": jnp.array(True)}, "reproduced"),
    ],
)
def test_guards(outcomes, expected):
    evidence = make_evidence(NOISE + 2.0, guards=outcomes)
    verdict = decide(make_claim(guards=GUARDS), evidence)
    assert verdict.status == expected
    assert [name for name, _, _ in verdict.guards] == ["learns", "invariant", "budget"]
    json.dumps(verdict.to_json(), allow_nan=False)


def test_guard_details_are_shown():
    outcomes = PASSED | {"learns": (False, "control 0.91 of maximum"), "extra": True}
    verdict = decide(make_claim(guards=GUARDS), make_evidence(NOISE, guards=outcomes))
    assert verdict.guards[0] == ("learns", False, "control 0.91 of maximum")
    assert "guard learns failed: control 0.91 of maximum" in verdict.notes
    assert "outcomes of guards that are not in the claim: extra" in verdict.notes


def test_a_failed_guard_does_not_rescue_a_refuted_claim_into_reproduced():
    claim = make_claim(guards=GUARDS)
    outcomes = PASSED | {"invariant": False}
    assert status(claim, NOISE - 9.0, guards=outcomes) == "not_reproduced"


def test_circumstances_are_noted():
    notes = decide(make_claim(), make_evidence(NOISE)).notes
    assert "the claim was not registered before the run" in notes
    notes = decide(make_claim(n_seeds=10), make_evidence(NOISE)).notes
    assert "20 seeds where 10 were registered" in notes
    assert "fewer than the 16 seeds of a published verdict" in notes
    notes = decide(make_claim(), make_evidence(NOISE, seeds=tuple(range(90, 110)))).notes
    assert "seeds of the tuning range 0-99 were used" in notes
    claim = make_claim()
    assert decide(claim, make_evidence(NOISE, registered=claim.digest())).notes == ()


def test_json_round_trip_is_exact():
    claim = make_claim(guards=GUARDS)
    for n in (0, 1, 20):
        verdict = decide(claim, make_evidence(NOISE[:n] + 1.0, guards=PASSED))
        text = json.dumps(verdict.to_json(), allow_nan=False)
        assert Verdict.from_json(json.loads(text)) == verdict


def test_from_json_refuses_other_content():
    content = decide(make_claim(), make_evidence(NOISE)).to_json()
    with pytest.raises(ValueError, match=r"status: expected one of .* got true"):
        Verdict.from_json(content | {"status": "true"})
    with pytest.raises(ValueError, match=r"missing fields \['low'\], unknown fields \['lo'\]"):
        Verdict.from_json({("lo" if k == "low" else k): v for k, v in content.items()})


def _part(status, required=True):
    base = decide(make_claim(), make_evidence(NOISE)).to_json()
    return make_claim(required=required), Verdict.from_json(base | {"status": status})


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["reproduced", "reproduced"], "reproduced"),
        (["reproduced", "inconclusive"], "inconclusive"),
        (["inconclusive", "not_reproduced"], "not_reproduced"),
        (["reproduced", "not_reproduced"], "not_reproduced"),
        (["smoke", "not_reproduced"], "smoke"),
        (["smoke", "invalid", "reproduced"], "invalid"),
        ([], "inconclusive"),
    ],
)
def test_combination_needs_all_required_parts(statuses, expected):
    parts = [_part(s) for s in statuses]
    assert combine(parts) == expected
    assert combine(parts[::-1]) == expected
    secondary = [_part(s, required=False) for s in ("not_reproduced", "invalid", "smoke")]
    assert combine(parts + secondary) == expected

"""Claims: frozen, hashable, one digest everywhere, refusals by name."""

import dataclasses
import os
import subprocess
import sys

import pytest

from jaxlab.stats import Claim, Guard


def make_claim(**changes):
    fields = {
        "name": "E1.distractors",
        "statement": "Value-weighted models have a lower value error than maximum likelihood.",
        "metric": "negative log10 value error (decades)",
        "treatment": "weighted",
        "control": "likelihood",
        "threshold": 0.5,
        "worst": -10.0,
        "guards": (Guard("learns", "the control beats a constant predictor"),),
        "protocol": (("lr", 3e-3), ("steps", 4000), ("tuning_seeds", "0-99")),
    }
    return Claim(**fields | changes)


def test_digest_is_pinned():
    # A change here orphans every registered claim.
    assert make_claim().digest() == (
        "4a809681d86f34cb6b9d399e9ba96c74588a9d8af27050b5f75b7a1f32677a53"
    )


def test_digest_is_the_same_in_another_process():
    code = (
        "from jaxlab.stats import Claim\n"
        "print(Claim('a', 'b', 'c', 'd', 'e', 1.0, 0.0, protocol=(('z', 1), ('a', 2.5))).digest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = Claim("a", "b", "c", "d", "e", 1.0, 0.0, protocol=(("z", 1), ("a", 2.5))).digest()
    assert digests == {here + "\n"}


CHANGES = {
    "name": "E2",
    "statement": "Another sentence.",
    "metric": "return",
    "treatment": "x",
    "control": "y",
    "threshold": 0.51,
    "worst": -11.0,
    "kind": "equivalence",
    "estimator": "iqm",
    "n_seeds": 21,
    "alpha": 0.0294,
    "required": False,
    "guards": (Guard("learns", "the control beats a constant predictor", "invalid"),),
    "protocol": (("lr", 3e-3), ("steps", 4001), ("tuning_seeds", "0-99")),
}


def test_every_field_is_changed_below():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Claim)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_changes_the_digest(name):
    assert make_claim(**{name: CHANGES[name]}).digest() != make_claim().digest()


def test_equal_numbers_have_equal_digests():
    whole = make_claim(threshold=1, protocol=(("steps", 4000),))
    real = make_claim(threshold=1.0, protocol=(("steps", 4000.0),))
    assert whole == real
    assert whole.digest() == real.digest()


def test_order_of_protocol_entries_is_no_part_of_the_claim():
    one = make_claim(protocol=(("a", 1), ("b", 2)))
    assert one.digest() == make_claim(protocol=(("b", 2), ("a", 1))).digest()


def test_claims_are_frozen_and_hashable():
    claim = make_claim()
    assert hash(claim) == hash(make_claim())
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim.threshold = 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "better"}, "kind: expected one of .* got 'better'"),
        ({"estimator": "median"}, "estimator: expected one of"),
        ({"threshold": float("nan")}, "threshold: expected a finite number, got nan"),
        ({"worst": float("-inf")}, "worst: expected a finite number, got -inf"),
        ({"kind": "equivalence", "threshold": 0.0}, "threshold: expected a positive margin"),
        ({"alpha": 5}, "alpha: expected a number strictly between 0 and 1"),
        ({"n_seeds": 1}, "n_seeds: expected at least 2, got 1"),
        ({"n_seeds": 4, "estimator": "iqm"}, "n_seeds: expected at least 5, got 4"),
        ({"guards": [Guard("a", "b")]}, "guards: expected a tuple, got list"),
        ({"protocol": {"lr": 1}}, "protocol: expected a tuple, got dict"),
        ({"protocol": (("lr", None),)}, r"protocol\['lr'\]: expected text or a number"),
        ({"protocol": (("lr", float("nan")),)}, r"protocol\['lr'\]: expected text or a number"),
        ({"protocol": (("lr", 1), ("lr", 2))}, "protocol: expected distinct names"),
        ({"guards": (Guard("a", "b"), Guard("a", "c"))}, "guards: expected distinct names"),
    ],
)
def test_bad_claims_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        make_claim(**changes)


def test_a_failed_guard_cannot_confirm():
    with pytest.raises(ValueError, match=r"on_fail: expected one of .* got 'reproduced'"):
        Guard("a", "b", on_fail="reproduced")

"""From claim and evidence to a verdict: one interval on one side of one threshold.

If the true effect misses the threshold, `reproduced` has probability at most alpha / 2 (alpha for
an equivalence, which is two one-sided tests at alpha each); if it reaches it, `not_reproduced` has
at most alpha / 2; everything else is `inconclusive`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from jaxlab.stats._rule import finite_or_none, measure
from jaxlab.stats._scores import read_scores, read_seeds
from jaxlab.stats.claim import Claim, Evidence, Guard, Status
from jaxlab.stats.metrics import prob_improvement, sign_proportion
from jaxlab.stats.seeds import TUNING_SEEDS

__all__ = ["TOP_UP_ALPHA", "Claim", "Evidence", "Guard", "Status", "Verdict", "combine", "decide"]

TOP_UP_ALPHA = 0.0294
"""`Claim.alpha` at both looks when one doubling of the seeds was registered (Pocock, 1977)."""

_PUBLISHABLE = 16  # seeds below which bimodal outcomes are not covered by any interval


@dataclass(frozen=True)
class Verdict:
    """What the evidence says about a claim; every number is finite or None."""

    status: Status
    estimate: float | None  # mean or interquartile mean over seeds
    low: float | None  # limits of the two-sided 1 - alpha interval
    high: float | None
    threshold: float
    direction_supported: bool  # low > 0; False for bounds, which have no direction
    n: int  # seeds
    rho: float | None  # correlation of the arms over seeds: what pairing bought
    failures: tuple[int, int]  # diverged seeds (treatment, control)
    guards: tuple[tuple[str, bool, str], ...]  # (name, passed, detail)
    sign_proportion: float | None  # share of seeds in which the treatment wins, ties one half
    notes: tuple[str, ...]
    p_value: float | None = None  # one-sided, against the threshold
    prob_improvement: float | None = None  # the same share among unpaired seeds

    def to_json(self) -> dict[str, Any]:
        """A dict that any strict JSON writer accepts."""
        return dataclasses.asdict(self) | {
            "failures": list(self.failures),
            "guards": [list(guard) for guard in self.guards],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Verdict":
        """Inverse of `to_json`.

        Args:
            content: the parsed JSON object.

        Raises:
            ValueError: fields are missing or unknown, or the status is none of ours.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
        if not needed <= set(content) <= fields:
            raise ValueError(
                f"content: missing fields {sorted(needed - set(content))}, "
                f"unknown fields {sorted(set(content) - fields)}"
            )
        if content["status"] not in get_args(Status):
            raise ValueError(f"status: expected one of {get_args(Status)}, got {content['status']}")
        treatment, control = content["failures"]
        return cls(
            **dict(content)
            | {
                "failures": (treatment, control),
                "guards": tuple((n, ok, detail) for n, ok, detail in content["guards"]),
                "notes": tuple(content["notes"]),
            }
        )


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return finite_or_none(np.corrcoef(x, y)[0, 1])


def _read_outcome(outcome: Any) -> tuple[bool, str]:
    value, detail = outcome if isinstance(outcome, tuple) and len(outcome) == 2 else (outcome, "")
    scalar = str(getattr(value, "dtype", "")) == "bool" and value.shape == ()
    if isinstance(value, bool) or scalar:
        return bool(value), str(detail)
    # Truthiness would pass NaN, and a list read back from JSON whatever it holds.
    return False, f"expected a boolean or (boolean, text), got {outcome!r}"


def _check_guards(
    claim: Claim, outcomes: Mapping[str, Any]
) -> tuple[tuple[tuple[str, bool, str], ...], list[Status], list[str]]:
    """Outcome of each guard, the statuses that failures ask for, and notes."""
    rows: list[tuple[str, bool, str]] = []
    statuses: list[Status] = []
    notes: list[str] = []
    for guard in claim.guards:
        outcome = outcomes.get(guard.name, (False, "no outcome recorded"))
        passed, detail = _read_outcome(outcome)
        rows.append((guard.name, passed, detail))
        if not passed:
            # A guard that nobody evaluated shows nothing, so it cannot refute the claim.
            unseen = guard.on_fail == "not_reproduced" and guard.name not in outcomes
            statuses.append("inconclusive" if unseen else guard.on_fail)
            notes.append(f"guard {guard.name} failed" + (f": {detail}" if detail else ""))
    unknown = sorted(set(outcomes) - {guard.name for guard in claim.guards})
    if unknown:
        notes.append(f"outcomes of guards that are not in the claim: {', '.join(unknown)}")
    return tuple(rows), statuses, notes


def _check_divergence(
    claim: Claim, n: int, failures: tuple[int, int]
) -> tuple[list[Status], list[str]]:
    """No verdict from many diverged seeds that count for the claim, and notes on any."""
    counts = {arm: k for arm, k in zip(("treatment", "control"), failures) if k}
    if not counts:
        return [], []
    arms = ", ".join(f"{k} of {n} seeds of the {arm}" for arm, k in counts.items())
    notes = [f"diverged and scored as the worst: {arms}"]
    # The worst control is the easiest to beat, and two worst scores are equal.
    helpful = {"superiority": ("control",), "equivalence": ("treatment", "control")}
    many = [arm for arm in helpful.get(claim.kind, ()) if 10 * counts.get(arm, 0) > n]
    if not many:
        return [], notes
    notes.append(f"more than 10 % diverged in {' and '.join(many)}, which counts for the claim")
    return ["inconclusive"], notes


def _remarks(claim: Claim, evidence: Evidence, seeds: tuple[int, ...]) -> list[str]:
    n, notes = len(seeds), []
    if evidence.registered is None:
        notes.append("the claim was not registered before the run")
    if n > claim.n_seeds:
        notes.append(f"{n} seeds where {claim.n_seeds} were registered")
    if claim.n_seeds < _PUBLISHABLE:
        notes.append(f"fewer than the {_PUBLISHABLE} seeds of a published verdict")
    if any(seed in TUNING_SEEDS for seed in seeds):
        notes.append(
            f"seeds of the tuning range {TUNING_SEEDS.start}-{TUNING_SEEDS.stop - 1} were used"
        )
    return notes


_CAUTION: tuple[Status, ...] = (
    "invalid",
    "smoke",
    "inconclusive",
    "not_reproduced",
    "reproduced",
)


def decide(claim: Claim, evidence: Evidence) -> Verdict:
    """Judges a claim. Pure, total (never raises on bad evidence), in float64 on the host.

    The status is, in this order: `invalid` if the evidence does not fit the claim or the claim
    registered before the run was another one; `smoke` for a smoke run; otherwise the most cautious
    (invalid, smoke, inconclusive, not_reproduced, reproduced) among what the interval says, what
    each failed guard asks for, and `inconclusive` for fewer seeds than registered, an arm without a
    single finite score, or more than 10 % diverged seeds in an arm where they count for the claim
    (the control of a superiority, either arm of an equivalence). A guard without an outcome has
    failed.

    Args:
        claim: what was claimed.
        evidence: scores (several tasks are averaged per seed), guard outcomes, circumstances.

    Returns:
        The verdict, with a note for every circumstance that shaped it.

    Pitfall: diverged seeds stay, with the worst score; dropping them would reward divergence.
    """
    rows, asked, guard_notes = _check_guards(claim, evidence.guards)
    notes: list[str] = []
    mismatch = evidence.registered is not None and evidence.registered != claim.digest()
    if mismatch:
        notes.append("the claim differs from the one registered before the run")
    seeds: tuple[int, ...] = ()
    try:
        seeds = read_seeds(evidence.seeds)
        with np.errstate(all="ignore"):  # overflow is reported in a note
            scores = read_scores(claim, evidence, seeds)
    except (TypeError, ValueError) as error:
        return Verdict(
            status="invalid",
            estimate=None,
            low=None,
            high=None,
            threshold=float(claim.threshold),
            direction_supported=False,
            n=len(seeds),
            rho=None,
            failures=(0, 0),
            guards=rows,
            sign_proportion=None,
            notes=(*notes, str(error), *guard_notes),
        )
    n, control = len(scores.treatment), scores.control
    with np.errstate(all="ignore"):
        effect = scores.treatment if control is None else scores.treatment - control
        measured = measure(claim, effect)
        rho = None if control is None else _correlation(scores.treatment, control)
    if scores.silent:
        asked.append("inconclusive")
        notes.append(f"no finite score in {' and '.join(scores.silent)}")
    if n < claim.n_seeds:
        asked.append("inconclusive")
        notes.append(f"{n} of {claim.n_seeds} registered seeds: no verdict before all have run")
    diverged, divergence_notes = _check_divergence(claim, n, scores.failures)
    asked += diverged
    notes += divergence_notes
    status = min((measured.status, *asked), key=_CAUTION.index)
    if evidence.smoke:
        status = "smoke"
    if mismatch:
        status = "invalid"
    wins, unpaired_wins = None, None
    if control is not None and n > 0:
        wins = float(sign_proportion(effect))
        unpaired_wins = float(prob_improvement(scores.treatment, control))
    return Verdict(
        status=status,
        estimate=measured.estimate,
        low=measured.low,
        high=measured.high,
        threshold=float(claim.threshold),
        direction_supported=claim.kind != "bound" and measured.low is not None and measured.low > 0,
        n=n,
        rho=rho,
        failures=scores.failures,
        guards=rows,
        sign_proportion=wins,
        notes=(*notes, *measured.notes, *guard_notes, *_remarks(claim, evidence, seeds)),
        p_value=measured.p_value,
        prob_improvement=unpaired_wins,
    )


def combine(parts: Sequence[tuple[Claim, Verdict]]) -> Status:
    """Overall verdict of a claim with several parts: all required parts must be reproduced.

    Args:
        parts: claims with their verdicts; those that are not required do not count.

    Returns:
        `invalid` or `smoke` if a required part is; else `not_reproduced` if a required part is;
        else `reproduced` if all are; else (also without any required part) `inconclusive`.

    Reference: Berger, Multiparameter hypothesis testing and acceptance sampling (1982): the
        intersection-union test needs no correction for multiplicity.
    """
    statuses = [verdict.status for claim, verdict in parts if claim.required]
    order: tuple[Status, ...] = ("invalid", "smoke", "not_reproduced", "inconclusive", "reproduced")
    return min(statuses, key=order.index, default="inconclusive")

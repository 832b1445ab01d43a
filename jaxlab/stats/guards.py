"""Outcomes of the usual validity guards: whether it holds, and the numbers that say so."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxlab.stats._arrays import AnyArray
from jaxlab.stats.claim import Claim, Evidence
from jaxlab.stats.seeds import evaluation_seeds
from jaxlab.stats.verdict import Verdict, decide


def _mean(scores: AnyArray) -> float:
    values = np.asarray(scores, np.float64)
    return float(values.mean()) if values.size else float("nan")


def learns(control: AnyArray, baseline: float, margin: float) -> tuple[bool, str]:
    """Does the control beat a random or constant predictor by a stated margin?

    Args:
        control: scores, any shape; higher is better.
        baseline: score of the trivial predictor.
        margin: by how much the mean must exceed it.

    Returns:
        Outcome and detail; non-finite scores fail.
    """
    mean = _mean(control)
    return mean >= baseline + margin, f"mean {mean:.3g}, needed {baseline + margin:.3g}"


def has_room(
    control: AnyArray, minimum: float, maximum: float, margin: float = 0.02
) -> tuple[bool, str]:
    """Is the control off the ceiling and off the floor, so that an effect could show?

    Args:
        control: scores, any shape.
        minimum: score of no skill at all.
        maximum: best attainable score.
        margin: share of the range that must be left on both sides.

    Returns:
        Outcome and detail; non-finite scores fail.

    Raises:
        ValueError: `maximum` not above `minimum`.
    """
    if not maximum > minimum:
        raise ValueError(f"maximum: expected above minimum = {minimum!r}, got {maximum!r}")
    share = (_mean(control) - minimum) / (maximum - minimum)
    return margin <= share <= 1 - margin, f"control at {share:.2f} of the range"


def mostly_finite(*arms: AnyArray, share: float = 0.9) -> tuple[bool, str]:
    """Did at least `share` of the seeds of every arm stay finite?

    Args:
        *arms: scores, seeds on the first axis.
        share: smallest acceptable share.

    Returns:
        Outcome and detail.
    """
    shares = []
    for arm in arms:
        finite = np.isfinite(np.asarray(arm, np.float64))
        seeds = finite.all(axis=tuple(range(1, finite.ndim)))
        shares.append(float(seeds.mean()) if seeds.size else 0.0)
    return min(shares) >= share, "finite " + ", ".join(f"{s:.0%}" for s in shares)


def same_budget(treatment: float, control: float, tolerance: float = 0.05) -> tuple[bool, str]:
    """Do the arms spend the same compute or parameters, up to a relative tolerance?

    Args:
        treatment: cost of the treatment, positive.
        control: cost of the control, positive.
        tolerance: largest relative difference.

    Returns:
        Outcome and detail.

    Raises:
        ValueError: a cost that is not positive.
    """
    if not (treatment > 0 and control > 0):
        raise ValueError(f"treatment, control: expected positive costs, got {treatment}, {control}")
    ratio = treatment / control
    return abs(ratio - 1) <= tolerance, f"treatment / control = {ratio:.3g}"


def decide_known(
    claim: Claim, treatment: AnyArray, control: AnyArray | None, **changes: Any
) -> Verdict:
    """Decides a comparison whose outcome is known beforehand, by a claim's own rule.

    Args:
        claim: its guards do not count here, nor do its arms' names.
        treatment: scores [n_seeds, ...].
        control: the same, or None.
        changes: fields of the claim that are others here, such as `threshold`.

    Returns:
        The verdict, for `positive_control` and `negative_control`.
    """
    seeds = evaluation_seeds(len(treatment))
    bare = replace(claim, guards=(), n_seeds=max(len(seeds), 2), **changes)
    return decide(bare, Evidence(treatment, control, seeds))


def positive_control(verdict: Verdict) -> tuple[bool, str]:
    """Was an effect that must exist found?

    Args:
        verdict: verdict of that effect, for instance "more training beats less".

    Returns:
        Outcome and detail.
    """
    return verdict.status == "reproduced", f"known effect came out {verdict.status}"


def negative_control(claim: Claim, verdict: Verdict) -> tuple[bool, str]:
    """Was no effect found where there is none, control against control on another seed block?

    Args:
        claim: the claim put to the two blocks, of kind superiority or equivalence.
        verdict: its verdict.

    Returns:
        Outcome and detail.
    """
    wanted = "reproduced" if claim.kind == "equivalence" else "not_reproduced"
    return verdict.status == wanted, f"control against itself came out {verdict.status}"

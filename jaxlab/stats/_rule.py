"""The decision rule: where one interval lies with respect to one threshold."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxlab.stats.claim import Claim, Kind, Status
from jaxlab.stats.intervals import Interval, mean_error, t_quantile, trimmed_mean_error
from jaxlab.stats.metrics import trimmed_mean

_TRIM = 0.25


def finite_or_none(x: Any) -> float | None:
    """Returns `x` as a float, or None where JSON has no number for it."""
    return float(x) if math.isfinite(x) else None


def _judge(kind: Kind, threshold: float, ci: Interval, narrow: Interval) -> Status:
    """The rule; `narrow` is the 1 - 2 alpha interval of two one-sided tests."""
    if kind == "equivalence":
        yes = narrow.low > -threshold and narrow.high < threshold
        no = ci.low > threshold or ci.high < -threshold
    elif kind == "bound":
        yes, no = ci.high <= threshold, ci.low > threshold
    else:
        yes, no = ci.low >= threshold, ci.high < threshold
    return "reproduced" if yes else "not_reproduced" if no else "inconclusive"


class Measured(NamedTuple):
    """Verdict fields that come from the numbers alone."""

    status: Status = "inconclusive"
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    notes: tuple[str, ...] = ()


def measure(claim: Claim, effect: np.ndarray) -> Measured:
    """Interval of the per-seed effects [n] and what it says about the threshold."""
    from scipy.special import stdtr

    n, trim = len(effect), _TRIM if claim.estimator == "iqm" else 0.0
    least = 5 if trim else 2
    if n == 0:
        return Measured(notes=("no seeds",))
    if n < least:
        few = f"{n} seeds: an interval needs at least {least}"
        return Measured(estimate=finite_or_none(trimmed_mean(effect, trim)), notes=(few,))
    center, error, df = trimmed_mean_error(effect, trim) if trim else mean_error(effect)
    half, narrow_half = (error * t_quantile(1 - a, df) for a in (claim.alpha, 2 * claim.alpha))
    ci = Interval(center, center - half, center + half)
    if not np.isfinite(ci).all():
        return Measured(estimate=finite_or_none(center), notes=("the interval overflows",))
    narrow = Interval(center, center - narrow_half, center + narrow_half)
    notes: tuple[str, ...] = ()
    distance = center - claim.threshold
    if claim.kind == "bound":
        distance = -distance
    elif claim.kind == "equivalence":
        distance = claim.threshold - abs(center)
        level = f"{1 - 2 * claim.alpha:.4g}"
        notes = (f"equivalence by the {level} interval [{narrow.low:.4g}, {narrow.high:.4g}]",)
    status = _judge(claim.kind, claim.threshold, ci, narrow)
    if error == 0:  # constant data are certain
        p_value = 0.0 if status == "reproduced" else 1.0
    else:
        p_value = float(stdtr(df, -distance / error))
    return Measured(status, float(center), float(ci.low), float(ci.high), p_value, notes)

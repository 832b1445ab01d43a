"""One-sentence conclusions and other words that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxlab.report.record import Part

if TYPE_CHECKING:
    from jaxlab.stats import Claim, Verdict

STATUS_WORDS = {
    "reproduced": "reproduced",
    "not_reproduced": "not reproduced",
    "inconclusive": "inconclusive",
    "smoke": "smoke run",
    "invalid": "invalid",
}
SYMBOLS = {
    "reproduced": "✓",
    "not_reproduced": "✗",
    "inconclusive": "?",
    "smoke": "~",
    "invalid": "!",
}


def conclusion(status: str, parts: Sequence[Part], modified: Sequence[str] = ()) -> str:
    """What the verdict says, in one sentence.

    Args:
        status: overall status.
        parts: all parts, required and not.
        modified: changes against the preset, empty if none.

    Returns:
        A sentence that names the parts that decided.
    """
    required = [part for part in parts if part.claim.required]
    deciding = [part for part in required if part.verdict.status == status]
    names = ", ".join(part.claim.name for part in deciding)
    match status:
        case "reproduced":
            text = f"Reproduced: every required part reaches its threshold ({names})"
        case "not_reproduced":
            text = f"Not reproduced: {names} missed the threshold{_failed_guards(deciding)}"
        case "inconclusive" if deciding:
            text = f"Inconclusive: {names} could not be decided{_failed_guards(deciding)}"
        case "inconclusive":
            text = "Inconclusive: no part of the claim is required"
        case "smoke":
            text = "Smoke run: the program works from end to end; this is never a verdict"
        case _:
            text = "Invalid: claims or evidence do not fit what was registered before the run"
    return text + (f" (modified: {', '.join(modified)})." if modified else ".")


def _failed_guards(parts: Sequence[Part]) -> str:
    failed = {name for part in parts for name, passed, _ in part.verdict.guards if not passed}
    return f"; failed guards: {', '.join(sorted(failed))}" if failed else ""


def number(value: Any) -> str:
    """Three significant digits, a dash for what is not finite."""
    if value is None or value != value or abs(value) == float("inf"):
        return "–"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.2e}"


def interval(verdict: Verdict) -> str:
    """Estimate with its interval."""
    return f"{number(verdict.estimate)} [{number(verdict.low)}, {number(verdict.high)}]"


def seeds(parts: Sequence[Part]) -> str:
    """How many seeds the required parts have: "20", or "16 to 20" if they differ."""
    counts = sorted({part.verdict.n for part in parts if part.claim.required})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "–"


def criterion(claim: Claim) -> str:
    """What the interval has to do."""
    size = number(claim.threshold)
    return {"equivalence": f"within ±{size}", "bound": f"≤ {size}"}.get(claim.kind, f"≥ {size}")


def duration(seconds: float) -> str:
    """A time span people can read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

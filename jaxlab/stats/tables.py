"""Verdicts as a table that reads the same in a terminal and as Markdown."""

from collections.abc import Sequence

from jaxlab.stats.claim import Claim
from jaxlab.stats.verdict import Verdict

_HEADER = (
    "claim",
    "verdict",
    "estimate [low, high]",
    "threshold",
    "n",
    "rho",
    "failures (treatment, control)",
    "guards",
)
_RELATION = {"superiority": ">= ", "ordering": ">= ", "bound": "<= ", "equivalence": "+-"}


def _number(x: float | None, digits: int = 3) -> str:
    return "-" if x is None else f"{x:.{digits}g}"


def _guards(verdict: Verdict) -> str:
    if not verdict.guards:
        return "-"
    failed = [name for name, passed, _ in verdict.guards if not passed]
    count = f"{len(verdict.guards) - len(failed)}/{len(verdict.guards)}"
    return f"{count}, failed: {', '.join(failed)}" if failed else count


def _row(claim: Claim, verdict: Verdict) -> tuple[str, ...]:
    limits = f"[{_number(verdict.low)}, {_number(verdict.high)}]"
    cells = (
        claim.name if claim.required else f"{claim.name} (secondary)",
        verdict.status.replace("_", " "),
        f"{_number(verdict.estimate)} {limits}",
        f"{_RELATION[claim.kind]}{_number(verdict.threshold)}",
        str(verdict.n),
        _number(verdict.rho, 2),
        f"{verdict.failures[0]}, {verdict.failures[1]}",
        _guards(verdict),
    )
    return tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)


def verdict_table(parts: Sequence[tuple[Claim, Verdict]]) -> str:
    """Aligned Markdown table, one row per claim.

    Args:
        parts: claims with their verdicts.

    Returns:
        Header, rule and rows, without a trailing newline; a missing number shows as "-".
    """
    rows = [_HEADER, *(_row(claim, verdict) for claim, verdict in parts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in rows]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])

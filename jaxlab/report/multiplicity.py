"""What many verdicts at once do to the chance of a false one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxlab.report.record import Record

if TYPE_CHECKING:
    from jaxlab.stats import Claim

JUDGED = ("reproduced", "not_reproduced", "inconclusive")


def judged(records: Sequence[Record]) -> list[Record]:
    """Those records that carry a verdict: neither smoke runs nor invalid ones."""
    return [record for record in records if record.status in JUDGED]


def p_value(record: Record) -> float:
    """One-sided p value of a whole claim against its thresholds.

    All required parts must hold (an intersection-union test), so the largest p value of theirs is
    a valid one for the claim; a part without one counts as 1.
    """
    parts = [part.verdict for part in record.parts if part.claim.required]
    return max((1.0 if v.p_value is None else v.p_value for v in parts), default=1.0)


def q_values(records: Sequence[Record]) -> list[float]:
    """Benjamini-Hochberg q values of the whole claims, in the order given.

    Args:
        records: judged records, one test each.

    Returns:
        One q value per record.
    """
    import jax.numpy as jnp

    from jaxlab.stats import benjamini_hochberg

    if not records:
        return []
    p = jnp.asarray([p_value(record) for record in records], jnp.float32)
    return [float(q) for q in benjamini_hochberg(p)]


def expected_false_reproduced(records: Sequence[Record]) -> float:
    """Largest expected number of false "reproduced" were every effect just below its threshold.

    A part errs with probability alpha / 2, an equivalence with alpha; all required parts of a
    record must err at once, so the least of theirs bounds the record.

    Args:
        records: judged records.

    Returns:
        The sum over records of the least error among the required parts.
    """
    errors = [
        [_error(part.claim) for part in record.parts if part.claim.required] for record in records
    ]
    return float(sum(min(values) for values in errors if values))


def _error(claim: Claim) -> float:
    return claim.alpha if claim.kind == "equivalence" else claim.alpha / 2

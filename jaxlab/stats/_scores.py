"""Evidence brought to one finite float64 number per seed and arm."""

from typing import Any, NamedTuple

import numpy as np

from jaxlab.stats.claim import Claim, Evidence


class Scores(NamedTuple):
    """Scores in an order that does not depend on the order of the seeds."""

    treatment: np.ndarray  # [n]
    control: np.ndarray | None  # [n]
    failures: tuple[int, int]
    silent: tuple[str, ...]  # arms without a single finite score


def _arm(name: str, scores: Any, worst: float) -> tuple[np.ndarray, int, bool]:
    """One float64 per seed, the number of diverged seeds, and whether nothing was finite."""
    values = np.asarray(scores, np.float64)
    if values.ndim not in (1, 2) or (values.ndim == 2 and values.shape[1] == 0):
        raise ValueError(f"{name}: expected scores [n] or [n, tasks], got shape {values.shape}")
    table = values if values.ndim == 2 else values[:, None]
    finite = np.isfinite(table)
    diverged = int((~finite.all(axis=1)).sum())
    means = np.where(finite, table, worst).mean(axis=1)
    return means, diverged, bool(table.size) and not finite.any()


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """Seed ids from any sequence or array of integers.

    Raises:
        ValueError: they are anything else (also TypeError, where NumPy says so).
    """
    ids = np.asarray(seeds)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"seeds: expected integer ids [n], got {seeds!r}")
    return tuple(ids.tolist())


def read_scores(claim: Claim, evidence: Evidence, seeds: tuple[int, ...]) -> Scores:
    """Averages tasks and replaces diverged scores.

    Raises:
        ValueError: the evidence does not fit the claim (also TypeError, where NumPy says so).
    """
    paired = claim.kind in ("superiority", "equivalence")
    if paired != (evidence.control is not None):
        expected = "paired scores" if paired else "None"
        raise ValueError(f"control: expected {expected} for kind {claim.kind!r}")
    treatment, diverged, silent = _arm("treatment", evidence.treatment, claim.worst)
    if len(seeds) != len(treatment) or len(set(seeds)) < len(treatment):
        raise ValueError(
            f"seeds: expected {len(treatment)} distinct ids, one per score, got {seeds}"
        )
    if evidence.control is None:
        alone = ("treatment",) if silent else ()
        return Scores(np.sort(treatment), None, (diverged, 0), alone)
    if np.shape(evidence.control) != np.shape(evidence.treatment):
        raise ValueError(
            f"control: expected the shape of treatment {np.shape(evidence.treatment)}, "
            f"got {np.shape(evidence.control)}"
        )
    control, control_diverged, control_silent = _arm("control", evidence.control, claim.worst)
    arms = tuple(n for n, s in (("treatment", silent), ("control", control_silent)) if s)
    # Sums depend on their order; a fixed one makes the verdict independent of the order of seeds.
    order = np.lexsort((control, treatment))
    return Scores(treatment[order], control[order], (diverged, control_diverged), arms)

"""What is claimed, fixed before the run, and what the run brought back."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from jaxlab.stats._arrays import AnyArray, check_fraction

Status = Literal["reproduced", "not_reproduced", "inconclusive", "smoke", "invalid"]
Kind = Literal["superiority", "equivalence", "bound", "ordering"]
Estimator = Literal["mean", "iqm"]
GuardOutcome: TypeAlias = bool | np.bool_ | tuple[bool | np.bool_, str]


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


@dataclass(frozen=True)
class Guard:
    """A condition without which the comparison means nothing.

    `on_fail="not_reproduced"` states an invariant whose single violation refutes the claim.
    """

    name: str
    description: str
    on_fail: Status = "inconclusive"

    def __post_init__(self) -> None:
        """Refuses a failure that would confirm the claim."""
        _check_choice("on_fail", self.on_fail, get_args(Status)[1:])


def _canonical(value: Any) -> Any:
    """Equal numbers get equal text, whether written 1 or 1.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {k: _canonical(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_canonical(v) for v in value]
    return value


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper made decidable, frozen and hashed before any evaluation seed is run.

    `superiority` (treatment - control >= threshold; non-inferiority has a negative threshold) and
    `equivalence` (|treatment - control| < threshold) compare two arms on paired seeds. `bound`
    (statistic <= threshold, so here smaller is better) and `ordering` (statistic, for instance
    Kendall's tau across sizes, >= threshold) judge one number per seed.
    """

    name: str
    statement: str  # one sentence a reader understands
    metric: str  # what a score is, with its unit; higher is better
    treatment: str  # arm
    control: str  # arm
    threshold: float  # smallest effect that deserves the sentence, equivalence margin, or bound
    worst: float  # score of a diverged seed: the worst attainable
    kind: Kind = "superiority"
    estimator: Estimator = "mean"  # Student's interval, or Yuen's for the interquartile mean
    n_seeds: int = 20
    alpha: float = 0.05
    required: bool = True  # counts for the overall verdict
    guards: tuple[Guard, ...] = ()
    protocol: tuple[tuple[str, str | int | float], ...] = ()  # tuning grid, budget, seed blocks...

    def __post_init__(self) -> None:
        """Refuses a claim that could not be hashed, decided or reproduced."""
        _check_choice("kind", self.kind, get_args(Kind))
        _check_choice("estimator", self.estimator, get_args(Estimator))
        for name in ("threshold", "worst"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)!r}")
        if self.kind == "equivalence" and self.threshold <= 0:
            raise ValueError(f"threshold: expected a positive margin, got {self.threshold!r}")
        check_fraction("2 * alpha", 2 * self.alpha)
        least = 5 if self.estimator == "iqm" else 2
        if self.n_seeds < least:
            raise ValueError(f"n_seeds: expected at least {least}, got {self.n_seeds!r}")
        for name in ("guards", "protocol"):
            entries = getattr(self, name)
            if not isinstance(entries, tuple):
                raise ValueError(f"{name}: expected a tuple, got {type(entries).__name__}")
        for key, value in self.protocol:
            if not isinstance(value, str | int | float) or value != value:
                raise ValueError(f"protocol[{key!r}]: expected text or a number, got {value!r}")
        for name, names in (
            ("guards", [guard.name for guard in self.guards]),
            ("protocol", [key for key, _ in self.protocol]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{name}: expected distinct names, got {names}")

    def digest(self) -> str:
        """SHA-256 of the canonical JSON text, the same in every process and on every machine."""
        content = dataclasses.asdict(self) | {"protocol": dict(self.protocol)}
        text = json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Evidence:
    """Scores of paired seeds, outcomes of the guards, and how the run was made."""

    treatment: AnyArray  # [n] or [n, tasks]; non-finite means diverged
    control: AnyArray | None  # like treatment; None for the kinds bound and ordering
    seeds: tuple[int, ...]  # [n] ids, the same for both arms
    guards: Mapping[str, GuardOutcome] = field(default_factory=dict)
    smoke: bool = False  # a run too short to mean anything: never a verdict
    registered: str | None = None  # digest of the claim stored before the run

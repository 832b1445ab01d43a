"""What an experiment program is: the contract of `experiments/NAME.py` with the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import xarray

    from jaxlab.stats import Claim, Verdict

NAMES = ("PAPER", "SUMMARY", "Config", "PRESETS", "claims", "run")
RESERVED_FIELDS = ("out", "resume", "progress")  # flags of `jaxlab run` itself


@dataclass(frozen=True)
class Paper:
    """The publication whose claim an experiment tests."""

    number: str  # the collection's number, "02"
    title: str
    authors: str
    venue: str
    year: int


class Curves(NamedTuple):
    """Scores over time of several arms on the same seeds, to be drawn with intervals over seeds."""

    name: str  # part of the file name curves-NAME.png
    title: str
    x_label: str
    y_label: str
    x: np.ndarray  # [T]
    scores: dict[str, np.ndarray]  # arm -> [n_seeds, T]
    lines: dict[str, float] = {}  # noqa: RUF012  label -> height of a horizontal reference


class Fronts(NamedTuple):
    """Trade-offs of two objectives of several arms on the same seeds, drawn as mean fronts."""

    name: str  # part of the file name front-NAME.png
    title: str
    x_label: str
    y_label: str
    angles: np.ndarray  # [A] directions from the origin, 0 along x, in radians
    radii: dict[str, np.ndarray]  # arm -> [n_seeds, A] how far the front reaches in each direction


class Landscape(NamedTuple):
    """A score over two numbers, drawn as its mean over seeds, and where searches ended."""

    name: str  # part of the file name landscape-NAME.png
    title: str
    x_label: str
    y_label: str
    height_label: str
    x: np.ndarray  # [nx]
    y: np.ndarray  # [ny]
    heights: np.ndarray  # [n_seeds, nx, ny]
    points: dict[str, np.ndarray]  # arm -> [n_seeds, 2]


class Outcome(NamedTuple):
    """Everything an experiment hands back."""

    parts: tuple[tuple[Claim, Verdict], ...]
    paired: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # noqa: RUF012  claim -> treatment, control [n]
    datasets: dict[str, xarray.Dataset] = {}  # noqa: RUF012  name -> results/NAME.nc
    curves: tuple[Curves, ...] = ()
    notes: tuple[str, ...] = ()
    fronts: tuple[Fronts, ...] = ()
    landscapes: tuple[Landscape, ...] = ()


@dataclass(frozen=True)
class Program:
    """A loaded experiment module, checked against the contract."""

    name: str
    path: Path
    paper: Paper
    summary: str
    config_type: type
    presets: Mapping[str, Any]  # preset name -> frozen Config
    claims: Callable[[Any], tuple[Claim, ...]]  # config -> claims, before any evaluation
    run: Callable[..., Outcome]  # run(config, *, directory, resume, progress)


def as_program(module: ModuleType, name: str, path: Path) -> Program:
    """Checks an experiment module against the contract.

    Args:
        module: the executed module; must define every name in `NAMES`.
        name: the experiment's name, its file name without `.py`.
        path: where it was loaded from.

    Returns:
        The program.

    Raises:
        ValueError: a name is missing, the config is not a frozen dataclass with `seeds` and
            `preset`, or a preset disagrees with its own name.
    """
    missing = [required for required in NAMES if not hasattr(module, required)]
    if missing:
        raise ValueError(f"experiment {name!r} must define {', '.join(missing)}")
    config_type, presets = module.Config, module.PRESETS
    params = getattr(config_type, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise ValueError(f"experiment {name!r}: Config must be a frozen dataclass")
    fields = {field.name for field in dataclasses.fields(config_type)}
    if lacking := {"seeds", "preset"} - fields:
        raise ValueError(f"experiment {name!r}: Config must have the fields {sorted(lacking)}")
    if taken := fields & set(RESERVED_FIELDS):
        raise ValueError(f"experiment {name!r}: Config must not have the fields {sorted(taken)}")
    if not presets:
        raise ValueError(f"experiment {name!r}: PRESETS must hold at least one preset")
    for preset, config in presets.items():
        if not isinstance(config, config_type) or getattr(config, "preset", None) != preset:
            raise ValueError(
                f"experiment {name!r}: PRESETS[{preset!r}] must be a Config with "
                f"preset={preset!r}, got {config!r}"
            )
    return Program(
        name, path, module.PAPER, module.SUMMARY, config_type, presets, module.claims, module.run
    )

"""A complete experiment of a few lines, copied by the tests into folders of their own."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide

PAPER = Paper("99", "Warm <starts> & cold ones", "Doe, Roe", "ICLR", 2024)
SUMMARY = "Shifted noise beats noise."


@dataclass(frozen=True)
class Shift:
    """The effect."""

    size: float = 1.0
    scales: tuple[int, ...] = (8, 64)
    use_noise: bool = True


@dataclass(frozen=True)
class Config:
    """The experiment's fields."""

    preset: str = "small"
    seeds: int = 16  # paired seeds
    shift: Shift = Shift()
    stop: str = ""  # "ctrl-c" or "sigterm" interrupts the run

    def __post_init__(self):
        if self.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {self.seeds}")


PRESETS = {
    "smoke": Config("smoke", seeds=2),
    "small": Config(),
    "paper": Config("paper", seeds=32, shift=Shift(size=2.0)),
}


def claims(config):
    n = max(PRESETS[config.preset].seeds, 5)
    guard = Guard("learns", "the control beats nothing at all")
    return (
        Claim("gain", "The shift helps.", "score", "shifted", "plain", 0.5, -10.0, n_seeds=n,
              guards=(guard,)),
        Claim("level", "The shift is small.", "score", "shifted", "plain", 3.0, -10.0,
              kind="equivalence", n_seeds=n, required=False),
        Claim("cost", "It costs little.", "seconds", "shifted", "none", 9.0, 99.0, kind="bound",
              n_seeds=n),
    )  # fmt: skip


def run(config, *, directory: Path, resume: bool, progress: bool):
    import xarray

    assert registered_digests(directory), "claims come first"
    if config.stop == "ctrl-c":
        raise KeyboardInterrupt
    if config.stop == "sigterm":
        os.kill(os.getpid(), signal.SIGTERM)
    rng = np.random.default_rng(0)
    control = rng.normal(size=config.seeds)
    noise = 0.1 * rng.normal(size=config.seeds) if config.shift.use_noise else 0.0
    treatment = control + config.shift.size + noise
    if config.seeds > 2:
        treatment[-1] = np.nan
    arms = {"gain": (treatment, control), "level": (treatment, control), "cost": (control, None)}
    digests = registered_digests(directory)
    parts = tuple(
        (
            claim,
            decide(
                claim,
                Evidence(
                    *arms[claim.name],
                    tuple(range(1000, 1000 + config.seeds)),
                    {"learns": (True, "0.9 <of> 1")} if claim.guards else {},
                    config.preset == "smoke",
                    digests[claim.name],
                ),
            ),
        )
        for claim in claims(config)
    )
    time = np.arange(5)
    curves = {
        name: np.nan_to_num(np.asarray(arm)[:, None] * (1 - 0.5**time))
        for name, arm in (("shifted", treatment), ("plain", control))
    }
    dataset = xarray.Dataset(
        {"score": (("arm", "seed"), np.stack([treatment, control]))},
        {"arm": ["shifted", "plain"], "seed": np.arange(config.seeds)},
    )
    return Outcome(
        parts,
        {name: pair for name, pair in arms.items() if pair[1] is not None},
        {"scores": dataset},
        (Curves("score over/time", "Scores", "time", "score", time, curves, {"limit": 1.0}),),
        ("a note with <angle brackets>",),
    )

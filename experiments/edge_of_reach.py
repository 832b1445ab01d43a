"""The edge of reach: truncated branches of a model make values explode, be the model exact or not.

Claim: offline model-based learning bootstraps from states that occur only as the last state of
k-step branches and are therefore never updated. This, and not model error, makes the base
procedure's values explode: it fails with exact dynamics as well, where every penalty for model
uncertainty is zero; true values at just those states cure it; and so does the minimum of many
critics (RAVL).

Two studies test it with exact dynamics: E1 with exact backups of tables, E2 with a soft
actor-critic. A third, E3, trains on data sets of brax with an exact and with a learned model.

Reference: Sims, Lu, Foerster, Teh (2024), The Edge-of-Reach Problem in Offline Model-Based
Reinforcement Learning, NeurIPS.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests, seeded
from jaxlab.stats import Claim, Evidence, Verdict, decide

from . import _edge_of_reach_e1 as tables
from . import _edge_of_reach_e2 as networks
from . import _edge_of_reach_e3 as scale

PAPER = Paper(
    number="03",
    title="The Edge-of-Reach Problem in Offline Model-Based Reinforcement Learning",
    authors="Sims, Lu, Foerster, Teh",
    venue="NeurIPS",
    year=2024,
)
SUMMARY = "truncated branches explode with exact dynamics; a patch or many critics cure it"


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below e1, e2 and e3."""

    preset: str
    seeds: int = 20  # paired evaluation seeds
    e1: tables.Config = tables.Config()  # exact backups
    e2: networks.Config = networks.Config()  # soft actor-critic
    e3: scale.Config = scale.Config()  # data sets of brax, if enabled


PRESETS = {
    # As short as everything can be run, mostly compilation; never a verdict.
    "smoke": Config(
        preset="smoke",
        seeds=2,
        e1=tables.Config(sweeps=50, voids=(), smoke=True),
        e2=networks.Config(
            critics=3,
            epochs=3,
            mopo_epochs=2,
            evaluate_every=1,
            patch_steps=20,
            eval_episodes=8,
            others=(),
            smoke=True,
        ),
    ),
    # E1 and E2 in full: minutes on two cores.
    "small": Config(preset="small"),
    # Data sets of brax as well; needs an accelerator.
    "paper": Config(preset="paper", e3=scale.Config(enabled=True)),
}


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies that run."""
    return tuple(claim for study, sizes in _studies(config) for claim in study.claims(sizes))


def _studies(config: Config) -> tuple[tuple[Any, Any], ...]:
    """Each study with its configuration for the seeds asked for."""
    preset = PRESETS[config.preset]
    studies: tuple[tuple[Any, Any], ...] = (
        (tables, seeded(config.e1, preset.e1, config.seeds)),
        (networks, seeded(config.e2, preset.e2, config.seeds)),
    )
    if config.e3.enabled:
        studies += ((scale, replace(config.e3, seeds=min(config.seeds, config.e3.seeds))),)
    return studies


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Runs the studies and judges their claims."""
    registered = registered_digests(directory)
    parts: list[tuple[Claim, Verdict]] = []
    paired: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    datasets: dict[str, Any] = {}
    for study, sizes in _studies(config):
        results, scores = study.run(sizes, directory / "checkpoints", resume, progress)
        datasets |= results
        for claim in study.claims(sizes):
            treatment, control = study.evidence(claim, scores)
            outcomes = {} if sizes.smoke else study.check(sizes, claim, scores, results)
            evidence = Evidence(
                treatment,
                control,
                tables.study_seeds(sizes),
                outcomes,
                sizes.smoke,
                registered.get(claim.name),
            )
            parts.append((claim, decide(claim, evidence)))
            if control is not None:
                paired[claim.name] = treatment, control
    return Outcome(
        parts=tuple(parts),
        paired=paired,
        datasets=datasets,
        curves=_curves(config, datasets),
        notes=_NOTES,
    )


_NOTES = (
    "The dynamics are exact in E1 and E2: nothing there can be due to model error.",
    "E2 is one task in 8 dimensions with small networks; how often real tasks have such an edge, "
    "it does not say.",
)


def _curves(config: Config, datasets: dict[str, Any]) -> tuple[Curves, ...]:
    """Returns by the size of the void (E1), and learning curves of return and value (E2)."""
    data, epochs = datasets["e2"], config.e2.updates
    updates = data["step"].values * epochs
    best, idle = networks.best_return(config.e2), networks.idle_return(config.e2)
    voids, by_void = tables.void_curves(config.e1, datasets["e1"])
    return (
        Curves(
            "e1-void",
            "E1, exact backups of tables",
            "log10 of the void's standard deviation",
            f"return of {config.e1.steps} steps",
            np.log10(voids),
            by_void,
        ),
        Curves(
            "e2-return",
            "E2, exact dynamics",
            "updates",
            "return of the mean action",
            updates,
            {str(arm): data["return"].sel(arm=arm).values for arm in data["arm"].values},
            {"best": best, "standing still": idle},
        ),
        Curves(
            "e2-value",
            "E2, exact dynamics",
            "updates",
            "log10 of the critics' mean",
            updates,
            networks.value_curves(data),
            {"largest possible": float(np.log10(config.e2.best_value))},
        ),
    )

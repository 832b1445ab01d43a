"""VaGraM: a model trained with value-gradient weighting against maximum likelihood.

Claim: a one-step dynamics model whose squared error is weighted, dimension by dimension, by the
gradient of the current value function keeps the policy's return when the model is too small or the
observation has distracting dimensions, where maximum likelihood fails; the plain value-aware loss
does not, because its model fits one value function only.

Three studies test it, from plain to whole: E1 fits models with a known value function
and looks at what they predict; E2 plans with such models; E3 is the whole loop on brax.

Reference: Voelcker, Liao, Garg, Farahmand (2022), Value Gradient weighted Model-Based Reinforcement
Learning, ICLR.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests, seeded
from jaxlab.stats import Claim, Verdict

from . import _vagram_e1 as models
from . import _vagram_e2 as planning
from . import _vagram_e3 as loop

PAPER = Paper(
    number="02",
    title="Value Gradient weighted Model-Based Reinforcement Learning",
    authors="Voelcker, Liao, Garg, Farahmand",
    venue="ICLR",
    year=2022,
)
SUMMARY = "value-gradient weighted models against maximum likelihood, small or distracted"


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below e1, e2 and e3."""

    preset: str
    seeds: int = 20  # paired evaluation seeds (of E3 at most e3.seeds)
    e1: models.Config = models.Config()  # models with a known value function
    e2: planning.Config = planning.Config()  # planning with such models
    e3: loop.Config = loop.Config()  # the loop on brax


_SMOKE_LOOP = loop.Config(
    tuning_seeds=1,
    learning_rates=(1e-3,),
    others=(),
    undistracted=False,
    blocks=4,
    required=False,
    smoke=True,
)
PRESETS = {
    # As short as everything can be run, mostly compilation; never a verdict.
    "smoke": Config(
        preset="smoke",
        seeds=4,
        e1=models.SMOKE,
        e2=planning.SMOKE,
        e3=replace(
            _SMOKE_LOOP,
            env="pendulum",
            random_return=-1200.0,
            best_return=-150.0,
            blocks=2,
            initial_steps=50,
            block=25,
        ),
    ),
    # E1 and E2 in full, E3 only to be seen at work: minutes on two cores.
    "demo": Config(preset="demo", e3=_SMOKE_LOOP),
    # Everything, on two cores.
    "small": Config(preset="small"),
    # The loop at the paper's scale; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=32,
        e3=loop.Config(
            env="brax/hopper",
            episode_length=1000,
            random_return=17.9,
            best_return=3000.0,  # what the loop reaches on MuJoCo's hopper
            seeds=32,
            distractors=20,
            model_hidden=(64, 64, 64),
            model_batch=1024,
            members=7,
            elites=5,
            agent_hidden=(256, 256),
            agent_batch=256,
            utd=20,
            initial_steps=5000,
            block=250,
            blocks=500,
            tuning_blocks=100,
            rollout_batch=100_000,
            target_entropy=-1.0,
        ),
    ),
}


def _studies(config: Config) -> tuple[tuple[Any, Any], ...]:
    """Each study with its configuration for the seeds asked for."""
    seeds, preset = config.seeds, PRESETS[config.preset]
    return (
        (models, seeded(config.e1, preset.e1, seeds)),
        (planning, seeded(config.e2, preset.e2, seeds)),
        (loop, replace(config.e3, seeds=min(seeds, config.e3.seeds))),
    )


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies."""
    return tuple(claim for study, sizes in _studies(config) for claim in study.claims(sizes))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Runs the three studies and judges their claims."""
    registered = registered_digests(directory)
    parts: list[tuple[Claim, Verdict]] = []
    paired: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    datasets: dict[str, Any] = {}
    for study, sizes in _studies(config):
        results, scores = study.run(sizes, directory / "checkpoints", resume, progress)
        datasets |= results
        judged = study.judge(sizes, scores, registered)
        parts += judged
        compared = study.compared(sizes)
        for claim, _ in judged:
            where = compared[claim.name]
            paired[claim.name] = scores[claim.treatment, *where], scores[claim.control, *where]
    return Outcome(
        parts=tuple(parts), paired=paired, datasets=datasets, curves=_curves(datasets, config)
    )


def _curves(datasets: dict[str, Any], config: Config) -> tuple[Curves, ...]:
    """Learning curves of E1 (value error) and E3 (return), one plot per number of distractors."""
    curves = []
    for label, data in datasets.items():
        if "arm" not in data.coords or label.endswith("-other-block"):
            continue
        study, _, distractors = label.partition("-d")
        if study == "e1":
            what = ("value_error", "log10 of the value error on test transitions")
            steps, unit = data["step"].values * config.e1.block, "optimiser steps"
        elif study == "e3":
            what = ("return", "return of the deterministic policy")
            steps = config.e3.initial_steps + data["step"].values * config.e3.block
            unit = "environment steps"
        else:
            continue
        values = data[what[0]]
        scores = {
            str(arm): np.log10(values.sel(arm=arm).values) if study == "e1"
            else values.sel(arm=arm).values
            for arm in data["arm"].values
        }  # fmt: skip
        title = f"{study.upper()}, {distractors} distractors"
        curves.append(Curves(label, title, unit, what[1], steps, scores))
    return tuple(curves)

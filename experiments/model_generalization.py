"""Generalisation by a learned model against experience replay.

Claim: where the environment is factored, values learned from a learned model's imagination are
better than values learned from replay, with equal data, network and number of updates; where there
is no structure to exploit, they are not.

Two studies: how many value functions data leave, counted exactly; and learners in an environment
with and without its factored structure.

Reference: Young, Ramesh, Kirsch, Schmidhuber (2023), The Benefits of Model-Based Generalization in
Reinforcement Learning, ICML.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests, seeded
from jaxlab.stats import Claim

from . import _model_generalization_factorial as factorial
from . import _model_generalization_theory as counting

PAPER = Paper(
    number="04",
    title="The Benefits of Model-Based Generalization in Reinforcement Learning",
    authors="Young, Ramesh, Kirsch, Schmidhuber",
    venue="ICML",
    year=2023,
)
SUMMARY = "values from a learned factored model against experience replay, structure scrambled"

# Without the relabelling, which needs at most 12 bits.
PROCMAZE = factorial.Config(
    world="procmaze", size=3, random_score=-20.04, best_score=-3.04, scrambled=False, block=1984,
    eval_lanes=32, eval_steps=100, claimed=False, required=False,
)  # fmt: skip
BUTTONGRID = replace(
    PROCMAZE, world="buttongrid", random_score=0.0314, best_score=0.2237, eval_steps=250
)


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below theory, panflute and the others."""

    preset: str
    seeds: int = 20  # paired evaluation seeds
    theory: counting.Config = counting.Config()
    panflute: factorial.Config = factorial.Config()
    procmaze: factorial.Config = PROCMAZE
    buttongrid: factorial.Config = BUTTONGRID


def _paper(config: factorial.Config) -> factorial.Config:
    """The sizes of the paper's runs with much data, apart from the scrambled condition."""
    return replace(
        config,
        learning_rates=(5e-5, 1e-4, 2e-4, 4e-4),
        model_lr=2e-4,
        temperatures=(0.1, 0.2, 0.4, 0.8, 1.6),
        hidden=(200, 200, 200),
        batch=32,
        horizon=10,
        target_every=100,
        initial_steps=1000,
        block=9990,
        blocks=100,
        claimed=True,
    )


PRESETS = {
    "smoke": Config(preset="smoke", seeds=4, theory=counting.SMOKE, panflute=factorial.SMOKE),
    "small": Config(preset="small"),
    # Needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=30,
        panflute=_paper(factorial.Config()),
        procmaze=_paper(replace(PROCMAZE, size=4, random_score=-35.47, best_score=-4.37)),
        buttongrid=_paper(BUTTONGRID),
    ),
}


def _studies(config: Config) -> tuple[counting.Config, tuple[factorial.Config, ...]]:
    """The studies' configurations for the seeds asked for."""
    seeds, preset = config.seeds, PRESETS[config.preset]
    worlds = (
        (config.panflute, preset.panflute),
        (config.procmaze, preset.procmaze),
        (config.buttongrid, preset.buttongrid),
    )
    run = tuple(seeded(world, usual, seeds) for world, usual in worlds if world.claimed)
    return seeded(config.theory, preset.theory, seeds), run


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies."""
    counts, worlds = _studies(config)
    return (*counting.claims(counts), *(c for world in worlds for c in factorial.claims(world)))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Counts, tunes and runs the learners, and judges all claims."""
    registered = registered_digests(directory)
    counts, worlds = _studies(config)
    data, statistics = counting.run(counts)
    parts = list(counting.judge(counts, statistics, registered))
    datasets: dict[str, Any] = {"theory": data}
    curves = [_count_curves(data)]
    paired: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for world in worlds:
        found, scores = factorial.run(world, directory / "checkpoints", resume, progress)
        datasets |= found
        parts += factorial.judge(world, scores, registered)
        paired |= factorial.compared(world, scores)
        curves += _learning_curves(world, scores)
    return Outcome(tuple(parts), paired, datasets, tuple(curves))


def _count_curves(data: Any) -> Curves:
    counted = {}
    for name in data["model_class"].values[1:]:
        for kind in ("model_based", "model_free"):
            values = data[kind].sel(rewards=counting.GOAL, model_class=name).values
            counted[f"{kind.replace('_', '-')}, {name}"] = np.log10(values)
    return Curves(
        "value-functions",
        "Value functions left by data, factored classes, rewarded in one state",
        "transitions",
        "log10 of the number of value functions",
        data["size"].values,
        counted,
    )


def _learning_curves(world: factorial.Config, scores: factorial.Scores) -> list[Curves]:
    steps = world.initial_steps + world.block * np.arange(1, world.blocks + 1)
    return [
        Curves(
            f"{world.world}-{condition}",
            f"{world.world} {world.size}, {condition}",
            "environment steps",
            "greedy score (uniform play 0, optimal play 1)",
            steps,
            {arm: scores[arm, condition] for arm in factorial.ARMS},
        )
        for condition in world.conditions()
    ]

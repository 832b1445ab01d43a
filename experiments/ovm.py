"""Should a guide of step-by-step search learn what comes out, or whether the steps are right?

Claim: a verifier trained with nothing but the final outcome is a value function, so that a beam
search guided by it beats one guided by labels of correct steps, and beats sampling as many whole
solutions and reranking them.

The game is countdown with four numbers, the solver a sampler that breaks the rules now and then.
Verifiers are small networks trained on its walks; beside them the exact values of the same labels
guide the same search, which shows what perfect training would give.

Reference: Yu et al. (2024), OVM, Outcome-supervised Value Models for Planning in Mathematical
Reasoning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab import ensemble
from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, guards

from . import _ovm_learned as learned

PAPER = Paper(
    number="40",
    title="OVM, Outcome-supervised Value Models for Planning in Mathematical Reasoning",
    authors="Yu, Gao, Wang",
    venue="NAACL Findings",
    year=2024,
)
SUMMARY = "outcome labels against step labels as guides of a beam search"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 20
    study: learned.Config = field(default_factory=learned.Config)
    smoke: bool = False  # too short to judge


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        study=learned.Config(
            games=20, walks=4, steps=20, block=5, batch=32, test_games=10, candidates=4, beams=2
        ),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # More games and larger networks; needs an accelerator.
    "paper": Config(
        preset="paper",
        study=learned.Config(
            games=20_000, walks=100, steps=50_000, batch=4096, lr=2e-3, embedding=64, hidden=512,
            test_games=1000,
        ),
    ),
}  # fmt: skip


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    sizes = config.study
    protocol: tuple[tuple[str, str | int | float], ...] = (
        ("tuning", "one learning rate for all labels, chosen on tuning seeds by the loss"),
        ("evaluation seeds", "from 1000"),
        ("training", f"{sizes.games} games x {sizes.walks} walks, {sizes.steps} steps"),
        ("learning rate", sizes.lr),
        ("held-out games", sizes.test_games),
        ("candidates", sizes.candidates),
        ("beams", sizes.beams),
    )
    fair = (
        Guard("sampler_is_weak", "a walk is right in less than a tenth of the cases"),
        Guard("finite", "at least 90 % of the seeds stay finite"),
    )

    def claim(name: str, statement: str, arms: tuple[str, str], threshold: float, **rest: Any):
        return Claim(
            name=name,
            statement=statement,
            metric="share of held-out games solved, at equal numbers of sampled steps",
            treatment=arms[0],
            control=arms[1],
            threshold=threshold,
            worst=0.0,
            n_seeds=max(config.seeds, 16),
            guards=fair,
            protocol=protocol,
            **rest,
        )

    return (
        claim(
            "outcomes against steps",
            "Guided by a verifier of outcomes, the search solves at least 10 points more games "
            "than by a verifier of correct steps.",
            ("ovm", "prm"),
            0.10,
        ),
        claim(
            "guiding against reranking",
            "It solves at least 3 points more games than as many whole samples reranked by the "
            "same verifier.",
            ("ovm", "rerank"),
            0.03,
        ),
        claim(
            "progress is as good",
            "Step labels that also ask whether the target is within reach guide as well as "
            "outcomes, within 5 points.",
            ("prm-o", "ovm"),
            0.05,
            kind="equivalence",
            required=False,
        ),
        claim(
            "exact: outcomes against steps",
            "With exact labels the value solves at least 30 points more than validity.",
            ("exact_value", "exact_prm"),
            0.30,
            required=False,
        ),
        claim(
            "exact: guiding against reranking",
            "With exact labels guiding solves at least 20 points more than perfect reranking.",
            ("exact_value", "exact_rerank"),
            0.20,
            required=False,
        ),
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the verifiers on every seed, searches with all guides, and judges."""
    registered = registered_digests(directory)
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    updates = config.study.steps // config.study.block
    data = ensemble.run(
        learned.make(config.study),
        steps=updates,
        seeds=seeds,
        record_every=max(1, updates // 2),
        checkpoint=directory / "checkpoints" / "verifiers",
        resume=resume,
        progress=progress,
        label="verifiers",
    )
    score = {
        str(name).removeprefix("solved_"): data[name].values[:, -1]
        for name in data.data_vars
        if str(name).startswith("solved_")
    }
    sampler = float(np.nanmean(data["sampler"].values))
    outcomes = {
        "sampler_is_weak": (sampler < 0.1, f"a walk is right with probability {sampler:.3f}"),
        "finite": guards.mostly_finite(*score.values()),
    }
    parts = []
    for claim in claims(config):
        evidence = Evidence(
            score[claim.treatment],
            score[claim.control],
            seeds,
            {} if config.smoke else outcomes,
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    curves = Curves(
        "solved",
        "Countdown, four numbers, held out",
        "optimiser steps",
        "share of games solved",
        data["step"].values * config.study.block,
        {
            name: data[f"solved_{name}"].values
            for name in ("ovm", "prm", "prm-o", "rerank", "exact_value", "exact_rerank")
        },
    )
    auc = ", ".join(
        f"{name} {float(np.nanmean(data[f'auc_{name}'].values[:, -1])):.3f}"
        for name in learned.LABELS
    )
    return Outcome(
        parts=tuple(parts),
        paired={
            claim.name: (score[claim.treatment], score[claim.control]) for claim in claims(config)
        },
        datasets={"ovm": data},
        curves=(curves,),
        notes=(
            "The solver is a random sampler and the verifiers are small networks, not language "
            "models; what is kept of the paper is the game, the labels and the search.",
            f"Order of first steps within a game (1/2 is chance): {auc}.",
        ),
    )

"""Hints where all samples fail, and an update on the prompt without them.

Claim: reinforcement learning that gives a hint to the problems of which no sample is right, and
corrects the update for the prompt without it, learns more than the same method without hints.

The paper trains language models of billions of parameters on mathematics; here a small RWKV-7 with
a bad habit learns chains of modular arithmetic, at equal numbers of sampled groups. Beside it
tables of logits show the mechanism exactly.

Reference: Nath et al. (2025), Adaptive Guidance Accelerates Reinforcement Learning of Reasoning
Models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, guards

from . import _guide_exact as tables
from . import _guide_lm as lm
from . import _guide_world as world

if TYPE_CHECKING:
    import xarray

PAPER = Paper(
    number="32",
    title="Adaptive Guidance Accelerates Reinforcement Learning of Reasoning Models",
    authors="Nath et al.",
    venue="arXiv",
    year=2025,
)
SUMMARY = "hints for problems that no sample solves, against dropping those problems"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    lm: world.Config = field(default_factory=world.Config)
    exact: tables.Config = field(default_factory=tables.Config)
    smoke: bool = False  # too short to judge


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        lm=world.Config(
            n_embd=8, head_size=8, ranks=(2, 2, 2, 2), base_steps=2, habit_steps=1, base_batch=4,
            groups=2, group=2, block=1, steps=2, rates=(1e-3,), tuning_seeds=1, problems=2,
            samples=2,
        ),
        exact=tables.Config(prompts=4, steps=40),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # Longer chains and a larger model; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=20,
        lm=world.Config(
            chain_steps=12, n_layer=4, n_embd=256, head_size=64, ranks=(32, 32, 32, 32),
            base_steps=20_000, habit_steps=2000, base_batch=256, base_lr=2e-3, groups=128,
            steps=500, rates=(1e-4, 3e-4, 1e-3), tuning_seeds=4, problems=256,
        ),
    ),
}  # fmt: skip


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    sizes = config.lm
    protocol: tuple[tuple[str, str | int | float], ...] = (
        ("tuning", "a learning rate for each arm, by pass@1 on the tuning seeds"),
        ("learning rates", " ".join(f"{rate:g}" for rate in sizes.rates)),
        ("tuning seeds", sizes.tuning_seeds),
        ("evaluation seeds", "from 1000"),
        (
            "model",
            f"RWKV-7 L{sizes.n_layer} C{sizes.n_embd}, {sizes.base_steps} steps of imitation",
        ),
        ("chains", f"{sizes.chain_steps} steps modulo {sizes.modulus}"),
        ("steps of each arm", sizes.steps),
        ("samples per step", f"{sizes.groups} groups x {sizes.group}"),
        ("held-out hard problems", sizes.problems),
        ("samples of each", sizes.samples),
    )
    fair = (
        Guard("hints_help", "the base solves at least 0.2 more hard problems with a hint"),
        Guard("groups_fail", "at the start of the control 0.3 to 0.6 of the groups fail"),
        Guard("control_learns", "the control ends at least 0.05 above the base"),
        Guard("control_has_room", "the control ends below 0.95"),
        Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    )

    def claim(name: str, statement: str, arms: tuple[str, str], threshold: float, **rest: Any):
        defaults: dict[str, Any] = {
            "metric": "pass@1 without hints on held-out hard problems, after the last step",
            "guards": fair,
            "protocol": protocol,
            "required": False,
        }
        return Claim(
            name=name,
            statement=statement,
            treatment=arms[0],
            control=arms[1],
            threshold=threshold,
            worst=0.0,
            n_seeds=max(config.seeds, 16),
            **(defaults | rest),
        )

    return (
        claim(
            "guidance",
            "Guidance with plain ratios ends at least 2 points above dropping groups without "
            "signal, at as many sampled groups.",
            ("guide", "filter"),
            0.02,
            required=True,
        ),
        claim(
            "guidance, 16 samples",
            "So it does in the share of problems that 16 samples solve.",
            ("guide", "filter"),
            0.02,
            metric="pass@16 without hints on held-out hard problems, after the last step",
        ),
        claim(
            "hints matter",
            "Hints of the problem itself end at least 2 points above hints of other problems.",
            ("guide", "guide, useless"),
            0.02,
        ),
        claim(
            "plain ratios",
            "Plain ratios end at least 2 points above shaped ones.",
            ("guide", "guide, percentile"),
            0.02,
        ),
        claim(
            "ratios at all",
            "Ratios between the two prompts end at least 2 points above none.",
            ("guide", "guide, no ratio"),
            0.02,
        ),
        claim(
            "tables: guidance",
            "On tables guidance solves at least 30 points more of the hard prompts.",
            ("guide", "grpo"),
            0.3,
            metric="exact probability of the right text of hard prompts",
            guards=(),
            protocol=(
                ("evaluation seeds", "from 1000"),
                ("prompts", config.exact.prompts),
                ("steps", config.exact.steps),
                ("learning rate", config.exact.lr),
            ),
        ),
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains bases and arms on every seed, judges, and shows the tables beside them."""
    registered = registered_digests(directory)
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    place = directory / "checkpoints"
    data, rates = lm.run(config.lm, seeds, range(config.lm.tuning_seeds), place, resume, progress)
    table = tables.run(config.exact, seeds, place, resume, progress)

    end = data.isel(step=-1)
    one = {str(arm): end["pass_at_1"].sel(arm=arm).values for arm in data["arm"].values}
    many = {str(arm): end["pass_at_16"].sel(arm=arm).values for arm in data["arm"].values}
    hard = {str(arm): table["hard"].sel(arm=arm).values[:, -1] for arm in table["arm"].values}
    scores = {"guidance, 16 samples": many, "tables: guidance": hard}
    checks = _checks(data, one)
    parts, paired = [], {}
    for claim in claims(config):
        of = scores.get(claim.name, one)
        paired[claim.name] = (of[claim.treatment], of[claim.control])
        outcomes = {guard.name: checks[guard.name] for guard in claim.guards}
        evidence = Evidence(
            *paired[claim.name],
            seeds,
            {} if config.smoke else outcomes,
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return Outcome(
        parts=tuple(parts),
        paired=paired,
        datasets={"language model": data, "tables": table},
        curves=_curves(data, table),
        notes=_notes(end, rates),
    )


def _checks(data: xarray.Dataset, one: dict[str, np.ndarray]) -> dict[str, tuple[bool, str]]:
    base = float(data["base_pass_at_1"].isel(arm=0, step=0).mean())
    helped = float(data["base_hinted_pass_at_1"].mean())
    failed = float(data["base_failed"].mean())
    control = float(np.nanmean(one["filter"]))
    return {
        "hints_help": (helped >= base + 0.2, f"{helped:.3f} with a hint, {base:.3f} without"),
        "groups_fail": (0.3 <= failed <= 0.6, f"{failed:.3f} of the groups fail"),
        "control_learns": (control >= base + 0.05, f"from {base:.3f} to {control:.3f}"),
        "control_has_room": (control < 0.95, f"the control ends at {control:.3f}"),
        "finite": guards.mostly_finite(*one.values()),
    }


def _curves(data: xarray.Dataset, table: xarray.Dataset) -> tuple[Curves, ...]:
    def curve(data: xarray.Dataset, name: str, metric: str, title: str, y: str) -> Curves:
        scores = {str(arm): data[metric].sel(arm=arm).values for arm in data["arm"].values}
        return Curves(name, title, "steps", y, data["step"].values, scores)

    return (
        curve(data, "pass-at-1", "pass_at_1", "Hard chains, held out, no hint", "pass@1"),
        curve(data, "failed", "failed", "Groups without a right sample", "share"),
        curve(table, "tables-hard", "hard", "Tables, hard prompts", "probability of being right"),
    )


def _notes(end: xarray.Dataset, rates: dict[str, float]) -> tuple[str, ...]:
    """What is not judged but told: every arm, and what it solves that it could not before."""
    lines = []
    for arm, rate in rates.items():
        numbers = {
            name: float(end[key].sel(arm=arm).mean())
            for name, key in (
                ("pass@1", "pass_at_1"), ("pass@16", "pass_at_16"), ("new at k = 16", "new_16"),
                ("distilled", "distilled_16"), ("effective share of the ratios", "effective_share"),
            )
        }  # fmt: skip
        told = ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        lines.append(f"{arm}, learning rate {rate:g}: {told}.")
    return tuple(lines)

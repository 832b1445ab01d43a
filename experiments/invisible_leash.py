"""Does reinforcement learning with verifiable rewards find new answers, or only sharpen old ones?

Claim: training by GRPO makes single attempts much better, and yet what is within reach shrinks:
more right completions fall below the reach of many samples than rise into it, and at many samples
the model that training started from solves more problems.

Two tiers. `_invisible_leash_lm`: a small RWKV-7 on countdown, where all programs can be listed, so
that every number is exact; it decides. `_invisible_leash_exact`: tables of logits, where the
mechanism can be seen alone: there problems cannot be lost, because nothing is shared between them.

Reference: Wu et al. (2025), The Invisible Leash: Why RLVR May or May Not Escape Its Origin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, guards

from . import _invisible_leash_exact as tables
from . import _invisible_leash_lm as lm

if TYPE_CHECKING:
    import xarray

PAPER = Paper(
    number="29",
    title="The Invisible Leash: Why RLVR May or May Not Escape Its Origin",
    authors="Wu, Xuan, Lu, Liu, Dong, Harchaoui, Choi",
    venue="arXiv",
    year=2025,
)
SUMMARY = "what GRPO keeps and loses of the right answers within reach"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    lm: lm.Config = field(default_factory=lm.Config)
    exact: tables.Config = field(default_factory=tables.Config)
    smoke: bool = False  # too short to judge


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        lm=lm.Config(
            n_embd=16,
            base_steps=2,
            base_batch=4,
            prompts=2,
            group=2,
            block=1,
            steps=4,
            imitation_batch=4,
            problems=4,
        ),
        exact=tables.Config(prompts=8, completions=16, steps=20),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # A larger model on more problems; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=20,
        lm=lm.Config(
            n_layer=4,
            n_embd=128,
            head_size=32,
            ranks=(16, 16, 16, 32),
            base_steps=4000,
            base_batch=128,
            base_lr=2e-3,
            prompts=64,
            group=16,
            steps=1000,
            lr=5e-4,
            imitation_batch=256,
            problems=256,
        ),
    ),
}


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    sizes = config.lm
    protocol: tuple[tuple[str, str | int | float], ...] = (
        ("tuning", "one learning rate for all arms, chosen on tuning seeds by pass@1 of GRPO"),
        ("evaluation seeds", "from 1000"),
        (
            "model",
            f"RWKV-7 L{sizes.n_layer} C{sizes.n_embd}, {sizes.base_steps} steps of imitation",
        ),
        ("steps of each arm", sizes.steps),
        ("learning rate", sizes.lr),
        ("samples per step", f"{sizes.prompts} prompts x {sizes.group}"),
        ("held-out problems", sizes.problems),
        ("probabilities", "exact, of all programs of a problem"),
        ("within reach", sizes.threshold),
    )
    table_protocol: tuple[tuple[str, str | int | float], ...] = (
        ("evaluation seeds", "from 1000"),
        ("tables", f"{config.exact.prompts} prompts x {config.exact.completions} completions"),
        ("steps", config.exact.steps),
        ("learning rate", config.exact.lr),
        ("within reach", config.exact.threshold),
    )
    room = (
        Guard("base_has_room", "the base's pass@1 is between 0.05 and 0.4"),
        Guard("base_reaches", "the base's pass@256 is at least 0.5"),
        Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    )
    count = max(config.seeds, 16)
    return (
        Claim(
            name="single attempts",
            statement="GRPO raises pass@1 on held-out problems by at least 0.2.",
            metric="exact pass@1 on held-out problems after the last step",
            treatment="grpo",
            control="base",
            threshold=0.2,
            worst=0.0,
            n_seeds=count,
            guards=room,
            protocol=protocol,
        ),
        Claim(
            name="completions within reach",
            statement="GRPO loses more right completions from reach than it brings into it.",
            metric="net change of the support, (E - S) / (P + E + S), over right completions",
            treatment="grpo",
            control="base",
            threshold=0.0,
            worst=1.0,
            kind="bound",
            n_seeds=count,
            guards=room,
            protocol=protocol,
        ),
        Claim(
            name="problems at 256 samples",
            statement="At 256 samples the base solves more held-out problems than after GRPO.",
            metric="exact pass@256 on held-out problems",
            treatment="base",
            control="grpo",
            threshold=0.0,
            worst=0.0,
            n_seeds=count,
            guards=room,
            protocol=protocol,
        ),
        Claim(
            name="imitation keeps more",
            statement="Imitating right programs changes the support by more than GRPO does.",
            metric="net change of the support over right completions",
            treatment=lm.IMITATION,
            control="grpo",
            threshold=0.0,
            worst=-1.0,
            n_seeds=count,
            required=False,
            guards=room,
            protocol=protocol,
        ),
        Claim(
            name="answer entropy falls",
            statement="The entropy over the right programs of a problem falls under GRPO.",
            metric="entropy of the exact distribution over right programs, nats",
            treatment="base",
            control="grpo",
            threshold=0.0,
            worst=-5.0,
            n_seeds=count,
            required=False,
            guards=room,
            protocol=protocol,
        ),
        Claim(
            name="tables: completions within reach",
            statement="On tables GRPO's net change of the support is at most -0.2.",
            metric="net change of the support over right completions",
            treatment="grpo",
            control="base",
            threshold=-0.2,
            worst=1.0,
            kind="bound",
            n_seeds=count,
            required=False,
            protocol=table_protocol,
        ),
        Claim(
            name="tables: the tilt keeps all",
            statement="The KL tilt, with the same pass@1, changes the support by 0.4 more.",
            metric="net change of the support over right completions",
            treatment="tilt",
            control="grpo",
            threshold=0.4,
            worst=-1.0,
            n_seeds=count,
            required=False,
            guards=(
                Guard("same_pass_at_1", "the tilt's pass@1 is within 0.1 of GRPO's"),
                Guard(
                    "no_problem_lost",
                    "no problem leaves the reach of any arm",
                    on_fail="not_reproduced",
                ),
            ),
            protocol=table_protocol,
        ),
    )


def _scores(data: xarray.Dataset, arm: str, name: str) -> np.ndarray:
    return data[name].sel(arm=arm).values[:, -1]


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the bases and all arms, judges, and shows the tables beside them."""
    registered = registered_digests(directory)
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    place = directory / "checkpoints"
    model = lm.run(config.lm, seeds, place, resume, progress)
    table = tables.run(config.exact, seeds, place, resume, progress)

    after = {name: _scores(model, "grpo", f"trained_{name}") for name in ("pass_at_1", "pass_at_k")}
    before = {name: _scores(model, "grpo", f"base_{name}") for name in ("pass_at_1", "pass_at_k")}
    change = {arm: _scores(model, arm, "completion_net_change") for arm in model["arm"].values}
    entropy = [_scores(model, "grpo", f"{who}_answer_entropy") for who in ("base", "trained")]
    of_tables = {arm: _scores(table, arm, "completion_net_change") for arm in tables.ARMS}
    pairs: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
        "single attempts": (after["pass_at_1"], before["pass_at_1"]),
        "completions within reach": (change["grpo"], None),
        "problems at 256 samples": (before["pass_at_k"], after["pass_at_k"]),
        "imitation keeps more": (change[lm.IMITATION], change["grpo"]),
        "answer entropy falls": (entropy[0], entropy[1]),
        "tables: completions within reach": (of_tables["grpo"], None),
        "tables: the tilt keeps all": (of_tables["tilt"], of_tables["grpo"]),
    }
    base, reach = (float(np.mean(before[name])) for name in ("pass_at_1", "pass_at_k"))
    room = {
        "base_has_room": (0.05 <= base <= 0.4, f"pass@1 of the base is {base:.3f}"),
        "base_reaches": (reach >= 0.5, f"pass@256 of the base is {reach:.3f}"),
        "finite": guards.mostly_finite(*change.values()),
    }
    ends = [_scores(table, arm, "trained_pass_at_1") for arm in ("tilt", "grpo")]
    gap = float(np.mean(ends[0]) - np.mean(ends[1]))
    lost = float(np.max(table["problem_shrunk"].values))
    both = {
        "same_pass_at_1": (abs(gap) <= 0.1, f"pass@1 differs by {gap:.3f}"),
        "no_problem_lost": (lost == 0, f"at most {lost:.0f} problems lost"),
    }
    parts = []
    for claim in claims(config):
        treatment, control = pairs[claim.name]
        outcomes: dict[str, Any] = {g.name: ({**room, **both})[g.name] for g in claim.guards}
        evidence = Evidence(
            treatment,
            control,
            seeds,
            {} if config.smoke else outcomes,
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return Outcome(
        parts=tuple(parts),
        paired={name: (one, two) for name, (one, two) in pairs.items() if two is not None},
        datasets={"language model": model, "tables": table},
        curves=_curves(model, table),
        notes=_notes(model),
    )


def _curves(model: xarray.Dataset, table: xarray.Dataset) -> tuple[Curves, ...]:
    def curve(data: xarray.Dataset, name: str, metric: str, title: str, y: str) -> Curves:
        scores = {str(arm): data[metric].sel(arm=arm).values for arm in data["arm"].values}
        return Curves(name, title, "steps", y, data["step"].values, scores)

    return (
        curve(model, "pass-at-1", "trained_pass_at_1", "Countdown, held out", "exact pass@1"),
        curve(model, "pass-at-k", "trained_pass_at_k", "Countdown, held out", "exact pass@256"),
        curve(
            model, "net-change", "completion_net_change", "Right programs within reach",
            "net change of the support",
        ),
        curve(
            table, "tables-net-change", "completion_net_change", "Tables of logits",
            "net change of the support",
        ),
    )  # fmt: skip


def _notes(model: xarray.Dataset) -> tuple[str, ...]:
    """What is not judged but told."""
    lines = []
    for arm in model["arm"].values:
        numbers = {
            name: float(np.nanmean(_scores(model, arm, name)))
            for name in (
                "trained_pass_at_1", "trained_pass_at_k", "completion_retention",
                "problem_net_change", "token_entropy",
            )
        }  # fmt: skip
        told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
        lines.append(f"{arm}: {told}.")
    return tuple(lines)

"""The likelihood that a model is trained on, and the return of planning with it.

Claim: the one-step likelihood of a dynamics model is no reliable proxy for the return of a planner
that uses it: whether the two agree depends on the data; a model can be changed so that the return
collapses while the likelihood stays; and a likelihood weighted towards an expert's states helps.

Reference: Lambert, Amos, Yadan, Calandra (2020), Objective Mismatch in Model-based Reinforcement
Learning, L4DC.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests, seeded
from jaxlab.stats import Claim

from . import _objective_mismatch_attack as attacking
from . import _objective_mismatch_correlation as correlating
from . import _objective_mismatch_models as models
from . import _objective_mismatch_reweighting as weighing

PAPER = Paper(
    number="20",
    title="Objective Mismatch in Model-based Reinforcement Learning",
    authors="Lambert, Amos, Yadan, Calandra",
    venue="L4DC",
    year=2020,
)
SUMMARY = "model likelihood against the return of planning: correlation, attack, re-weighting"

_CARTPOLE_ATTACK = attacking.Config(
    transitions=2000,
    control=weighing.Config().control,
    claimed=False,
)


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below the names of the studies."""

    preset: str
    seeds: int = 20
    correlation: correlating.Config = correlating.Config()
    attack: attacking.Config = attacking.Config()
    cartpole_attack: attacking.Config = _CARTPOLE_ATTACK  # too long for two cores
    reweighting: weighing.Config = weighing.Config()
    pendulum_reweighting: weighing.Config = weighing.PENDULUM  # where uniform data are dense


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=4,
        correlation=correlating.SMOKE,
        attack=attacking.SMOKE,
        reweighting=weighing.SMOKE,
        pendulum_reweighting=replace(
            weighing.SMOKE,
            control=replace(weighing.SMOKE.control, world="pendulum"),
            required=False,
        ),
    ),
    "small": Config(preset="small"),
    # More models, a longer attack and the second world; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=32,
        correlation=correlating.Config(per_kind=64, episodes=4),
        attack=attacking.Config(population=64, iterations=60, control=models.Control()),
        cartpole_attack=replace(_CARTPOLE_ATTACK, population=64, iterations=60, claimed=True),
        reweighting=weighing.Config(episodes=4),
    ),
}


def _seeded(config: Config) -> Config:
    """The studies' configurations for the seeds asked for."""
    names = ("correlation", "attack", "cartpole_attack", "reweighting", "pendulum_reweighting")
    preset = PRESETS[config.preset]
    studies = {n: seeded(getattr(config, n), getattr(preset, n), config.seeds) for n in names}
    return replace(config, **studies)


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies."""
    config = _seeded(config)
    return (
        *correlating.claims(config.correlation),
        *attacking.claims(config.attack),
        *attacking.claims(config.cartpole_attack),
        *weighing.claims(config.reweighting),
        *weighing.claims(config.pendulum_reweighting),
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Runs the studies and judges their claims."""
    registered = registered_digests(directory)
    config = _seeded(config)
    where = (directory / "checkpoints", resume, progress)
    datasets, scores = correlating.run(config.correlation, *where)
    parts = list(correlating.judge(config.correlation, scores, registered))
    statistics = correlating.statistics(scores)
    paired = {name: (t, c) for name, (t, c) in statistics.items() if c is not None}
    notes = correlating.notes(scores)
    curves = [_training_curves(config.correlation, scores)]
    for attack in (config.attack, config.cartpole_attack):
        if attack.claimed:
            found, scores = attacking.run(attack, *where)
            datasets |= found
            parts += attacking.judge(attack, scores, registered)
            paired[parts[-1][0].name] = scores["attack"], scores["random"]
            curves.append(_slack_curves(attack, found))
    for study in (config.reweighting, config.pendulum_reweighting):
        found, scores = weighing.run(study, *where)
        datasets |= found
        parts += weighing.judge(study, scores, registered)
        paired[parts[-1][0].name] = weighing.compared(study, scores)
        curves.append(_weighting_curves(study, scores))
    return Outcome(tuple(parts), paired, datasets, tuple(curves), notes)


def _training_curves(config: correlating.Config, scores: correlating.Scores) -> Curves:
    return Curves(
        "training",
        "Models of three kinds of data, trained ever longer",
        "training steps",
        "return of planning",
        correlating.training_steps(config),
        dict(zip(correlating.KINDS, scores["return"])),
        {"exact dynamics": float(scores["exact"].mean())},
    )


def _slack_curves(config: attacking.Config, found: dict[str, Any]) -> Curves:
    (data,) = found.values()
    attacked = [data[f"return_{slack:g}"].values for slack in config.slacks]
    return Curves(
        f"attack-{config.control.world}",
        f"Attack on a {config.control.world} model",
        "allowed drop of the log-likelihood, nats",
        "return of planning",
        np.asarray(config.slacks),
        {"attacked": np.stack(attacked, axis=-1)},
        {
            "before": float(data["return_before"].mean()),
            "uniform actions": config.control.random_return,
        },
    )


def _weighting_curves(config: weighing.Config, scores: weighing.Scores) -> Curves:
    rows = np.moveaxis(scores["return"], 1, 0)
    return Curves(
        f"reweighting-{config.control.world}",
        f"Re-weighting on the {config.control.world}",
        "log10 of the number of uniform transitions",
        "return (uniform actions 0, exact dynamics 1)",
        np.log10(config.counts),
        {f"c = {c:g}": row for c, row in zip(config.strengths, rows)},
    )

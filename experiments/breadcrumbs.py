"""Model breadcrumbs: merging task vectors without their largest and smallest elements.

Claim: masking both tails of each layer's task vector before summing gives a better multi-task model
than task arithmetic, and hyper-parameters tuned on few tasks keep working as tasks are added.

A masked sum is shorter, so at a fixed scale it is a smaller step. Task arithmetic with its step cut
to the very length of the masked one (per layer, and as a whole) tells the two apart; without it
the comparison says nothing about masks.

Reference: Davari, Belilovsky (2024), Model Breadcrumbs: Scaling Multi-Task Model Merging with
Sparse Masks, ECCV.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jaxlab import ensemble
from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    decide,
    evaluation_seeds,
    guards,
)

from ._breadcrumbs_arms import AGAIN, ARITHMETIC, ARMS, BREADCRUMBS, SCALES, SETTINGS
from ._breadcrumbs_trials import GLOBAL, PER_LEAF, Config, make, updates_of

PAPER = Paper(
    number="38",
    title="Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
    authors="Davari, Belilovsky",
    venue="ECCV",
    year=2024,
)
SUMMARY = "task vectors without both tails against task arithmetic, and against its shorter step"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
THRESHOLD = 0.01  # of normalised accuracy: one percent of what the tasks' own models reach

PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        counts=(2, 3),
        width=16,
        hidden=16,
        pretrain_steps=8,
        finetune_steps=8,
        training_updates=2,
        validation=16,
        test=32,
        smoke=True,
    ),
    "small": Config(preset="small"),
    # More tasks and a wider encoder; needs an accelerator.
    "paper": Config(
        preset="paper",
        counts=(4, 8, 16, 32, 64, 200),
        width=1024,
        hidden=1024,
        pretrain_steps=4000,
        finetune_steps=400,
        validation=256,
        test=2048,
    ),
}

Scores = dict[str, np.ndarray]  # name of the result -> [seeds]

_GUARDS = (
    Guard("fine_tuning_helps", "the tasks' own models beat the base by 0.1 accuracy"),
    Guard("merging_helps", "tuned task arithmetic beats the base by 0.05 at the second count"),
    Guard(
        "control_has_room", "task arithmetic of all tasks is at most at 0.98 of their own models"
    ),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard("control_against_itself", "negative control: task arithmetic on other examples ties"),
)
_LEVEL = Guard(
    "starts_level", "where it was tuned, breadcrumbs is at most 0.02 below task arithmetic"
)


def _claims(config: Config) -> dict[Claim, tuple[str, str]]:
    """Claims with the templates of the two scores that each compares, see `_score`."""
    first, most = config.counts[0], config.counts[-1]
    claim = partial(
        Claim,
        metric="accuracy over that of the task's own model, mean over the merged tasks",
        treatment=BREADCRUMBS,
        control=ARITHMETIC,
        threshold=THRESHOLD,
        worst=-1.0,
        n_seeds=max(config.seeds, 16),
        guards=_GUARDS,
        protocol=(
            ("trials of every arm and count", SETTINGS * SCALES),
            ("trials are chosen by", f"validation, {config.validation} examples of each task"),
            ("evaluation seeds", "from 1000"),
            ("tasks", ", ".join(str(n) for n in config.counts)),
            ("encoder", f"width {config.width}, two blocks of {config.hidden}"),
            ("fine-tuning steps", config.finetune_steps),
            ("pretraining steps", config.pretrain_steps),
        ),
    )
    found = {}
    for n in config.counts[1:]:
        found[
            claim(
                name=f"tuned on {n} tasks",
                statement=f"With all hyper-parameters tuned for {n} tasks, breadcrumbs is at least "
                "0.01 better than task arithmetic.",
            )
        ] = (f"tuned/{BREADCRUMBS}/{n}", f"tuned/{ARITHMETIC}/{n}")
    for control, which in (
        (ARITHMETIC, "task arithmetic"),
        (PER_LEAF, "task arithmetic with steps of the same length in every layer"),
        (GLOBAL, "task arithmetic with steps of the same length"),
    ):
        name = {ARITHMETIC: "transfer", PER_LEAF: "transfer, equal norms"}.get(
            control, "transfer, equal norm of the whole"
        )
        found[
            claim(
                name=name,
                statement=f"With hyper-parameters of {first} tasks, breadcrumbs loses at least "
                f"0.01 less on the way to {most} tasks than {which}.",
                metric=f"normalised accuracy on {most} tasks minus that on {first}",
                control=control,
                guards=(*_GUARDS, _LEVEL),
                required=control != GLOBAL,
            )
        ] = (BREADCRUMBS, control)
    found[
        claim(
            name=f"tuned on {most} tasks, equal norms",
            statement=f"On {most} tasks, tuned breadcrumbs is at least 0.01 better than task "
            "arithmetic with steps of the same length in every layer.",
            control=PER_LEAF,
            required=False,
        )
    ] = (f"tuned/{BREADCRUMBS}/{most}", f"tuned/{PER_LEAF}/{most}")
    return found


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    return tuple(_claims(config))


def _score(config: Config, scores: Scores, which: str) -> np.ndarray:
    """A result by name, or what an arm loses on the way from the first to the last count."""
    if "/" in which:
        return scores[which]
    first, most = config.counts[0], config.counts[-1]
    return scores[f"frozen/{which}/{most}"] - scores[f"frozen/{which}/{first}"]


def check(config: Config, scores: Scores) -> dict[str, GuardOutcome]:
    """Outcomes of the guards of all claims."""
    first, second, most = config.counts[0], config.counts[1], config.counts[-1]
    tuned = scores[f"tuned/{ARITHMETIC}/{most}"]
    arms = [scores[f"tuned/{arm}/{most}"] for arm in (BREADCRUMBS, ARITHMETIC)]
    seeds = evaluation_seeds(len(tuned))
    itself = Claim(
        name="itself",
        statement="",
        metric="",
        treatment=AGAIN,
        control=ARITHMETIC,
        threshold=THRESHOLD,
        worst=-1.0,
        n_seeds=max(len(seeds), 2),
    )
    again = decide(itself, Evidence(scores[f"tuned/{AGAIN}/{most}"], tuned, seeds))
    start = scores[f"frozen/{BREADCRUMBS}/{first}"] - scores[f"frozen/{ARITHMETIC}/{first}"]
    own, base = scores["fine_tuned_accuracy"], float(np.mean(scores["base_accuracy"]))
    arithmetic = scores[f"tuned/{ARITHMETIC}/{second}"]
    return {
        "fine_tuning_helps": guards.learns(own, base, 0.1),
        "merging_helps": guards.learns(arithmetic, float(np.mean(scores["base"])), 0.05),
        "control_has_room": guards.has_room(tuned, 0.0, 1.0),
        "finite": guards.mostly_finite(*arms),
        "control_against_itself": guards.negative_control(itself, again),
        "starts_level": guards.learns(start, 0.0, -0.02),
    }


def judge(
    config: Config,
    scores: Scores,
    seeds: tuple[int, ...],
    registered: Mapping[str, str],
) -> Outcome:
    """Decides all claims by the scores of a run."""
    parts, paired = [], {}
    outcomes = check(config, scores)
    for claim, names in _claims(config).items():
        treatment, control = (_score(config, scores, name) for name in names)
        needed = {} if config.smoke else {g.name: outcomes[g.name] for g in claim.guards}
        evidence = Evidence(
            treatment, control, seeds, needed, config.smoke, registered.get(claim.name)
        )
        parts.append((claim, decide(claim, evidence)))
        paired[claim.name] = treatment, control
    return Outcome(tuple(parts), paired, curves=_curves(config, scores), notes=_notes(scores))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the worlds, tunes and tests every arm in each, and judges."""
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    data = ensemble.run(
        make(config),
        steps=updates_of(config),
        seeds=seeds,
        mode="exact",  # so that each update computes its own phase only
        checkpoint=directory / "checkpoints",
        resume=resume,
        progress=progress,
        label="breadcrumbs",
    )
    last = data.isel(step=-1)
    scores = {str(name): last[name].values for name in last.data_vars if name != "died_at"}
    outcome = judge(config, scores, seeds, registered_digests(directory))
    results = last.rename({name: name.replace("/", "; ") for name in scores})
    return outcome._replace(datasets={"breadcrumbs": results})


def _curves(config: Config, scores: Scores) -> tuple[Curves, ...]:
    """Normalised accuracy against the number of tasks, tuned at each and tuned at the first."""
    base = {"the base": float(np.mean(scores["base"]))}
    shown = [arm for arm in ARMS if arm != AGAIN]
    curves = []
    for kind, arms, title in (
        ("tuned", shown, "Tuned for each number of tasks"),
        (
            "frozen",
            [ARITHMETIC, PER_LEAF, GLOBAL, BREADCRUMBS],
            f"Tuned on {config.counts[0]} tasks",
        ),
    ):
        values = {
            arm: np.stack([scores[f"{kind}/{arm}/{n}"] for n in config.counts], axis=1)
            for arm in arms
        }
        x = np.array(config.counts)
        label = "normalised accuracy, mean over merged tasks"
        curves.append(Curves(kind, title, "merged tasks", label, x, values, base))
    return tuple(curves)


def _notes(scores: Scores) -> tuple[str, ...]:
    cosine, length = (float(np.mean(scores[name])) for name in ("cosine", "relative_norm"))
    return (
        f"Task vectors: mean |cosine| of pairs {cosine:.3f}, length {length:.3f} of the base's.",
        "Networks and tasks are small and synthetic; the paper merges CLIP and T5 models.",
    )

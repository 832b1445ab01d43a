"""MAP: Pareto fronts of merged models from a quadratic surrogate of each task's metric.

Claim: a quadratic surrogate per task, fitted to a few dozen evaluated coefficient vectors, predicts
the true Pareto front of task-arithmetic merging, and at an equal number of evaluated models its
front beats direct search, the more the more tasks there are.

Every arm evaluates (n + 1)(n + 2) merged models of n tasks on one set of examples, which is twice
the unknowns of a quadratic; its front is then judged on another set. A surrogate's front needs no
further evaluation to be chosen from; for those who would evaluate its models again, a second
comparison gives direct search as many evaluations on top.

Reference: Li et al. (2025), MAP: Low-compute Model Merging with Amortized Pareto Fronts via
Quadratic Approximation, ICLR.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jaxlab import ensemble
from jaxlab.report import Curves, Fronts, Outcome, Paper, registered_digests
from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    Verdict,
    decide,
    evaluation_seeds,
    guards,
)

from ._map_pareto_world import (
    AGAIN,
    ARMS,
    DIRECT,
    DRAWN,
    FEWER,
    MAP,
    MORE,
    ORACLE,
    Config,
    budget,
    make,
    oracle_grid,
    updates_of,
)

PAPER = Paper(
    number="22",
    title="MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation",
    authors="Li, Zhang, Bu, Wang, He, Fu, Wu, Bian, Chen, Bengio",
    venue="ICLR",
    year=2025,
)
SUMMARY = "fronts of merged models from a quadratic surrogate against direct search"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
GAIN = 0.01  # of the box that reaches from chance to the tasks' own models

PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        sizes=(2, 3),
        nested=3,
        width=16,
        pretrain_steps=8,
        finetune_steps=8,
        training_updates=2,
        fit_examples=32,
        test_examples=32,
        front=6,
        held_out=8,
        population=12,
        generations=4,
        oracle=(4,),
        oracle_front=8,
        angles=9,
        smoke=True,
    ),
    "small": Config(preset="small"),
    # More models and a wider encoder; needs an accelerator.
    "paper": Config(
        preset="paper",
        sizes=(2, 3, 4, 5, 6),
        width=768,
        pretrain_steps=4000,
        finetune_steps=2000,
        fit_examples=4096,
        test_examples=8192,
        population=100,
        generations=150,
        oracle=(25, 13),
    ),
}

Scores = dict[str, np.ndarray]  # name of the result -> [seeds]

_GUARDS = (
    Guard("fine_tuning_helps", "the tasks' own models beat the base by 0.1 accuracy"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)
_COMPARED = (
    *_GUARDS,
    Guard("more_evaluations_help", "positive control: direct search beats a third of its points"),
    Guard("control_against_itself", "negative control: direct search on another lattice ties"),
)
_ROOM = Guard("control_has_room", "direct search reaches at most 0.99 of the oracle's volume")


def _claims(config: Config) -> dict[Claim, tuple[str, str | None]]:
    """Claims with the names of the results that each compares, see `_score`."""
    claim = partial(
        Claim,
        treatment=MAP,
        worst=0.0,
        n_seeds=max(config.seeds, 16),
        protocol=(
            ("evaluation seeds", "from 1000"),
            ("evaluated models", ", ".join(f"{budget(n)} of {n} tasks" for n in config.sizes)),
            ("examples to search by", config.fit_examples),
            ("examples to judge by", config.test_examples),
            ("models of a front", config.front),
            ("encoder", f"width {config.width}, two blocks"),
            ("fine-tuning steps", config.finetune_steps),
        ),
    )
    volume = "volume dominated on other examples, as a share of the box from chance to own models"
    found: dict[Claim, tuple[str, str | None]] = {}
    for n in config.sizes:
        found[
            claim(
                name=f"fit of {n} tasks",
                statement=f"A quadratic of {n} coefficients explains at least 0.9 of the variance "
                "of the losses of models that were not fitted.",
                metric="R^2 on random coefficients, mean over tasks",
                control="none",
                kind="ordering",
                threshold=0.9,
                estimator="iqm",
                guards=_GUARDS,
            )
        ] = (f"fit/loss/{n}", None)
    for n, points in zip(config.sizes, config.oracle):
        found[
            claim(
                name=f"front of {n} tasks",
                statement=f"The predicted front of {n} tasks dominates at least 0.97 of what the "
                f"best of {points**n} models do.",
                metric=f"{volume}, over that of the oracle",
                control=ORACLE,
                kind="ordering",
                threshold=0.97,
                guards=_GUARDS,
            )
        ] = (f"ratio/{MAP}/{n}", None)
    for n in config.sizes:
        room = (_ROOM,) if oracle_grid(config, n) is not None else ()
        for name, control, required in (
            (f"gain of {n} tasks", DIRECT, n >= 3),
            (f"gain of {n} tasks, front evaluated", MORE, False),
        ):
            found[
                claim(
                    name=name,
                    statement=f"With {n} tasks the predicted front dominates at least {GAIN:g} "
                    f"more of the box than {control}.",
                    metric=volume,
                    control=control,
                    threshold=GAIN,
                    guards=(*_COMPARED, *room),
                    required=required,
                )
            ] = (f"volume/{MAP}/{n}", f"volume/{control}/{n}")
    found[
        claim(
            name=f"nested, {config.nested} tasks",
            statement=f"Merging {config.nested} models pair by pair is at least 0.01 more accurate "
            "than the best of as many random coefficient vectors.",
            metric="mean accuracy over tasks on other examples",
            treatment="nested MAP",
            control=DIRECT,
            threshold=0.01,
            guards=_GUARDS,
            required=False,
        )
    ] = ("nested/mean", "nested/direct")
    return found


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    return tuple(_claims(config))


def _score(scores: Scores, which: str) -> np.ndarray:
    """A result by name; "ratio/arm/n" is the arm's volume over the oracle's."""
    if which.startswith("ratio/"):
        _, arm, n = which.split("/")
        with np.errstate(divide="ignore", invalid="ignore"):
            return scores[f"volume/{arm}/{n}"] / scores[f"volume/{ORACLE}/{n}"]
    return scores[which]


def check(config: Config, claim: Claim, scores: Scores) -> dict[str, GuardOutcome]:
    """Outcomes of a claim's guards."""
    names = _claims(config)[claim]
    arms = [_score(scores, name) for name in names if name is not None]
    base = float(np.mean(scores["base_accuracy"]))
    outcomes: dict[str, GuardOutcome] = {
        "fine_tuning_helps": guards.learns(scores["fine_tuned_accuracy"], base, 0.1),
        "finite": guards.mostly_finite(*arms),
    }
    n = names[0].rpartition("/")[2]

    def known(treatment: str, control: str, threshold: float) -> Verdict:
        first, second = (scores[f"volume/{arm}/{n}"] for arm in (treatment, control))
        return guards.decide_known(claim, first, second, threshold=threshold)

    if claim.kind == "superiority" and claim.treatment == MAP:
        outcomes["more_evaluations_help"] = guards.positive_control(known(DIRECT, FEWER, 0.0))
        outcomes["control_against_itself"] = guards.negative_control(
            claim, known(AGAIN, DIRECT, GAIN)
        )
        if f"volume/{ORACLE}/{n}" in scores:
            reached = float(np.mean(_score(scores, f"ratio/{DIRECT}/{n}")))
            outcomes["control_has_room"] = reached <= 0.99, f"direct search at {reached:.3f}"
    return outcomes


def judge(
    config: Config, scores: Scores, seeds: tuple[int, ...], registered: Mapping[str, str]
) -> Outcome:
    """Decides all claims by the scores of a run."""
    parts, paired = [], {}
    for claim, (first, second) in _claims(config).items():
        treatment = _score(scores, first)
        control = None if second is None else _score(scores, second)
        outcomes = {} if config.smoke else check(config, claim, scores)
        evidence = Evidence(
            treatment, control, seeds, outcomes, config.smoke, registered.get(claim.name)
        )
        parts.append((claim, decide(claim, evidence)))
        if control is not None:
            paired[claim.name] = treatment, control
    return Outcome(tuple(parts), paired, curves=_curves(config, scores), notes=_notes(scores))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the worlds, searches with every arm in each, and judges."""
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    experiment, folder = make(config), directory / "checkpoints"
    data = ensemble.run(
        experiment,
        steps=updates_of(config),
        seeds=seeds,
        mode="exact",  # so that each update computes its own phase only
        checkpoint=folder,
        resume=resume,
        progress=progress,
        label="map_pareto",
    )
    last = data.isel(step=-1)
    scores = {str(name): last[name].values for name in last.data_vars if name != "died_at"}
    outcome = judge(config, scores, seeds, registered_digests(directory))
    radii = ensemble.states(folder, experiment).radii
    tasks = config.sizes[0]
    fronts = Fronts(
        f"{tasks}-tasks",
        f"Fronts of {tasks} tasks, {budget(tasks)} evaluated models",
        "accuracy on task 1: 0 is chance, 1 its own model",
        "accuracy on task 2: 0 is chance, 1 its own model",
        np.linspace(0, np.pi / 2, config.angles),
        {arm: np.asarray(radii[arm]) for arm in DRAWN},
    )
    results = last.rename({name: name.replace("/", "; ") for name in scores})
    return outcome._replace(
        datasets={"map_pareto": results}, fronts=(fronts,) if tasks == 2 else ()
    )


def _curves(config: Config, scores: Scores) -> tuple[Curves, ...]:
    """Volume dominated by each arm against the number of tasks."""
    arms = [arm for arm in ARMS if arm not in (AGAIN, ORACLE)]
    values = {
        arm: np.stack([scores[f"volume/{arm}/{n}"] for n in config.sizes], axis=1) for arm in arms
    }
    title = "Front at an equal number of evaluated models"
    label = "dominated volume, share of the box up to the own models"
    return (Curves("volume", title, "merged tasks", label, np.array(config.sizes), values),)


def _notes(scores: Scores) -> tuple[str, ...]:
    nested, direct, equal, used = (
        float(np.mean(scores[f"nested/{name}"]))
        for name in ("mean", "direct", "uniform", "evaluations")
    )
    return (
        f"Nested merging: accuracy {nested:.3f} with {used:.0f} evaluations of a task; the best of "
        f"as many random vectors {direct:.3f}, of equal coefficients {equal:.3f}.",
        "Networks and tasks are small and synthetic; the paper merges CLIP and Llama models.",
    )

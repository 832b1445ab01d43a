"""Growing language models: is repeating the whole stack of layers the best way to a large one?

Claim: at equal FLOPs, the small model's included, a model grown by stacking ends at a lower loss
than one trained from scratch, and stacking is the best of the operators in depth and width.

Every run ends its own decay of the learning rate at the end of the same budget, and every arm has a
learning rate of its own. A grown model that reaches scratch's final loss does so in the middle of
its schedule, so that the speed-up reported is a low estimate.

Reference: Du et al. (2024), Stacking Your Transformers: A Closer Look at Model Growth for Efficient
LLM Pre-Training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble
from jaxlab.merging import growth
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

from . import _growth_models as gm
from . import _gstack_runs as runs

PAPER = Paper(
    number="33",
    title="Stacking Your Transformers: A Closer Look at Model Growth for Efficient LLM "
    "Pre-Training",
    authors="Du, Luo, Qiu, Huang, Shen, Cheng, Guo, Fu",
    venue="NeurIPS",
    year=2024,
)
SUMMARY = "stacked layers against training from scratch and other ways to grow, at equal FLOPs"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
WORST = -5.0  # minus the loss of a uniform guess, and a little more


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    tuning_seeds: int = 2
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)  # of each study's rate, tried by every arm
    starts: tuple[int, ...] = (2, 4)  # slices of growth: a tenth and a fifth of the budget
    studies: tuple[runs.Config, ...] = (
        runs.Config(),
        runs.Config(kind="rwkv7", depth=4, factor=2, rate=1e-2),
    )
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses growth that no run comes to: its arm would be a small model to the end."""
        for name in ("factors", "starts", "studies"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one")
        last = min(study.slices for study in self.studies) - 1
        if not all(0 < start <= last for start in self.starts):
            raise ValueError(f"starts: expected slices from 1 to {last}, got {self.starts}")


_TINY = runs.Config(width=16, head_size=8, depth=4, factor=2, batch=4, steps=8, slices=4, fade=1)
PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        tuning_seeds=1,
        factors=(1.0,),
        starts=(1, 2),
        studies=(_TINY,),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # Deeper and wider models, and growth after a fiftieth; needs an accelerator.
    "paper": Config(
        preset="paper",
        starts=(1, 5),
        studies=tuple(
            runs.Config(kind, 512, 64, 24, 4, 64, 6e-4, slices=50, steps=20_000, held_out=1024)
            for kind in ("transformer", "rwkv7")
        ),
    ),
}

Losses = dict[str, np.ndarray]  # "kind/arm/start" -> [seeds, recorded slices]
Comparison = tuple[runs.Config, int]  # study and slice of growth

_GUARDS = (
    Guard("control_learns", "scratch ends 0.3 nats below the entropy of token frequencies"),
    Guard("more_training_helps", "positive control: scratch beats half of its budget"),
    Guard("control_against_itself", "negative control: scratch on other data is not better"),
    Guard("same_cost", "all runs cost the same within 5 %"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)


def comparisons(config: Config) -> list[Comparison]:
    """Every architecture at every time of growth."""
    return [(study, start) for study in config.studies for start in config.starts]


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    count = len(comparisons(config))
    claim = partial(
        Claim,
        metric="minus the held-out loss at the end of the budget, in nats per token",
        treatment=runs.STACK,
        threshold=0.0,
        worst=WORST,
        n_seeds=max(config.seeds, 16),
        guards=_GUARDS,
        protocol=(
            ("tuning grid of the rate", ", ".join(f"{f:g} x" for f in config.factors)),
            ("tuning", "each arm at each time of growth, by the final loss"),
            ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
            ("evaluation seeds", "from 1000"),
            *(
                (
                    study.kind,
                    f"{study.depth // study.factor} to {study.depth} layers of {study.width}, "
                    f"{study.steps} steps of {study.batch} lines from scratch, rate {study.rate:g}",
                )
                for study in config.studies
            ),
            ("slices of the budget", config.studies[0].slices),
            ("growth after slices", ", ".join(str(start) for start in config.starts)),
        ),
    )
    found = [
        claim(
            name=f"{study.kind}: stack against scratch",
            statement=f"At equal FLOPs a {study.kind} grown by stacking ends at a lower loss than "
            "one from scratch, on average over times of growth.",
            control=runs.SCRATCH,
        )
        for study in config.studies
    ]
    found.append(
        claim(
            name="best operator",
            statement=f"Stacking ends at a lower loss than the best of all other operators in at "
            f"least {max(count - 1, 1)} of {count} comparisons.",
            metric="minus the loss, in that comparison which has but one with a smaller lead",
            control="best other operator",
        )
    )
    for study, start in comparisons(config):
        when = f"{study.kind} grown at {start / study.slices:.0%}"
        found += [
            claim(
                name=f"{when}: best operator",
                statement="Stacking ends at a lower loss than the best of all other operators.",
                control="best other operator",
                required=False,
            ),
            claim(
                name=f"{when}: speed-up",
                statement="Scratch's final loss is reached with at least a tenth less compute than "
                "scratch takes.",
                metric="scratch's FLOPs over those of stacking minus 1; -1 if it never gets there",
                control="none",
                kind="ordering",
                threshold=0.1,
                worst=-1.0,
                required=False,
            ),
        ]
    return tuple(found)


def name_of(study: runs.Config, arm: str, start: int) -> str:
    """Name of a run; controls do not grow."""
    return f"{study.kind}/{arm}/{0 if arm in runs.CONTROLS else start}"


def _final(losses: Losses, study: runs.Config, arm: str, start: int) -> np.ndarray:
    return -losses[name_of(study, arm, start)][:, -1]


def leads(config: Config, losses: Losses) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores of stacking and of its best rival on average over seeds, by comparison."""
    found = []
    for study, start in comparisons(config):
        rivals = [arm for arm in study.arms if arm not in (*runs.CONTROLS, runs.STACK)]
        scores = [_final(losses, study, arm, start) for arm in rivals]
        means = [np.mean(np.nan_to_num(score, nan=WORST)) for score in scores]
        found.append((_final(losses, study, runs.STACK, start), scores[int(np.argmax(means))]))
    return found


def speed_ups(losses: Losses, study: runs.Config, start: int) -> np.ndarray:
    """By seed, -1 where stacking never gets there; all recorded slices are equally dear."""
    scratch, grown = (
        jnp.asarray(losses[name_of(study, arm, start)]) for arm in (runs.SCRATCH, runs.STACK)
    )
    cost = jnp.linspace(0, 1, scratch.shape[1] + 1)[1:]
    one = jax.jit(jax.vmap(lambda a, b: growth.speedup((cost, a), (cost, b))))
    return np.nan_to_num(one(scratch, grown), nan=-1.0)


def facts(config: Config) -> dict[str, float]:
    """What guards need besides the losses.

    Args:
        config: sizes.

    Returns:
        "token_entropy" of what the solver writes, in nats, and "cost_ratio": FLOPs over scratch's,
        of the run that differs most.
    """
    ratios = [
        runs.spent(study, arm, start) / runs.spent(study, runs.SCRATCH, 0)
        for study, start in comparisons(config)
        for arm in (runs.STACK, *runs.WIDTH)
        if arm in study.arms
    ]
    return {
        "token_entropy": gm.token_entropy(),
        "cost_ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
    }


def check(config: Config, losses: Losses, known: Mapping[str, float]) -> dict[str, GuardOutcome]:
    """Outcomes of the guards, over all architectures; `known` is from `facts`."""
    scratch, half, again = (
        np.stack([_final(losses, study, arm, 0) for study in config.studies], axis=1)
        for arm in (runs.SCRATCH, runs.HALF, runs.AGAIN)
    )
    decided = partial(guards.decide_known, claims(config)[0])
    against = decided(again, scratch)
    return {
        "control_learns": guards.learns(scratch, -known["token_entropy"], 0.3),
        "more_training_helps": guards.positive_control(decided(scratch, half)),
        "control_against_itself": (
            against.status != "reproduced",
            f"scratch against itself came out {against.status}",
        ),
        "same_cost": guards.same_budget(known["cost_ratio"], 1.0),
        "finite": guards.mostly_finite(*losses.values()),
    }


def judge(
    config: Config,
    losses: Losses,
    known: Mapping[str, float],
    seeds: tuple[int, ...],
    registered: Mapping[str, str],
) -> Outcome:
    """Decides all claims by the losses of a run; `known` is from `facts`."""
    lead = leads(config, losses)
    # What all comparisons but one surpass.
    order = np.argsort([np.mean(np.nan_to_num(a - b, nan=WORST)) for a, b in lead])
    scores: list[tuple[np.ndarray, np.ndarray | None]] = [
        tuple(
            np.stack([_final(losses, study, arm, start) for start in config.starts], axis=1)
            for arm in (runs.STACK, runs.SCRATCH)
        )  # type: ignore[misc]
        for study in config.studies
    ]
    scores.append(lead[order[min(1, len(order) - 1)]])
    for pair, (study, start) in zip(lead, comparisons(config)):
        scores += [pair, (speed_ups(losses, study, start), None)]
    outcomes = {} if config.smoke else check(config, losses, known)
    parts, paired = [], {}
    for claim, (treatment, control) in zip(claims(config), scores, strict=True):
        evidence = Evidence(
            treatment, control, seeds, outcomes, config.smoke, registered.get(claim.name)
        )
        parts.append((claim, decide(claim, evidence)))
        if control is not None:
            first, second = (x.reshape(len(x), -1).mean(axis=1) for x in (treatment, control))
            paired[claim.name] = first, second
    return Outcome(tuple(parts), paired, curves=_curves(config, losses))


def _curves(config: Config, losses: Losses) -> tuple[Curves, ...]:
    """Held-out loss of the model at hand against the share of the budget that is spent."""
    curves = []
    for study, start in comparisons(config):
        arms = (runs.SCRATCH, *(arm for arm in study.arms if arm not in runs.CONTROLS))
        values = {arm: losses[name_of(study, arm, start)] for arm in arms}
        count = values[runs.SCRATCH].shape[1]
        when = f"{start / study.slices:.0%}"
        curves.append(
            Curves(
                f"{study.kind}-{start}",
                f"{study.kind}, grown after {when} of the budget",
                "share of the FLOPs",
                "held-out loss, nats per token",
                np.arange(1, count + 1) / count,
                values,
            )
        )
    return tuple(curves)


def _train(
    study: runs.Config,
    rows: list[tuple[str, int, float]],
    seeds: Any,
    name: str,
    directory: Path,
    resume: bool,
    progress: bool,
) -> np.ndarray:
    """Losses [rows, seeds, recorded slices] of runs given by arm, slice of growth and rate."""
    points = {
        "arm": jnp.asarray([runs.ARMS.index(arm) for arm, _, _ in rows], jnp.int32),
        "start": jnp.asarray([start for _, start, _ in rows], jnp.int32),
        "rate": jnp.asarray([rate for _, _, rate in rows], jnp.float32),
    }
    data = ensemble.run(
        runs.make(study),
        steps=study.slices,
        seeds=seeds,
        points=points,
        mode="exact",  # so that each slice computes the model at hand only
        record_every=2,
        checkpoint=directory / "checkpoints" / name,
        resume=resume,
        progress=progress,
        label=name,
    )
    return data["loss"].values


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Tunes every arm, trains all of them on the evaluation seeds, and judges."""
    import xarray

    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    losses: Losses = {}
    notes = []
    for study in config.studies:
        train = partial(_train, study, directory=directory, resume=resume, progress=progress)
        tuned = [(runs.SCRATCH, 0)] + [
            (arm, start)
            for arm in study.arms
            if arm not in runs.CONTROLS
            for start in config.starts
        ]
        rows = [(*run, study.rate * factor) for run in tuned for factor in config.factors]
        if len(config.factors) > 1:
            found = train(rows, range(config.tuning_seeds), f"{study.kind}-tuning")[..., -1]
            means = np.nan_to_num(found, nan=-WORST).mean(axis=1).reshape(len(tuned), -1)
            best = np.argmin(means, axis=1)
        else:
            best = np.zeros(len(tuned), int)
        rates = {run: study.rate * config.factors[i] for run, i in zip(tuned, best)}
        rates |= {(arm, 0): rates[runs.SCRATCH, 0] for arm in runs.CONTROLS}
        rows = [(*run, rate) for run, rate in rates.items()]
        for (arm, start, _), loss in zip(rows, train(rows, seeds, study.kind)):
            losses[name_of(study, arm, start)] = loss
        chosen = ", ".join(f"{arm} {start}: {rate:g}" for arm, start, rate in rows)
        notes.append(f"Rates of {study.kind} by slice of growth: {chosen}.")
    notes.append("Models and text are small and synthetic; the paper grows models of up to 7B.")
    outcome = judge(config, losses, facts(config), seeds, registered_digests(directory))
    table = {name.replace("/", "; "): (("seed", "record"), loss) for name, loss in losses.items()}
    data = xarray.Dataset(table, {"seed": list(seeds)})
    return outcome._replace(datasets={"gstack": data}, notes=tuple(notes))

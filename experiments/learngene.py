"""Learngene: do two blocks, expanded linearly in depth, initialise models of any depth?

Claim: a pair of blocks, trained once in an auxiliary model by distillation, starts models of every
depth so well that short training of each matches training from scratch for five times as long, at
less than half of the total cost. What is observed of trained networks, that layers are linear in
their depth, is judged apart: the method may work without it.

Reference: Xia et al. (2024), Transformer as Linear Expansion of Learngene, AAAI.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble
from jaxlab.report import Outcome, Paper, registered_digests
from jaxlab.stats import evaluation_seeds

from . import _learngene_runs as runs
from ._learngene_claims import WORST, Config, Results, claims, facts, judge

__all__ = ["PAPER", "PRESETS", "SUMMARY", "Config", "claims", "run"]

PAPER = Paper(
    number="36",
    title="Transformer as Linear Expansion of Learngene",
    authors="Xia, Zhang, Yang, Shu, Jin, Geng",
    venue="AAAI",
    year=2024,
)
SUMMARY = "layers expanded linearly from two blocks against training each depth from scratch"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        tuning_seeds=1,
        factors=(1.0,),
        study=runs.Config(
            width=16,
            head_size=8,
            batch=4,
            teacher_depth=4,
            teacher_steps=4,
            aux_depth=3,
            aux_steps=2,
            depths=(2, 4),
            short=4,
            blocks=2,
            parts=2,
            held_out=16,
        ),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # Wider, deeper and longer; needs an accelerator.
    "paper": Config(
        preset="paper",
        study=runs.Config(
            width=384,
            head_size=64,
            batch=64,
            teacher_depth=24,
            teacher_steps=40_000,
            aux_depth=12,
            aux_steps=20_000,
            depths=(2, 4, 6, 8, 10, 12, 14, 16),
            short=6000,
            rate=6e-4,
            held_out=1024,
        ),
    ),
}


def _ancestors(
    config: Config, seeds: Any, name: str, directory: Path, resume: bool, progress: bool
) -> tuple[runs.Ancestors, Results]:
    """Trained ancestors of all seeds, leaves [seeds, ...], and what was measured of them."""
    experiment, place = runs.make_ancestors(config.study), directory / "checkpoints" / name
    data = ensemble.run(
        experiment,
        steps=3 * config.study.parts,
        seeds=seeds,
        mode="exact",  # so that each update computes its own training only
        record_every=3 * config.study.parts,
        checkpoint=place,
        resume=resume,
        progress=progress,
        label=name,
    )
    found = {str(k): v.values[:, -1] for k, v in data.data_vars.items() if k != "died_at"}
    return jax.tree.map(jnp.asarray, ensemble.states(place, experiment)), found


def _train(
    config: Config,
    ancestors: runs.Ancestors,
    rows: list[tuple[str, int, float]],
    seed: int,
    name: str,
    directory: Path,
    resume: bool,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Results [rows, bases, records] of descendants given by arm, depth and rate.

    No seed of tuning may be one of the evaluation, or an arm from scratch would be tuned on the
    very run by which it is judged.
    """
    bases = ancestors.step.shape[0]
    every = [(row, base) for row in rows for base in range(bases)]
    points = {
        "arm": jnp.asarray([runs.ARMS.index(row[0]) for row, _ in every], jnp.int32),
        "depth": jnp.asarray([row[1] for row, _ in every], jnp.int32),
        "rate": jnp.asarray([row[2] for row, _ in every], jnp.float32),
        "base": jnp.asarray([base for _, base in every], jnp.int32),
    }
    data = ensemble.run(
        runs.make_descendants(config.study, ancestors),
        steps=runs.LONGER * config.study.blocks,
        seeds=[seed],  # each base folds its number into it
        points=points,
        mode="exact",  # so that a finished model is not trained on
        checkpoint=directory / "checkpoints" / name,
        resume=resume,
        progress=progress,
        label=name,
    )
    return {what: data[what].values.reshape(len(rows), bases, -1) for what in ("loss", "zero_shot")}


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the ancestors, tunes every arm, trains the descendants, and judges."""
    import xarray

    study = config.study
    given: Any = {"directory": directory, "resume": resume, "progress": progress}
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    rates = dict.fromkeys(runs.ARMS, study.rate * config.factors[0])
    if len(config.factors) > 1:
        arms = [arm for arm in runs.ARMS if arm != runs.AGAIN]
        before, _ = _ancestors(config, range(config.tuning_seeds), "tuning-ancestors", **given)
        rows = [
            (arm, depth, study.rate * factor)
            for arm in arms
            for factor in config.factors
            for depth in config.tuning_depths
        ]
        loss = _train(config, before, rows, 0, "tuning", **given)["loss"][..., -1]
        table = np.nan_to_num(loss, nan=-WORST).reshape(len(arms), len(config.factors), -1)
        best = np.argmin(table.mean(axis=-1), axis=1)
        rates |= {arm: study.rate * config.factors[i] for arm, i in zip(arms, best)}
        rates[runs.AGAIN] = rates[runs.SCRATCH]
    ancestors, results = _ancestors(config, seeds, "ancestors", **given)
    rows = [(arm, depth, rates[arm]) for arm in runs.ARMS for depth in study.depths]
    found = _train(config, ancestors, rows, seeds[0], "descendants", **given)
    for what, values in found.items():
        for (arm, depth, _), value in zip(rows, values):
            results[f"{what}/{arm}/{depth}"] = value[:, -1]
    outcome = judge(config, results, facts(config), seeds, registered_digests(directory))
    table = {name.replace("/", "; "): ("seed", value) for name, value in results.items()}
    chosen = "Rates: " + ", ".join(f"{arm} {rate:g}" for arm, rate in rates.items()) + "."
    return outcome._replace(
        datasets={"learngene": xarray.Dataset(table, {"seed": list(seeds)})},
        notes=(*outcome.notes, chosen),
    )

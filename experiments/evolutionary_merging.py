"""Evolving recipes of merging: does it find models that beat their sources and hand-set recipes?

Claim: evolution over the coefficients of a merge (parameter space), or over the path that data
takes through the layers of the sources (data-flow space), finds a model that beats every source,
and the best recipe set by hand from as many tries, on a task that needs skills of two sources.

Every arm tries the same number of models on one set of examples; the best of them is judged on
another. A path on top of a merge has as many tries again. A recipe by hand has one scale and one
density for all models and layers.

Reference: Akiba, Shing, Tang, Sun, Ha (2025), Evolutionary Optimization of Model Merging Recipes,
Nature Machine Intelligence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble
from jaxlab.report import Curves, Landscape, Outcome, Paper, registered_digests
from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    decide,
    evaluation_seeds,
    guards,
    iqm,
)

from . import _evolutionary_search as es
from . import _evolutionary_world as ew

PAPER = Paper(
    number="24",
    title="Evolutionary Optimization of Model Merging Recipes",
    authors="Akiba, Shing, Tang, Sun, Ha",
    venue="Nature Machine Intelligence",
    year=2025,
)
SUMMARY = "evolved merges and paths through layers against sources and recipes set by hand"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
BEST_SOURCE, BEST_HAND = "best source", "best recipe by hand"
UPPER = "upper bound"


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 32
    world: ew.Config = field(default_factory=ew.Config)
    search: es.Config = field(default_factory=es.Config)
    grid: int = 15  # points of the landscape along each weight
    smoke: bool = False  # too short to judge


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        world=ew.Config(
            width=16,
            blocks=2,
            pretrain_steps=8,
            finetune_steps=8,
            search_rows=32,
            test_rows=32,
        ),
        search=es.Config(generations=2, repeats=2, records=2),
        grid=3,
        smoke=True,
    ),
    "small": Config(preset="small"),
    # Deeper and wider models, and the paper's budget; needs an accelerator.
    "paper": Config(
        preset="paper",
        world=ew.Config(
            width=768, blocks=12, pretrain_steps=4000, finetune_steps=2000, test_rows=8192
        ),
        search=es.Config(population=128, generations=100, records=10),
    ),
}

Scores = dict[str, np.ndarray]  # "what/arm" -> [seeds, records], or a world's fact -> [seeds]

_GUARDS = (
    Guard("sources_learned", "the sources are right in 0.6 of their own tasks"),
    Guard("needs_both", "no source is right in more than 0.8 of what the upper bound is"),
    Guard("room", "the upper bound beats the best recipe by hand by 0.02"),
    Guard("training_helps", "positive control: the upper bound beats the best source"),
    Guard("search_against_itself", "negative control: another search of the same kind ties"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)


def _claims(config: Config) -> dict[Claim, tuple[str, str]]:
    """Claims with the arms that each compares."""
    claim = partial(
        Claim,
        metric="share of pairs right in both tasks, on other examples",
        threshold=0.0,
        worst=0.0,
        n_seeds=max(config.seeds, 16),
        guards=_GUARDS,
        protocol=(
            ("evaluation seeds", "from 1000"),
            ("models tried by every arm", config.search.evaluations),
            ("population", config.search.population),
            ("pairs to search by", config.world.search_rows),
            ("pairs to judge by", config.world.test_rows),
            ("encoder", f"{config.world.blocks} blocks of width {config.world.width}"),
            ("fine-tuning steps", config.world.finetune_steps),
            ("first mean and deviation", f"{es.START:g}, {es.SPREAD:.3g}"),
        ),
    )
    rows = (
        ("against the sources", es.LAYERS, BEST_SOURCE, True, "beats the best of its sources"),
        ("against recipes by hand", es.LAYERS, BEST_HAND, True,
         "beats the best of all recipes set by hand, each family with as many tries"),
        ("one group, against recipes by hand", es.ONE, BEST_HAND, False,
         "beats the best of all recipes set by hand"),
        ("per part, against recipes by hand", es.PARTS, BEST_HAND, False,
         "beats the best of all recipes set by hand"),
        ("path, against the sources", es.ROUTED, BEST_SOURCE, False,
         "beats the best of its sources"),
        ("path on top", es.BOTH, es.LAYERS, False, "beats the merge that it starts from"),
        ("one group, against random search", es.ONE, es.RANDOM_ONE, False,
         "beats random search with as many tries"),
        ("per part, against random search", es.PARTS, es.RANDOM_PARTS, False,
         "beats random search with as many tries"),
    )  # fmt: skip
    return {
        claim(
            name=name,
            statement=f"The model found by the search '{arm}' {sentence}.",
            treatment=arm,
            control=control,
            required=required,
        ): (arm, control)
        for name, arm, control, required, sentence in rows
    }


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    return tuple(_claims(config))


def final(scores: Scores, arm: str) -> np.ndarray:
    """Test scores at the end of an arm, of the best source, or of the best recipe by hand.

    Which source or recipe is best is decided in each world: of sources by the test set itself, in
    their favour, of recipes by the set that they were chosen on.
    """
    if arm == BEST_SOURCE:
        return np.maximum(scores["source 1"], scores["source 2"])
    if arm == BEST_HAND:
        found = np.stack([scores[f"search/{hand}"][:, -1] for hand in es.HAND])
        tested = np.stack([scores[f"test/{hand}"][:, -1] for hand in es.HAND])
        return np.take_along_axis(tested, np.argmax(found, axis=0)[None], axis=0)[0]
    return scores[arm] if arm == UPPER else scores[f"test/{arm}"][:, -1]


def check(config: Config, scores: Scores) -> dict[str, GuardOutcome]:
    """Outcomes of the guards."""
    source, hand, upper = (final(scores, arm) for arm in (BEST_SOURCE, BEST_HAND, UPPER))
    decided = partial(guards.decide_known, claims(config)[0])
    again = decided(final(scores, es.AGAIN), final(scores, es.LAYERS))
    share = float(np.mean(source) / np.mean(upper))
    arms = [final(scores, arm) for arm in es.ARMS]
    return {
        "sources_learned": guards.learns(scores["own"], 0.0, 0.6),
        "needs_both": (share <= 0.8, f"the best source reaches {share:.2f} of the upper bound"),
        "room": guards.learns(upper, float(np.mean(hand)), 0.02),
        "training_helps": guards.positive_control(decided(upper, source)),
        "search_against_itself": (
            again.status == "inconclusive",
            f"a search against another of its kind came out {again.status}",
        ),
        "finite": guards.mostly_finite(*arms),
    }


def judge(
    config: Config, scores: Scores, seeds: tuple[int, ...], registered: Mapping[str, str]
) -> Outcome:
    """Decides all claims by the scores of a run."""
    outcomes = {} if config.smoke else check(config, scores)
    parts, paired = [], {}
    for claim, (arm, other) in _claims(config).items():
        treatment, control = final(scores, arm), final(scores, other)
        evidence = Evidence(
            treatment, control, seeds, outcomes, config.smoke, registered.get(claim.name)
        )
        parts.append((claim, decide(claim, evidence)))
        paired[claim.name] = treatment, control
    gaps = ", ".join(
        f"{arm} {float(np.mean(scores[f'search/{arm}'][:, -1] - final(scores, arm))):.3f}"
        for arm in es.ARMS
    )
    notes = (
        f"Score by which a model was chosen minus that on other examples: {gaps}.",
        "The paper's target is a sum in a foreign language, right if number and language are. "
        "Small language models that were trained here for that did not compose at any weights, so "
        "that the target is a pair of classifications instead, right if both are.",
    )
    return Outcome(tuple(parts), paired, curves=_curves(config, scores), notes=notes)


def _curves(config: Config, scores: Scores) -> tuple[Curves, ...]:
    """Best score so far against the number of models tried, and the test score of that model."""
    shown = [arm for arm in es.ARMS if arm not in (es.AGAIN, *es.HAND)]
    # As the curves are drawn, so that heights compare.
    lines = {arm: float(iqm(final(scores, arm))) for arm in (BEST_SOURCE, BEST_HAND, UPPER)}
    named = {es.BOTH: f"{es.BOTH} ({config.search.evaluations} more)"}
    count = scores[f"test/{shown[0]}"].shape[1]
    tried = config.search.evaluations * np.arange(1, count + 1) / count
    return tuple(
        Curves(
            what,
            title,
            "models tried",
            "share of pairs right in both tasks",
            tried,
            {named.get(arm, arm): scores[f"{what}/{arm}"] for arm in shown},
            lines if what == "test" else {},
        )
        for what, title in (
            ("search", "On the examples that are searched by"),
            ("test", "On other examples"),
        )
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Trains the worlds, searches with every arm in each, and judges."""
    import xarray

    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    folder = directory / "checkpoints"
    given: Any = {"mode": "exact", "resume": resume, "progress": progress}
    trained = ew.make(config.world)
    data = ensemble.run(
        trained, steps=1, seeds=seeds, checkpoint=folder / "worlds", label="worlds", **given
    )
    scores: Scores = {str(k): v.values[:, -1] for k, v in data.data_vars.items() if k != "died_at"}
    worlds = jax.tree.map(jnp.asarray, ensemble.states(folder / "worlds", trained))
    best: dict[str, jax.Array] = {}
    hparams = {"base": jnp.arange(len(seeds), dtype=jnp.int32)}
    for number, arm in enumerate(es.ARMS):
        searched = worlds
        if arm == es.BOTH:
            # The path leads through the layers of the evolved merge and of the second source.
            merged = es.build_best(es.LAYERS, config.search, config.world, worlds, best[es.LAYERS])
            sources = jax.tree.map(
                lambda first, both: jnp.stack([first, both[:, 1]], axis=1), merged, worlds.sources
            )
            searched = ew.World(worlds.key, worlds.base, sources, worlds.both)
        experiment, place = es.make(arm, config.search, config.world, searched), f"search-{number}"
        data = ensemble.run(
            experiment,
            steps=config.search.generations,
            seeds=[0],
            points=hparams,
            record_every=config.search.generations // config.search.records,
            checkpoint=folder / place,
            label=arm,
            **given,
        )
        for what in ("search", "test"):
            scores[f"{what}/{arm}"] = data[what].values[:, 0]
        one = {"base": hparams["base"][0]}
        best[arm] = jnp.asarray(ensemble.states(folder / place, experiment, one).best)
    outcome = judge(config, scores, seeds, registered_digests(directory))
    table = {
        name.replace("/", "; "): (("seed", "record")[: value.ndim], value)
        for name, value in scores.items()
    }
    return outcome._replace(
        datasets={"evolutionary_merging": xarray.Dataset(table, {"seed": list(seeds)})},
        landscapes=(_landscape(config, worlds, best),),
    )


def _landscape(config: Config, worlds: ew.World, best: Mapping[str, jax.Array]) -> Landscape:
    """Task arithmetic over both weights, with the weights that searches of one group ended at."""
    weights = np.linspace(0, 1.5, config.grid)
    scales = np.asarray(best[es.ARITHMETIC])[:, 0]
    return Landscape(
        "weights",
        "Merging by two weights",
        "weight of source 1",
        "weight of source 2",
        "share of pairs right in both tasks",
        weights,
        weights,
        es.landscape(config.world, worlds, weights),
        {
            es.ARITHMETIC: np.stack([scales, scales], axis=1),
            es.ONE: np.asarray(best[es.ONE]).reshape(-1, 2, ew.SOURCES)[:, 0],
        },
    )

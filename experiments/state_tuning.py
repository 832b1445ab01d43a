"""Is a learned initial state worth more than a prompt, and than a larger model?

Claim: with all weights frozen, learning nothing but the recurrent state of a small RWKV-7 beats the
same model untuned and a larger one untuned; a state enlarged by a kernel's features helps further,
and decorrelating these features helps most.

Models of two sizes read episodes of hidden rules (`_state_tuning_rules`); the small one is then
tuned to one rule at a time (`_state_tuning_arms`). As no question names its rule, a larger model
that sees nothing but the question cannot know it; so that the comparison means something, the
larger model of the required claim gets worked examples in its prompt, and the bare one is told
beside it. The paper's sections on decorrelation and test-time tuning could not be read: these arms
are reconstructions, see `jaxlab.rwkv7.state_tuning`.

Reference: Liu, Li, Lin (2025), State Tuning: State-based Test-Time Scaling on RWKV-7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble, rwkv7
from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, guards

from . import _state_tuning_arms as arms
from . import _state_tuning_rules as rules

if TYPE_CHECKING:
    import xarray

PAPER = Paper(
    number="01",
    title="State Tuning: State-based Test-Time Scaling on RWKV-7",
    authors="Liu, Li, Lin",
    venue="arXiv",
    year=2025,
)
SUMMARY = "a learned initial state against prompts, a larger model, and learned weights"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
SIZES = ("small", "larger")


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    small: rules.Size = field(default_factory=rules.Size)
    larger: rules.Size = field(default_factory=lambda: rules.Size(n_embd=64))
    tuning: arms.Config = field(default_factory=arms.Config)
    mode: Literal["fast", "exact"] = "exact"  # of pretraining; "exact" is the quicker one on a CPU
    smoke: bool = False  # too short to judge


PRESETS = {
    "smoke": Config(
        preset="smoke",
        seeds=2,
        small=rules.Size(n_embd=16, steps=2, block=1, batch=2),
        larger=rules.Size(steps=2, block=1, batch=2),
        tuning=arms.Config(
            steps=2, batch=2, train=8, validation=4, test=8, support=16, inner=1, instances=2
        ),
        smoke=True,
    ),
    "small": Config(preset="small"),
    # More layers, longer training, more tuning; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=20,
        small=rules.Size(n_embd=64, head_size=32, steps=4000, batch=128, lr=5e-3),
        larger=rules.Size(n_embd=128, n_layer=4, head_size=32, steps=4000, batch=128, lr=3e-3),
        tuning=arms.Config(steps=200, support=64, instances=64),
        mode="fast",
    ),
}
Scores = dict[str, np.ndarray]  # arm -> [seeds], mean over the targets

_GUARDS = (
    Guard("skill", "with worked examples the small base gets 0.5 of the digits of shown rules"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard("weights", "no bit of the weights changed while states were tuned", on_fail="invalid"),
    Guard("read", "without the learned state's read the score is the base's", on_fail="invalid"),
)
_ROOM = Guard("room", "the control is between 0.02 and 0.98")


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    tuning = config.tuning
    protocol: tuple[tuple[str, str | int | float], ...] = (
        ("evaluation seeds", "from 1000"),
        ("small", f"RWKV-7 L{config.small.n_layer} C{config.small.n_embd}"),
        ("larger", f"RWKV-7 L{config.larger.n_layer} C{config.larger.n_embd}"),
        ("pretraining steps", config.small.steps),
        ("tuning steps", tuning.steps),
        ("rates of states", ", ".join(f"{rate:g}" for rate in tuning.state_rates)),
        ("rates are chosen by", f"{tuning.validation} other words, in every arm and seed"),
        ("words to learn from", tuning.train),
        ("support vectors", tuning.support),
        ("worked examples", tuning.shots),
        ("mixing", arms.STATES["decorrelated"].mixing),
    )

    def claim(
        name: str, statement: str, treatment: str, control: str, threshold: float = 0.0, **rest: Any
    ) -> Claim:
        return Claim(
            name=name,
            statement=statement,
            metric="share of held-out words answered without a mistake, mean of three rules",
            treatment=treatment,
            control=control,
            threshold=threshold,
            worst=0.0,
            n_seeds=max(config.seeds, 16),
            protocol=protocol,
            **{"guards": _GUARDS, **rest},
        )

    return (
        claim(
            "tuned against untuned",
            "The tuned state answers at least 5 points more words than the model untuned.",
            "state",
            "small, zero-shot",
            0.05,
        ),
        claim(
            "tuned against larger",
            "The small model with a tuned state answers more than the larger one with a prompt of "
            "worked examples.",
            "state",
            "larger, few-shot",
        ),
        claim(
            "enlarged",
            "An enlarged state answers more than the ordinary one, at equal steps.",
            "enlarged",
            "state",
            guards=(*_GUARDS, _ROOM),
        ),
        claim(
            "decorrelated",
            "Decorrelated features answer more than the enlarged state without, at equal steps.",
            "decorrelated",
            "enlarged",
            guards=(*_GUARDS, _ROOM),
        ),
        claim(
            "test time",
            "A state tuned for each problem on worked examples of its siblings answers more than "
            "the model untuned.",
            "test time",
            "small, zero-shot",
            required=False,
        ),
        claim(
            "tuned against prompted",
            "The tuned state answers more than the same model with a prompt of worked examples.",
            "state",
            "small, few-shot",
            required=False,
        ),
        claim(
            "tuned against larger, no prompt",
            "The small model with a tuned state answers more than the larger one untuned.",
            "state",
            "larger, zero-shot",
            required=False,
        ),
    )


def _pretrained(
    size: rules.Size, seeds: Sequence[int], place: Path, **options: Any
) -> tuple[Any, xarray.Dataset]:
    experiment = rules.pretraining(size)
    steps = size.steps // size.block
    curves = ensemble.run(experiment, steps=steps, seeds=seeds, checkpoint=place, **options)
    params = ensemble.states(place, experiment)["params"]
    return jax.tree.map(jnp.asarray, params), curves


class _Study:
    """Runs groups of arms on all bases and keeps their results as [seeds] arrays."""

    def __init__(self, seeds: Sequence[int], place: Path, resume: bool, progress: bool) -> None:
        self.seeds, self.place = seeds, place
        self.resume, self.progress = resume, progress
        self.found: Scores = {}

    def go(
        self,
        label: str,
        experiment: ensemble.Experiment,
        names: Sequence[str],
        numbers: dict[str, list[float]] | None = None,
    ) -> Any:
        """All arms of one program; returns the states, leaves [arms * seeds, ...]."""
        count = len(self.seeds)
        points: dict[str, Any] = {
            name: jnp.repeat(jnp.asarray(values, jnp.float32), count)
            for name, values in (numbers or {}).items()
        }
        points["base"] = jnp.tile(jnp.arange(count, dtype=jnp.int32), len(names))
        data = ensemble.run(
            experiment,
            steps=1,
            seeds=[0],
            points=points,
            checkpoint=self.place / label,
            resume=self.resume,
            progress=self.progress,
            label=label,
        )
        for metric in data.data_vars:
            if metric != "died_at":
                table = data[metric].values.reshape(len(names), count)
                for name, row in zip(names, table, strict=True):
                    self.found[f"{name}; {metric}"] = row
        one = jax.tree.map(lambda leaf: leaf[0], points)
        return ensemble.states(self.place / label, experiment, one)

    def mean(self, arm: str, metric: str) -> np.ndarray:
        """[seeds], mean over the targets."""
        return np.mean([self.found[f"{arm}; {metric}; {name}"] for name in arms.TARGETS], axis=0)


def same_bits(one: Any, two: Any) -> bool:
    """Whether two trees are equal bit for bit."""
    equal = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, two)
    return bool(jax.tree.all(equal))


def save_first(directory: Path, model: rwkv7.Config, params: Any, wkv: Any) -> str:
    """Writes weights, tuned state and vocabulary of one world for `jaxlab generate`.

    Args:
        directory: where to.
        model: sizes.
        params: weights.
        wkv: tuned state [L, H, N, N].

    Returns:
        What to type.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rwkv7.save(directory / "model.safetensors", params, model)
    shift = jnp.zeros((model.n_layer, model.n_embd))
    state = rwkv7.State(shift, jnp.asarray(wkv), shift)
    rwkv7.save_learned_state(directory / "tuned.safetensors", state, model)
    (directory / "vocabulary.txt").write_text(rules.vocabulary())
    return (
        "jaxlab generate --weights model.safetensors --state tuned.safetensors "
        f"--vocab vocabulary.txt --temperature 0 --tokens {rules.WORD} --prompt 123="
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Pretrains both sizes, tunes every arm on every seed's targets, and judges."""
    registered = registered_digests(directory)
    seeds = tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)
    place = directory / "checkpoints"
    study = _Study(seeds, place, resume, progress)
    model = config.small.model
    bases, pretraining = {}, {}
    for name, size in zip(SIZES, (config.small, config.larger), strict=True):
        bases[name], pretraining[name] = _pretrained(
            size, seeds, place / f"pretraining-{name}", mode=config.mode, resume=resume,
            progress=progress, label=f"pretraining, {name}",
        )  # fmt: skip
        study.go(name, arms.make_frozen(size.model, bases[name], config.tuning), [name])
    base = bases["small"]
    states = study.go(
        "states",
        arms.make_states(model, base, config.tuning),
        list(arms.STATES),
        {name: [getattr(arm, name) for arm in arms.STATES.values()] for name in arms.Arm._fields},
    )
    study.go("test-time", arms.make_test_time(model, base, config.tuning), ["test time"])
    for name, low_rank in (("all weights", False), ("low-rank weights", True)):
        label = name.replace(" ", "-")
        study.go(label, arms.make_weights(model, base, config.tuning, low_rank), [name])

    learned = ["test time", "all weights", "low-rank weights", *arms.STATES]
    scores = {arm: study.mean(arm, "accuracy") for arm in learned}
    for name in SIZES:
        for shots in ("zero-shot", "few-shot"):
            scores[f"{name}, {shots}"] = study.mean(name, shots)

    count = len(seeds)
    kept = [jax.tree.map(lambda x, i=i: x[i * count : (i + 1) * count], states["params"])
            for i in range(len(arms.STATES))]  # fmt: skip
    frozen = all(same_bits(base, group) for group in kept)
    off = study.mean("state", "off")
    gap = float(np.nanmax(np.abs(off - scores["small, zero-shot"])))
    skill = pretraining["small"]["few_shot_accuracy"].values[:, -1]
    first = jax.tree.map(lambda x: x[0], base)
    command = save_first(directory / "tuned", model, first, states["kept"][0])
    outcomes: dict[str, Any] = {
        "skill": guards.learns(skill, 0.0, 0.5),
        "finite": guards.mostly_finite(*scores.values()),
        "weights": (frozen, "all bits equal" if frozen else "bits differ"),
        # Other programs round otherwise, and may now and then break a tie otherwise.
        "read": (gap < 0.01, f"largest difference {gap:.3g}"),
    }
    parts = []
    for claim in claims(config):
        room = {"room": guards.has_room(scores[claim.control], 0.0, 1.0)}
        needed = {g.name: (outcomes | room)[g.name] for g in claim.guards}
        evidence = Evidence(
            scores[claim.treatment],
            scores[claim.control],
            seeds,
            {} if config.smoke else needed,
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return Outcome(
        parts=tuple(parts),
        paired={c.name: (scores[c.treatment], scores[c.control]) for c in claims(config)},
        datasets={"state_tuning": _dataset(study.found, seeds)},
        curves=_curves(pretraining, config),
        notes=_notes(study, scores, command),
    )


def _dataset(found: Scores, seeds: Sequence[int]) -> xarray.Dataset:
    import xarray

    table = {name: ("seed", values) for name, values in found.items()}
    return xarray.Dataset(table, {"seed": np.asarray(seeds)})


def _curves(pretraining: dict[str, xarray.Dataset], config: Config) -> tuple[Curves, ...]:
    if config.small.block != config.larger.block or config.small.steps != config.larger.steps:
        return ()
    steps = pretraining["small"]["step"].values * config.small.block
    scores = {name: data["few_shot_accuracy"].values for name, data in pretraining.items()}
    title = "Pretraining: digits of the last word of an episode"
    return (Curves("pretraining", title, "optimiser steps", "accuracy", steps, scores),)


def _notes(study: _Study, scores: Scores, command: str) -> tuple[str, ...]:
    """What is not judged but told."""
    told = ", ".join(f"{name} {float(np.nanmean(value)):.3f}" for name, value in scores.items())
    fall = ", ".join(f"{arm} {study.mean(arm, 'steps').mean():.0f}" for arm in arms.STATES)
    elsewhere = study.mean("state", "elsewhere").mean() - scores["small, few-shot"].mean()
    return (
        f"Words answered without a mistake: {told}.",
        f"Steps to nine tenths of the fall of the loss: {fall}.",
        f"With the tuned state, worked examples of another rule lead to {elsewhere:+.3f} more "
        "right answers than without it.",
        f"In `tuned`: {command}",
        "Not the paper's models, benchmarks or guide: rules over eight digits, and worked examples "
        "of the generator in place of a large model's; prefix tuning and a transformer are absent.",
    )

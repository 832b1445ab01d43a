"""Values from replay, from a learned model or from the true one, with structure and without.

The three learners have the same Q-network and make the same number of updates on the same number
of transitions; only the source of these differs. Each learns in the same environment twice: as it
is, and with its observation's joint states relabelled at random, which leaves the decision problem
as it was and destroys what a factored model could generalise over. Whatever a learned model gains
over replay by anything but its structure, it gains in both.

Step size and temperature are chosen for each learner and condition, with one budget for all.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import ensemble, envs
from jaxlab.agents import DynaQConfig, dyna_q
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

if TYPE_CHECKING:
    import xarray

ARMS = {"replay": "replay", "learned": "model", "perfect": "simulator"}  # arm -> source of steps
FACTORED, SCRAMBLED = CONDITIONS = ("factored", "scrambled")
OTHER_STREAM = "factored, other stream"
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
PUBLISHABLE = 16  # seeds below which no verdict is given, whatever a configuration asks for

Scores = dict[tuple[str, str], np.ndarray]  # (arm, condition) -> normalised [n_seeds, evaluations]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    world: Literal["panflute", "procmaze", "buttongrid"] = "panflute"
    size: int = 4
    random_score: float = 0.06616  # of uniform play: mean reward, or return of an episode
    best_score: float = 0.296875  # of optimal play
    scrambled: bool = True  # also with relabelled bits
    seeds: int = 20  # paired evaluation seeds
    tuning_seeds: int = 10
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    temperatures: tuple[float, ...] = (0.1, 0.4)
    model_lr: float = 3e-3  # least negative log-likelihood of all rates tried on tuning seeds
    hidden: tuple[int, ...] = (64, 64)
    batch: int = 16
    horizon: int = 5
    sampling: Literal["bernoulli", "threshold"] = "bernoulli"
    target_every: int = 25
    initial_steps: int = 160
    block: int = 384  # environment steps between two evaluations
    blocks: int = 10
    eval_lanes: int = 16
    eval_steps: int = 250
    claimed: bool = True  # whether the study is run and judged
    required: bool = True  # whether its claims count for the overall verdict
    smoke: bool = False  # too short to judge

    def conditions(self) -> tuple[str, ...]:
        """In which the learners learn."""
        return CONDITIONS if self.scrambled else (FACTORED,)


SMOKE = Config(
    seeds=4, tuning_seeds=2, learning_rates=(1e-3,), temperatures=(0.1,), block=16, blocks=2,
    eval_steps=10, smoke=True,
)  # fmt: skip


def study_seeds(config: Any) -> tuple[int, ...]:
    """Seed ids of a run: of evaluation, or, for a smoke run, ones that decide nothing ever."""
    return tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)


def make_env(config: Config) -> envs.DiscreteEnv:
    """The environment as it is."""
    build: dict[str, Callable[[int], envs.DiscreteEnv]] = {
        "panflute": envs.panflute,
        "procmaze": envs.procmaze,
        "buttongrid": partial(envs.buttongrid, buttons=2),
    }
    return build[config.world](config.size)


def family(config: Config) -> dyna_q.EnvFamily:
    """The environment with the bits' codes relabelled, by the identity unless "scrambled" is 1."""
    env = make_env(config)
    if not config.scrambled:
        return dyna_q.single(env)

    def draw(key, hparams):
        plain = jnp.arange(2**env.obs_dim, dtype=jnp.int32)
        return jnp.where(hparams["scrambled"] > 0, jax.random.permutation(key, plain), plain)

    return dyna_q.EnvFamily(draw, lambda codes: envs.relabel_bits(env, codes))


def make(config: Config, arm: str) -> ensemble.Experiment:
    """One learner; hyper-parameters "lr", "temperature", "scrambled" and "stream"."""
    learner = dyna_q.make(
        family(config),
        DynaQConfig(
            source=ARMS[arm],  # type: ignore[arg-type]
            hidden=config.hidden,
            batch=config.batch,
            horizon=config.horizon,
            sampling=config.sampling,
            initial_steps=config.initial_steps,
            block=config.block,
            target_every=config.target_every,
            capacity=config.initial_steps + config.block * config.blocks,
            eval_lanes=config.eval_lanes,
            eval_steps=config.eval_steps,
        ),
    )

    def init(key, hparams):
        key = jax.random.fold_in(key, hparams["stream"])
        return learner.init(key, {**hparams, "model_lr": jnp.float32(config.model_lr)})

    return ensemble.Experiment(init, learner.update, learner.evaluate)


def normalised(config: Config, score: np.ndarray) -> np.ndarray:
    """0 for uniform play, 1 for optimal play."""
    values = np.asarray(score, np.float64)
    return (values - config.random_score) / (config.best_score - config.random_score)


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> "tuple[dict[str, xarray.Dataset], Scores]":
    """Tunes and runs every learner, with checkpoints below a directory.

    Returns:
        Results by label, dims (arm, condition, seed, step); and normalised scores of all
        evaluations, also those of replay on other random numbers ("factored, other stream").
    """
    import xarray

    rows, tuned, scores = [], [], {}
    for arm in ARMS:
        experiment = make(config, arm)
        go = partial(_go, config, experiment, directory, f"{config.world}-{arm}", resume, progress)
        best = _tune(config, go)
        runs = [(c, 0) for c in config.conditions()]
        runs += [(FACTORED, 1)] if arm == "replay" else []
        data = go("", study_seeds(config), [(*best[c], c, stream) for c, stream in runs])
        names = [c if stream == 0 else OTHER_STREAM for c, stream in runs]
        for name, values in zip(names, data["score"].values):
            scores[arm, name] = normalised(config, values)
        plain = data.drop_vars([*_AXES, "point"]).rename(point="condition")
        plain = plain.assign_coords(condition=names).isel(condition=slice(len(best)))
        rows.append(plain.expand_dims(arm=[arm]))
        pairs = np.array([best[c] for c in config.conditions()])[None]
        coords = {"arm": [arm], "condition": list(best), "hyper": ["lr", "temperature"]}
        tuned.append(xarray.DataArray(pairs, coords, ("arm", "condition", "hyper")))
    data = xarray.concat(rows, "arm", combine_attrs="drop_conflicts")
    data["chosen"] = xarray.concat(tuned, "arm")
    return {config.world: data}, scores


_AXES = ("lr", "temperature", "scrambled", "stream")


def _go(
    config: Config,
    experiment: ensemble.Experiment,
    directory: Path,
    label: str,
    resume: bool,
    progress: bool,
    suffix: str,
    seeds: Any,
    points: list[tuple[float, float, str, int]],
) -> "xarray.Dataset":
    lr, temperature, condition, stream = zip(*points)
    return ensemble.run(
        experiment,
        steps=config.blocks,
        seeds=seeds,
        points={
            "lr": jnp.asarray(lr, jnp.float32),
            "temperature": jnp.asarray(temperature, jnp.float32),
            "scrambled": jnp.asarray([c == SCRAMBLED for c in condition], jnp.int32),
            "stream": jnp.asarray(stream, jnp.int32),
        },
        checkpoint=directory / f"{label}{suffix}",
        resume=resume,
        progress=progress,
        label=f"{label}{suffix}",
    )


def _tune(config: Config, go: Any) -> dict[str, tuple[float, float]]:
    """The pair of step size and temperature with the best mean score, per condition."""
    pairs = list(itertools.product(config.learning_rates, config.temperatures))
    if len(pairs) == 1:
        return dict.fromkeys(config.conditions(), pairs[0])
    points = [(*pair, c, 0) for c in config.conditions() for pair in pairs]
    data = go("-tuning", range(config.tuning_seeds), points)
    found = normalised(config, data["score"].values)
    found = np.where(np.isfinite(found), found, worst(config)).mean(axis=(1, 2))
    table = found.reshape(-1, len(pairs))
    return {c: pairs[int(np.argmax(row))] for c, row in zip(config.conditions(), table)}


def worst(config: Config) -> float:
    """Normalised score of a diverged seed: no reward at all, or no way out of a maze."""
    lowest = 0.0 if config.world != "procmaze" else -float(config.eval_steps)
    return round(float(normalised(config, np.asarray(lowest))), 4)


LEARNS_MARGIN = 0.1  # of the range, by which replay must be better than uniform play
PERFECT_MARGIN = 0.05  # by which the true model may seem worse than a learned one
_GUARDS = (
    Guard("control_learns", "replay is a tenth of the range better than uniform play"),
    Guard("control_has_room", "replay is neither at the ceiling nor at the floor"),
    Guard("perfect_model_is_best", "the true model is at most 0.05 worse than the learned one"),
    Guard("training_helps", "positive control: the learned model's arm ends 0.1 above its start"),
    Guard("control_against_itself", "negative control: replay on two random streams ties"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    if not config.claimed:
        return ()
    bottom = worst(config)
    name = f"{config.world} {config.size}"
    common: dict[str, Any] = {
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "required": config.required,
        "guards": _GUARDS,
        "protocol": (
            ("tuning grid of lr", ", ".join(f"{r:g}" for r in config.learning_rates)),
            ("tuning grid of temperature", ", ".join(f"{t:g}" for t in config.temperatures)),
            ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
            ("tuning criterion", "the same metric, per arm and condition"),
            ("evaluation seeds", f"from {evaluation_seeds(1)[0]}"),
            ("negative control", "another random stream of each seed"),
            ("environment steps", config.initial_steps + config.block * config.blocks),
            ("steps per update", f"{config.batch} x {config.horizon}"),
            ("network", "x".join(map(str, config.hidden))),
            ("model lr", config.model_lr),
        ),
    }
    metric = (
        f"mean over {config.blocks} evaluations of the greedy score (uniform play "
        f"{config.random_score:g} is 0, optimal play {config.best_score:g} is 1)"
    )
    better = Claim(
        name=f"{name}: a learned model against replay",
        statement="Values learned from a learned factored model's branches are worth at least a "
        "tenth of the range more than values learned from replay.",
        metric=metric,
        treatment="learned",
        control="replay",
        threshold=0.10,
        worst=bottom,
        **common,
    )
    interaction = Claim(
        name=f"{name}: the gain needs structure",
        statement="With the observation's states relabelled at random, the learned model's gain "
        "over replay is at least a fifth of the range smaller.",
        metric=f"{metric}, learned model minus replay",
        treatment=FACTORED,
        control=SCRAMBLED,
        threshold=0.20,
        worst=bottom - 1,
        **common,
    )
    return (better, interaction) if config.scrambled else (better,)


def compared(config: Config, scores: Scores) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Claim name -> treatment and control scores [n_seeds].

    A diverged learner counts as worst before a difference is taken, for otherwise a diverged
    replay would speak for the model.
    """

    def area(arm: str, condition: str) -> np.ndarray:
        values = scores[arm, condition]
        return np.where(np.isfinite(values), values, worst(config)).mean(axis=-1)

    pairs = [(area("learned", FACTORED), area("replay", FACTORED))]
    if config.scrambled:
        gains = [area("learned", c) - area("replay", c) for c in CONDITIONS]
        pairs.append((gains[0], gains[1]))
    return {claim.name: pair for claim, pair in zip(claims(config), pairs)}


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges the claims by the scores of `run`."""
    parts = []
    found = compared(config, scores) if config.claimed else {}
    for claim in claims(config):
        evidence = Evidence(
            *found[claim.name],
            study_seeds(config),
            _check(config, claim, scores),
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)


def _check(config: Config, claim: Claim, scores: Scores) -> dict[str, GuardOutcome]:
    def area(arm: str, condition: str) -> np.ndarray:
        return np.nan_to_num(scores[arm, condition], nan=worst(config)).mean(axis=-1)

    both = config.conditions() if claim.treatment == FACTORED else (FACTORED,)
    replay = min((area("replay", c) for c in both), key=np.mean)
    gaps = {
        condition: float((area("perfect", condition) - area("learned", condition)).mean())
        for condition in config.conditions()
    }
    itself = replace(claim, guards=(), n_seeds=max(config.seeds, 2), threshold=0.10)
    again = Evidence(area("replay", OTHER_STREAM), area("replay", FACTORED), study_seeds(config))
    learned = np.nan_to_num(scores["learned", FACTORED], nan=worst(config))
    return {
        "control_learns": guards.learns(replay, 0.0, LEARNS_MARGIN),
        "control_has_room": guards.has_room(area("replay", FACTORED), 0.0, 1.0),
        "perfect_model_is_best": (
            min(gaps.values()) >= -PERFECT_MARGIN,
            ", ".join(f"{c} {gap:+.3f}" for c, gap in gaps.items()),
        ),
        "training_helps": guards.learns(learned[:, -1], float(learned[:, 0].mean()), 0.1),
        "control_against_itself": guards.negative_control(itself, decide(itself, again)),
        "finite": guards.mostly_finite(*(scores[arm, FACTORED] for arm in ("learned", "replay"))),
    }

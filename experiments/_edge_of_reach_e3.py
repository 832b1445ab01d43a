"""The same at scale: data sets of brax at several levels, a learned and an exact model.

Policies are trained online, their transitions recorded, and every arm learns offline from the same
recordings with branches of five steps, in a model that is fitted to them or in the exact dynamics.
What the paper expects: with exact dynamics the base procedure and its penalty fail as with a
learned model or worse, and the minimum of many critics does not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import agents, datasets, ensemble, envs, worldmodels
from jaxlab.agents import offline
from jaxlab.datasets.recording import normalized_score
from jaxlab.stats import Claim, Guard, GuardOutcome, guards
from jaxlab.types import Transition

from . import _edge_of_reach_e1 as e1

if TYPE_CHECKING:
    import xarray

BASE, MOPO, RAVL = ARMS = "base", "mopo", "ravl"
EXACT, LEARNED = MODELS = "exact", "learned"

Scores = dict[tuple[str, str], np.ndarray]  # (arm, model) -> normalised scores [n_seeds, tasks]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults need an accelerator."""

    enabled: bool = False
    seeds: int = 16
    tasks: tuple[str, ...] = ("brax/hopper", "brax/halfcheetah", "brax/walker2d")
    levels: tuple[datasets.Level, ...] = ("random", "medium", "medium-replay")
    episode_length: int = 1000
    rows: int = 1_000_000
    training: datasets.BehaviourConfig = datasets.BehaviourConfig(
        hidden=(256, 256),
        learning_rate=3e-4,
        batch_size=256,
        utd=8,
        lanes=16,
        initial_steps=625,
        block=1250,
        blocks=50,
    )
    critics: int = 10  # of RAVL; the others have 2
    diversity: float = 1.0
    penalty: float = 2.5
    real_ratio: float = 0.05
    horizon: int = 5
    hidden: tuple[int, ...] = (256, 256, 256)
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    members: int = 7
    elites: int = 5
    model_epochs: int = 100
    rollout_batch: int = 50_000
    updates: int = 1000
    epochs: int = 1000
    batch: int = 256
    evaluate_every: int = 20
    eval_episodes: int = 8
    smoke: bool = False  # decides nothing

    def __post_init__(self) -> None:
        """Refuses levels that need no training only, as scores would have no reference."""
        if set(self.levels) <= {"random"}:
            raise ValueError(f"levels: expected one that is not 'random', got {self.levels}")


def exact_model(env: envs.Env) -> Any:
    """The environment as a one-step model, or None if its observation is its whole state."""
    name = env.spec.name.removeprefix("brax/")
    return None if env.transition_fn is not None else envs.restored_step_fn(name)


def make(config: Config, env: envs.Env, data: Transition, arm: str, model: str):
    """One arm on one data set; an update is an epoch."""
    structure = agents.OfflineConfig(
        sac=agents.SACConfig(critics=config.critics if arm == RAVL else 2, hidden=config.hidden),
        diversity=arm == RAVL,
        exact_model=model == EXACT,
        model=worldmodels.EnsembleConfig(
            members=config.members, elites=config.elites, hidden=config.model_hidden
        ),
        fit=worldmodels.FitConfig(max_epochs=config.model_epochs),
        penalty="aleatoric" if arm == MOPO else "none",
        horizon=config.horizon,
        rollout_batch=config.rollout_batch,
        updates=config.updates,
        batch_size=config.batch,
        eval_episodes=config.eval_episodes,
    )
    step_fn = exact_model(env) if model == EXACT else None
    loop = offline.make(env, structure, data, step_fn=step_fn)

    def init(key, hparams):
        fixed = {
            "real_ratio": config.real_ratio,
            "diversity_coef": config.diversity,
            "penalty_coef": config.penalty,
        }
        return loop.init(key, {**fixed, **hparams})

    return ensemble.Experiment(init, loop.update, loop.evaluate)


def recordings(config: Config, task: str, directory: Path) -> dict[str, datasets.Dataset]:
    """Data sets of a task by level, from one training; those that are on disk are read."""
    env = envs.make(task, episode_length=config.episode_length)
    paths = {
        level: directory / f"{task.replace('/', '-')}-{level}.safetensors"
        for level in config.levels
    }
    if not all(path.exists() for path in paths.values()):
        # A fixed key: the data are part of the task, the same for every seed.
        behaviour = datasets.train(jax.random.key(0), env, config.training)
        for number, (level, path) in enumerate(paths.items()):
            key = jax.random.fold_in(jax.random.key(1), number)
            datasets.save(
                path, datasets.record(behaviour, env, config.training, level, key, config.rows)
            )
    return {level: datasets.load(path) for level, path in paths.items()}


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Makes the data sets and runs every arm on each of them with both models.

    Returns:
        Results by task, level, model and arm, dims (seed, step); and normalised scores, tasks and
        levels along the last axis: mean of the last tenth of the evaluations.
    """
    results: dict[str, xarray.Dataset] = {}
    columns: dict[tuple[str, str], list[np.ndarray]] = {
        (arm, model): [] for arm in ARMS for model in MODELS
    }
    for task in config.tasks:
        env = envs.make(task, episode_length=config.episode_length)
        recorded = recordings(config, task, directory.parent / "datasets")
        # Where the environment states none, the training's last policy is the reference.
        known = (data.about["expert_return"] for data in recorded.values())
        reference = next(value for value in known if value is not None)
        for level, data in recorded.items():
            rows = jax.tree.map(jnp.asarray, data.transitions)
            for arm, model in columns:
                label = f"e3-{task.replace('/', '-')}-{level}-{model}-{arm}"
                one = ensemble.run(
                    make(config, env, rows, arm, model),
                    steps=config.epochs,
                    seeds=e1.study_seeds(config),
                    record_every=config.evaluate_every,
                    checkpoint=directory / label,
                    resume=resume,
                    progress=progress,
                    label=label,
                )
                results[label] = one
                values = one["return"].values
                last = values[:, -max(1, values.shape[1] // 10) :].mean(axis=1)
                columns[arm, model].append(
                    normalized_score(last, data.about["random_return"], reference)
                )
    return results, {where: np.stack(columns[where], axis=1) for where in columns}


_FINITE = Guard("finite", "at least 90 % of the seeds of each arm stay finite")
_LEARNS = Guard(
    "treatment_learns", "its mean score is 10 or more, or it is no cure", on_fail="not_reproduced"
)


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    common: dict[str, Any] = {
        "metric": "normalised score, mean over tasks and levels, of the last tenth of the "
        "evaluations",
        "worst": 0.0,
        "n_seeds": max(config.seeds, e1.PUBLISHABLE),
        "guards": (_FINITE, _LEARNS),
        "protocol": (
            ("tasks", ", ".join(config.tasks)),
            ("levels", ", ".join(config.levels)),
            ("rows", config.rows),
            ("branch", config.horizon),
            ("critics", config.critics),
            ("diversity", config.diversity),
            ("updates", config.updates * config.epochs),
            ("tuning", "none"),
            ("evaluation seeds", "from 1000"),
        ),
    }
    return (
        Claim(
            name="brax: RAVL with exact dynamics",
            statement="With exact dynamics, RAVL scores at least 20 more than the base.",
            treatment=f"{RAVL}, {EXACT}",
            control=f"{BASE}, {EXACT}",
            threshold=20.0,
            **common,
        ),
        Claim(
            name="brax: RAVL with a learned model",
            statement="With a learned model, RAVL scores at most 5 less than the penalty.",
            treatment=f"{RAVL}, {LEARNED}",
            control=f"{MOPO}, {LEARNED}",
            threshold=-5.0,
            **common,
        ),
    )


def evidence(claim: Claim, scores: Scores) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of treatment and control, mean over tasks and levels."""
    treatment, control = (
        scores[arm, model].mean(axis=1)
        for arm, model in (name.split(", ") for name in (claim.treatment, claim.control))
    )
    return treatment, control


def check(
    config: Config, claim: Claim, scores: Scores, results: Mapping[str, "xarray.Dataset"]
) -> dict[str, GuardOutcome]:
    """Outcomes of a claim's guards."""
    treatment, control = evidence(claim, scores)
    assert control is not None
    return {
        _FINITE.name: guards.mostly_finite(treatment, control),
        _LEARNS.name: guards.learns(np.nan_to_num(treatment), 0.0, 10.0),
    }

"""Whether a value-weighted model helps where it is used: a Dyna loop with a small dynamics model.

A soft actor-critic learns from imagined one-step branches of a small model ensemble, refitted
as data come in. The arms differ only in the loss of that model. The environment is brax's inverted
pendulum, to whose observation D distractors with linear dynamics of their own are appended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import agents, ensemble, envs, worldmodels
from jaxlab.agents import dyna
from jaxlab.stats import Claim, Evidence, Guard, GuardOutcome, Verdict, decide, guards

from . import _vagram_e1 as e1

if TYPE_CHECKING:
    import xarray

TREATMENT, CONTROL = "value_gradient", "nll"

Scores = dict[tuple[str, int, str], np.ndarray]  # (arm, distractors, metric) -> [n_seeds]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    env: str = "brax/inverted_pendulum"
    backend: str = "generalized"  # the fastest of those whose observation determines the state
    episode_length: int = 200
    random_return: float = 5.8  # of uniform actions, mean of 1024 episodes
    best_return: float = 200.0  # upright to the end
    seeds: int = 16  # at most this many paired evaluation seeds
    tuning_seeds: int = 4
    learning_rates: tuple[float, ...] = (
        3e-4,
        1e-3,
        3e-3,
        1e-2,
    )  # of the model, for every arm and D
    distractors: int = 10  # D of the distracted setting
    undistracted: bool = True  # also D = 0, with the two arms of the claim: small capacity alone
    others: tuple[str, ...] = ("mse", "iter_value_aware")  # further arms, with distractors, to show
    model_hidden: tuple[int, ...] = (8, 8)
    model_batch: int = 128
    members: int = 5
    elites: int = 3
    agent_hidden: tuple[int, ...] = (64, 64)
    agent_batch: int = 128
    utd: int = 4  # agent updates per environment step
    initial_steps: int = 250  # of the uniform policy
    block: int = 125  # environment steps between two fits of the model
    blocks: int = 22
    tuning_blocks: int = 11
    rollout_batch: int = 1000
    eval_episodes: int = 4
    target_entropy: float = -0.5
    required: bool = True  # whether the claim counts for the overall verdict
    smoke: bool = False  # too short to judge

    def worst(self) -> float:
        """Return of a diverged seed: zero, or that of uniform actions where rewards are costs."""
        return min(0.0, self.random_return)

    def settings(self) -> dict[int, tuple[str, ...]]:
        """The arms that are run, by number of distractors."""
        compared = (CONTROL, TREATMENT)
        distracted = {self.distractors: (*compared, *self.others)}
        return distracted | {0: compared} if self.undistracted else distracted


def make_env(config: Config, distractors: int) -> envs.Env:
    """The environment with D distractors, whose linear map is the same for every seed."""
    options = {"backend": config.backend} if config.env.startswith("brax/") else {}
    env = envs.make(config.env, episode_length=config.episode_length, **options)
    return envs.with_distractors(env, distractors, key=jax.random.key(0)) if distractors else env


def make(config: Config, distractors: int, arm: str) -> ensemble.Experiment:
    """The loop with one loss of the model; `hparams` holds the model's learning rate."""
    loop = dyna.make(
        make_env(config, distractors),
        agents.DynaConfig(
            sac=agents.SACConfig(hidden=config.agent_hidden),
            model=worldmodels.EnsembleConfig(
                members=config.members, elites=config.elites, hidden=config.model_hidden
            ),
            fit=worldmodels.FitConfig(batch_size=config.model_batch, max_epochs=10, patience=3),
            fit_loss=arm,  # type: ignore[arg-type]
            batch_size=config.agent_batch,
            utd=config.utd,
            capacity=config.initial_steps + config.block * config.blocks,
            initial_steps=config.initial_steps,
            model_train_freq=config.block,
            rollout_batch=config.rollout_batch,
            eval_episodes=config.eval_episodes,
        ),
    )

    def init(key, hparams):
        entropy = jnp.float32(config.target_entropy)
        return loop.init(key, {**hparams, "target_entropy": entropy})

    return ensemble.Experiment(init, loop.update, loop.evaluate)


def final_return(data: "xarray.Dataset") -> np.ndarray:
    """Mean return of the last tenth of the evaluations, over the last axis."""
    values = data["return"].values
    return values[..., -max(1, values.shape[-1] // 10) :].mean(axis=-1)


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Tunes the model's learning rate of each arm, then runs all arms on evaluation seeds.

    Args:
        config: sizes.
        directory: where checkpoints go, one folder per run of the engine.
        resume: go on from what is there.
        progress: show progress lines.

    Returns:
        Results by label, dims (arm, seed, step), step in blocks; and scores by (arm, D, metric),
        where the metrics are "return" (mean of the last tenth of the evaluations), "first" (the
        first evaluation) and, for the control, "other_block" (return on another block of seeds).
    """
    import xarray

    results: dict[str, xarray.Dataset] = {}
    scores: Scores = {}
    for distractors, arms in config.settings().items():
        rows = []
        for arm in arms:
            experiment = make(config, distractors, arm)

            def go(
                name, blocks, seeds, rates, experiment=experiment, prefix=f"e3-d{distractors}-{arm}"
            ):
                label = f"{prefix}{name}"
                return ensemble.run(
                    experiment,
                    steps=blocks,
                    seeds=seeds,
                    grid={"model_lr": rates},
                    checkpoint=directory / label,
                    resume=resume,
                    progress=progress,
                    label=label,
                )

            rates = list(config.learning_rates)
            if len(rates) > 1:
                tuning = go("-tuning", config.tuning_blocks, range(config.tuning_seeds), rates)
                score = np.nan_to_num(final_return(tuning), nan=config.worst()).mean(axis=-1)
                rates = [rates[int(np.argmax(score))]]
            data = go("", config.blocks, e1.study_seeds(config), rates).isel(model_lr=0)
            scores[arm, distractors, "return"] = final_return(data)
            scores[arm, distractors, "first"] = data["return"].values[:, 0]
            rows.append(data.reset_coords("model_lr").expand_dims(arm=[arm]))
            if arm == CONTROL and not config.smoke:
                again = go("-other-block", config.blocks, e1.other_block(config.seeds), rates)
                scores[arm, distractors, "other_block"] = final_return(again.isel(model_lr=0))
        results[f"e3-d{distractors}"] = xarray.concat(rows, "arm", combine_attrs="drop_conflicts")
    return results, scores


_GUARDS = (
    Guard("control_learns", "the control ends a tenth of the range above uniform actions"),
    Guard("control_has_room", "the control is neither at the ceiling nor at the floor"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard("training_helps", "positive control: the treatment ends above its first evaluation"),
    Guard("control_against_itself", "negative control: the control on two blocks of seeds ties"),
)


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    common: dict[str, Any] = {
        "metric": f"mean return of the last tenth of the evaluations on {config.env} "
        f"(uniform actions {config.random_return:g}, best {config.best_return:g})",
        "treatment": TREATMENT,
        "control": CONTROL,
        "threshold": round(0.2 * (config.best_return - config.random_return), 2),
        "worst": config.worst(),
        "n_seeds": max(config.seeds, e1.PUBLISHABLE),
        "guards": _GUARDS,
        "protocol": (
            ("tuning grid of model_lr", ", ".join(f"{r:g}" for r in config.learning_rates)),
            ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
            ("tuning criterion", "the same return after fewer steps, per arm and D"),
            ("tuning steps", config.initial_steps + config.block * config.tuning_blocks),
            ("evaluation seeds", "from 1000"),
            ("environment steps", config.initial_steps + config.block * config.blocks),
            ("updates per step", config.utd),
            ("model", "x".join(map(str, config.model_hidden))),
        ),
    }
    with_distractors = Claim(
        name="loop return with distractors",
        statement=f"With {config.distractors} distractors and a small model, an agent whose model "
        "is weighted by value gradients ends a fifth of the range above one whose model "
        "maximises likelihood.",
        required=config.required,
        **common,
    )
    capacity = Claim(
        name="loop return of a small model without distractors",
        statement="Without distractors, the small model weighted by value gradients is still a "
        "fifth of the range better.",
        required=False,
        **common,
    )
    return (with_distractors, capacity) if config.undistracted else (with_distractors,)


def compared(config: Config) -> dict[str, tuple[int, str]]:
    """Claim name -> (distractors, metric) of its scores."""
    names = (claim.name for claim in claims(config))
    return {name: (d, "return") for name, d in zip(names, config.settings())}


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges every claim, as its counterpart in the study of models does."""
    parts = []
    for claim in claims(config):
        distractors, metric = compared(config)[claim.name]
        evidence = Evidence(
            scores[TREATMENT, distractors, metric],
            scores[CONTROL, distractors, metric],
            e1.study_seeds(config),
            {} if config.smoke else _check(config, claim, scores, distractors),
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)


def _check(
    config: Config, claim: Claim, scores: Scores, distractors: int
) -> dict[str, GuardOutcome]:
    treatment = scores[TREATMENT, distractors, "return"]
    control = scores[CONTROL, distractors, "return"]
    worst, best = config.random_return, config.best_return
    trained = guards.decide_known(
        claim, treatment, scores[TREATMENT, distractors, "first"], threshold=0.1 * (best - worst)
    )
    itself = guards.decide_known(claim, scores[CONTROL, distractors, "other_block"], control)
    return {
        "control_learns": guards.learns(control, worst, 0.1 * (best - worst)),
        "control_has_room": guards.has_room(control, worst, best),
        "finite": guards.mostly_finite(treatment, control),
        "training_helps": guards.positive_control(trained),
        "control_against_itself": guards.negative_control(claim, itself),
    }

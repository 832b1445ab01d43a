"""The whole loop: soft actor-critic on branches of a learned model, with and without flat critics.

The environments are easy: a single model may well suffice, and then there is nothing to gain.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab import agents, ensemble, envs, worldmodels
from jaxlab.agents import dyna
from jaxlab.agents.flat_critics import CriticRegulariser
from jaxlab.envs.pendulum import EXPERT_RETURN, RANDOM_RETURN
from jaxlab.stats import evaluation_seeds

from . import _lipschitz_value_fitted as fitted_

if TYPE_CHECKING:
    import xarray


class Arm(NamedTuple):
    """The model, and what keeps the critics flat."""

    members: int  # of the model; 0 for the exact dynamics
    deterministic: bool = False
    regulariser: CriticRegulariser | None = None


ARMS = {
    "exact": Arm(0),
    "deterministic": Arm(1, deterministic=True),
    "single": Arm(1),
    "ensemble": Arm(7),
    "deterministic ensemble": Arm(7, deterministic=True),
    "single + spectral": Arm(1, regulariser="spectral"),
    "single + robust": Arm(1, regulariser="robust"),
    "ensemble + robust": Arm(7, regulariser="robust"),
}
Scores = dict[tuple[str, str], np.ndarray]  # (environment, arm) -> returns [n_seeds]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 16
    envs: tuple[str, ...] = ("pendulum",)
    # Of each environment, the return of uniform actions and of a good controller.
    ranges: tuple[tuple[float, float], ...] = ((RANDOM_RETURN, EXPERT_RETURN),)
    arms: tuple[str, ...] = (fitted_.ENSEMBLE, fitted_.ROBUST)
    model_hidden: tuple[int, ...] = (32, 32)
    model_batch: int = 128
    elites: int = 5
    agent_hidden: tuple[int, ...] = (64, 64)
    agent_batch: int = 128
    gamma: float = 0.97
    rate: float = 1e-3  # of actor, critics and temperature
    utd: int = 4  # agent updates per environment step
    initial_steps: int = 200  # of the uniform policy
    block: int = 100  # environment steps between two fits of the model
    blocks: int = 30
    rollout_batch: int = 1000
    spectral_beta: float = 10.0
    robust_coef: float = 1.0
    robust_eps: float = 0.05
    eval_episodes: int = 4
    microbatch: int = 8  # members that one call holds on a device
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses unknown arms, and environments without a range."""
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown:
            raise ValueError(f"arms: expected some of {tuple(ARMS)}, got {unknown}")
        if len(self.ranges) != len(self.envs):
            raise ValueError(
                f"ranges: expected one per environment ({len(self.envs)}), got {len(self.ranges)}"
            )

    def study_seeds(self) -> tuple[int, ...]:
        """Seed ids: of evaluation, or, for a smoke run, ones that decide nothing ever."""
        smoke = fitted_.SMOKE_SEEDS[: self.seeds]
        return tuple(smoke) if self.smoke else evaluation_seeds(self.seeds)


def make(config: Config, env_name: str, name: str) -> ensemble.Experiment:
    """The loop of one arm; an update is a block of environment steps."""
    arm = ARMS[name]
    members = max(arm.members, 1)
    return dyna.make(
        envs.make(env_name),
        agents.DynaConfig(
            sac=agents.SACConfig(hidden=config.agent_hidden, critic_regulariser=arm.regulariser),
            model=worldmodels.EnsembleConfig(
                members=members, elites=min(config.elites, members), hidden=config.model_hidden
            ),
            fit=worldmodels.FitConfig(batch_size=config.model_batch),
            fit_loss="mse" if arm.deterministic else "nll",
            exact_model=arm.members == 0,
            batch_size=config.agent_batch,
            utd=config.utd,
            capacity=config.initial_steps + config.block * config.blocks,
            initial_steps=config.initial_steps,
            model_train_freq=config.block,
            rollout_batch=config.rollout_batch,
            eval_episodes=config.eval_episodes,
        ),
    )


def final(data: "xarray.Dataset") -> np.ndarray:
    """Mean return of the last fifth of the evaluations, over the last axis."""
    returns = data["return"].values
    return returns[..., -max(1, returns.shape[-1] // 5) :].mean(axis=-1)


def run(
    config: Config, directory: Path, options: dict[str, Any]
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Runs every arm in every environment, with checkpoints below a directory.

    Returns:
        Results by environment, dims (arm, seed, step), step in blocks, and final returns.
    """
    import xarray

    hparams = {
        "gamma": config.gamma,
        "actor_lr": config.rate,
        "critic_lr": config.rate,
        "alpha_lr": config.rate,
        "spectral_beta": config.spectral_beta,
        "robust_coef": config.robust_coef,
        "robust_eps": config.robust_eps,
    }
    results: dict[str, xarray.Dataset] = {}
    scores: Scores = {}
    for env in config.envs:
        rows = []
        for name in config.arms:
            label = f"loop-{env}-{name.replace(' + ', '-').replace(' ', '-')}"
            data = ensemble.run(
                make(config, env, name),
                steps=config.blocks,
                seeds=config.study_seeds(),
                points={key: jnp.asarray([value]) for key, value in hparams.items()},
                checkpoint=directory / label,
                label=label,
                microbatch=config.microbatch,
                **options,
            ).isel(point=0, drop=True)
            scores[env, name] = final(data)
            rows.append(data.expand_dims(arm=[name]))
        results[env] = xarray.concat(rows, "arm", join="outer", combine_attrs="drop_conflicts")
    return results, scores

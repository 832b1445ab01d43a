"""Reinforcement-learning environments as pure `reset` and `step` functions."""

from jaxlab.envs.brax import brax_env
from jaxlab.envs.cartpole import cartpole_swingup
from jaxlab.envs.core import (
    Env,
    EnvSpec,
    EnvState,
    TimeStep,
    auto_reset,
    exact_step_fn,
    observed_env,
)
from jaxlab.envs.distractors import (
    distractor_matrix,
    distractor_step,
    spectral_radius,
    with_distractors,
)
from jaxlab.envs.pendulum import pendulum
from jaxlab.envs.registry import make, names
from jaxlab.envs.returns import episode_returns, uniform_policy

__all__ = [
    "Env",
    "EnvSpec",
    "EnvState",
    "TimeStep",
    "auto_reset",
    "brax_env",
    "cartpole_swingup",
    "distractor_matrix",
    "distractor_step",
    "episode_returns",
    "exact_step_fn",
    "make",
    "names",
    "observed_env",
    "pendulum",
    "spectral_radius",
    "uniform_policy",
    "with_distractors",
]

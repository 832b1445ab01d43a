"""Reinforcement-learning environments as pure `reset` and `step` functions."""

from jaxlab.envs.brax import brax_env
from jaxlab.envs.buttongrid import ButtonGridState, buttongrid
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
from jaxlab.envs.discrete import DiscreteEnv, relabel_bits, scramble_bits
from jaxlab.envs.distractors import (
    distractor_matrix,
    distractor_step,
    spectral_radius,
    with_distractors,
)
from jaxlab.envs.finite import (
    FiniteMDP,
    action_values,
    garnet,
    greedy_policy,
    optimal_value,
    policy_value,
    sample_next,
)
from jaxlab.envs.panflute import panflute, panflute_rewards
from jaxlab.envs.pendulum import pendulum
from jaxlab.envs.procmaze import ProcMazeState, carve_maze, procmaze
from jaxlab.envs.registry import make, names
from jaxlab.envs.restored import restored_step_fn
from jaxlab.envs.returns import episode_returns, uniform_policy

__all__ = [
    "ButtonGridState",
    "DiscreteEnv",
    "Env",
    "EnvSpec",
    "EnvState",
    "FiniteMDP",
    "ProcMazeState",
    "TimeStep",
    "action_values",
    "auto_reset",
    "brax_env",
    "buttongrid",
    "cartpole_swingup",
    "carve_maze",
    "distractor_matrix",
    "distractor_step",
    "episode_returns",
    "exact_step_fn",
    "garnet",
    "greedy_policy",
    "make",
    "names",
    "observed_env",
    "optimal_value",
    "panflute",
    "panflute_rewards",
    "pendulum",
    "policy_value",
    "procmaze",
    "relabel_bits",
    "restored_step_fn",
    "sample_next",
    "scramble_bits",
    "spectral_radius",
    "uniform_policy",
    "with_distractors",
]

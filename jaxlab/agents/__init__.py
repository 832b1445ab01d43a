"""Learners: soft actor-critic, replay, and Dyna with a dynamics model that may ask the critics."""

from jaxlab.agents import (
    buffers,
    dqn,
    dyna,
    dyna_q,
    fitted_value,
    flat_critics,
    interaction,
    model_fit,
    offline,
    pets,
    sac,
    squashed_gaussian,
    state_values,
)
from jaxlab.agents.buffers import Buffer
from jaxlab.agents.dqn import DQNConfig, DQNState
from jaxlab.agents.dyna import DynaState
from jaxlab.agents.dyna_config import DynaConfig, DynaHyperparams
from jaxlab.agents.dyna_q import DynaQConfig, DynaQState
from jaxlab.agents.mpc import Trajectory, mpc_episode
from jaxlab.agents.offline import BranchRow, OfflineState
from jaxlab.agents.offline_config import OfflineConfig, OfflineHyperparams
from jaxlab.agents.pets import PETSState
from jaxlab.agents.pets_config import PETSConfig, PETSHyperparams
from jaxlab.agents.sac import SACConfig, SACHyperparams, SACState

__all__ = [
    "BranchRow",
    "Buffer",
    "DQNConfig",
    "DQNState",
    "DynaConfig",
    "DynaHyperparams",
    "DynaQConfig",
    "DynaQState",
    "DynaState",
    "OfflineConfig",
    "OfflineHyperparams",
    "OfflineState",
    "PETSConfig",
    "PETSHyperparams",
    "PETSState",
    "SACConfig",
    "SACHyperparams",
    "SACState",
    "Trajectory",
    "buffers",
    "dqn",
    "dyna",
    "dyna_q",
    "fitted_value",
    "flat_critics",
    "interaction",
    "model_fit",
    "mpc_episode",
    "offline",
    "pets",
    "sac",
    "squashed_gaussian",
    "state_values",
]

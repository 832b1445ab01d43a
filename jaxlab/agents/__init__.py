"""Learners: soft actor-critic, replay, and Dyna with a dynamics model that may ask the critics."""

from jaxlab.agents import (
    buffers,
    dyna,
    interaction,
    model_fit,
    pets,
    sac,
    squashed_gaussian,
    state_values,
)
from jaxlab.agents.buffers import Buffer
from jaxlab.agents.dyna import DynaState
from jaxlab.agents.dyna_config import DynaConfig, DynaHyperparams
from jaxlab.agents.pets import PETSState
from jaxlab.agents.pets_config import PETSConfig, PETSHyperparams
from jaxlab.agents.sac import SACConfig, SACHyperparams, SACState

__all__ = [
    "Buffer",
    "DynaConfig",
    "DynaHyperparams",
    "DynaState",
    "PETSConfig",
    "PETSHyperparams",
    "PETSState",
    "SACConfig",
    "SACHyperparams",
    "SACState",
    "buffers",
    "dyna",
    "interaction",
    "model_fit",
    "pets",
    "sac",
    "squashed_gaussian",
    "state_values",
]

"""Learners: soft actor-critic, replay, and Dyna with a dynamics model that may ask the critics."""

from jaxlab.agents import buffers, dyna, model_fit, sac, squashed_gaussian, state_values
from jaxlab.agents.buffers import Buffer
from jaxlab.agents.dyna import DynaState
from jaxlab.agents.dyna_config import DynaConfig, DynaHyperparams
from jaxlab.agents.sac import SACConfig, SACHyperparams, SACState

__all__ = [
    "Buffer",
    "DynaConfig",
    "DynaHyperparams",
    "DynaState",
    "SACConfig",
    "SACHyperparams",
    "SACState",
    "buffers",
    "dyna",
    "model_fit",
    "sac",
    "squashed_gaussian",
    "state_values",
]

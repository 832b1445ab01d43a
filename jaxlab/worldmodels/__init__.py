"""Learned one-step dynamics: probabilistic ensembles, their losses, training and rollouts."""

from jaxlab.worldmodels import losses
from jaxlab.worldmodels.ensemble import (
    EnsembleConfig,
    EnsembleParams,
    ModelState,
    apply,
    bound_logvar,
    init,
)
from jaxlab.worldmodels.fit import FitConfig, fit
from jaxlab.worldmodels.objectives import (
    Batch,
    Objective,
    Prediction,
    iter_value_aware_objective,
    mse_objective,
    nll_objective,
    taylor_value_aware_objective,
    value_gradient_objective,
)
from jaxlab.worldmodels.particles import make_particle_step_fn
from jaxlab.worldmodels.propagation import make_step_fn, propagate, total_variance
from jaxlab.worldmodels.rollout import Rollout, rollout

__all__ = [
    "Batch",
    "EnsembleConfig",
    "EnsembleParams",
    "FitConfig",
    "ModelState",
    "Objective",
    "Prediction",
    "Rollout",
    "apply",
    "bound_logvar",
    "fit",
    "init",
    "iter_value_aware_objective",
    "losses",
    "make_particle_step_fn",
    "make_step_fn",
    "mse_objective",
    "nll_objective",
    "propagate",
    "rollout",
    "taylor_value_aware_objective",
    "total_variance",
    "value_gradient_objective",
]

"""Learned one-step dynamics: probabilistic ensembles, their losses, training and rollouts."""

from jaxlab.worldmodels import bernoulli, losses
from jaxlab.worldmodels.consistency import (
    consistent_value_sets,
    count_distinct,
    deterministic_optimal_values,
    label_set,
    value_labels,
)
from jaxlab.worldmodels.ensemble import (
    EnsembleConfig,
    EnsembleParams,
    ModelState,
    apply,
    bound_logvar,
    init,
)
from jaxlab.worldmodels.fit import FitConfig, fit
from jaxlab.worldmodels.likelihood import log_likelihood
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
from jaxlab.worldmodels.reach import box_edge_of_reach, edge_of_reach, level_sets, unvisited
from jaxlab.worldmodels.rollout import Rollout, discounted_return, rollout
from jaxlab.worldmodels.soft_rollout import SoftSteps, soft_rollout
from jaxlab.worldmodels.step_fit import fit_normalizers, fit_steps
from jaxlab.worldmodels.uncertainty import Uncertainty
from jaxlab.worldmodels.weighting import distance_weights, weighted_nll

__all__ = [
    "Batch",
    "EnsembleConfig",
    "EnsembleParams",
    "FitConfig",
    "ModelState",
    "Objective",
    "Prediction",
    "Rollout",
    "SoftSteps",
    "Uncertainty",
    "apply",
    "bernoulli",
    "bound_logvar",
    "box_edge_of_reach",
    "consistent_value_sets",
    "count_distinct",
    "deterministic_optimal_values",
    "discounted_return",
    "distance_weights",
    "edge_of_reach",
    "fit",
    "fit_normalizers",
    "fit_steps",
    "init",
    "iter_value_aware_objective",
    "label_set",
    "level_sets",
    "log_likelihood",
    "losses",
    "make_particle_step_fn",
    "make_step_fn",
    "mse_objective",
    "nll_objective",
    "propagate",
    "rollout",
    "soft_rollout",
    "taylor_value_aware_objective",
    "total_variance",
    "unvisited",
    "value_gradient_objective",
    "value_labels",
    "weighted_nll",
]

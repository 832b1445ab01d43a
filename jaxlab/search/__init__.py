"""Planners: pure functions that turn a way of scoring action sequences into an action sequence."""

from jaxlab.search.cem import CEMConfig, CEMInfo, CEMState, init_cem, plan_cem
from jaxlab.search.constrained import (
    ConstrainedConfig,
    ConstrainedState,
    init_constrained,
    step_constrained,
)
from jaxlab.search.icem import ICEMConfig, ICEMState, init_icem, plan_icem
from jaxlab.search.mppi import MPPIConfig, MPPIInfo, MPPIState, init_mppi, plan_mppi
from jaxlab.search.noise import coloured_noise
from jaxlab.search.planner import Planner, PlannerConfig, PlannerState, make_planner
from jaxlab.search.scoring import score_plans
from jaxlab.search.step_beam import (
    Beams,
    StepFunctions,
    best_finished,
    keep_best,
    value_guided_beam,
)

__all__ = [
    "Beams",
    "CEMConfig",
    "CEMInfo",
    "CEMState",
    "ConstrainedConfig",
    "ConstrainedState",
    "ICEMConfig",
    "ICEMState",
    "MPPIConfig",
    "MPPIInfo",
    "MPPIState",
    "Planner",
    "PlannerConfig",
    "PlannerState",
    "StepFunctions",
    "best_finished",
    "coloured_noise",
    "init_cem",
    "init_constrained",
    "init_icem",
    "init_mppi",
    "keep_best",
    "make_planner",
    "plan_cem",
    "plan_icem",
    "plan_mppi",
    "score_plans",
    "step_constrained",
    "value_guided_beam",
]

"""Planners: pure functions that turn a way of scoring action sequences into an action sequence."""

from jaxlab.search.planning import CEMConfig, CEMInfo, CEMState, init_cem, plan_cem
from jaxlab.search.scoring import score_plans

__all__ = ["CEMConfig", "CEMInfo", "CEMState", "init_cem", "plan_cem", "score_plans"]

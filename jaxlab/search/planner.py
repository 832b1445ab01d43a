"""One face for all planners, so that an agent can switch them by configuration."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlab.search.cem import CEMConfig, CEMState, init_cem, plan_cem
from jaxlab.search.icem import ICEMConfig, ICEMState, init_icem, plan_icem
from jaxlab.search.mppi import MPPIConfig, MPPIState, init_mppi, plan_mppi
from jaxlab.search.plans import EvaluateFn

PlannerConfig: TypeAlias = CEMConfig | ICEMConfig | MPPIConfig
PlannerState: TypeAlias = CEMState | ICEMState | MPPIState


class Planner(NamedTuple):
    """A planner whose sizes are fixed and whose hyper-parameters may be swept."""

    init: Callable[[], PlannerState]
    # (key, evaluate, state, hyper-parameters by name) -> plan, next state, scalars by name
    plan: Callable[
        [PRNGKeyArray, EvaluateFn, Any, Mapping[str, Any]],
        tuple[Float[Array, "H a"], Any, dict[str, Float[Array, ""]]],
    ]
    hyperparams: dict[str, float]  # names and defaults


def make_planner(config: PlannerConfig, *, low: float = -1.0, high: float = 1.0) -> Planner:
    """Makes the planner that a configuration describes.

    Args:
        config: sizes; its type chooses the method.
        low: smallest action component.
        high: largest action component.

    Returns:
        The planner. The scalars that it reports are "planned_return" (of the last iteration's
        elites, or the weighted mean) and "finite_fraction" (over all iterations).

    Raises:
        ValueError: if `config` is of no planner.
    """
    bounds = {"low": low, "high": high}
    init: Any
    method: Any
    if isinstance(config, CEMConfig):
        init, method, field = init_cem, plan_cem, "elite_return"
        defaults = {"sigma": 0.5, "alpha": 0.1}
    elif isinstance(config, ICEMConfig):
        init, method, field = init_icem, plan_icem, "elite_return"
        defaults = {"sigma": 0.5, "alpha": 0.1, "noise_beta": 2.0}
    elif isinstance(config, MPPIConfig):
        init, method, field = init_mppi, plan_mppi, "mean_return"
        defaults = {"sigma": 0.5, "gamma": 1.0, "beta": 0.8}
    else:
        raise ValueError(f"config: expected the configuration of a planner, got {config!r}")

    def plan(
        key: PRNGKeyArray, evaluate: EvaluateFn, state: Any, hyperparams: Mapping[str, Any]
    ) -> tuple[Float[Array, "H a"], Any, dict[str, Float[Array, ""]]]:
        actions, state, info = method(key, evaluate, state, config, **hyperparams, **bounds)
        report = {
            "planned_return": getattr(info, field)[-1],
            "finite_fraction": jnp.mean(info.finite_fraction),
        }
        return actions, state, jax.lax.stop_gradient(report)

    return Planner(init=lambda: init(config, **bounds), plan=plan, hyperparams=defaults)

"""Static configuration and traced hyper-parameters of planning with a learned model."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab import search, worldmodels

Propagation = Literal["ts1", "ts_inf"]


@dataclasses.dataclass(frozen=True)
class PETSConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code."""

    planner: search.PlannerConfig  # its type chooses the method
    model: worldmodels.EnsembleConfig = dataclasses.field(
        default_factory=worldmodels.EnsembleConfig
    )
    fit: worldmodels.FitConfig = dataclasses.field(default_factory=worldmodels.FitConfig)
    propagation: Propagation = "ts_inf"
    particles: int = 20  # rollouts per plan; a multiple of the elites
    exact_model: bool = False  # plan in the environment itself; nothing is fitted
    capacity: int = 20_000  # transitions kept
    initial_steps: int = 200  # environment steps with uniform actions before the first block
    model_train_freq: int = 200  # environment steps of a block
    eval_episodes: int = 1  # planned ones: as expensive as the steps of the agent

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        if self.propagation not in get_args(Propagation):
            raise ValueError(
                f"propagation: expected one of {get_args(Propagation)}, got {self.propagation!r}"
            )
        for name in ("particles", "capacity", "model_train_freq", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.initial_steps < 2:
            raise ValueError(
                "initial_steps: expected at least 2 (one row to fit, one to hold out), "
                f"got {self.initial_steps}"
            )
        if not self.exact_model and self.particles % self.model.elites:
            raise ValueError(
                f"particles: expected a multiple of the {self.model.elites} elites, "
                f"got {self.particles}"
            )


@flax.struct.dataclass
class PETSHyperparams:
    """What one may sweep: traced scalars."""

    model_lr: Float[Array, ""]
    planner: dict[str, Float[Array, ""]]  # by the names of the planner's own


def hyperparams(
    overrides: Mapping[str, float | Float[Array, ""]] | None, config: PETSConfig
) -> PETSHyperparams:
    """Completes a dict of hyper-parameters by the defaults.

    Args:
        overrides: "model_lr" and some of the planner's, by name.
        config: its planner says which ones there are.

    Returns:
        float32 scalars.

    Raises:
        ValueError: if a name is unknown.
    """
    defaults = {"model_lr": 1e-3} | search.make_planner(config.planner).hyperparams
    unknown = sorted(set(overrides or {}) - set(defaults))
    if unknown:
        raise ValueError(f"hparams: unknown {unknown}, expected among {sorted(defaults)}")
    scalars = {
        k: jnp.asarray(v, jnp.float32) for k, v in (defaults | dict(overrides or {})).items()
    }
    return PETSHyperparams(model_lr=scalars.pop("model_lr"), planner=scalars)

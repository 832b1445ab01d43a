"""Static configuration and traced hyper-parameters of the Dyna loop."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import flax.struct
from jaxtyping import Array, Float

from jaxlab import worldmodels
from jaxlab.agents.sac_config import SACConfig, SACHyperparams, with_sac

FitLoss = Literal["nll", "mse", "value_gradient", "taylor_value_aware", "iter_value_aware"]


@dataclasses.dataclass(frozen=True)
class DynaConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code.

    The model's `deterministic` follows from `fit_loss`: only the likelihood has a log-variance.
    """

    # Networks and training.
    sac: SACConfig = dataclasses.field(default_factory=SACConfig)
    model: worldmodels.EnsembleConfig = dataclasses.field(
        default_factory=worldmodels.EnsembleConfig
    )
    fit: worldmodels.FitConfig = dataclasses.field(default_factory=worldmodels.FitConfig)
    batch_size: int = 256  # rows of an agent's update
    utd: int = 10  # agent's updates per environment step
    # The model's loss.
    fit_loss: FitLoss = "nll"
    clip_quantile: float | None = 0.95  # of the value gradients' norms; None for off
    through_policy: bool = False  # value gradients through the policy's action too
    mse_warmup_blocks: int = 1  # first fits, in which a value-aware loss has the MSE added
    exact_model: bool = False  # roll out in the environment itself; nothing is fitted
    # Data.
    capacity: int = 100_000  # real transitions kept
    initial_steps: int = 500  # environment steps with uniform actions before the first block
    model_train_freq: int = 250  # environment steps of a block
    rollout_batch: int = 10_000  # imagined branches per block
    # (a, b, x, y): branches of x steps until environment step a, of y from step b, linear between
    rollout_schedule: tuple[int, int, int, int] = (0, 1, 1, 1)
    retain_blocks: int = 4  # blocks of imagined data kept
    real_ratio_anneal: int = 0  # steps over which the real share falls from 1 to `real_ratio`
    eval_episodes: int = 8

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        if self.fit_loss not in get_args(FitLoss):
            raise ValueError(
                f"fit_loss: expected one of {get_args(FitLoss)}, got {self.fit_loss!r}"
            )
        if self.clip_quantile is not None and not 0 <= self.clip_quantile <= 1:
            raise ValueError(f"clip_quantile: expected within [0, 1], got {self.clip_quantile}")
        positive = ("batch_size", "utd", "capacity", "model_train_freq", "rollout_batch")
        for name in (*positive, "retain_blocks", "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.initial_steps < 2:
            raise ValueError(
                "initial_steps: expected at least 2 (one row to fit, one to hold out), "
                f"got {self.initial_steps}"
            )
        if self.utd % self.sac.policy_every:
            raise ValueError(
                f"utd: expected a multiple of policy_every ({self.sac.policy_every}), "
                f"got {self.utd}"
            )
        start, end, first, last = self.rollout_schedule
        if not (start < end and min(first, last) >= 1):
            raise ValueError(
                "rollout_schedule: expected (a, b, x, y) with a < b and x, y at least 1, "
                f"got {self.rollout_schedule}"
            )

    @property
    def horizon(self) -> int:
        """Longest branch that the schedule asks for."""
        return max(self.rollout_schedule[2:])

    @property
    def ensemble(self) -> worldmodels.EnsembleConfig:
        """The model's architecture with the head that the loss needs."""
        return dataclasses.replace(self.model, deterministic=self.fit_loss != "nll")


@flax.struct.dataclass
class DynaHyperparams:
    """What one may sweep: traced scalars."""

    sac: SACHyperparams
    model_lr: Float[Array, ""]
    real_ratio: Float[Array, ""]  # share of real rows in an agent's batch
    value_coef: Float[Array, ""]  # of a value-aware state loss
    reward_coef: Float[Array, ""]  # of the squared reward error beside it
    mse_coef: Float[Array, ""]  # of the plain squared error added to it after the warm-up


_DEFAULTS = {
    "model_lr": 1e-3,
    "real_ratio": 0.05,
    "value_coef": 1.0,
    "reward_coef": 1.0,
    "mse_coef": 0.0,
}


def hyperparams(
    overrides: Mapping[str, float | Float[Array, ""]] | None, action_dim: int
) -> DynaHyperparams:
    """Completes a dict of hyper-parameters by the defaults.

    Args:
        overrides: some of the fields of `DynaHyperparams` and `SACHyperparams` by name.
        action_dim: length of an action (the target entropy's default is minus it).

    Returns:
        float32 scalars.

    Raises:
        ValueError: if a name is unknown.
    """
    return DynaHyperparams(**with_sac(overrides, _DEFAULTS, action_dim))

"""Static configuration and traced hyper-parameters of offline model-based learning."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import flax.struct
from jaxtyping import Array, Float

from jaxlab import worldmodels
from jaxlab.agents.sac_config import SACConfig, SACHyperparams, with_sac

Penalty = Literal["none", "aleatoric", "pairwise", "ensemble_std"]


@dataclasses.dataclass(frozen=True)
class OfflineConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code.

    The base procedure has two critics and neither penalty nor diversity; MOPO subtracts a penalty
    from imagined rewards; RAVL has many critics and, optionally, diversity. The full horizon has
    branches as long as an episode that start where episodes do.
    """

    sac: SACConfig = dataclasses.field(
        default_factory=lambda: SACConfig(critics=2, hidden=(256, 256, 256))
    )
    diversity: bool = False  # adds the critics' gradient diversity, times `diversity_coef`
    # The model.
    exact_model: bool = False  # branch in the environment itself; nothing is fitted
    model: worldmodels.EnsembleConfig = dataclasses.field(
        default_factory=worldmodels.EnsembleConfig
    )
    fit: worldmodels.FitConfig = dataclasses.field(
        default_factory=lambda: worldmodels.FitConfig(max_epochs=200)
    )
    penalty: Penalty = "none"  # what `penalty_coef` multiplies; always 0 in an exact model
    # Branches.
    start: Literal["data", "initial"] = "data"  # states of the data set, or those of resets
    horizon: int = 5  # steps k of a branch, after which it is truncated
    rollout_batch: int = 10_000  # branches per epoch
    retain_epochs: int = 5  # epochs of imagined rows kept
    # Training.
    updates: int = 1000  # of the agent per epoch
    batch_size: int = 256
    eval_episodes: int = 8

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        for name, kinds in (("penalty", Penalty), ("start", Literal["data", "initial"])):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"{name}: expected one of {get_args(kinds)}, got {getattr(self, name)!r}"
                )
        positive = ("horizon", "rollout_batch", "retain_epochs", "updates", "batch_size")
        for name in (*positive, "eval_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.updates % self.sac.policy_every:
            raise ValueError(
                f"updates: expected a multiple of policy_every ({self.sac.policy_every}), "
                f"got {self.updates}"
            )
        if self.diversity and self.sac.critics < 2:
            raise ValueError(
                f"sac.critics: expected at least 2 with diversity, got {self.sac.critics}"
            )
        if self.penalty == "aleatoric" and self.model.deterministic:
            raise ValueError("penalty: 'aleatoric' needs a model with a log-variance")

    @property
    def capacity(self) -> int:
        """Imagined rows kept."""
        return self.retain_epochs * self.horizon * self.rollout_batch


@flax.struct.dataclass
class OfflineHyperparams:
    """What one may sweep: traced scalars."""

    sac: SACHyperparams
    model_lr: Float[Array, ""]
    real_ratio: Float[Array, ""]  # share of the data set's rows in a batch
    penalty_coef: Float[Array, ""]  # of the model's uncertainty, subtracted from imagined rewards
    diversity_coef: Float[Array, ""]  # of the critics' gradient diversity, added to their loss


_DEFAULTS = {"model_lr": 1e-3, "real_ratio": 0.05, "penalty_coef": 1.0, "diversity_coef": 1.0}


def hyperparams(
    overrides: Mapping[str, float | Float[Array, ""]] | None, action_dim: int
) -> OfflineHyperparams:
    """Completes a dict of hyper-parameters by the defaults.

    Args:
        overrides: some of the fields of `OfflineHyperparams` and `SACHyperparams` by name.
        action_dim: length of an action (the target entropy's default is minus it).

    Returns:
        float32 scalars.

    Raises:
        ValueError: if a name is unknown.
    """
    return OfflineHyperparams(**with_sac(overrides, _DEFAULTS, action_dim))

"""Static configuration and traced hyper-parameters of soft actor-critic."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.agents import flat_critics

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
# Not infinity: a state that holds it would count as diverged.
UNBOUNDED = float(jnp.finfo(jnp.float32).max)


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code."""

    critics: int = 2
    hidden: tuple[int, ...] = (256, 256)  # of the actor and of every critic
    activation: Literal["relu", "silu", "tanh"] = "relu"
    critic_layer_norm: bool = False
    log_std_bounds: tuple[float, float] = (-5.0, 2.0)
    auto_alpha: bool = True  # tune the temperature towards the target entropy
    policy_every: int = 1  # critic updates per actor update in `update_many`
    target_clip: tuple[float, float] | None = None  # bounds of the critics' targets
    # What keeps the critics flat: bounded kernels, or a penalty on changes within a box of states,
    # found by ascent ("robust") or at random ("noise").
    critic_regulariser: flat_critics.CriticRegulariser | None = None
    robust_steps: int = 1  # of the ascent

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        for name in ("critics", "policy_every", "robust_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(ACTIVATIONS)}, got {self.activation!r}"
            )
        choices = (None, *get_args(flat_critics.CriticRegulariser))
        if self.critic_regulariser not in choices:
            raise ValueError(
                f"critic_regulariser: expected one of {choices}, got {self.critic_regulariser!r}"
            )
        if not self.log_std_bounds[0] < self.log_std_bounds[1]:
            raise ValueError(f"log_std_bounds: expected low < high, got {self.log_std_bounds}")
        if self.target_clip is not None and not self.target_clip[0] < self.target_clip[1]:
            raise ValueError(f"target_clip: expected low < high, got {self.target_clip}")


@flax.struct.dataclass
class SACHyperparams:
    """What one may sweep: traced scalars."""

    actor_lr: Float[Array, ""]
    critic_lr: Float[Array, ""]
    alpha_lr: Float[Array, ""]
    gamma: Float[Array, ""]
    tau: Float[Array, ""]  # step of the target critics towards the critics
    target_entropy: Float[Array, ""]  # nats
    init_alpha: Float[Array, ""]
    spectral_beta: Float[Array, ""]  # bound of the critics' kernels, of "spectral"
    robust_coef: Float[Array, ""]  # weight of the penalty, of "robust" and "noise"
    robust_eps: Float[Array, ""]  # its perturbation, in standard deviations of the states


def hyperparams(
    action_dim: int,
    *,
    actor_lr: float | Float[Array, ""] = 3e-4,
    critic_lr: float | Float[Array, ""] = 3e-4,
    alpha_lr: float | Float[Array, ""] = 3e-4,
    gamma: float | Float[Array, ""] = 0.99,
    tau: float | Float[Array, ""] = 0.005,
    target_entropy: float | Float[Array, ""] | None = None,
    init_alpha: float | Float[Array, ""] = 1.0,
    spectral_beta: float | Float[Array, ""] = UNBOUNDED,
    robust_coef: float | Float[Array, ""] = 1.0,
    robust_eps: float | Float[Array, ""] = 0.05,
) -> SACHyperparams:
    """Fills in the usual hyper-parameters.

    Args:
        action_dim: length a of an action.
        actor_lr: Adam's rate for the actor.
        critic_lr: Adam's rate for the critics.
        alpha_lr: Adam's rate for log alpha.
        gamma: discount factor per step.
        tau: step of the target critics.
        target_entropy: nats; None for -a.
        init_alpha: first temperature, positive.
        spectral_beta: bound of the critics' kernels, of "spectral".
        robust_coef: weight of the penalty, of "robust" and "noise".
        robust_eps: its perturbation, in standard deviations of the batch's states.

    Returns:
        float32 scalars.

    Reference:
        Haarnoja et al. 2018 (Soft Actor-Critic Algorithms and Applications), appendix D.
    """
    values = {
        "actor_lr": actor_lr,
        "critic_lr": critic_lr,
        "alpha_lr": alpha_lr,
        "gamma": gamma,
        "tau": tau,
        "target_entropy": -action_dim if target_entropy is None else target_entropy,
        "init_alpha": init_alpha,
        "spectral_beta": spectral_beta,
        "robust_coef": robust_coef,
        "robust_eps": robust_eps,
    }
    return SACHyperparams(**{name: jnp.asarray(v, jnp.float32) for name, v in values.items()})


def with_sac(
    overrides: Mapping[str, float | Float[Array, ""]] | None,
    defaults: Mapping[str, float],
    action_dim: int,
) -> dict[str, Any]:
    """Completes the hyper-parameters of an agent that holds a soft actor-critic.

    Args:
        overrides: some of the agent's own and of the `SACHyperparams`, by name.
        defaults: the agent's own.
        action_dim: length of an action (the target entropy's default is minus it).

    Returns:
        The agent's own by name, float32 scalars, and "sac", the `SACHyperparams`.

    Raises:
        ValueError: if a name is unknown.
    """
    given = dict(overrides or {})
    own = {name: given.pop(name, value) for name, value in defaults.items()}
    sac_names = [field.name for field in dataclasses.fields(SACHyperparams)]
    unknown = sorted(set(given) - set(sac_names))
    if unknown:
        raise ValueError(
            f"hparams: unknown {unknown}, expected among {sorted([*defaults, *sac_names])}"
        )
    scalars = {name: jnp.asarray(value, jnp.float32) for name, value in own.items()}
    return {"sac": hyperparams(action_dim, **given), **scalars}

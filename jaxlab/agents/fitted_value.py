"""Fitted value iteration in a model, with a state-value network that may be kept flat."""

import dataclasses
from collections.abc import Callable
from typing import get_args

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from jaxlab import nets, values
from jaxlab.agents import flat_critics
from jaxlab.worldmodels.propagation import StepFn

Metrics = dict[str, Float[Array, ""]]
ValueFn = Callable[[Float[Array, "*b o"]], Float[Array, "*b"]]

_ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class FittedValueConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code."""

    hidden: tuple[int, ...] = (64, 64)  # widths of ReLU layers
    output_scale: float = 10.0  # of the network's output; multiplies its slopes too
    # Bounded kernels, or a penalty on changes within a box of states, found by ascent ("robust") or
    # at random ("noise").
    regulariser: flat_critics.CriticRegulariser | None = None
    robust_steps: int = 1  # of the ascent

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        choices = (None, *get_args(flat_critics.CriticRegulariser))
        if self.regulariser not in choices:
            raise ValueError(f"regulariser: expected one of {choices}, got {self.regulariser!r}")
        if self.robust_steps < 1:
            raise ValueError(f"robust_steps: expected at least 1, got {self.robust_steps}")


@flax.struct.dataclass
class FittedValueHyperparams:
    """What one may sweep: traced scalars."""

    lr: ArrayLike = 1e-3
    gamma: ArrayLike = 0.97
    tau: ArrayLike = 0.01  # step of the target network
    spectral_beta: ArrayLike = 2.5  # bound of every kernel's spectral norm, of "spectral"
    robust_coef: ArrayLike = 1.0  # weight of the penalty, of "robust" and "noise"
    robust_eps: ArrayLike = 0.05  # its perturbation, in units of `scale` of `update`


@flax.struct.dataclass
class FittedValueState:
    """Everything that the learner learns."""

    params: nets.MLPParams  # unconstrained; see `evaluated`
    target: nets.MLPParams
    opt: optax.OptState
    vectors: nets.SpectralState  # of the bound's estimation; unused by the other regularisers
    target_vectors: nets.SpectralState


def init(key: Key[Array, ""], config: FittedValueConfig, obs_dim: int) -> FittedValueState:
    """Draws an untrained network; the target network starts as it.

    Args:
        key: random key.
        config: structure.
        obs_dim: length o of an observation.

    Returns:
        The learner's state.
    """
    net_key, vector_key = jax.random.split(key)
    params = nets.mlp_init(net_key, (obs_dim, *config.hidden, 1))
    vectors = nets.init_spectral_state(vector_key, params)
    return FittedValueState(params, params, _ADAM.init(params), vectors, vectors)


def value(
    params: nets.MLPParams, config: FittedValueConfig, obs: Float[Array, "*b o"]
) -> Float[Array, "*b"]:
    """Evaluates a network.

    Args:
        params: from `evaluated`.
        config: structure.
        obs: observations with any leading axes.

    Returns:
        State values.
    """
    return config.output_scale * nets.mlp_apply(params, obs, jax.nn.relu)[..., 0]


def evaluated(
    state: FittedValueState, config: FittedValueConfig, hparams: FittedValueHyperparams
) -> tuple[nets.MLPParams, nets.MLPParams]:
    """Parameters with which the network and its target are evaluated.

    Args:
        state: the learner.
        config: structure.
        hparams: only `spectral_beta` is used.

    Returns:
        The learner's own, but for kernels that the regulariser "spectral" constrains.
    """
    if config.regulariser != "spectral":
        return state.params, state.target
    params, _ = nets.constrain_mlp(state.params, state.vectors, hparams.spectral_beta)
    target, _ = nets.constrain_mlp(state.target, state.target_vectors, hparams.spectral_beta)
    return params, target


def lookahead(
    key: Key[Array, ""],
    value_fn: ValueFn,
    step_fn: StepFn,
    obs: Float[Array, "B o"],
    actions: Float[Array, "A a"],
    gamma: ArrayLike,
) -> Float[Array, "B A"]:
    """One-step values r(s, a) + gamma (1 - terminated) V(s') of some actions.

    Args:
        key: random key of the model.
        value_fn: values of next states.
        step_fn: the model, learned or exact, batched over rows.
        obs: states.
        actions: the actions that are looked at in every state.
        gamma: discount factor per step.

    Returns:
        A value per state and action, of one drawn next state each.
    """
    rows, count = obs.shape[0], actions.shape[0]
    states = jnp.broadcast_to(obs[:, None], (rows, count, obs.shape[-1]))
    taken = jnp.broadcast_to(actions[None], (rows, count, actions.shape[-1]))
    next_obs, reward, terminated, _ = step_fn(key, states, taken)
    discount = jnp.asarray(gamma, reward.dtype) * (1 - terminated.astype(reward.dtype))
    return reward + discount * value_fn(next_obs)


def update(
    key: Key[Array, ""],
    state: FittedValueState,
    obs: Float[Array, "B o"],
    step_fn: StepFn,
    actions: Float[Array, "A a"],
    config: FittedValueConfig,
    hparams: FittedValueHyperparams,
    scale: Float[Array, " o"] | None = None,
) -> tuple[FittedValueState, Metrics]:
    """One step of Adam towards max_a of the target network's `lookahead`.

    Args:
        key: random key.
        state: the learner.
        obs: states whose values are moved.
        step_fn: the model; its noise makes the targets noisy, and the fit smooth.
        actions: those that the maximum is taken over.
        config: structure.
        hparams: rates and coefficients.
        scale: length of each dimension's unit, of the penalty's perturbations; None for ones.

    Returns:
        The new state, and "loss" (squared error) with the penalty.

    Reference:
        Gordon 1995 (fitted value iteration); Zheng et al. 2023 (Is model ensemble necessary?),
        sections 3 and 4, for the model's role and the regularisers.
    """
    model_key, start_key = jax.random.split(key)
    _, target_params = evaluated(state, config, hparams)
    target_fn = lambda s: value(target_params, config, s)  # noqa: E731
    y = jnp.max(lookahead(model_key, target_fn, step_fn, obs, actions, hparams.gamma), axis=-1)

    def loss_fn(params: nets.MLPParams) -> tuple[Array, tuple[Metrics, nets.SpectralState]]:
        vectors = state.vectors
        if config.regulariser == "spectral":
            params, vectors = nets.constrain_mlp(params, vectors, hparams.spectral_beta)
        value_fn = lambda s: value(params, config, s)  # noqa: E731
        loss = jnp.mean((value_fn(obs) - jax.lax.stop_gradient(y)) ** 2)
        if config.regulariser not in ("robust", "noise"):
            return loss, ({"loss": loss}, vectors)
        penalty, _ = values.robust_penalty(
            value_fn,
            obs,
            start_key,
            eps=hparams.robust_eps,
            scale=scale,
            steps=config.robust_steps if config.regulariser == "robust" else 0,
        )
        total = loss + jnp.asarray(hparams.robust_coef, loss.dtype) * penalty
        return total, ({"loss": loss, "penalty": penalty}, vectors)

    (_, (metrics, vectors)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, opt = _ADAM.update(grads, state.opt)
    rate = jnp.asarray(hparams.lr)
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, state.params, direction)
    target = nets.polyak(state.target, params, jnp.asarray(hparams.tau))
    target_vectors = state.target_vectors
    if config.regulariser == "spectral":
        _, target_vectors = nets.constrain_mlp(target, target_vectors, hparams.spectral_beta)
    return FittedValueState(params, target, opt, vectors, target_vectors), metrics

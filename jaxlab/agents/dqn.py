"""Q-learning with a network for finitely many actions and any value head, as pure functions."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxlab import nets, values
from jaxlab.types import Transition

Metrics = dict[str, Float[Array, ""]]
QParams = dict[str, Any]  # "body": nets.MLPParams, "head": nets.LayerParams

_ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class DQNConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code."""

    head: values.ValueHead = dataclasses.field(default_factory=values.ValueHead)
    hidden: tuple[int, ...] = (128, 128)  # widths of ReLU layers below the head
    double: bool = False  # the online network chooses the next action
    target_every: int = 50  # updates between two copies of the online network

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden: expected at least one positive width, got {self.hidden}")
        if self.target_every < 1:
            raise ValueError(f"target_every: expected at least 1, got {self.target_every}")


@flax.struct.dataclass
class DQNState:
    """Everything that the learner learns."""

    params: QParams
    target: QParams
    opt: optax.OptState
    step: Int[Array, ""]  # updates done


def init(key: Key[Array, ""], config: DQNConfig, obs_dim: int, actions: int) -> DQNState:
    """Draws an untrained network; the target network starts as it.

    Args:
        key: random key.
        config: structure.
        obs_dim: length o of an observation.
        actions: number of actions A.

    Returns:
        The learner's state. Every kind of head starts near the centre of its support.
    """
    body_key, head_key = jax.random.split(key)
    params = {
        "body": nets.mlp_init(body_key, (obs_dim, *config.hidden)),
        "head": config.head.init(head_key, config.hidden[-1], actions),
    }
    return DQNState(params, params, _ADAM.init(params), jnp.zeros((), jnp.int32))


def outputs(params: QParams, config: DQNConfig, obs: Float[Array, "*b o"]) -> Float[Array, "..."]:
    """Raw outputs of the head for every action.

    Args:
        params: of the online or the target network.
        config: structure.
        obs: observations with any leading axes.

    Returns:
        [*b, A] for scalar heads, [*b, A, width] for the others.
    """
    features = jax.nn.relu(nets.mlp_apply(params["body"], obs, jax.nn.relu))
    return config.head.apply(params["head"], features)


def q_values(params: QParams, config: DQNConfig, obs: Float[Array, "*b o"]) -> Float[Array, "*b A"]:
    """Action values in the environment's units.

    Args:
        params: of the online or the target network.
        config: structure.
        obs: observations with any leading axes.

    Returns:
        Values.
    """
    return config.head.mean(outputs(params, config, obs))


def act(
    key: Key[Array, ""],
    params: QParams,
    config: DQNConfig,
    obs: Float[Array, "*b o"],
    epsilon: ArrayLike = 0.0,
) -> Int[Array, "*b"]:
    """Chooses actions, greedy but for a share that is uniform.

    Args:
        key: random key.
        params: of the online network.
        config: structure.
        obs: observations with any leading axes.
        epsilon: probability of a uniform action.

    Returns:
        Indices.
    """
    q = q_values(params, config, obs)
    # One draw: another generator takes longer to compile than the rest.
    explore, choice = jax.random.uniform(key, (2, *q.shape[:-1]))
    uniform = (choice * q.shape[-1]).astype(jnp.int32)
    return jnp.where(explore < epsilon, uniform, jnp.argmax(q, axis=-1).astype(jnp.int32))


def update(
    state: DQNState,
    batch: Transition,
    config: DQNConfig,
    lr: ArrayLike,
    gamma: ArrayLike,
    next_action: Int[Array, " B"] | None = None,
) -> tuple[DQNState, Metrics]:
    """One step of Adam, and a copy to the target network where one is due.

    Args:
        state: the learner.
        batch: transitions [B] whose actions are indices [B].
        config: structure.
        lr: learning rate.
        gamma: discount factor per step.
        next_action: actions to bootstrap with (SARSA); None for the greedy ones.

    Returns:
        The new state, and "loss" with the head's metrics.

    Reference:
        Mnih et al. 2015 (DQN), algorithm 1; Farebrother et al. 2024 for other heads than scalars.
    """

    def apply_fn(params: QParams, obs: Array) -> Array:
        return outputs(params, config, obs)

    def loss_fn(params: QParams) -> tuple[Array, Metrics]:
        network = (config.head, params, state.target, apply_fn, batch)
        if next_action is None:
            return values.q_learning_loss(*network, gamma, config.double)
        return values.sarsa_loss(*network, next_action, gamma)

    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, opt = _ADAM.update(grads, state.opt)
    rate = jnp.asarray(lr)
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, state.params, direction)
    step = state.step + 1
    target = values.periodic_update(state.target, params, step, config.target_every)
    return DQNState(params, target, opt, step), metrics | {"loss": loss}

"""Soft actor-critic with an ensemble of critics, as pure functions over one pytree."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxlab import nets
from jaxlab.agents import squashed_gaussian
from jaxlab.types import Transition

Metrics = dict[str, Float[Array, ""]]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}
_ADAM = optax.scale_by_adam()


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

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        for name in ("critics", "policy_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(_ACTIVATIONS)}, got {self.activation!r}"
            )
        if not self.log_std_bounds[0] < self.log_std_bounds[1]:
            raise ValueError(f"log_std_bounds: expected low < high, got {self.log_std_bounds}")


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


@flax.struct.dataclass
class SACState:
    """Everything that SAC learns; N critics."""

    actor: nets.MLPParams
    critics: nets.MLPParams  # every leaf [N, ...]
    target_critics: nets.MLPParams  # every leaf [N, ...]
    log_alpha: Float[Array, ""]
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState


class _Policy(NamedTuple):
    action: Float[Array, "B a"]
    log_prob: Float[Array, " B"]


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
    }
    return SACHyperparams(**{name: jnp.asarray(v, jnp.float32) for name, v in values.items()})


def init(
    key: Key[Array, ""],
    config: SACConfig,
    hparams: SACHyperparams,
    obs_dim: int,
    action_dim: int,
) -> SACState:
    """Draws an untrained agent; the target critics start as the critics.

    Args:
        key: random key.
        config: structure.
        hparams: only `init_alpha` is used.
        obs_dim: length o of an observation.
        action_dim: length a of an action.

    Returns:
        The agent's state.
    """
    actor_key, critic_key = jax.random.split(key)
    actor = nets.mlp_init(actor_key, (obs_dim, *config.hidden, 2 * action_dim))
    critics = nets.ensemble_init(
        critic_key,
        config.critics,
        (obs_dim + action_dim, *config.hidden, 1),
        layer_norm=config.critic_layer_norm,
    )
    log_alpha = jnp.log(hparams.init_alpha)
    return SACState(
        actor=actor,
        critics=critics,
        target_critics=critics,
        log_alpha=log_alpha,
        actor_opt=_ADAM.init(actor),
        critic_opt=_ADAM.init(critics),
        alpha_opt=_ADAM.init(log_alpha),
    )


def act(
    state: SACState,
    config: SACConfig,
    obs: Float[Array, "*b o"],
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b a"]:
    """Chooses actions.

    Args:
        state: the agent.
        config: structure.
        obs: observations with any leading axes.
        key: random key to sample with; None for the deterministic policy tanh(mean).

    Returns:
        Actions in [-1, 1].
    """
    mean, log_std = _actor(state.actor, config, obs)
    if key is None:
        return jnp.tanh(mean)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return squashed_gaussian.sample(mean, log_std, noise)[0]


def q_values(
    critics: nets.MLPParams,
    config: SACConfig,
    obs: Float[Array, "*b o"],
    action: Float[Array, "*b a"],
) -> Float[Array, "N *b"]:
    """Evaluates every critic of a stack.

    Args:
        critics: parameters with a leading axis N.
        config: structure.
        obs: observations with any leading axes.
        action: actions with the same.

    Returns:
        One value per critic and row.
    """
    x = jnp.concatenate([obs, action], axis=-1)
    count = critics[0]["kernel"].shape[0]
    # Copies of the narrow input, not a shared one: XLA would merge the critics' first layers to one
    # wide product and then transpose its wide output.
    x = jnp.broadcast_to(x[None], (count, *x.shape))
    return nets.ensemble_apply(critics, x, _ACTIVATIONS[config.activation])[..., 0]


def targets(
    state: SACState,
    batch: Transition,
    noise: Float[Array, "B a"],
    config: SACConfig,
    hparams: SACHyperparams,
) -> Float[Array, " B"]:
    """Soft Bellman targets r + gamma (1 - terminated) (min_n Q'_n(s', a') - alpha log pi(a'|s')).

    Args:
        state: the agent.
        batch: transitions [B].
        noise: standard normal draws for the next actions a'.
        config: structure.
        hparams: only `gamma` is used.

    Returns:
        One target per row, clipped if the configuration says so.

    Reference:
        Haarnoja et al. 2018, eq. 3 and 5; the minimum over critics of Fujimoto et al. 2018.

    Pitfall:
        A truncated episode goes on beyond its last row: it bootstraps.
    """
    following = _policy(state.actor, config, batch.next_obs, noise)
    q = q_values(state.target_critics, config, batch.next_obs, following.action)
    soft_value = jnp.min(q, axis=0) - jnp.exp(state.log_alpha) * following.log_prob
    discount = hparams.gamma * (1 - batch.terminated.astype(soft_value.dtype))
    target = batch.reward + discount * soft_value
    if config.target_clip is not None:
        target = jnp.clip(target, *config.target_clip)
    return target


def update(
    key: Key[Array, ""],
    state: SACState,
    batch: Transition,
    config: SACConfig,
    hparams: SACHyperparams,
) -> tuple[SACState, Metrics]:
    """One gradient step of critics, actor and temperature, in this order.

    Args:
        key: random key.
        state: the agent.
        batch: transitions [B].
        config: structure; `policy_every` plays no role here.
        hparams: rates and targets.

    Returns:
        The new agent and scalar metrics.

    Reference:
        Haarnoja et al. 2018, algorithm 1.
    """
    noise = _noise(key, batch)
    state, critic_metrics = _update_critics(state, batch, noise[0], config, hparams)
    state, actor_metrics = _update_actor(state, batch, noise[1], config, hparams)
    return state, critic_metrics | actor_metrics


def update_many(
    key: Key[Array, ""],
    state: SACState,
    batches: Transition,
    config: SACConfig,
    hparams: SACHyperparams,
) -> tuple[SACState, Metrics]:
    """A scan of updates over pre-sampled batches.

    Args:
        key: random key, split into one per batch.
        state: the agent.
        batches: transitions [U, B].
        config: structure; the actor and the temperature move after every `policy_every` critic
            updates, on the last of their batches.
        hparams: rates and targets.

    Returns:
        The new agent and the metrics' means over the updates.

    Raises:
        ValueError: if U is no multiple of `policy_every`.
    """
    count, every = batches.reward.shape[0], config.policy_every
    if count % every:
        raise ValueError(f"batches: expected a multiple of {every} (policy_every), got {count}")
    # All noise at once: the generator's cost per call outweighs its cost per number.
    noise = jax.vmap(_noise)(jax.random.split(key, count), batches)
    grouped = jax.tree.map(
        lambda x: x.reshape(count // every, every, *x.shape[1:]), (batches, noise)
    )

    def group(state: SACState, xs: tuple[Transition, Array]) -> tuple[SACState, Metrics]:
        def critic_step(state: SACState, xs: tuple[Transition, Array]) -> tuple[SACState, Metrics]:
            return _update_critics(state, xs[0], xs[1][0], config, hparams)

        state, critic_metrics = jax.lax.scan(critic_step, state, xs)
        batch, noise = jax.tree.map(lambda x: x[-1], xs)
        state, actor_metrics = _update_actor(state, batch, noise[1], config, hparams)
        return state, jax.tree.map(jnp.mean, critic_metrics) | actor_metrics

    state, metrics = jax.lax.scan(group, state, grouped)
    return state, jax.tree.map(jnp.mean, metrics)


def _update_critics(
    state: SACState, batch: Transition, noise: Array, config: SACConfig, hparams: SACHyperparams
) -> tuple[SACState, Metrics]:
    target = targets(state, batch, noise, config, hparams)

    def loss_fn(critics: nets.MLPParams) -> tuple[Array, Array]:
        q = q_values(critics, config, batch.obs, batch.action)
        error = q - jnp.broadcast_to(target, q.shape)
        # A sum over critics: the mean would make a critic's gradient depend on their number.
        return jnp.sum(jnp.mean(error**2, axis=-1)), q

    (loss, q), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.critics)
    critics, critic_opt = _descend(grads, state.critic_opt, state.critics, hparams.critic_lr)
    metrics = {
        "critic_loss": loss,
        "q_mean": jnp.mean(q),
        "q_spread": jnp.mean(jnp.max(q, axis=0) - jnp.min(q, axis=0)),
        "target_mean": jnp.mean(target),
    }
    if config.target_clip is not None:
        low, high = config.target_clip
        metrics["target_clipped"] = jnp.mean((target <= low) | (target >= high))
    state = dataclasses.replace(
        state,
        critics=critics,
        critic_opt=critic_opt,
        target_critics=nets.polyak(state.target_critics, critics, hparams.tau),
    )
    return state, metrics


def _update_actor(
    state: SACState, batch: Transition, noise: Array, config: SACConfig, hparams: SACHyperparams
) -> tuple[SACState, Metrics]:
    alpha = jnp.exp(state.log_alpha)

    def loss_fn(actor: nets.MLPParams) -> tuple[Array, Array]:
        chosen = _policy(actor, config, batch.obs, noise)
        q = q_values(state.critics, config, batch.obs, chosen.action)
        return jnp.mean(alpha * chosen.log_prob - jnp.min(q, axis=0)), jnp.mean(chosen.log_prob)

    (loss, log_prob), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.actor)
    actor, actor_opt = _descend(grads, state.actor_opt, state.actor, hparams.actor_lr)
    state = dataclasses.replace(state, actor=actor, actor_opt=actor_opt)
    if config.auto_alpha:
        # The gradient of -log_alpha (log pi + H); with alpha in place of its logarithm a small
        # temperature would stop learning.
        grad = -(log_prob + hparams.target_entropy)
        log_alpha, alpha_opt = _descend(grad, state.alpha_opt, state.log_alpha, hparams.alpha_lr)
        state = dataclasses.replace(state, log_alpha=log_alpha, alpha_opt=alpha_opt)
    return state, {"actor_loss": loss, "entropy": -log_prob, "alpha": alpha}


def _actor(
    actor: nets.MLPParams, config: SACConfig, obs: Float[Array, "*b o"]
) -> tuple[Float[Array, "*b a"], Float[Array, "*b a"]]:
    out = nets.mlp_apply(actor, obs, _ACTIVATIONS[config.activation])
    mean, log_std = jnp.split(out, 2, axis=-1)
    return mean, jnp.clip(log_std, *config.log_std_bounds)


def _policy(actor: nets.MLPParams, config: SACConfig, obs: Array, noise: Array) -> _Policy:
    mean, log_std = _actor(actor, config, obs)
    return _Policy(*squashed_gaussian.sample(mean, log_std, noise))


def _noise(key: Key[Array, ""], batch: Transition) -> Float[Array, "2 B a"]:
    """Draws for the next action of the targets and for the actor's action."""
    return jax.random.normal(key, (2, *batch.action.shape), batch.action.dtype)


def _descend(
    grads: nets.MLPParams | Array, opt: optax.OptState, params: nets.MLPParams | Array, lr: Array
) -> tuple:
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, opt = _ADAM.update(grads, opt)
    return jax.tree.map(lambda p, d: p - lr.astype(p.dtype) * d, params, direction), opt

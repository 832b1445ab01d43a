"""Soft actor-critic with an ensemble of critics, as pure functions over one pytree."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jaxlab import nets
from jaxlab.agents import flat_critics, squashed_gaussian
from jaxlab.agents.sac_config import ACTIVATIONS, SACConfig, SACHyperparams, hyperparams
from jaxlab.types import Transition

__all__ = [
    "CriticHooks",
    "SACConfig",
    "SACHyperparams",
    "SACState",
    "act",
    "act_with_log_prob",
    "evaluated_critics",
    "hyperparams",
    "init",
    "q_values",
    "targets",
    "update",
    "update_many",
]

Metrics = dict[str, Float[Array, ""]]

_ADAM = optax.scale_by_adam()


@flax.struct.dataclass
class SACState:
    """Everything that SAC learns; N critics."""

    actor: nets.MLPParams
    critics: nets.MLPParams  # every leaf [N, ...]; see `evaluated_critics`
    target_critics: nets.MLPParams  # every leaf [N, ...]
    log_alpha: Float[Array, ""]
    actor_opt: optax.OptState
    critic_opt: optax.OptState
    alpha_opt: optax.OptState
    spectral: flat_critics.SpectralBound | None = None  # of the regulariser "spectral"


class CriticHooks(NamedTuple):
    """What other learners change in the critics' update; both may close over traced arrays.

    A hook sees the batch as it was given, so that rows may carry more than a transition does.
    """

    # (batch [B], min_n Q'(s', a') [B]) -> the value to bootstrap from [B], before the entropy
    bootstrap: Callable[[Transition, Float[Array, " B"]], Float[Array, " B"]] | None = None
    # (online critics, batch [B]) -> scalar, added to the sum of the critics' losses
    penalty: Callable[[nets.MLPParams, Transition], Float[Array, ""]] | None = None


_NO_HOOKS = CriticHooks()


class _Policy(NamedTuple):
    action: Float[Array, "B a"]
    log_prob: Float[Array, " B"]


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
        hparams: only `init_alpha` and `spectral_beta` are used.
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
    spectral = None
    if config.critic_regulariser == "spectral":
        vector_key = jax.random.fold_in(critic_key, config.critics)
        spectral = flat_critics.spectral_bound(vector_key, critics, hparams.spectral_beta)
    return SACState(
        actor=actor,
        critics=critics,
        target_critics=critics,
        log_alpha=log_alpha,
        actor_opt=_ADAM.init(actor),
        critic_opt=_ADAM.init(critics),
        alpha_opt=_ADAM.init(log_alpha),
        spectral=spectral,
    )


def evaluated_critics(state: SACState) -> tuple[nets.MLPParams, nets.MLPParams]:
    """Parameters with which the critics and the target critics are evaluated.

    Args:
        state: the agent.

    Returns:
        The agent's own, but for kernels that the regulariser "spectral" constrains.
    """
    bound = state.spectral
    if bound is None:
        return state.critics, state.target_critics
    critics, _ = flat_critics.constrain(state.critics, bound.critics, bound.beta)
    target, _ = flat_critics.constrain(state.target_critics, bound.target_critics, bound.beta)
    return critics, target


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
    if key is None:
        return jnp.tanh(_actor(state.actor, config, obs)[0])
    return act_with_log_prob(state, config, obs, key)[0]


def act_with_log_prob(
    state: SACState, config: SACConfig, obs: Float[Array, "*b o"], key: Key[Array, ""]
) -> tuple[Float[Array, "*b a"], Float[Array, "*b"]]:
    """Samples actions from the stochastic policy.

    Args:
        state: the agent.
        config: structure.
        obs: observations with any leading axes.
        key: random key.

    Returns:
        Actions in [-1, 1], and the log-density of each.
    """
    mean, log_std = _actor(state.actor, config, obs)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    return squashed_gaussian.sample(mean, log_std, noise)


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
    return nets.ensemble_apply(critics, x, ACTIVATIONS[config.activation])[..., 0]


def targets(
    state: SACState,
    batch: Transition,
    noise: Float[Array, "B a"],
    config: SACConfig,
    hparams: SACHyperparams,
    hooks: CriticHooks = _NO_HOOKS,
) -> Float[Array, " B"]:
    """Soft Bellman targets r + gamma (1 - terminated) (min_n Q'_n(s', a') - alpha log pi(a'|s')).

    Args:
        state: the agent.
        batch: transitions [B].
        noise: standard normal draws for the next actions a'.
        config: structure.
        hparams: only `gamma` is used.
        hooks: `bootstrap` may replace the critics' minimum.

    Returns:
        One target per row, clipped if the configuration says so.

    Reference:
        Haarnoja et al. 2018, eq. 3 and 5; the minimum over critics of Fujimoto et al. 2018.

    Pitfall:
        A truncated episode goes on beyond its last row: it bootstraps.
    """
    following = _policy(state.actor, config, batch.next_obs, noise)
    _, target_critics = evaluated_critics(state)
    q = q_values(target_critics, config, batch.next_obs, following.action)
    value = jnp.min(q, axis=0)
    if hooks.bootstrap is not None:
        value = hooks.bootstrap(batch, value)
    soft_value = value - jnp.exp(state.log_alpha) * following.log_prob
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
    hooks: CriticHooks = _NO_HOOKS,
) -> tuple[SACState, Metrics]:
    """One gradient step of critics, actor and temperature, in this order.

    Args:
        key: random key.
        state: the agent.
        batch: transitions [B].
        config: structure; `policy_every` plays no role here.
        hparams: rates and targets.
        hooks: changes of the critics' update.

    Returns:
        The new agent and scalar metrics.

    Reference:
        Haarnoja et al. 2018, algorithm 1.
    """
    noise = _noise(key, batch)
    state, critic_metrics = _update_critics(key, state, batch, noise[0], config, hparams, hooks)
    state, actor_metrics = _update_actor(state, batch, noise[1], config, hparams)
    return state, critic_metrics | actor_metrics


def update_many(
    key: Key[Array, ""],
    state: SACState,
    batches: Transition,
    config: SACConfig,
    hparams: SACHyperparams,
    hooks: CriticHooks = _NO_HOOKS,
) -> tuple[SACState, Metrics]:
    """A scan of updates over pre-sampled batches.

    Args:
        key: random key, split into one per batch.
        state: the agent.
        batches: transitions [U, B].
        config: structure; the actor and the temperature move after every `policy_every` critic
            updates, on the last of their batches.
        hparams: rates and targets.
        hooks: changes of the critics' update.

    Returns:
        The new agent and the metrics' means over the updates.

    Raises:
        ValueError: if U is no multiple of `policy_every`.
    """
    count, every = batches.reward.shape[0], config.policy_every
    if count % every:
        raise ValueError(f"batches: expected a multiple of {every} (policy_every), got {count}")
    # All noise at once: the generator's cost per call outweighs its cost per number.
    keys = jax.random.split(key, count)
    noise = jax.vmap(_noise)(keys, batches)
    grouped = jax.tree.map(
        lambda x: x.reshape(count // every, every, *x.shape[1:]), (batches, noise, keys)
    )

    def group(state: SACState, xs: tuple[Transition, Array, Array]) -> tuple[SACState, Metrics]:
        def critic_step(
            state: SACState, xs: tuple[Transition, Array, Array]
        ) -> tuple[SACState, Metrics]:
            batch, noise, key = xs
            return _update_critics(key, state, batch, noise[0], config, hparams, hooks)

        state, critic_metrics = jax.lax.scan(critic_step, state, xs)
        batch, noise, _ = jax.tree.map(lambda x: x[-1], xs)
        state, actor_metrics = _update_actor(state, batch, noise[1], config, hparams)
        return state, jax.tree.map(jnp.mean, critic_metrics) | actor_metrics

    state, metrics = jax.lax.scan(group, state, grouped)
    return state, jax.tree.map(jnp.mean, metrics)


def _update_critics(
    key: Key[Array, ""],
    state: SACState,
    batch: Transition,
    noise: Array,
    config: SACConfig,
    hparams: SACHyperparams,
    hooks: CriticHooks,
) -> tuple[SACState, Metrics]:
    target = targets(state, batch, noise, config, hparams, hooks)

    def loss_fn(critics: nets.MLPParams) -> tuple[Array, tuple[Any, ...]]:
        vectors = None
        if state.spectral is not None:
            critics, vectors = flat_critics.constrain(
                critics, state.spectral.critics, state.spectral.beta
            )
        q = q_values(critics, config, batch.obs, batch.action)
        error = q - jnp.broadcast_to(target, q.shape)
        # A sum over critics: the mean would make a critic's gradient depend on their number.
        loss = jnp.sum(jnp.mean(error**2, axis=-1))
        penalties = []
        if config.critic_regulariser in ("robust", "noise"):
            penalties.append(_robust_penalty(key, critics, batch, config, hparams))
        if hooks.penalty is not None:
            penalties.append(hooks.penalty(critics, batch))
        return sum(penalties, loss), (loss, q, penalties, vectors)

    aux: tuple[Array, Array, list[Array], nets.SpectralState | None]
    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.critics)
    loss, q, penalties, vectors = aux
    critics, critic_opt = _descend(grads, state.critic_opt, state.critics, hparams.critic_lr)
    metrics = {
        "critic_loss": loss,
        "q_mean": jnp.mean(q),
        "q_spread": jnp.mean(jnp.max(q, axis=0) - jnp.min(q, axis=0)),
        "target_mean": jnp.mean(target),
    }
    if penalties:
        metrics["critic_penalty"] = sum(penalties[1:], penalties[0])
    if config.target_clip is not None:
        low, high = config.target_clip
        metrics["target_clipped"] = jnp.mean((target <= low) | (target >= high))
    target_critics = nets.polyak(state.target_critics, critics, hparams.tau)
    spectral = state.spectral
    if spectral is not None and vectors is not None:
        _, moved = flat_critics.constrain(target_critics, spectral.target_critics, spectral.beta)
        spectral = dataclasses.replace(spectral, critics=vectors, target_critics=moved)
    state = dataclasses.replace(
        state,
        critics=critics,
        critic_opt=critic_opt,
        target_critics=target_critics,
        spectral=spectral,
    )
    return state, metrics


def _robust_penalty(
    key: Key[Array, ""],
    critics: nets.MLPParams,
    batch: Transition,
    config: SACConfig,
    hparams: SACHyperparams,
) -> Float[Array, ""]:
    def critics_fn(params: nets.MLPParams, obs: Array) -> Array:
        return q_values(params, config, obs, batch.action)

    steps = config.robust_steps if config.critic_regulariser == "robust" else 0
    # The key itself has drawn the actions' noise.
    start_key = jax.random.fold_in(key, 1)
    penalty = flat_critics.robust_penalty(
        start_key, critics, critics_fn, batch.obs, hparams.robust_eps, steps
    )
    return hparams.robust_coef * penalty


def _update_actor(
    state: SACState, batch: Transition, noise: Array, config: SACConfig, hparams: SACHyperparams
) -> tuple[SACState, Metrics]:
    alpha = jnp.exp(state.log_alpha)
    critics, _ = evaluated_critics(state)

    def loss_fn(actor: nets.MLPParams) -> tuple[Array, Array]:
        chosen = _policy(actor, config, batch.obs, noise)
        q = q_values(critics, config, batch.obs, chosen.action)
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
    out = nets.mlp_apply(actor, obs, ACTIVATIONS[config.activation])
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

"""Trajectory sampling that evaluates one member per particle instead of all of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxlab.worldmodels.ensemble import EnsembleConfig, ModelState, apply
from jaxlab.worldmodels.propagation import StepFn

ParticleMode = Literal["ts1", "ts_inf"]


def make_particle_step_fn(
    state: ModelState,
    config: EnsembleConfig,
    termination_fn: Callable[[Array, Array, Array], Bool[Array, "*b"]],
    reward_fn: Callable[[Array, Array, Array], Float[Array, "*b"]] | None = None,
    *,
    mode: ParticleMode = "ts_inf",
) -> StepFn:
    """Turns a model into an environment step for many particles, for planning.

    Row r of a batch starts with elite r mod K, so every elite serves the same number of rows and
    is evaluated on those alone: a K-th of the work of `make_step_fn`.

    Args:
        state: the model.
        config: architecture, with K elites.
        termination_fn: given rule (obs, action, next_obs) -> bool; never learned.
        reward_fn: given rule (obs, action, next_obs) -> reward; None takes the model's reward.
        mode: "ts_inf" leaves every particle with its elite; "ts1" moves all of them on by one
            random number of elites per step, so that each particle draws its elite anew and
            uniformly at every step, though not independently of the other particles.

    Returns:
        step(key, obs[R, o], action[R, a]) -> (next_obs, reward, terminated, {}), where R is a
        multiple of K.

    Raises:
        ValueError: if the mode is unknown or nothing gives a reward; at the step, if R is no
            multiple of K.

    Reference:
        Chua et al. 2018 (PETS), section 4: trajectory sampling TS1 and TS-infinity.

    Pitfall:
        Particles that redraw their member at every step average out what the members disagree
        about: the variance of a sum over H steps grows as H, and not as H^2.
    """
    if mode not in get_args(ParticleMode):
        raise ValueError(f"mode: expected one of {get_args(ParticleMode)}, got {mode!r}")
    if reward_fn is None and not config.predict_reward:
        raise ValueError("reward_fn: expected a function, for the model predicts no reward")
    params = jax.tree.map(lambda leaf: leaf[state.elites], state.params)
    count = config.elites
    obs_dim = state.target_normalizer.mean.shape[-1] - int(config.predict_reward)

    def predict(params: Any, x: Float[Array, "n i"]) -> tuple[Array, Array | None]:
        one = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf[None], params))
        obs, action = jnp.split(x, [obs_dim], axis=-1)
        mean, logvar = apply(one, config, obs, action)
        return mean[0], None if logvar is None else logvar[0]

    def step(
        key: Key[Array, ""], obs: Float[Array, "R o"], action: Float[Array, "R a"]
    ) -> tuple[Array, Array, Array, dict[str, Any]]:
        rows = obs.shape[0]
        if rows % count:
            raise ValueError(f"obs: expected a multiple of {count} rows (elites), got {rows}")
        member_key, noise_key = jax.random.split(key)
        x = jnp.concatenate([obs, action], axis=-1).reshape(rows // count, count, -1)
        x = jnp.swapaxes(x, 0, 1)  # [K, R / K, i]
        offset = jnp.zeros((), jnp.int32)
        if mode == "ts1":
            offset = jax.random.randint(member_key, (), 0, count)
        mean, logvar = jax.vmap(predict)(params, jnp.roll(x, offset, axis=0))

        def to_rows(y: Float[Array, "K n d"]) -> Float[Array, "R d"]:
            return jnp.swapaxes(jnp.roll(y, -offset, axis=0), 0, 1).reshape(rows, -1)

        outcome = to_rows(mean)
        if logvar is not None:
            noise = jax.random.normal(noise_key, outcome.shape, outcome.dtype)
            outcome = outcome + jnp.exp(0.5 * to_rows(logvar)) * noise
        next_obs = obs + outcome[:, :obs_dim]
        reward = outcome[:, -1] if reward_fn is None else reward_fn(obs, action, next_obs)
        return next_obs, reward, termination_fn(obs, action, next_obs), {}

    return step

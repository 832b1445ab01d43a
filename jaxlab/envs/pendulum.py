"""Torque-limited pendulum swing-up with Gym's constants."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxlab.envs.core import Env, EnvSpec, clip_action, observed_env

GRAVITY = 10.0  # m/s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m, rod of uniform density hinged at its end
MAX_TORQUE = 2.0  # N m
MAX_SPEED = 8.0  # rad/s
TIME_STEP = 0.05  # s

RANDOM_RETURN = -1226.5
EXPERT_RETURN = -152.3


def angle(obs: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
    """Angle from upright in [-pi, pi], differentiable also where a model predicts (0, 0)."""
    cos, sin = obs[..., 0], obs[..., 1]
    origin = (cos == 0) & (sin == 0)
    return jnp.arctan2(sin, jnp.where(origin, 1, cos))


def observe(theta: Float[Array, "*b"], speed: Float[Array, "*b"]) -> Float[Array, "*b 3"]:
    """Observation (cos theta, sin theta, speed / 8) of an angle in rad and a speed in rad/s."""
    return jnp.stack([jnp.cos(theta), jnp.sin(theta), speed / MAX_SPEED], axis=-1)


def initial_obs(key: Key[Array, ""]) -> Float[Array, "3"]:
    """Any angle, speed in [-1, 1] rad/s."""
    high = jnp.array([jnp.pi, 1.0], jnp.float32)
    theta, speed = jax.random.uniform(key, (2,), jnp.float32, -high, high)
    return observe(theta, speed)


def transition(
    key: Key[Array, ""], obs: Float[Array, "*b 3"], action: Float[Array, "*b 1"]
) -> Float[Array, "*b 3"]:
    """One semi-implicit Euler step; the dynamics are deterministic, so the key is not used."""
    torque = MAX_TORQUE * clip_action(action, obs.dtype)[..., 0]
    theta, speed = angle(obs), MAX_SPEED * obs[..., 2]
    acceleration = 1.5 * GRAVITY / LENGTH * jnp.sin(theta) + 3 / (MASS * LENGTH**2) * torque
    speed = jnp.clip(speed + acceleration * TIME_STEP, -MAX_SPEED, MAX_SPEED)
    return observe(theta + speed * TIME_STEP, speed)


def reward(
    obs: Float[Array, "*b 3"], action: Float[Array, "*b 1"], next_obs: Float[Array, "*b 3"]
) -> Float[Array, "*b"]:
    """Minus the quadratic cost of angle, speed and torque *before* the step, as in Gym."""
    torque = MAX_TORQUE * clip_action(action, obs.dtype)[..., 0]
    theta, speed = angle(obs), MAX_SPEED * obs[..., 2]
    return -(theta**2 + 0.1 * speed**2 + 0.001 * torque**2)


def termination(
    obs: Float[Array, "*b 3"], action: Float[Array, "*b 1"], next_obs: Float[Array, "*b 3"]
) -> Bool[Array, "*b"]:
    """Never: only the clock ends an episode."""
    return jnp.zeros(next_obs.shape[:-1], bool)


def pendulum(episode_length: int = 200) -> Env:
    """Swing a pendulum up with a motor too weak to lift it directly, and hold it.

    Observation (cos, sin, speed / 8): Gym's with the speed scaled into [-1, 1], so that all
    coordinates matter alike to a squared error. Action: torque / 2 N m.

    Args:
        episode_length: steps of 0.05 s per episode.

    Returns:
        The environment; its two reference returns are `None` for another episode length.

    Reference: Gym Pendulum-v1. Random return: 4096 episodes of uniform actions. Expert return: 64
    episodes of model-predictive control on the exact dynamics (cross-entropy method, 128 plans of
    25 steps, 4 iterations, warm start); `tests/envs/test_reference_returns.py` repeats both.
    """
    standard = episode_length == 200
    spec = EnvSpec(
        name="pendulum",
        obs_dim=3,
        action_dim=1,
        episode_length=episode_length,
        random_return=RANDOM_RETURN if standard else None,
        expert_return=EXPERT_RETURN if standard else None,
    )
    return observed_env(spec, initial_obs, transition, reward, termination)

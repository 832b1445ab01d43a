"""Cart-pole swing-up with Gym's constants, a continuous force and a smooth reward."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxlab.envs.core import Env, EnvSpec, clip_action, observed_env

GRAVITY = 9.8  # m/s^2
CART_MASS = 1.0  # kg
POLE_MASS = 0.1  # kg
HALF_LENGTH = 0.5  # m, hinge to centre of mass of a uniform pole
MAX_FORCE = 10.0  # N
TRACK = 2.4  # m, half-width of the track
TIME_STEP = 0.02  # s

RANDOM_RETURN = 2.62
EXPERT_RETURN = 143.7


def angle(obs: Float[Array, "*b 5"]) -> Float[Array, "*b"]:
    """Angle from upright in [-pi, pi], differentiable also where a model predicts (0, 0)."""
    cos, sin = obs[..., 2], obs[..., 3]
    origin = (cos == 0) & (sin == 0)
    return jnp.arctan2(sin, jnp.where(origin, 1, cos))


def observe(
    x: Float[Array, "*b"],
    x_speed: Float[Array, "*b"],
    theta: Float[Array, "*b"],
    theta_speed: Float[Array, "*b"],
) -> Float[Array, "*b 5"]:
    """Observation (x, x', cos theta, sin theta, theta') in m, m/s, rad/s; theta 0 is upright."""
    return jnp.stack([x, x_speed, jnp.cos(theta), jnp.sin(theta), theta_speed], axis=-1)


def initial_obs(key: Key[Array, ""]) -> Float[Array, "5"]:
    """Hanging at rest, up to 0.05 in every coordinate."""
    noise = jax.random.uniform(key, (4,), jnp.float32, -0.05, 0.05)
    return observe(noise[0], noise[1], jnp.pi + noise[2], noise[3])


def accelerations(
    theta: Float[Array, "*b"], theta_speed: Float[Array, "*b"], force: Float[Array, "*b"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """Cart (m/s^2) and pole (rad/s^2) accelerations of the frictionless system.

    Reference: Florian 2005, Correct equations for the dynamics of the cart-pole system, eq. 23-24.
    """
    mass = CART_MASS + POLE_MASS
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    push = (force + POLE_MASS * HALF_LENGTH * theta_speed**2 * sin) / mass
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * cos**2 / mass)
    theta_acc = (GRAVITY * sin - cos * push) / inertia
    return push - POLE_MASS * HALF_LENGTH * theta_acc * cos / mass, theta_acc


def transition(
    key: Key[Array, ""],
    obs: Float[Array, "*b 5"],
    action: Float[Array, "*b 1"],
    *,
    time_step: float = TIME_STEP,
) -> Float[Array, "*b 5"]:
    """One semi-implicit Euler step; the dynamics are deterministic, so the key is not used.

    Pitfall: Gym's default explicit Euler pumps energy into a swinging pole (about 0.3 % per step),
    which does part of the swing-up for free.
    """
    force = MAX_FORCE * clip_action(action, obs.dtype)[..., 0]
    theta, theta_speed = angle(obs), obs[..., 4]
    x_acc, theta_acc = accelerations(theta, theta_speed, force)
    x_speed = obs[..., 1] + time_step * x_acc
    theta_speed = theta_speed + time_step * theta_acc
    return observe(
        obs[..., 0] + time_step * x_speed, x_speed, theta + time_step * theta_speed, theta_speed
    )


def reward(
    obs: Float[Array, "*b 5"], action: Float[Array, "*b 1"], next_obs: Float[Array, "*b 5"]
) -> Float[Array, "*b"]:
    """exp(-d^2 / l^2), d from the tip to its place upright over the centre, l the pole's length.

    Reference: Chua et al. 2018, Deep RL in a Handful of Trials (PETS), cart-pole reward.
    """
    length = 2 * HALF_LENGTH
    across = next_obs[..., 0] + length * next_obs[..., 3]
    below = length * (1 - next_obs[..., 2])
    return jnp.exp(-(across**2 + below**2) / length**2)


def termination(
    obs: Float[Array, "*b 5"], action: Float[Array, "*b 1"], next_obs: Float[Array, "*b 5"]
) -> Bool[Array, "*b"]:
    """The cart left the track."""
    return jnp.abs(next_obs[..., 0]) > TRACK


def cartpole_swingup(episode_length: int = 250) -> Env:
    """Swing a hanging pole up by pushing its cart, and keep it up over the middle of the track.

    Observation (x, x', cos, sin, theta'); action: force / 10 N; reward in (0, 1] per step, so that
    leaving the track forfeits what was still to come.

    Args:
        episode_length: steps of 0.02 s per episode.

    Returns:
        The environment; its two reference returns are `None` for another episode length.

    Reference: Barto, Sutton & Anderson 1983, constants as in Gym CartPole-v1. Random return: 4096
    episodes of uniform actions. Expert return: 64 episodes of model-predictive control on the
    exact dynamics (cross-entropy method, 128 plans of 50 steps, 4 iterations, warm start);
    `tests/envs/test_reference_returns.py` repeats both.
    """
    standard = episode_length == 250
    spec = EnvSpec(
        name="cartpole_swingup",
        obs_dim=5,
        action_dim=1,
        episode_length=episode_length,
        random_return=RANDOM_RETURN if standard else None,
        expert_return=EXPERT_RETURN if standard else None,
    )
    return observed_env(spec, initial_obs, transition, reward, termination)

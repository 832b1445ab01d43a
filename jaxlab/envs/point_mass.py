"""A point that moves freely in d dimensions, with optimal values in closed form."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from jaxlab.envs.core import Env, EnvSpec, clip_action, observed_env

HALF_WIDTH = 2.0  # starts fill the box |s_i| <= 2
STEP = 0.5  # farthest move along an axis

RANDOM_RETURN = 15.38
EXPERT_RETURN = 29.71


def initial_obs(key: Key[Array, ""], dims: int) -> Float[Array, " d"]:
    """Uniform in the box of starts."""
    return jax.random.uniform(key, (dims,), jnp.float32, -HALF_WIDTH, HALF_WIDTH)


def transition(
    key: Key[Array, ""], obs: Float[Array, "*b d"], action: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """Moves along every axis by half the action; deterministic, so the key is not used."""
    return obs + STEP * clip_action(action, obs.dtype)


def reward(
    obs: Float[Array, "*b d"], action: Float[Array, "*b d"], next_obs: Float[Array, "*b d"]
) -> Float[Array, "*b"]:
    """Mean over axes of exp(-s'^2 / 2): 1 at the origin."""
    return jnp.mean(jnp.exp(-0.5 * next_obs**2), axis=-1)


def termination(
    obs: Float[Array, "*b d"], action: Float[Array, "*b d"], next_obs: Float[Array, "*b d"]
) -> Bool[Array, "*b"]:
    """Never: only the clock ends an episode."""
    return jnp.zeros(next_obs.shape[:-1], bool)


def optimal_value(
    obs: Float[Array, "*b d"], discount: ArrayLike, steps: int = 64
) -> Float[Array, "*b"]:
    """Discounted value of moving straight to the origin along every axis, without a time limit.

    Args:
        obs: positions with |s_i| <= steps / 2.
        discount: gamma, below 1.
        steps: terms of the sum; from then on the point is at the origin and earns 1 per step.

    Returns:
        sum_t gamma^t mean_i exp(-max(|s_i| - (t + 1) / 2, 0)^2 / 2).
    """
    gamma = jnp.asarray(discount, obs.dtype)
    # One trailing axis for time.
    t = jnp.broadcast_to(jnp.arange(steps, dtype=obs.dtype), (*obs.shape, steps))
    distance = jnp.maximum(jnp.abs(obs)[..., None] - STEP * (t + 1), 0)
    earned = jnp.mean(gamma**t * jnp.exp(-0.5 * distance**2), axis=-2)
    return jnp.sum(earned, axis=-1) + gamma**steps / (1 - gamma)


def point_mass(episode_length: int = 30, *, dims: int = 8) -> Env:
    """Move a point to the origin from anywhere in a box.

    What is best for an axis does not depend on the others, so that values are known exactly, and
    the region that a policy can reach in k steps is a box.

    Args:
        episode_length: steps per episode.
        dims: number of axes d.

    Returns:
        The environment; its reference returns are `None` for other than 30 steps in 8 dimensions.

    Raises:
        ValueError: if `dims` is not positive.

    Reference: Random return: 4096 episodes of uniform actions. Expert return: the expectation of
    30 steps straight to the origin, from uniform starts.
    """
    if dims < 1:
        raise ValueError(f"dims: expected at least 1, got {dims}")
    standard = episode_length == 30 and dims == 8
    spec = EnvSpec(
        name="point_mass",
        obs_dim=dims,
        action_dim=dims,
        episode_length=episode_length,
        random_return=RANDOM_RETURN if standard else None,
        expert_return=EXPERT_RETURN if standard else None,
    )
    return observed_env(spec, lambda key: initial_obs(key, dims), transition, reward, termination)

"""Undiscounted episode returns of a policy, for reference scores and evaluation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.envs.core import Env

Policy = Callable[[Key[Array, ""], Float[Array, "o"]], Float[Array, "a"]]


def uniform_policy(env: Env) -> Policy:
    """Policy that draws every action uniformly from [-1, 1]."""
    shape = (env.spec.action_dim,)
    return lambda key, obs: jax.random.uniform(key, shape, jnp.float32, -1, 1)


def episode_returns(
    key: Key[Array, ""], env: Env, policy: Policy, episodes: int
) -> Float[Array, "n"]:
    """Play whole episodes side by side and sum their rewards.

    Args:
        key: key of initial states, actions and dynamics.
        env: raw environment.
        policy: `policy(key, obs[o]) -> action[a]`.
        episodes: number of episodes.

    Returns:
        The return of every episode, its reward after the end not counted.

    Raises:
        ValueError: if the environment resets itself.
    """
    if env.auto_resets:
        raise ValueError("env: expected a raw environment, got one with auto_reset on")

    def episode_steps(keys: Key[Array, "n"], t: Array) -> Key[Array, "n 2"]:
        return jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, t)))(keys)

    def play(carry):
        t, state, obs, alive, total = carry
        act_key, step_key = jnp.moveaxis(episode_steps(keys, t), 1, 0)
        state, out = jax.vmap(env.step)(state, jax.vmap(policy)(act_key, obs), step_key)
        # where, not a product: physics after the end of an episode may be NaN.
        total = total + jnp.where(alive, out.reward, 0)
        return t + 1, state, out.obs, alive & ~(out.terminated | out.truncated), total

    reset_key, key = jax.random.split(key)
    keys = jax.random.split(key, episodes)
    state, obs = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))
    start = (0, state, obs, jnp.ones(episodes, bool), jnp.zeros(episodes, jnp.float32))
    return jax.lax.while_loop(lambda carry: carry[3].any(), play, start)[4]

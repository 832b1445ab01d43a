"""Steps of an agent in its environment, and the random ones before the first of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.envs import Env
from jaxlab.types import Transition

# Far from the keys into which an environment may split its own, of which fold_in(key, 1) is one.
_STREAM = 0x706C_6179
# (policy state, obs[o], key) -> (action[a], policy state); the state is a planner's warm start
Policy = Callable[[Any, Float[Array, " o"], Key[Array, ""]], tuple[Float[Array, " a"], Any]]


def env_step(
    stepper: Env,
    env_state: Any,
    obs: Float[Array, " o"],
    action: Float[Array, " a"],
    key: Key[Array, ""],
) -> tuple[Any, Float[Array, " o"], Transition]:
    """Takes one step and writes it down.

    Args:
        stepper: an environment with auto-reset.
        env_state: where it is.
        obs: what it shows there.
        action: in [-1, 1].
        key: random key of dynamics and reset.

    Returns:
        The environment's state, the observation to act on next (after a reset, where one was due),
        and the transition, whose `next_obs` is from before it.
    """
    env_state, out = stepper.step(env_state, action, key)
    transition = Transition(
        obs=obs,
        action=action,
        reward=out.reward,
        terminated=out.terminated,
        truncated=out.truncated,
        next_obs=out.next_obs,
    )
    return env_state, out.obs, transition


def explore(
    key: Key[Array, ""], stepper: Env, steps: int
) -> tuple[Any, Float[Array, " o"], Transition]:
    """Starts an environment and takes uniformly random actions.

    Args:
        key: random key.
        stepper: an environment with auto-reset.
        steps: how many.

    Returns:
        The environment's state, the observation to act on next, and the transitions [steps].

    Raises:
        ValueError: if the environment does not reset itself.
    """
    if not stepper.auto_resets:
        raise ValueError(f"stepper: expected auto_reset(...), got the raw {stepper.spec.name}")
    reset_key, action_key, step_key = jax.random.split(key, 3)
    shape = (steps, stepper.spec.action_dim)
    actions = jax.random.uniform(action_key, shape, jnp.float32, -1.0, 1.0)

    def step(carry: tuple, xs: tuple[Array, Array]) -> tuple[tuple, Transition]:
        (env_state, obs), (action, key) = carry, xs
        env_state, obs, transition = env_step(stepper, env_state, obs, action, key)
        return (env_state, obs), transition

    xs = (actions, jax.random.split(step_key, steps))
    (env_state, obs), transitions = jax.lax.scan(step, stepper.reset(reset_key), xs)
    return env_state, obs, transitions


def evaluate_policy(
    key: Key[Array, ""], env: Env, policy: Policy, policy_state: Any, episodes: int
) -> dict[str, Float[Array, ""]]:
    """Plays whole episodes side by side with a policy that remembers.

    Args:
        key: random key.
        env: without auto-reset.
        policy: chooses the actions.
        policy_state: what every episode starts with.
        episodes: how many.

    Returns:
        "return", the mean undiscounted return, and "episode_length".
    """

    def episode(key: Array) -> tuple[Array, Array]:
        reset_key, key = jax.random.split(key)

        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            env_state, obs, memory, total, length, running = carry
            # The environment's randomness is the same whether or not the policy has any.
            action, memory = policy(memory, obs, jax.random.fold_in(key, _STREAM))
            env_state, out = env.step(env_state, action, key)
            total = total + jnp.where(running, out.reward, 0)  # beyond the end it may be NaN
            length = length + running.astype(jnp.float32)
            running = running & ~(out.terminated | out.truncated)
            return (env_state, out.obs, memory, total, length, running), None

        zero = jnp.zeros((), jnp.float32)
        carry = (*env.reset(reset_key), policy_state, zero, zero, jnp.ones((), bool))
        keys = jax.random.split(key, env.spec.episode_length)
        (_, _, _, total, length, _), _ = jax.lax.scan(step, carry, keys)
        return total, length

    totals, lengths = jax.vmap(episode)(jax.random.split(key, episodes))
    return {"return": jnp.mean(totals), "episode_length": jnp.mean(lengths)}

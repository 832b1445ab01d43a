"""Imagined branches with finitely many actions whose end is a probability and not an event."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

SoftStep = Callable[
    [Key[Array, ""], PyTree, Int[Array, " B"]],
    tuple[PyTree, Float[Array, " B"], Float[Array, " B"]],
]


class SoftSteps(NamedTuple):
    """Imagined steps."""

    obs: Float[Array, "k B o"]
    action: Int[Array, "k B"]
    reward: Float[Array, "k B"]
    continues: Float[Array, "k B"]  # probability that the task goes on after the step
    next_obs: Float[Array, "k B o"]
    weight: Float[Array, "k B"]  # probability that it goes on up to the step


def soft_rollout(
    key: Key[Array, ""],
    step_fn: SoftStep,
    policy_fn: Callable[[Key[Array, ""], Float[Array, "B o"]], Int[Array, " B"]],
    start: PyTree[Array],
    horizon: int,
    observe: Callable[[Any], Float[Array, "B o"]] = lambda obs: obs,
) -> SoftSteps:
    """Unrolls a policy in a model, or in the environment itself.

    Args:
        key: random key.
        step_fn: (key, states, actions) -> (states, rewards, probabilities of going on), batched.
            States are whatever the model needs: observations, latents, or environment states.
        policy_fn: (key, obs) -> action, batched.
        start: states of the B branches.
        horizon: steps k.
        observe: what a policy sees of states.

    Returns:
        The steps, as constants of differentiation. Step t has the product of the probabilities of
        going on of the steps before it as weight; the first one has 1.

    Raises:
        ValueError: if `horizon` is not positive.

    Reference:
        Young et al. 2023, The Benefits of Model-Based Generalization in RL, section 4.

    Pitfall:
        A step that ends the task still counts; only the steps behind it do not.
    """
    if horizon < 1:
        raise ValueError(f"horizon: expected at least one step, got {horizon}")

    def body(carry: tuple, key: Key[Array, ""]) -> tuple[tuple, SoftSteps]:
        state, obs, weight = carry
        policy_key, model_key = jax.random.split(key)
        action = policy_fn(policy_key, obs)
        state, reward, continues = step_fn(model_key, state, action)
        next_obs = observe(state)
        steps = SoftSteps(obs, action, reward, continues, next_obs, weight)
        return (state, next_obs, weight * continues), steps

    obs = observe(start)
    carry = (start, obs, jnp.ones(obs.shape[:-1], obs.dtype))
    _, steps = jax.lax.scan(body, carry, jax.random.split(key, horizon))
    return jax.lax.stop_gradient(steps)

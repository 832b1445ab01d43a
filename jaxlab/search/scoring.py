"""Returns of open-loop plans under a one-step model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

StepFn = Callable[
    [PRNGKeyArray, Float[Array, "P o"], Float[Array, "P a"]],
    tuple[Float[Array, "P o"], Float[Array, "P"], Bool[Array, "P"], Any],
]


def score_plans(
    key: PRNGKeyArray,
    step_fn: StepFn,
    obs: Float[Array, "o"],
    plans: Float[Array, "P H a"],
    particles: int = 1,
) -> Float[Array, "P"]:
    """Sum the rewards of each plan from one start, stopping at a predicted termination.

    Args:
        key: randomness of the model; each step of the plan gets its own key.
        step_fn: `(key, obs[P, o], action[P, a]) -> (next_obs, reward, terminated, info)`, the exact
            environment or a learned model.
        obs: where all plans start.
        plans: action sequences.
        particles: rollouts per plan under a random model; row p * particles + j of a step is
            particle j of plan p.

    Returns:
        Undiscounted return per plan, at least float32, the mean over its particles. The reward of
        the step that terminates counts, later ones do not.

    Raises:
        ValueError: if `particles` is not positive.

    Reference:
        Chua et al. 2018 (PETS), algorithm 1, for the particles.

    Pitfall:
        Masking must select, not multiply: past a termination the model may return NaN, and
        `0 * NaN` is NaN.
    """
    if particles < 1:
        raise ValueError(f"particles: expected at least 1, got {particles}")
    if particles > 1:
        plans = jnp.repeat(plans, particles, axis=0)
    num_plans, horizon, _ = plans.shape
    # Observations may be pixels or bfloat16; their returns are not.
    dtype = jnp.float64 if obs.dtype == jnp.float64 else jnp.float32
    starts = jnp.broadcast_to(obs[None], (num_plans, *obs.shape))

    def step(carry, inputs):
        obs, alive, total = carry
        key, action = inputs
        next_obs, reward, terminated, _ = step_fn(key, obs, action)
        total = jnp.where(alive, total + reward.astype(dtype), total)
        return (next_obs, alive & ~terminated, total), None

    carry = (starts, jnp.ones((num_plans,), bool), jnp.zeros((num_plans,), dtype))
    inputs = (jax.random.split(key, horizon), jnp.swapaxes(plans, 0, 1))
    (_, _, total), _ = jax.lax.scan(step, carry, inputs)
    return total if particles == 1 else jnp.mean(total.reshape(-1, particles), axis=1)

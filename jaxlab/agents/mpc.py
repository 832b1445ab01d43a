"""Episodes of model-predictive control where the observation is the whole state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab import search
from jaxlab.envs import Env, exact_step_fn


class Trajectory(NamedTuple):
    """An episode; steps after its end are not valid."""

    obs: Float[Array, "T o"]
    action: Float[Array, "T a"]
    reward: Float[Array, " T"]
    next_obs: Float[Array, "T o"]
    valid: Float[Array, " T"]  # 1 up to the step that ended it, then 0


def mpc_episode(
    key: Key[Array, ""],
    env: Env,
    step_fn: Callable[..., Any],
    planner: search.Planner,
    hyperparams: Mapping[str, Any],
    start: Float[Array, " o"],
    steps: int,
) -> tuple[Float[Array, ""], Trajectory]:
    """Plans anew at every step and takes the first action of the plan.

    Args:
        key: random key of the planner, the model and the environment.
        env: the environment that is acted on, whose observation is its state.
        step_fn: what the planner searches in: a learned model, or `exact_step_fn(env)`.
        planner: from `search.make_planner`.
        hyperparams: of the planner.
        start: first observation.
        steps: length of the episode.

    Returns:
        Undiscounted return up to the end of the episode, and the trajectory.

    Pitfall:
        The planner's own noise is part of the return: compare models with equal keys.
    """
    exact = exact_step_fn(env)

    def step(carry: tuple, key: Array) -> tuple[tuple, Trajectory]:
        obs, warm, alive = carry
        plan_key, score_key, env_key = jax.random.split(key, 3)
        plan, warm, _ = planner.plan(
            plan_key,
            lambda plans: search.score_plans(score_key, step_fn, obs, plans),
            warm,
            hyperparams,
        )
        next_obs, reward, terminated, _ = exact(env_key, obs, plan[0])
        seen = Trajectory(obs, plan[0], reward, next_obs, alive.astype(reward.dtype))
        held = jnp.where(alive & ~terminated, next_obs, obs)  # what follows an end may be NaN
        return (held, warm, alive & ~terminated), seen

    carry = (start, planner.init(), jnp.ones((), bool))
    _, seen = jax.lax.scan(step, carry, jax.random.split(key, steps))
    return jnp.sum(jnp.where(seen.valid > 0, seen.reward, 0.0)), seen

"""Exact one-step models of brax's runners, which observe all but where they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxlab.envs.brax import REDUCED_BACKENDS, _brax_conventions, _import_brax_envs
from jaxlab.envs.core import clip_action

RUNNERS = ("halfcheetah", "hopper", "walker2d")


def restored_step_fn(
    name: str, backend: str = "generalized"
) -> Callable[
    [Key[Array, ""], Float[Array, "*b o"], Float[Array, "*b a"]],
    tuple[Float[Array, "*b o"], Float[Array, "*b"], Bool[Array, "*b"], dict[str, Array]],
]:
    """Turns a runner into a perfect one-step model of its observations.

    The observation holds all joint positions and velocities but for the distance covered, on which
    neither dynamics nor rewards depend: the state is restored from it and stepped.

    Args:
        name: brax's name, see `RUNNERS`.
        backend: one that integrates joint coordinates, see `REDUCED_BACKENDS`.

    Returns:
        `step_fn(key, obs, action) -> (next_obs, reward, terminated, {})` over any leading axes, as
        `exact_step_fn`; dynamics are deterministic, so the key is not used.

    Raises:
        ValueError: for another environment or backend.

    Pitfall:
        Hopper and walker clip observed velocities to 10: where a velocity is beyond, the model goes
        on from 10. What is observed as height is the torso's, not the joint's. brax goes on from
        the last step's inverse of the mass matrix, which after some quick turns is none any more
        (seen with brax 0.14); the model inverts anew, and such an environment departs from it.
    """
    if name not in RUNNERS:
        raise ValueError(f"name: expected one of {RUNNERS}, got {name!r}")
    if backend not in REDUCED_BACKENDS:
        raise ValueError(f"backend: expected one of {REDUCED_BACKENDS}, got {backend!r}")
    envs = _import_brax_envs()
    with _brax_conventions():
        brax = envs.get_environment(name, backend=backend)
        rest = jax.jit(brax.reset)(jax.random.key(0))
    physics: Any = rest.pipeline_state
    positions = physics.q.shape[0]
    lift = rest.obs[0] - physics.q[1]  # from the joint's coordinate to the observed height

    def one(obs: Float[Array, " o"], action: Float[Array, " a"]) -> tuple[Array, Array, Array]:
        q = jnp.concatenate([jnp.zeros((1,), obs.dtype), obs[: positions - 1]]).at[1].add(-lift)
        with _brax_conventions():
            state = rest.replace(pipeline_state=brax.pipeline_init(q, obs[positions - 1 :]))
            after = brax.step(state, clip_action(action, obs.dtype))
        return after.obs, jnp.asarray(after.reward, jnp.float32), after.done > 0.5

    def step_fn(key, obs, action):
        flat = jax.vmap(one)(obs.reshape(-1, obs.shape[-1]), action.reshape(-1, action.shape[-1]))
        next_obs, reward, terminated = flat
        lead = obs.shape[:-1]
        return next_obs.reshape(obs.shape), reward.reshape(lead), terminated.reshape(lead), {}

    return step_fn

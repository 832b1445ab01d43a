"""Adapter from brax's physics environments to the environment contract."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.envs.brax_tasks import REWARDS, TERMINATIONS
from jaxlab.envs.core import (
    ClockedState,
    Env,
    EnvSpec,
    TimeStep,
    check_episode_length,
    clip_action,
    time_step,
)

# Without swimmer: brax 0.14 computes its fluid drag by a jnp.clip keyword that JAX has removed.
BRAX_NAMES = tuple(sorted(TERMINATIONS))
BACKENDS = ("generalized", "spring", "positional", "mjx")

# For "inverted_pendulum" the fastest in vmapped steps on a CPU; elsewhere brax's own default.
DEFAULT_BACKEND = {"inverted_pendulum": "spring"}

# These integrate joint coordinates; the others carry body poses that observations do not show.
REDUCED_BACKENDS = ("generalized", "mjx")

# Means of 1024 episodes of uniform actions.
RANDOM_RETURN = {
    ("inverted_pendulum", "spring"): 22.4,
    ("inverted_pendulum", "generalized"): 5.8,
    ("hopper", "generalized"): 17.9,
}
# Uniform actions let both fall long before, so that a later time limit changes no return.
RANDOM_LIFETIME = 500


@contextlib.contextmanager
def _brax_conventions() -> Iterator[None]:
    """Let brax promote as it was written to, and keep its maintenance notices to itself."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
        warnings.filterwarnings("ignore", ".*well maintained JAX-based physics")
        warnings.filterwarnings("ignore", ".*deprecated", DeprecationWarning, module="brax|mujoco")
        yield


def _import_brax_envs() -> ModuleType:
    """Import `brax.envs` without the lines that its optional dependencies print."""
    printed = io.StringIO()
    with _brax_conventions(), contextlib.redirect_stdout(printed):
        from brax import envs
    lines = printed.getvalue().splitlines(keepends=True)
    sys.stdout.writelines(line for line in lines if not line.startswith("Failed to import"))
    return envs


def brax_env(name: str, *, backend: str | None = None, episode_length: int = 1000) -> Env:
    """Wrap one brax environment.

    brax environments take actions in [-1, 1] and map them to their actuators' ranges; the adapter
    clips, because brax does not. What brax calls `done` is the task's own end: the time limit
    is the adapter's.

    Args:
        name: brax's name of the environment, see `BRAX_NAMES`.
        backend: "generalized", "spring", "positional" or "mjx"; `None` takes the default of
            the environment (`DEFAULT_BACKEND`). Different backends are different tasks, also
            in their control rate.
        episode_length: steps after which a live episode is truncated.

    Returns:
        The environment. Its `reward_fn` is `None` where observations do not tell the reward;
        `termination_fn` reads observations and may differ from brax by rounding.

    Raises:
        ValueError: for an unknown name or backend.

    Reference: Freeman et al. 2021, Brax: A Differentiable Physics Engine.
    Pitfall: brax's own auto-reset wrapper restarts every episode from one stored initial state
    and hides the last observation; use `auto_reset` instead.
    Pitfall: under "spring" and "positional" the observation does not determine the state. Linear
    regression of the inverted pendulum's next angular velocity change on (obs, action) explains
    36 % (spring), 98 % (positional), 99.99 % (generalized, mjx) of its variance: to study
    one-step models take a backend of `REDUCED_BACKENDS`.
    """
    if name not in BRAX_NAMES:
        raise ValueError(f"name: expected one of {BRAX_NAMES}, got {name!r}")
    default = DEFAULT_BACKEND.get(name, "generalized")
    backend = default if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    check_episode_length(episode_length)
    envs = _import_brax_envs()
    with _brax_conventions():
        brax = envs.get_environment(name, backend=backend)
        example = jax.eval_shape(brax.reset, jax.random.key(0))

    def reset(key: Key[Array, ""]) -> tuple[ClockedState, Float[Array, "o"]]:
        with _brax_conventions():
            physics = brax.reset(key)
        return ClockedState(physics, jnp.zeros((), jnp.int32)), physics.obs

    def step(
        state: ClockedState, action: Float[Array, "a"], key: Key[Array, ""]
    ) -> tuple[ClockedState, TimeStep]:
        before: Any = state.physics
        # brax writes metrics into the dict it is given, which belongs to the caller.
        given = before.replace(metrics=dict(before.metrics), info=dict(before.info))
        with _brax_conventions():
            after = brax.step(given, clip_action(action, before.obs.dtype))
        # brax returns Python scalars in places: keep the structure that reset declared.
        after = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), before, after)
        t = state.t + 1
        out = time_step(after.obs, after.reward, after.done > 0.5, t, episode_length)
        return ClockedState(after, t), out

    def transition(
        key: Key[Array, ""], obs: Float[Array, "*b 4"], action: Float[Array, "*b 1"]
    ) -> Float[Array, "*b 4"]:
        def one(obs: Float[Array, "4"], action: Float[Array, "1"]) -> Float[Array, "4"]:
            with _brax_conventions():
                physics = brax.reset(key).replace(
                    pipeline_state=brax.pipeline_init(obs[:2], obs[2:])
                )
                return brax.step(physics, clip_action(action, obs.dtype)).obs

        flat = jax.vmap(one)(obs.reshape(-1, 4), action.reshape(-1, 1))
        return flat.reshape(obs.shape)

    observed = name == "inverted_pendulum" and backend in REDUCED_BACKENDS
    spec = EnvSpec(
        name=f"brax/{name}",
        obs_dim=example.obs.shape[-1],
        action_dim=brax.action_size,
        episode_length=episode_length,
        random_return=(
            RANDOM_RETURN.get((name, backend)) if episode_length >= RANDOM_LIFETIME else None
        ),
        # One point per step until the pole falls: the ceiling, reached by linear feedback.
        expert_return=float(episode_length) if name == "inverted_pendulum" else None,
    )
    return Env(
        reset,
        step,
        spec,
        REWARDS.get(name),
        TERMINATIONS[name],
        transition_fn=transition if observed else None,
    )

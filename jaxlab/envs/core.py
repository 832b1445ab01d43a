"""The environment contract, time limits, automatic resets and exact one-step models."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

EnvState: TypeAlias = PyTree[Array]  # whatever an environment needs to go on, its clock included

Reset = Callable[[Key[Array, ""]], tuple[EnvState, Float[Array, "o"]]]
Step = Callable[
    [EnvState, Float[Array, "a"], Key[Array, ""]],
    tuple[EnvState, "TimeStep"],
]
Reward = Callable[[Array, Array, Array], Float[Array, "*b"]]
Termination = Callable[[Array, Array, Array], Bool[Array, "*b"]]
ObsTransition = Callable[[Key[Array, ""], Array, Array], Float[Array, "*b o"]]


@dataclass(frozen=True)
class EnvSpec:
    """Static facts about an environment; returns are undiscounted sums over one episode.

    `None` as a return says "never measured for this configuration" (for example after
    overriding the episode length), so that a normalised score cannot be computed by accident.
    """

    name: str
    obs_dim: int
    action_dim: int
    episode_length: int
    random_return: float | None  # mean of >= 256 episodes of uniform actions
    expert_return: float | None  # a reference controller, described where the number stands


@flax.struct.dataclass
class TimeStep:
    """What one environment step shows.

    Store `next_obs`, act on `obs`. They differ exactly where an automatic reset happened.
    """

    obs: Float[Array, "o"]  # where to act next: after an automatic reset
    next_obs: Float[Array, "o"]  # what the dynamics produced: before an automatic reset
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]  # the task ended: do not bootstrap
    truncated: Bool[Array, ""]  # the clock ran out on a live task: bootstrap


class Env(NamedTuple):
    """An environment as pure functions; actions live in [-1, 1] and are clipped to it."""

    reset: Reset
    step: Step  # a raw environment never resets by itself
    spec: EnvSpec
    reward_fn: Reward | None  # (obs, action, next_obs), any leading axes; None: learn it
    termination_fn: Termination  # (obs, action, next_obs), any leading axes
    transition_fn: ObsTransition | None = None  # (key, obs, action), where obs is the whole state
    auto_resets: bool = False


@flax.struct.dataclass
class ClockedState:
    """Physics plus the number of steps taken since the last reset."""

    physics: PyTree[Array]
    t: Int[Array, ""]


def clip_action(action: Float[Array, "*b a"], dtype: Any) -> Float[Array, "*b a"]:
    """Put actions into [-1, 1] and into the dtype of the physics."""
    return jnp.clip(action.astype(dtype), -1, 1)


def time_step(
    next_obs: Float[Array, "o"],
    reward: Float[Array, ""],
    terminated: Bool[Array, ""],
    t: Int[Array, ""],
    episode_length: int,
) -> TimeStep:
    """Close one raw step, with the clock deciding about truncation.

    Args:
        next_obs: observation that the dynamics produced.
        reward: reward of the step.
        terminated: whether the task itself ended.
        t: steps taken since the reset, this one included.
        episode_length: steps after which a live episode is cut.

    Returns:
        A `TimeStep` in which at most one of `terminated`, `truncated` holds.

    Pitfall: one merged `done` makes targets stop bootstrapping at the time limit, which teaches
    the critic that the world ends there (Pardo et al. 2018, Time Limits in RL, section 3).
    """
    return TimeStep(
        obs=next_obs,
        next_obs=next_obs,
        reward=reward.astype(jnp.float32),
        terminated=terminated,
        truncated=(t >= episode_length) & ~terminated,
    )


def observed_env(
    spec: EnvSpec,
    initial_obs: Callable[[Key[Array, ""]], Float[Array, "o"]],
    transition_fn: ObsTransition,
    reward_fn: Reward,
    termination_fn: Termination,
) -> Env:
    """Build an environment whose observation is its whole state.

    The state *is* the observation, so the environment and `exact_step_fn` run literally the same
    operations: an exact-model rollout repeats the environment, up to what XLA's fusion rounds
    differently in different programs.
    """
    check_episode_length(spec.episode_length)

    def reset(key: Key[Array, ""]) -> tuple[ClockedState, Float[Array, "o"]]:
        obs = initial_obs(key)
        return ClockedState(obs, jnp.zeros((), jnp.int32)), obs

    def step(
        state: ClockedState, action: Float[Array, "a"], key: Key[Array, ""]
    ) -> tuple[ClockedState, TimeStep]:
        obs, t = state.physics, state.t + 1
        next_obs = transition_fn(key, obs, action)
        reward = reward_fn(obs, action, next_obs)
        terminated = termination_fn(obs, action, next_obs)
        out = time_step(next_obs, reward, terminated, t, spec.episode_length)
        return ClockedState(next_obs, t), out

    return Env(reset, step, spec, reward_fn, termination_fn, transition_fn)


def check_episode_length(episode_length: int) -> None:
    """Refuse a time limit that no step can fit into."""
    if not isinstance(episode_length, int) or episode_length < 1:
        raise ValueError(f"episode_length: expected an int >= 1, got {episode_length!r}")


def auto_reset(env: Env) -> Env:
    """Start a new episode, from a freshly drawn initial state, in the step that ends the old one.

    Args:
        env: raw environment, already wearing all its other wrappers.

    Returns:
        The same environment whose step splits its key into one for the dynamics and one for the
        reset; `TimeStep.next_obs` stays the last observation of the old episode.

    Raises:
        ValueError: if the environment resets itself already.

    Pitfall: storing the post-reset observation as the successor gives a dynamics model one
    impossible jump per episode, and re-using one stored initial state makes every episode of a
    member start alike.
    """
    if env.auto_resets:
        raise ValueError(f"env: expected a raw environment, got {env.spec.name} with auto_reset on")

    def step(
        state: EnvState, action: Float[Array, "a"], key: Key[Array, ""]
    ) -> tuple[EnvState, TimeStep]:
        step_key, reset_key = jax.random.split(key)
        state, out = env.step(state, action, step_key)
        fresh_state, fresh_obs = env.reset(reset_key)
        done = out.terminated | out.truncated
        # A select, not a cond over lanes: members must not depend on each other's episodes.
        state, obs = jax.tree.map(
            lambda new, old: jax.lax.select(jnp.broadcast_to(done, old.shape), new, old),
            (fresh_state, fresh_obs),
            (state, out.next_obs),
        )
        return state, dataclasses.replace(out, obs=obs)

    return env._replace(step=step, auto_resets=True)


def exact_step_fn(
    env: Env,
) -> Callable[
    [Key[Array, ""], Float[Array, "*b o"], Float[Array, "*b a"]],
    tuple[Float[Array, "*b o"], Float[Array, "*b"], Bool[Array, "*b"], dict[str, Array]],
]:
    """Turn an environment into a perfect one-step model, a drop-in for a learned one.

    Args:
        env: environment whose observation determines its state.

    Returns:
        `step_fn(key, obs, action) -> (next_obs, reward, terminated, info)` over any leading axes.
        There is no clock in it: an imagined branch is never truncated.

    Raises:
        ValueError: if the observation does not determine the state, or the reward is not known
            as a function of observations.
    """
    transition_fn, reward_fn = env.transition_fn, env.reward_fn
    if transition_fn is None or reward_fn is None:
        raise ValueError(
            f"env: expected an environment whose observation is its whole state, got "
            f"{env.spec.name}; step it through its own state instead"
        )

    def step_fn(key, obs, action):
        next_obs = transition_fn(key, obs, action)
        reward = reward_fn(obs, action, next_obs)
        return next_obs, reward, env.termination_fn(obs, action, next_obs), {}

    return step_fn

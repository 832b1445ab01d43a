"""Observation dimensions that follow their own dynamics and say nothing about the task."""

import dataclasses
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.envs.core import Env, EnvState, ObsTransition, TimeStep

Kind = Literal["linear", "nonlinear", "noise"]

SPECTRAL_RADIUS = 0.95  # of a stable linear map
# Far from the small counters with which an environment may split the same key: fold_in(key, i)
# is split(key)[i] under threefry.
_STREAM = 0x6469_7374


@flax.struct.dataclass
class DistractedState:
    """State of the environment beside the state of its distractors."""

    env: PyTree[Array]
    distractors: Float[Array, "d"]


def spectral_radius(matrix: Float[Array, "d d"], squarings: int = 24) -> Float[Array, ""]:
    """Largest eigenvalue modulus, by Gelfand's formula |A^k|^(1/k) with k = 2^squarings.

    Unlike an eigenvalue solver this runs under jit and vmap on every device. Growth is factored
    out at each squaring, so no power overflows.

    Args:
        matrix: square matrix.
        squarings: doublings of the power; the error in log radius falls like 2^-squarings.

    Returns:
        The spectral radius, to about 1e-5 relative in float32.
    """

    def square(carry, i):
        power, log_radius = carry
        norm = jnp.abs(power).max()  # the Frobenius norm would square and overflow
        power = jnp.where(norm > 0, power / norm, 0)  # of a nilpotent matrix nothing is left
        return (
            jnp.matmul(power, power, precision="highest"),
            log_radius + jnp.log(norm) * 0.5 ** i.astype(matrix.dtype),
        ), None

    start = (matrix, jnp.zeros((), matrix.dtype))
    (_, log_radius), _ = jax.lax.scan(square, start, jnp.arange(squarings))
    return jnp.exp(log_radius)


def distractor_matrix(
    key: Key[Array, ""], dims: int, kind: Kind = "linear", *, stable: bool = True
) -> Float[Array, "d d"]:
    """Draw the map that drives the distractors.

    Args:
        key: key of the draw.
        dims: number of distractors.
        kind: "linear": entries N(0, 1), scaled to spectral radius 0.95 if `stable`; "nonlinear":
            entries N(0, 4 / dims), whose gain the sine bounds; "noise": unused zeros.
        stable: whether a linear map is scaled.

    Returns:
        The matrix.
    """
    if kind == "noise":
        return jnp.zeros((dims, dims), jnp.float32)
    matrix = jax.random.normal(key, (dims, dims), jnp.float32)
    if kind == "nonlinear":
        return 2 / dims**0.5 * matrix
    return SPECTRAL_RADIUS / spectral_radius(matrix) * matrix if stable else matrix


def distractor_step(
    key: Key[Array, ""],
    distractors: Float[Array, "*b d"],
    matrix: Float[Array, "d d"],
    kind: Kind = "linear",
) -> Float[Array, "*b d"]:
    """Move distractors by one step: A d, 2 sin(A d), or a fresh N(0, 1) draw.

    Args:
        key: used by "noise" only.
        distractors: present values.
        matrix: the map A of `distractor_matrix`.
        kind: which law.

    Returns:
        The next values.
    """
    if kind == "noise":
        return jax.random.normal(key, distractors.shape, distractors.dtype)
    moved = jnp.matmul(distractors, matrix.T, precision="highest")
    return 2 * jnp.sin(moved) if kind == "nonlinear" else moved


def with_distractors(
    env: Env,
    dims: int,
    kind: Kind = "linear",
    *,
    key: Key[Array, ""],
    stable: bool = True,
    initial_std: float = 0.1,
) -> Env:
    """Append task-irrelevant dimensions to the end of the observation.

    The environment sees the same keys and does the same operations with and without distractors:
    its rewards, states and episode ends are the same, to the last bit where XLA compiles both
    programs alike.

    Args:
        env: raw environment (wear `auto_reset` outside, so that distractors restart with it).
        dims: how many dimensions to append; 0 gives the environment back.
        kind: "linear", "nonlinear" or "noise", see `distractor_step`.
        key: key of the map; the map is part of the environment, not of an episode.
        stable: scale a linear map to spectral radius 0.95.
        initial_std: standard deviation of the first values of an episode ("noise" starts as it
            goes on, with 1).

    Returns:
        The environment with observations [o + dims]; `reward_fn`, `termination_fn` and
        `transition_fn` take the extended observations. The reference returns stay valid.

    Raises:
        ValueError: for an environment that resets itself, a negative `dims`, an unknown `kind`.

    Reference: Voelcker et al. 2022, Value Gradient weighted Model-Based RL, section 5.2 (initial
    values and N(0, 1) maps of the released code).
    Pitfall: an unscaled Gaussian map has spectral radius about sqrt(dims): linear distractors
    overflow float32 within an episode. The stable ones fade (0.95^50 = 0.08) and distract only
    early in an episode; "nonlinear" ones stay of order 1.
    """
    if env.auto_resets:
        raise ValueError("env: expected a raw environment, got one with auto_reset on")
    if not isinstance(dims, int) or dims < 0:
        raise ValueError(f"dims: expected an int >= 0, got {dims!r}")
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
    if dims == 0:
        return env
    matrix = distractor_matrix(key, dims, kind, stable=stable)
    std = 1.0 if kind == "noise" else initial_std
    inner = env.spec.obs_dim

    def append(obs: Float[Array, "*b o"], distractors: Float[Array, "*b d"]) -> Array:
        return jnp.concatenate([obs, distractors], axis=-1)

    def reset(key: Key[Array, ""]) -> tuple[DistractedState, Array]:
        state, obs = env.reset(key)
        own = jax.random.fold_in(key, _STREAM)
        distractors = std * jax.random.normal(own, (dims,), obs.dtype)
        return DistractedState(state, distractors), append(obs, distractors)

    def step(
        state: DistractedState, action: Float[Array, "a"], key: Key[Array, ""]
    ) -> tuple[DistractedState, TimeStep]:
        env_state: EnvState
        env_state, out = env.step(state.env, action, key)
        own = jax.random.fold_in(key, _STREAM)
        distractors = distractor_step(own, state.distractors, matrix, kind)
        next_obs = append(out.next_obs, distractors)
        out = dataclasses.replace(out, obs=next_obs, next_obs=next_obs)
        return DistractedState(env_state, distractors), out

    def seen(fn):
        """Let a function of plain observations read extended ones."""
        return lambda obs, action, next_obs: fn(obs[..., :inner], action, next_obs[..., :inner])

    def beside(transition_fn: ObsTransition) -> ObsTransition:
        """Let the distractors move beside a transition of plain observations."""

        def transition(key: Key[Array, ""], obs: Array, action: Array) -> Array:
            own = jax.random.fold_in(key, _STREAM)
            return append(
                transition_fn(key, obs[..., :inner], action),
                distractor_step(own, obs[..., inner:], matrix, kind),
            )

        return transition

    return Env(
        reset=reset,
        step=step,
        spec=dataclasses.replace(
            env.spec, name=f"{env.spec.name}+{dims}_{kind}", obs_dim=inner + dims
        ),
        reward_fn=None if env.reward_fn is None else seen(env.reward_fn),
        termination_fn=seen(env.termination_fn),
        transition_fn=None if env.transition_fn is None else beside(env.transition_fn),
    )

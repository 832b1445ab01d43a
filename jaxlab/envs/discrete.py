"""Environments with a few actions and observations of bits, and relabellings of those bits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.envs.core import EnvState

MAX_SCRAMBLED_BITS = 12  # a table of 2^12 codes


class DiscreteEnv(NamedTuple):
    """An environment as pure functions of one state; it never resets by itself.

    `step` returns (state, reward, terminated). A continuing task never terminates; where success
    starts it afresh, that is part of its dynamics.
    """

    reset: Callable[[Key[Array, ""]], EnvState]
    step: Callable[
        [EnvState, Int[Array, ""], Key[Array, ""]],
        tuple[EnvState, Float[Array, ""], Bool[Array, ""]],
    ]
    observe: Callable[[EnvState], Float[Array, " o"]]  # zeros and ones
    name: str
    num_actions: int
    obs_dim: int
    episodic: bool


def bits_to_code(bits: Float[Array, "*b o"]) -> Int[Array, "*b"]:
    """Reads bits as a binary number, the first one as its lowest digit."""
    powers = 2 ** jnp.arange(bits.shape[-1], dtype=jnp.int32)
    digits = (bits > 0.5).astype(jnp.int32)
    return jnp.sum(digits * jnp.broadcast_to(powers, digits.shape), axis=-1)


def code_to_bits(code: Int[Array, "*b"], length: int) -> Float[Array, "*b o"]:
    """Writes a number as `length` bits, the lowest digit first."""
    shifts = jnp.arange(length, dtype=jnp.int32)
    shape = (*code.shape, length)
    digits = jnp.broadcast_to(code[..., None], shape) >> jnp.broadcast_to(shifts, shape)
    return (digits & 1).astype(jnp.float32)


def relabel_bits(env: DiscreteEnv, codes: Int[Array, " C"]) -> DiscreteEnv:
    """Shows code c of the observation's bits as `codes[c]`.

    Args:
        env: environment with at most 12 observation bits o.
        codes: a permutation of the 2^o codes, may be traced; the identity changes nothing.

    Returns:
        An isomorphic environment: the same states, rewards and dimensions, other bits.

    Raises:
        ValueError: if there are too many bits, or not one code for each of theirs.
    """
    _check_bits(env)
    if codes.shape != (2**env.obs_dim,):
        raise ValueError(f"codes: expected shape {(2**env.obs_dim,)}, got {codes.shape}")

    def observe(state: Any) -> Float[Array, " o"]:
        return code_to_bits(codes[bits_to_code(env.observe(state))], env.obs_dim)

    return env._replace(observe=observe, name=f"{env.name}+relabelled")


def scramble_bits(env: DiscreteEnv, key: Key[Array, ""]) -> DiscreteEnv:
    """Destroys the factored structure of an environment, and nothing else.

    Every joint value of the bits is shown as another one, drawn at random once and for all: what
    one bit does next now depends on all of them.

    Args:
        env: environment with at most 12 observation bits.
        key: key of the permutation, which belongs to the environment and not to an episode.

    Returns:
        An isomorphic environment with the same optimal values.

    Raises:
        ValueError: if there are too many bits.
    """
    _check_bits(env)
    return relabel_bits(env, jax.random.permutation(key, 2**env.obs_dim))


def _check_bits(env: DiscreteEnv) -> None:
    if env.obs_dim > MAX_SCRAMBLED_BITS:
        raise ValueError(
            f"env: expected at most {MAX_SCRAMBLED_BITS} observation bits, "
            f"got {env.obs_dim} of {env.name}"
        )

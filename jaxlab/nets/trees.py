"""Leafwise operations on pytrees."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Tree = TypeVar("Tree")


def polyak(target: Tree, online: Tree, tau: float | Float[Array, ""]) -> Tree:
    """Moves a target network a step towards the online one: target + tau (online - target).

    Args:
        target: pytree of floating arrays.
        online: pytree of the same structure and shapes.
        tau: step in [0, 1], traced; 1 copies the online network.

    Returns:
        The new target, in the target's dtypes; leaves that are not floating stay as they are.

    Reference:
        Lillicrap et al. 2016 (DDPG), algorithm 1.

    Pitfall:
        In bfloat16 a step of 0.005 is smaller than half a unit in the last place of what it is
        added to, and the target never moves: keep targets in float32.
    """

    def move(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return old
        step = jnp.asarray(tau, old.dtype)
        # The convex form is exact at both ends (tau = 0 and tau = 1); old + tau (new - old) is not.
        return (1 - step) * old + step * new.astype(old.dtype)

    return jax.tree.map(move, target, online)


def tree_where(condition: Bool[Array, "*n"], on_true: Tree, on_false: Tree) -> Tree:
    """Selects whole pytrees by a condition on their leading axes.

    Args:
        condition: booleans; their shape is the leading shape of every leaf (scalar: whole leaves).
        on_true: pytree chosen where `condition` holds.
        on_false: pytree of the same structure, shapes and dtypes.

    Returns:
        The selected pytree.
    """

    def select(yes: Array, no: Array) -> Array:
        mask = condition.reshape(condition.shape + (1,) * (yes.ndim - condition.ndim))
        return jnp.where(mask, yes, no)

    return jax.tree.map(select, on_true, on_false)

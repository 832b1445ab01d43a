"""Countdown by enumeration: what is reachable, and how likely a policy is to get there.

A state is the multiset of remaining numbers; an action takes an ordered pair of them and an
operator and puts the result back. With m numbers there are 4 m (m - 1) actions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlab.tasks.vocabulary import DIVIDE, MINUS, PLUS, TIMES

OPERATORS = (PLUS, MINUS, TIMES, DIVIDE)

# (numbers [m], valid [A], target) -> probabilities [A]; what it gives to invalid actions is lost.
Policy = Callable[[Array, Array, Array], Array]


def calculate(
    operator: Int[Array, "*b"], left: Int[Array, "*b"], right: Int[Array, "*b"], cap: int
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """One operation under the rules of the game.

    Args:
        operator: token; any id.
        left: numbers in [0, cap].
        right: numbers in [0, cap].
        cap: largest number allowed.

    Returns:
        The result, 0 if against the rules, and whether it is within them: no negative numbers, no
        fractions, nothing above the cap.
    """
    divisible = (right > 0) & (left % jnp.maximum(right, 1) == 0)
    result = jnp.select(
        [operator == PLUS, operator == MINUS, operator == TIMES, operator == DIVIDE],
        [left + right, left - right, left * right, left // jnp.maximum(right, 1)],
        -1,
    )
    valid = (result >= 0) & (result <= cap) & ((operator != DIVIDE) | divisible)
    return jnp.where(valid, result, 0), valid


def actions(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots and operators of all actions with `size` numbers: left [A], right [A], operator [A]."""
    pairs = itertools.permutations(range(size), 2)
    rows = [(i, j, op) for (i, j) in pairs for op in OPERATORS]
    left, right, operator = np.asarray(rows, np.int32).reshape(-1, 3).T
    return left, right, operator


def successors(
    numbers: Int[Array, " m"], cap: int
) -> tuple[Int[Array, "A m-1"], Bool[Array, " A"]]:
    """The states that all actions lead to.

    Args:
        numbers: remaining ones, at least two.
        cap: largest number allowed.

    Returns:
        What remains after each action, the result last, and whether the action is valid.
    """
    size = numbers.shape[0]
    left, right, operator = actions(size)
    others = [[k for k in range(size) if k not in pair] for pair in zip(left, right)]
    result, valid = calculate(jnp.asarray(operator), numbers[left], numbers[right], cap)
    rest = numbers[np.asarray(others, np.int32).reshape(len(left), size - 2)]
    return jnp.concatenate([rest, result[:, None]], axis=1), valid


def uniform(numbers: Array, valid: Array, target: Array) -> Array:
    """The policy that takes all valid actions with equal probability."""
    del numbers, target
    weight = valid.astype(jnp.float32)
    return weight / jnp.maximum(jnp.sum(weight), 1)


def winning_leaves(numbers: Int[Array, " m"], target: ArrayLike, cap: int) -> Int[Array, ""]:
    """Number of sequences of actions that end at the target.

    Args:
        numbers: remaining ones.
        target: number to reach with all of them.
        cap: largest number allowed.

    Returns:
        The count; sequences that differ only in which of two equal numbers they take count twice.
    """
    if numbers.shape[0] == 1:
        return (numbers[0] == target).astype(jnp.int32)
    rest, valid = successors(numbers, cap)
    below = jax.vmap(lambda state: winning_leaves(state, target, cap))(rest)
    return jnp.sum(jnp.where(valid, below, 0)).astype(jnp.int32)


def reachable(numbers: Int[Array, " m"], target: ArrayLike, cap: int) -> Bool[Array, ""]:
    """Whether any sequence of actions ends at the target.

    Args:
        numbers: remaining ones.
        target: number to reach with all of them.
        cap: largest number allowed.

    Returns:
        True if so.
    """
    return winning_leaves(numbers, target, cap) > 0


def value(
    numbers: Int[Array, " m"], target: ArrayLike, cap: int, policy: Policy = uniform
) -> Float[Array, ""]:
    """Probability that a policy reaches the target.

    Args:
        numbers: remaining ones.
        target: number to reach with all of them.
        cap: largest number allowed.
        policy: probabilities of the actions.

    Returns:
        The probability, by enumeration.
    """
    target = jnp.asarray(target, jnp.int32)
    if numbers.shape[0] == 1:
        return (numbers[0] == target).astype(jnp.float32)
    rest, valid = successors(numbers, cap)
    below = jax.vmap(lambda state: value(state, target, cap, policy))(rest)
    return jnp.sum(jnp.where(valid, policy(numbers, valid, target) * below, 0))

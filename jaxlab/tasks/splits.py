"""Training and test problems told apart by a hash of the problem, so memorising can be measured."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, UInt

from jaxlab.tasks.task import Problem, Task

Split = Literal["train", "test"]
TEST_SHARE = 10  # one problem in so many is a test problem
TRIES = 1000


def hash32(numbers: Int[Array, " n"]) -> UInt[Array, ""]:
    """A well mixed hash of a sequence of integers.

    Args:
        numbers: any int32.

    Returns:
        32 bits; equal sequences have equal hashes.

    Reference: Appleby's MurmurHash3, 32 bits.
    """

    def rotate(x: Array, by: int) -> Array:
        return (x << by) | (x >> (32 - by))

    def block(state: Array, word: Array) -> tuple[Array, None]:
        word = rotate(word * jnp.uint32(0xCC9E2D51), 15) * jnp.uint32(0x1B873593)
        return rotate(state ^ word, 13) * jnp.uint32(5) + jnp.uint32(0xE6546B64), None

    words = jax.lax.bitcast_convert_type(numbers.astype(jnp.int32), jnp.uint32)
    state, _ = jax.lax.scan(block, jnp.uint32(0), words)
    state = state ^ jnp.uint32(4 * numbers.shape[0])
    for factor, by in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        state = (state ^ (state >> by)) * jnp.uint32(factor)
    return state ^ (state >> 16)


def is_test(task: Task, problem: Problem) -> Bool[Array, ""]:
    """Whether a problem belongs to the test problems; equivalent problems fall on one side.

    Args:
        task: what the problem is of.
        problem: one problem.

    Returns:
        True for one problem in ten.
    """
    return hash32(task.identity(problem)) % TEST_SHARE == 0


def sample_split(
    key: Key[Array, ""], task: Task, split: Split = "train"
) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a problem of one side of the split.

    Args:
        key: random key.
        task: what to draw from.
        split: "train" or "test".

    Returns:
        A problem, and whether it is a good one: the generator may fail, and so may a task with
        hardly any problems.

    Raises:
        ValueError: an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")

    def draw(attempt: Array) -> tuple[Problem, Array]:
        problem, good = task.sample(jax.random.fold_in(key, attempt))
        return problem, good & (is_test(task, problem) == (split == "test"))

    def again(carry: tuple[Array, Problem, Array]) -> tuple[Array, Problem, Array]:
        attempt = carry[0] + 1
        return attempt, *draw(attempt)

    start = jnp.int32(0)
    carry = (start, *draw(start))
    _, problem, good = jax.lax.while_loop(lambda c: ~c[2] & (c[0] < TRIES), again, carry)
    return problem, good

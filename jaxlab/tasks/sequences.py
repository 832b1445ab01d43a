"""Reading token sequences that may hold anything: every function here is total.

A completion is judged from its own tokens: what follows the first EOS does not exist, and one
without an EOS is unfinished.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.tasks.vocabulary import ANS, DIGIT, EOS, STEP


class StepLabels(NamedTuple):
    """One row per step of a completion, the answer last."""

    label: Float[Array, " S"]  # 0 where there is no step
    is_step: Bool[Array, " S"]
    end: Int[Array, " S"]  # position of the step's STEP or EOS; the completion's length if none

    @property
    def cumulative(self) -> Float[Array, " S"]:
        """1 as long as this step and all before it are right."""
        return jnp.cumprod(self.label)


class Segments(NamedTuple):
    """The pieces of a completion, each ended by a STEP, or by the first EOS."""

    start: Int[Array, " S"]
    end: Int[Array, " S"]  # position of the ending token; the completion's length if none
    present: Bool[Array, " S"]
    final: Bool[Array, " S"]  # ended by the EOS


def at(tokens: Int[Array, " T"], index: Int[Array, "*b"]) -> Int[Array, "*b"]:
    """Tokens at any positions; -1 outside of the sequence."""
    size = tokens.shape[0]
    inside = (index >= 0) & (index < size)
    return jnp.where(inside, tokens[jnp.clip(index, 0, size - 1)], -1)


def first(flags: Bool[Array, " T"]) -> Int[Array, ""]:
    """Position of the first True, the length if there is none."""
    size = flags.shape[0]
    return jnp.min(jnp.where(flags, jnp.arange(size), size)).astype(jnp.int32)


def last(flags: Bool[Array, " T"]) -> Int[Array, ""]:
    """Position of the last True, -1 if there is none."""
    return jnp.max(jnp.where(flags, jnp.arange(flags.shape[0]), -1)).astype(jnp.int32)


def is_digit(token: Int[Array, "*b"]) -> Bool[Array, "*b"]:
    """Whether tokens are digits."""
    return (token >= DIGIT) & (token < DIGIT + 10)


def read_digits(
    tokens: Int[Array, " T"], start: Int[Array, "*b"], width: int
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """The number written in `width` digits from a position on.

    Args:
        tokens: any ids.
        start: positions, also outside of the sequence.
        width: number of digits.

    Returns:
        The number, and whether all of it are digits; -1 if not.
    """
    value = jnp.zeros_like(start)
    good = jnp.ones(start.shape, bool)
    for offset in range(width):
        token = at(tokens, start + offset)
        good = good & is_digit(token)
        value = 10 * value + jnp.where(good, token - DIGIT, 0)
    return jnp.where(good, value, -1), good


def read_answer(completion: Int[Array, " T"], width: int) -> Int[Array, ""]:
    """The number between the last ANS and the first EOS.

    Args:
        completion: any ids.
        width: number of digits.

    Returns:
        The number, -1 if there is no ANS, exactly `width` digits, EOS.
    """
    stop = first(completion == EOS)
    place = last((completion == ANS) & (jnp.arange(completion.shape[0]) < stop))
    value, good = read_digits(completion, place + 1, width)
    ended = (stop == place + 1 + width) & (stop < completion.shape[0])
    return jnp.where((place >= 0) & good & ended, value, -1)


def segments(completion: Int[Array, " T"], capacity: int) -> Segments:
    """Cuts a completion at its STEP tokens.

    Args:
        completion: any ids.
        capacity: number of pieces S to report; further ones are left out.

    Returns:
        The pieces in order.
    """
    size = completion.shape[0]
    positions = jnp.arange(size, dtype=jnp.int32)
    stop = first(completion == EOS)
    ends = ((completion == STEP) & (positions < stop)) | (positions == stop)
    count = jnp.cumsum(ends)
    # The j-th end is the first position with j + 1 ends up to it.
    wanted = jnp.arange(1, capacity + 1)
    end = jnp.sum(count[None, :] < wanted[:, None], axis=1).astype(jnp.int32)
    present = end < size
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), end[:-1] + 1])
    return Segments(start, end, present, present & (end == stop))


def pad_to(tokens: Int[Array, " n"], width: int) -> Int[Array, " w"]:
    """Fills a sequence with PAD up to a width."""
    return jnp.pad(tokens, (0, width - tokens.shape[0]))

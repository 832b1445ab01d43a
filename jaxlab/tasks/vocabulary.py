"""One vocabulary of 80 ids for all tasks, so that models for different tasks share their shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

PAD, BOS, EOS, STEP, ANS, QRY, CALL, OBS, END, SP = range(10)
DIGIT = 10  # ten digits
PLUS, MINUS, TIMES, DIVIDE, EQUALS, POINT, NEG, OPEN, CLOSE, MOD = range(20, 30)
OPCODE = 30  # sixteen opcodes of the stack machine
KEY = 46  # sixteen keys
HINT, GOOD, BAD, FIM_PRE, FIM_SUF, FIM_MID, USER, ASSIST = range(62, 70)
CHAIN, COUNTDOWN, STACK, KVSUM, EQUIV, TOOL, SPARE = range(70, 77)  # names of tasks
JUNK = 77  # three ids that no right text contains
VOCAB_SIZE = 80

DIGITS = tuple(range(DIGIT, DIGIT + 10))


class CompactVocab(NamedTuple):
    """A bijection between the ids a task uses and 0, ..., v - 1; `PAD` stays 0."""

    to_compact: Int[Array, " 80"]  # -1 for ids that are not used
    from_compact: Int[Array, " v"]


def compact_vocab(used: Iterable[int]) -> CompactVocab:
    """Renumbers the ids that a task uses, for small models of one task.

    Args:
        used: ids; `PAD`, `BOS` and `EOS` are always among them.

    Returns:
        Both directions, in the order of the ids.

    Raises:
        ValueError: an id outside of the vocabulary.
    """
    ids = sorted({PAD, BOS, EOS, *used})
    if ids[0] < 0 or ids[-1] >= VOCAB_SIZE:
        raise ValueError(f"used: expected ids in [0, {VOCAB_SIZE}), got {ids[0]} to {ids[-1]}")
    from_compact = jnp.asarray(ids, jnp.int32)
    to_compact = jnp.full(VOCAB_SIZE, -1, jnp.int32)
    return CompactVocab(
        to_compact.at[from_compact].set(jnp.arange(len(ids), dtype=jnp.int32)), from_compact
    )


def digits(number: Int[Array, "*b"], width: int) -> Int[Array, "*b w"]:
    """A number as tokens, zero-padded, most significant digit first.

    Args:
        number: at least 0; what does not fit the width loses its leading digits.
        width: number of digits.

    Returns:
        Digit tokens.
    """
    powers = jnp.asarray([10**i for i in reversed(range(width))], jnp.int32)
    number = jnp.asarray(number, jnp.int32)[..., None]
    powers = powers.reshape((1,) * (number.ndim - 1) + (width,))
    return DIGIT + (number // powers) % 10

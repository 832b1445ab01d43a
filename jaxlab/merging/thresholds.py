"""The exact k-th largest score without sorting, by bisection on the bits of the numbers.

Non-negative floats are ordered as their bit patterns are, so a fixed number of counting passes
finds the k-th largest exactly, with k traced. Counts add up over blocks and devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxlab.merging.leaf import Block, Scores

_POSITION_BITS = 31


class Cut(NamedTuple):
    """The k largest of each of G groups of scores; ties go to the first in row-major order."""

    threshold: UInt[Array, " G"]  # ordered bits of the k-th largest score
    position: Int[Array, " G"]  # equal scores are in from the start of the leaf up to here


def ordered_bits(x: Float[Array, "*s"], signed: bool) -> UInt[Array, "*s"]:
    """Unsigned integers in the order of the numbers.

    Args:
        x: float32 or float64 numbers; NaN has no place.
        signed: whether there may be negative ones.

    Returns:
        uint32 or uint64.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint64 if x.dtype == jnp.float64 else jnp.uint32)
    if not signed:
        return bits & ~_sign_bit(bits.dtype)  # -0 is 0
    negative = bits >= _sign_bit(bits.dtype)
    return jnp.where(negative, ~bits, bits | _sign_bit(bits.dtype))


def largest(scores: Scores, k: Int[Array, " G"], *, signed: bool = False) -> Cut:
    """Finds the k largest scores of each group over a whole leaf.

    Args:
        scores: a leaf of G groups of n scores (`Leaf.derive`).
        k: how many of the n elements to take, 0 to n.
        signed: whether scores may be negative; without it they must not be.

    Returns:
        A cut that takes exactly k elements of each group; see `taken`.

    Reference:
        Bisection on bit patterns, 31 counting passes for float32 magnitudes.

    Pitfall:
        An unstable sort leaves it open which of several equal magnitudes survive.
    """
    found = scores.select(k)
    if found is not None:
        positions = jnp.asarray(found.positions, jnp.int32)
        return Cut(ordered_bits(jnp.asarray(found.values), signed), positions)
    steps = np.dtype(scores.dtype).itemsize * 8 - (0 if signed else 1)
    bits = jnp.uint64 if scores.dtype == jnp.float64 else jnp.uint32

    def descend(i: Any, prefix: Array) -> Array:
        bit = jnp.left_shift(jnp.ones((), bits), jnp.asarray(steps - 1 - i).astype(bits))
        candidate = prefix | bit
        enough = scores.total(_count_from, candidate, signed=signed) >= k
        return jnp.where(enough, candidate, prefix)

    threshold = scores.repeat(steps, descend, jnp.zeros(k.shape, bits))
    above = scores.total(_count_above, threshold, signed=signed)
    equal = scores.total(_count_from, threshold, signed=signed) - above
    wanted = k - above

    def settled(state: tuple[Array, Array]) -> Bool[Array, ""]:
        # The usual case without ties needs no search: all equal ones are in.
        return (state[0] >= _POSITION_BITS) | jnp.all(wanted >= equal)

    def advance(state: tuple[Array, Array]) -> tuple[Array, Array]:
        i, position = state
        candidate = position | jnp.left_shift(jnp.int32(1), _POSITION_BITS - 1 - i)
        before = scores.total(_count_tied_before, threshold, candidate, signed=signed)
        return i + 1, jnp.where(before <= wanted, candidate, position)

    start = (jnp.zeros((), jnp.int32), jnp.zeros(k.shape, jnp.int32))
    _, position = scores.repeat_until(settled, advance, start)
    everything = jnp.full(k.shape, np.iinfo(np.int32).max, jnp.int32)
    return Cut(threshold, jnp.where(wanted >= equal, everything, position))


def taken(
    scores: Float[Array, "G *s"], cut: Cut, block: Block, signed: bool = False
) -> Bool[Array, "G *s"]:
    """Which elements of a block a cut takes.

    Args:
        scores: the block's scores, as given to `largest`.
        cut: the cut.
        block: the block.
        signed: as given to `largest`.

    Returns:
        A mask; constant under differentiation.
    """
    bits = ordered_bits(jax.lax.stop_gradient(scores), signed)
    threshold, position = _per_group(cut.threshold, bits), _per_group(cut.position, bits)
    first = jnp.broadcast_to(block.positions[None], bits.shape) < position
    return (bits > threshold) | ((bits == threshold) & first)


def threshold_value(cut: Cut, dtype: Any, signed: bool = False) -> Float[Array, " G"]:
    """The k-th largest score itself.

    Args:
        cut: a cut with k >= 1.
        dtype: the dtype of the scores.
        signed: as given to `largest`.

    Returns:
        One number per group.
    """
    bits = cut.threshold
    if signed:
        positive = bits >= _sign_bit(bits.dtype)
        bits = jnp.where(positive, bits & ~_sign_bit(bits.dtype), ~bits)
    return jax.lax.bitcast_convert_type(bits, dtype)


def _sign_bit(dtype: Any) -> Array:
    return jnp.asarray(1 << (np.dtype(dtype).itemsize * 8 - 1), dtype)


def _per_group(vector: Array, like: Array) -> Array:
    return jnp.broadcast_to(vector.reshape(vector.shape + (1,) * (like.ndim - 1)), like.shape)


def _count(mask: Bool[Array, "G *s"], block: Block, signed: bool) -> Int[Array, " G"]:
    # Padding is zero and comes last: it can only tie with the smallest magnitudes, and loses.
    if signed and block.inside is not None:
        mask = mask & block.inside[None]
    return jnp.sum(mask.reshape(mask.shape[0], -1), axis=-1, dtype=jnp.int32)


def _count_from(block: Block, threshold: Array, *, signed: bool) -> Int[Array, " G"]:
    bits = ordered_bits(block.models, signed)
    return _count(bits >= _per_group(threshold, bits), block, signed)


def _count_above(block: Block, threshold: Array, *, signed: bool) -> Int[Array, " G"]:
    bits = ordered_bits(block.models, signed)
    return _count(bits > _per_group(threshold, bits), block, signed)


def _count_tied_before(
    block: Block, threshold: Array, position: Array, *, signed: bool
) -> Int[Array, " G"]:
    bits = ordered_bits(block.models, signed)
    early = jnp.broadcast_to(block.positions[None], bits.shape) < _per_group(position, bits)
    return _count((bits == _per_group(threshold, bits)) & early, block, signed)

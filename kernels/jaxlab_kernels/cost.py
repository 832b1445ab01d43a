"""What one WKV-7 call costs: bytes that must move and operations that must be done."""

import math
from collections.abc import Iterable

import jax


def flops(direction: str, token_heads: int, chunk: int, key_width: int, value_width: int) -> int:
    """Floating-point operations of the chunk algebra, its triangular inverse excluded.

    Args:
        direction: "forward" or "backward" (which recomputes the forward terms).
        token_heads: batch * tokens * heads.
        chunk: rows of a chunk.
        key_width: of a head.
        value_width: of a head.

    Returns:
        Operations, a multiply-add counted as two.
    """
    keys, values = chunk * key_width, chunk * value_width
    states = key_width * value_width
    per_token_head = {
        "forward": 8 * keys + 8 * values + 8 * states,
        "backward": 24 * keys + 20 * values + 18 * states,
    }[direction]
    return token_heads * per_token_head


def inverse_flops(token_heads: int, chunk: int) -> int:
    """Operations of the doubling ladder done with full L x L products."""
    return token_heads * 4 * chunk * chunk * max(0, int(math.log2(chunk)) - 1)


def nbytes(arrays: Iterable[jax.Array | jax.ShapeDtypeStruct]) -> int:
    """Bytes of some arrays."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)

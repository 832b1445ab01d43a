"""Random numbers that belong to an element's place, not to the way the leaf is walked through."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.merging.leaf import Block

RANDOM_BLOCK = 1 << 18  # elements that share one key


def leaf_key(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    """The key of a leaf: its path decides, not its place in a traversal.

    Args:
        key: the merge's key.
        path: the leaf's name.

    Returns:
        fold_in(key, crc32(path)).
    """
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def uniform_like(block: Block, key: Key[Array, ""], model: int) -> Float[Array, "*s"]:
    """One uniform number in [0, 1) for each element of a block, of its dtype.

    Args:
        block: consecutive elements of a leaf.
        key: the leaf's key.
        model: index of the model.

    Returns:
        The same number for the same place in the leaf, whatever the block.
    """
    shape, dtype = block.models.shape[1:], block.models.dtype
    count = block.models[0].size
    key = jax.random.fold_in(key, model)
    first = jnp.asarray(block.start, jnp.int32) // RANDOM_BLOCK
    if block.aligned:
        full, rest = divmod(count, RANDOM_BLOCK)
        pieces = []
        if full:
            pieces.append(_blocks(key, first, full, dtype))
        if rest:  # the numbers of a shorter draw are the first ones of a longer draw
            pieces.append(jax.random.uniform(jax.random.fold_in(key, first + full), (rest,), dtype))
        return jnp.concatenate(pieces).reshape(shape) if pieces else jnp.zeros(shape, dtype)
    pool = _blocks(key, first, -(-count // RANDOM_BLOCK) + 1, dtype)
    offset = jnp.asarray(block.start, jnp.int32) % RANDOM_BLOCK
    return jax.lax.dynamic_slice(pool, (offset,), (count,)).reshape(shape)


def _blocks(key: Key[Array, ""], first: Array, count: int, dtype) -> Float[Array, " n"]:
    keys = jax.vmap(lambda j: jax.random.fold_in(key, first + j))(jnp.arange(count))
    draw = jax.vmap(lambda k: jax.random.uniform(k, (RANDOM_BLOCK,), dtype))
    return draw(keys).reshape(-1)

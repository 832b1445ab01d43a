"""Replay as a pytree: a ring of rows that lives inside of jitted code."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Row = TypeVar("Row")
_MOST_ROWS = 2**23  # that a uniform float32 tells apart; of twice as many, every other is drawn


@flax.struct.dataclass
class Buffer(Generic[Row]):
    """First in, first out; only the first `count` rows ever count."""

    data: Row  # pytree [C, ...]
    head: Int[Array, ""]  # where the next row goes
    count: Int[Array, ""]  # rows filled, at most C


def init(example: Row, capacity: int) -> Buffer[Row]:
    """Makes an empty buffer.

    Args:
        example: one row (arrays or their shapes and dtypes), without a leading axis.
        capacity: number of rows C, at most 2^23.

    Returns:
        A buffer of zeros, none of which can be sampled.

    Raises:
        ValueError: if `capacity` is out of range.
    """
    if capacity < 1:
        raise ValueError(f"capacity: expected at least one row, got {capacity}")
    if capacity > _MOST_ROWS:
        raise ValueError(f"capacity: expected at most {_MOST_ROWS} rows, got {capacity}")
    data = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    zero = jnp.zeros((), jnp.int32)
    return Buffer(data=data, head=zero, count=zero)


def add(buffer: Buffer[Row], batch: Row, valid: Bool[Array, " n"] | None = None) -> Buffer[Row]:
    """Appends rows in order; the oldest ones make room.

    Args:
        buffer: the ring.
        batch: pytree with leading axis n.
        valid: rows to append; the others leave no trace. None for all.

    Returns:
        The ring with the last C of its old and the new valid rows.

    Raises:
        ValueError: if a leaf of `batch` does not fit the buffer's rows.

    Pitfall:
        Shifting a zero-initialised array by one batch at a time leaves zero rows that are sampled
        as if they were data until the buffer is full.
    """
    rows = _check_rows(buffer, batch)
    capacity = _capacity(buffer)
    if valid is None:
        valid = jnp.ones((rows,), bool)
    rank = jnp.cumsum(valid.astype(jnp.int32)) - 1
    added = rank[-1] + 1
    # Of more rows than fit only the last C are written: scattering twice to a row has no order.
    written = valid & (rank >= added - capacity)
    position = jnp.where(written, (buffer.head + rank) % capacity, capacity)
    data = jax.tree.map(lambda old, new: old.at[position].set(new, mode="drop"), buffer.data, batch)
    return Buffer(
        data=data,
        head=(buffer.head + added) % capacity,
        count=jnp.minimum(buffer.count + added, capacity),
    )


def sample(key: Key[Array, ""], buffer: Buffer[Row], shape: int | tuple[int, ...]) -> Row:
    """Draws rows uniformly, with replacement.

    Args:
        key: random key.
        buffer: the ring, with at least one row (an empty one gives the zeros it was made of).
        shape: leading shape of the sample, or its only axis.

    Returns:
        Rows with the leading axes `shape`.
    """
    # One draw per index; `randint` with a traced bound takes two and a division.
    leading = (shape,) if isinstance(shape, int) else shape
    return _take(buffer, jax.random.uniform(key, leading, jnp.float32))


def concat_sample(
    key: Key[Array, ""],
    buffers: Sequence[Buffer[Row]],
    ratios: Sequence[float | Float[Array, ""]],
    shape: int | tuple[int, ...],
) -> Row:
    """Draws batches of a fixed mix: round(ratio n) rows of a batch from every buffer.

    Args:
        key: random key.
        buffers: rings of the same kind of rows; one of ratio 0 may be empty.
        ratios: shares of the buffers, adding up to 1; may be traced.
        shape: leading shape, the batch's n rows on its last axis.

    Returns:
        Rows with the leading axes `shape`, in the order of the buffers along the last of them.

    Raises:
        ValueError: if there is not one ratio per buffer.

    Reference:
        Janner et al. 2019 (MBPO): batches of real and model data.
    """
    if len(buffers) != len(ratios) or not buffers:
        raise ValueError(
            f"ratios: expected one per buffer, got {len(ratios)} for {len(buffers)} buffers"
        )
    shape = (shape,) if isinstance(shape, int) else shape
    # One draw serves every buffer, for a slot of the batch takes its row from one of them alone.
    u = jax.random.uniform(key, shape, jnp.float32)
    slot = jnp.arange(shape[-1])
    total = jnp.zeros((), jnp.float32)
    batch = _take(buffers[0], u)
    # A traced ratio moves the border between the buffers' rows, never a shape.
    for buffer, before in zip(buffers[1:], ratios[:-1]):
        total = total + before
        border = jnp.round(total * shape[-1]).astype(jnp.int32)
        later = _take(buffer, u)
        batch = jax.tree.map(
            lambda x, y, border=border: jnp.where(_lift(slot >= border, shape, y), y, x),
            batch,
            later,
        )
    return batch


def _take(buffer: Buffer[Row], u: Float[Array, "..."]) -> Row:
    index = (u * buffer.count.astype(jnp.float32)).astype(jnp.int32)
    index = jnp.clip(index, 0, jnp.maximum(buffer.count - 1, 0))
    return jax.tree.map(lambda leaf: leaf[index], buffer.data)


def _lift(mask: Bool[Array, " n"], shape: tuple[int, ...], leaf: Array) -> Array:
    rows = jnp.broadcast_to(mask, shape)
    return rows.reshape(shape + (1,) * (leaf.ndim - len(shape)))


def _capacity(buffer: Buffer) -> int:
    return jax.tree.leaves(buffer.data)[0].shape[0]


def _check_rows(buffer: Buffer, batch: Row) -> int:
    rows = jax.tree.leaves(batch)[0].shape[0]

    def check(old: Array, new: Array) -> None:
        if new.shape != (rows, *old.shape[1:]) or new.dtype != old.dtype:
            raise ValueError(
                f"batch: expected {rows} rows of {old.dtype}{list(old.shape[1:])}, "
                f"got {new.dtype}{list(new.shape)}"
            )

    jax.tree.map(check, buffer.data, batch)
    return rows

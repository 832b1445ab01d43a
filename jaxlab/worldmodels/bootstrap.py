"""Rows that each member of an ensemble trains and is scored on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Split(NamedTuple):
    """Holdout rows, and every member's bootstrap sample of the other rows."""

    holdout: Int[Array, " H"]  # distinct rows; only those that `holdout_mask` marks count
    holdout_mask: Bool[Array, " H"]
    bootstrap: Int[Array, "E C"]  # rows drawn with replacement; the first `train_count` count
    train_count: Int[Array, ""]


def uniform_index(
    key: Key[Array, ""], shape: tuple[int, ...], count: Int[Array, ""]
) -> Int[Array, "..."]:
    """Draws indices below a traced count: floor(u count).

    Args:
        key: random key.
        shape: shape of the result.
        count: exclusive upper limit, positive, below 2^23.

    Returns:
        Indices from 0 to count - 1.
    """
    u = jax.random.uniform(key, shape, jnp.float32)
    index = jnp.floor(u * count.astype(jnp.float32)).astype(jnp.int32)
    return jnp.minimum(index, count - 1)


def split_rows(
    key: Key[Array, ""],
    members: int,
    capacity: int,
    count: Int[Array, ""],
    holdout_fraction: float,
    max_holdout: int,
) -> Split:
    """Sets holdout rows aside and draws a bootstrap sample of the rest for every member.

    Args:
        key: random key.
        members: number of members E.
        capacity: length C of the data arrays.
        count: valid rows, the first ones of the arrays (traced; at least 2).
        holdout_fraction: share of the valid rows to hold out, rounded down, at least one row.
        max_holdout: largest number of holdout rows.

    Returns:
        The split; members share the holdout rows.

    Reference:
        Chua et al. 2018 (PETS), section 4 (bootstrapped ensembles).

    Pitfall:
        Drawn anew every epoch, the samples would all converge to the same data set, and the members
        would differ by their initial weights alone.
    """
    order_key, bootstrap_key = jax.random.split(key)
    u: Float[Array, " C"] = jax.random.uniform(order_key, (capacity,), jnp.float32)
    order = jnp.argsort(jnp.where(jnp.arange(capacity) < count, u, 2.0)).astype(jnp.int32)
    slots = max(1, min(max_holdout, int(holdout_fraction * capacity)))
    wanted = jnp.floor(holdout_fraction * count.astype(jnp.float32)).astype(jnp.int32)
    held = jnp.clip(wanted, 1, slots)
    train_count = count - held
    position = uniform_index(bootstrap_key, (members, capacity), train_count)
    return Split(
        holdout=order[:slots],
        holdout_mask=jnp.arange(slots) < held,
        bootstrap=order[held + position],
        train_count=train_count,
    )

"""Which elements of a task vector survive: the largest, a band, or a random choice."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from jaxlab.arrays import safe_sqrt
from jaxlab.merging.arrays import (
    is_concrete,
    keep_count,
    math_dtype,
    safe_divide,
    spread,
)
from jaxlab.merging.leaf import ArrayLeaf, Block, Leaf
from jaxlab.merging.randomness import uniform_like
from jaxlab.merging.thresholds import Cut, largest, ordered_bits, taken

Band = tuple[Cut, Cut]  # what is dropped from the top, and where the kept band ends


def top_mask(x: Float[Array, "*s"], density: ArrayLike) -> Bool[Array, "*s"]:
    """The largest magnitudes of a leaf.

    Args:
        x: any float array.
        density: share to keep; at least one element of a positive share.

    Returns:
        A mask of exactly max(1, int(density n)) elements; ties go to the first in row-major order.

    Reference:
        Yadav et al. 2023, TIES-Merging, section 3.1, per leaf.
    """
    leaf = ArrayLeaf(None, x[None])
    cut = magnitude_cut(leaf, _for_one_model(density), least=1)
    return leaf.derive(_magnitude_mask, cut).total(_as_mask)


def band_mask(
    x: Float[Array, "*s"], keep: ArrayLike, drop_top: ArrayLike, axis: int | None = None
) -> Bool[Array, "*s"]:
    """The middle band of magnitudes: without the largest, and without the smallest.

    Args:
        x: any float array.
        keep: share to keep.
        drop_top: share of largest magnitudes to drop; fewer if `keep` would not be reached.
        axis: None for the whole leaf, -1 for each row by itself.

    Returns:
        A mask of exactly int(keep n) elements (of each row).

    Raises:
        ValueError: if the axis is another one.

    Reference:
        Davari & Belilovsky 2024, Model breadcrumbs, section 3.

    Pitfall:
        A small leaf has no int(drop_top n) outliers; the slice [a:-0] would then drop everything.
    """
    if axis not in (None, -1):
        raise ValueError(f"axis: expected None or -1, got {axis}")
    if axis == -1 and x.ndim:
        counts = band_counts(keep, drop_top, x.shape[-1])
        return row_band(jnp.abs(x.astype(math_dtype(x))), *counts)
    leaf = ArrayLeaf(None, x[None])
    keep, drop_top = _for_one_model(keep), _for_one_model(drop_top)
    return leaf.derive(_band_mask, band_cuts(leaf, keep, drop_top)).total(_as_mask)


def magnitude_cut(leaf: Leaf, density: ArrayLike, least: int = 0) -> Cut:
    """Cuts after the largest task-vector elements of each model.

    Args:
        leaf: the leaf.
        density: shares, [M].
        least: fewest elements of a positive share.

    Returns:
        A cut of M groups.
    """
    return largest(leaf.derive(magnitudes), keep_count(density, leaf.size, least))


def band_cuts(leaf: Leaf, keep: ArrayLike, drop_top: ArrayLike) -> Band:
    """Cuts at both ends of the kept band of each model.

    Args:
        leaf: the leaf.
        keep: shares to keep, [M].
        drop_top: shares of largest magnitudes to drop, [M].

    Returns:
        Two cuts of M groups.
    """
    kept, dropped = band_counts(keep, drop_top, leaf.size)
    scores = leaf.derive(magnitudes)
    return largest(scores, dropped), largest(scores, dropped + kept)


def band_counts(keep: ArrayLike, drop_top: ArrayLike, size: int) -> tuple[Array, Array]:
    """How many elements a band keeps, and how many larger ones it drops.

    Args:
        keep: shares to keep.
        drop_top: shares of largest magnitudes to drop; fewer if `keep` would not be reached.
        size: number of elements n.

    Returns:
        int32 counts.
    """
    kept = keep_count(keep, size)
    return kept, jnp.minimum(keep_count(drop_top, size), size - kept)


def row_band(
    magnitude: Float[Array, "*r c"], kept: Int[Array, "..."], dropped: Int[Array, "..."]
) -> Bool[Array, "*r c"]:
    """The band of each row, by ranks within the row.

    Args:
        magnitude: non-negative numbers.
        kept: elements of a row to keep.
        dropped: largest elements of a row to drop.

    Returns:
        A mask.
    """
    rank = magnitude.shape[-1] - 1 - row_ranks(magnitude)
    return (rank >= dropped) & (rank < dropped + kept)


def row_ranks(magnitude: Float[Array, "*r c"]) -> Int[Array, "*r c"]:
    """Rank of each element in its row, 0 for the smallest; of equals the later one is smaller.

    Args:
        magnitude: non-negative numbers.

    Returns:
        int32 ranks, constant under differentiation.
    """
    bits = ordered_bits(jax.lax.stop_gradient(magnitude), signed=False)
    flipped = jnp.flip(bits, axis=-1)
    order = jnp.argsort(flipped, axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)
    return jnp.flip(ranks, axis=-1)


def keep_probability(
    deltas: Float[Array, "M *r c"], density: Float[Array, " M"], epsilon: Float[Array, " M"]
) -> Float[Array, "M *r c"]:
    """Chance of an element to survive, rising with its rank in its row.

    Args:
        deltas: task vectors.
        density: mean chance of each model; 1 and above keeps, 0 and below drops everything.
        epsilon: the chances run from density - epsilon to density + epsilon.

    Returns:
        Probabilities; the density itself in rows of one element.

    Reference:
        Deep et al. 2024, DELLA-Merging, section 3.1 (MagPrune).
    """
    columns = deltas.shape[-1]
    rank = row_ranks(jnp.abs(deltas)).astype(deltas.dtype)
    place = rank / (columns - 1) if columns > 1 else jnp.full_like(rank, 0.5)
    density, epsilon = spread(density, deltas), spread(epsilon, deltas)
    chance = density - epsilon + 2 * epsilon * place
    return jnp.where(density >= 1, 1, jnp.where(density <= 0, 0, chance))


def check_epsilon(density: ArrayLike, epsilon: ArrayLike) -> None:
    """Refuses chances outside of (0, 1), where the numbers are known.

    Args:
        density: mean chances.
        epsilon: their half range.

    Raises:
        ValueError: naming epsilon.
    """
    if not is_concrete(density, epsilon):
        return
    for s, e in zip(*np.broadcast_arrays(np.asarray(density), np.asarray(epsilon))):
        if 0 < s < 1 and not (s - e > 0 and s + e < 1):
            raise ValueError(
                f"epsilon: expected density - epsilon and density + epsilon in (0, 1), "
                f"got {e:g} at density {s:g}"
            )


def bernoulli_masks(
    block: Block, key: Key[Array, ""], chance: Float[Array, "M *s"]
) -> Bool[Array, "M *s"]:
    """Independent choices, each by its element's own random number.

    Args:
        block: the block.
        key: the leaf's key.
        chance: probabilities.

    Returns:
        A mask.
    """
    numbers = jnp.stack([uniform_like(block, key, m) for m in range(block.models.shape[0])])
    return numbers < chance


def norm_match(delta: Float[Array, "*s"], target: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Scales a task vector to the L2 norm of another one.

    Args:
        delta: what to scale; zeros stay zeros.
        target: whose norm to take.

    Returns:
        The scaled task vector, in its own dtype. The control that separates what a mask selects
        from how far it moves.
    """
    dtype = math_dtype(delta, target)
    have, want = (jnp.sum(x.astype(dtype) ** 2) for x in (delta, target))
    scale = safe_sqrt(safe_divide(want, have, have == 0, 0.0))
    return (delta.astype(dtype) * scale).astype(delta.dtype)


def magnitudes(block: Block) -> Float[Array, "M *s"]:
    """|d|, the score of magnitude pruning."""
    return jnp.abs(block.deltas)


def in_band(block: Block, band: Band) -> Bool[Array, "M *s"]:
    """Which elements of a block lie between two cuts."""
    scores = magnitudes(block)
    return taken(scores, band[1], block) & ~taken(scores, band[0], block)


def _for_one_model(share: ArrayLike) -> ArrayLike:
    """A share as a vector of length one; known ones stay outside of the program."""
    return np.reshape(share, (1,)) if is_concrete(share) else jnp.reshape(share, (1,))


def _magnitude_mask(block: Block, cut: Cut) -> Array:
    return taken(magnitudes(block), cut, block).astype(block.models.dtype)


def _band_mask(block: Block, band: Band) -> Array:
    return in_band(block, band).astype(block.models.dtype)


def _as_mask(block: Block) -> Array:
    return block.models[0] > 0

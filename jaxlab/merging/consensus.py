"""Sparse task vectors, sign elections and their sums: TIES, DARE, DELLA, breadcrumbs, SCE."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from jaxlab.merging.arrays import keep_count, model_sum, safe_divide, spread
from jaxlab.merging.leaf import Block, Leaf
from jaxlab.merging.operators import Fraction, Layout, ModelFraction, PerModel, Shared, operator
from jaxlab.merging.sparsify import (
    band_counts,
    band_cuts,
    bernoulli_masks,
    check_epsilon,
    in_band,
    keep_probability,
    magnitude_cut,
    magnitudes,
    row_band,
)
from jaxlab.merging.thresholds import largest, taken

Semantics = Literal["mergekit", "paper"]
_TINY_NORM = 1e-7


def elected_sign(deltas: Float[Array, "M *s"]) -> Float[Array, "*s"]:
    """The sign of the sum, which is the sign that carries more total magnitude.

    Args:
        deltas: (weighted) task vectors.

    Returns:
        +1 or -1; +1 where the sum is zero. Constant under differentiation.

    Reference:
        Yadav et al. 2023, TIES-Merging, section 3.2.
    """
    total = model_sum(jax.lax.stop_gradient(deltas))
    return jnp.where(total >= 0, 1, -1).astype(deltas.dtype)


def agreement(deltas: Float[Array, "M *s"]) -> Bool[Array, "M *s"]:
    """Which entries have the elected sign; zeros never do."""
    sign = elected_sign(deltas)
    return jnp.sign(jax.lax.stop_gradient(deltas)) == sign[None]


@operator()
def ties(
    leaf: Leaf,
    *,
    weight: PerModel,
    density: ModelFraction = 1.0,
    lam: Shared = 1.0,
    normalize: bool = True,
):
    """Trims each task vector to its largest elements, elects signs, and averages what agrees.

    Args:
        leaf: base and models.
        weight: one number per model; a negative one votes the other way.
        density: shares to keep, at least one element of a positive share.
        lam: scale of the merged task vector.
        normalize: divide by the sum of the weights that agree.

    Reference:
        Yadav et al. 2023, TIES-Merging, per leaf and weighted as mergekit defines it;
        `ties_merging` is the paper's own, with one threshold for the whole model.
    """
    cut = magnitude_cut(leaf, density, least=1)
    return leaf.emit(_trimmed_sum, cut, weight, lam, elect=True, normalize=normalize)


def _breadcrumbs_layout(values: Mapping[str, Any]) -> Layout:
    return "rows" if values["axis"] == -1 else "flat"


@operator(layout=_breadcrumbs_layout)
def breadcrumbs(
    leaf: Leaf,
    *,
    weight: PerModel,
    keep: ModelFraction = 1.0,
    drop_top: ModelFraction = 0.01,
    lam: Shared = 1.0,
    normalize: bool = False,
    axis: int | None = None,
):
    """Sum of task vectors without their largest and smallest elements.

    Args:
        leaf: base and models.
        weight: one number per model.
        keep: shares to keep; 1 keeps everything.
        drop_top: shares of largest magnitudes to drop.
        lam: scale of the sum.
        normalize: divide by the sum of the weights.
        axis: band of the whole leaf (None), or of each row (-1), as the paper's code has it.

    Reference:
        Davari & Belilovsky 2024, Model breadcrumbs, section 3.
    """
    return _breadcrumbs(leaf, weight, keep, drop_top, lam, normalize, axis, elect=False)


@operator(layout=_breadcrumbs_layout)
def breadcrumbs_ties(
    leaf: Leaf,
    *,
    weight: PerModel,
    keep: ModelFraction = 1.0,
    drop_top: ModelFraction = 0.01,
    lam: Shared = 1.0,
    normalize: bool = False,
    axis: int | None = None,
):
    """As `breadcrumbs`, summing only what has the elected sign.

    Args:
        leaf: base and models.
        weight: one number per model.
        keep: shares to keep; 1 keeps everything.
        drop_top: shares of largest magnitudes to drop.
        lam: scale of the sum.
        normalize: divide by the sum of the weights that agree.
        axis: band of the whole leaf (None), or of each row (-1).

    Reference:
        Davari & Belilovsky 2024, Model breadcrumbs; the election is that of TIES.
    """
    return _breadcrumbs(leaf, weight, keep, drop_top, lam, normalize, axis, elect=True)


@operator()
def dare_linear(
    leaf: Leaf,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    lam: Shared = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    key: Key[Array, ""],
):
    """Drops random elements of the task vectors, rescales the rest, and sums.

    Args:
        leaf: base and models.
        weight: one number per model.
        density: chances to be kept.
        lam: scale of the sum.
        normalize: divide by the sum of the weights.
        rescale: make up for what was dropped.
        semantics: "mergekit" keeps the L1 norm of the leaf; "paper" divides by the density.
        key: random key of the leaf.

    Reference:
        Yu et al. 2024, Language models are super Mario (DARE), eq. 2.

    Pitfall:
        At density 0 the paper's factor is 1/0; the result here is the base.
    """
    return _dare(leaf, weight, density, lam, key, False, normalize, rescale, semantics)


@operator()
def dare_ties(
    leaf: Leaf,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    lam: Shared = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    key: Key[Array, ""],
):
    """As `dare_linear`, summing only what has the elected sign.

    Args:
        leaf: base and models.
        weight: one number per model.
        density: chances to be kept.
        lam: scale of the sum.
        normalize: divide by the sum of the weights that agree.
        rescale: make up for what was dropped.
        semantics: "mergekit" keeps the L1 norm of the leaf; "paper" divides by the density.
        key: random key of the leaf.

    Reference:
        Yu et al. 2024, Language models are super Mario (DARE); the election is that of TIES.
    """
    return _dare(leaf, weight, density, lam, key, True, normalize, rescale, semantics)


@operator(layout="rows")
def della_linear(
    leaf: Leaf,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    lam: Shared = 1.0,
    normalize: bool = False,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    key: Key[Array, ""],
):
    """Drops elements at random, small ones more often, rescales the rest, and sums.

    Args:
        leaf: base and models.
        weight: one number per model.
        density: mean chances to be kept.
        epsilon: half range of the chances from the smallest to the largest of a row.
        lam: scale of the sum.
        normalize: divide by the sum of the weights.
        rescale: make up for what was dropped.
        semantics: "mergekit" keeps the L1 norm of the leaf; "paper" divides each element by its
            own chance.
        key: random key of the leaf.

    Reference:
        Deep et al. 2024, DELLA-Merging, section 3.
    """
    return _della(leaf, weight, density, epsilon, lam, key, False, normalize, rescale, semantics)


@operator(layout="rows")
def della(
    leaf: Leaf,
    *,
    weight: PerModel,
    density: PerModel = 1.0,
    epsilon: PerModel = 0.15,
    lam: Shared = 1.0,
    normalize: bool = True,
    rescale: bool = True,
    semantics: Semantics = "mergekit",
    key: Key[Array, ""],
):
    """As `della_linear`, averaging only what has the elected sign.

    Args:
        leaf: base and models.
        weight: one number per model.
        density: mean chances to be kept.
        epsilon: half range of the chances from the smallest to the largest of a row.
        lam: scale of the sum.
        normalize: divide by the sum of the weights that agree.
        rescale: make up for what was dropped.
        semantics: as for `della_linear`.
        key: random key of the leaf.

    Reference:
        Deep et al. 2024, DELLA-Merging, section 3.
    """
    return _della(leaf, weight, density, epsilon, lam, key, True, normalize, rescale, semantics)


@operator()
def sce(leaf: Leaf, *, select: Fraction = 1.0, eps: Shared = 1e-6):
    """Selects where models differ most, weights models by their squares, erases minority signs.

    Args:
        leaf: base and models.
        select: share of the elements that vary at all to select, by variance over the models.
        eps: a total mean square below this gives uniform weights; also the smallest divisor.

    Reference:
        Wan et al. 2024, FuseChat, section 3.3 (SCE).

    Pitfall:
        Task vectors of fine-tuned models have mean squares around 1e-6, so that the default turns
        the weighting off without a word; give a smaller `eps`.
    """
    everything = jnp.asarray(select) >= 1
    scores = leaf.derive(_variance)
    chosen = keep_count(select, scores.total(_count_positive))
    cut = largest(scores, jnp.where(everything, leaf.size, chosen)[None])
    squares = leaf.total(_selected_squares, cut) / leaf.size
    total = jnp.sum(squares)
    weight = safe_divide(squares, total, (total < eps) | (total == 0), 1 / leaf.count)
    return leaf.emit(_sce, cut, weight, eps)


def _breadcrumbs(
    leaf: Leaf,
    weight: Array,
    keep: Any,
    drop_top: Any,
    lam: Array,
    normalize: bool,
    axis: int | None,
    elect: bool,
) -> Any:
    if axis not in (None, -1):
        raise ValueError(f"axis: expected None or -1, got {axis}")
    if axis is None:
        band = band_cuts(leaf, keep, drop_top)
        return leaf.emit(_banded_sum, band, weight, lam, elect=elect, normalize=normalize)
    if leaf.shape == ():  # scalars have no row
        keep, drop_top = np.ones(leaf.count), np.zeros(leaf.count)
    counts = band_counts(keep, drop_top, leaf.columns)
    return leaf.emit(_row_banded_sum, *counts, weight, lam, elect=elect, normalize=normalize)


def _dare(
    leaf: Leaf,
    weight: Array,
    density: Array,
    lam: Array,
    key: Array,
    elect: bool,
    normalize: bool,
    rescale: bool,
    semantics: str,
) -> Any:
    _check_semantics(semantics)
    if not rescale:
        scale = jnp.ones_like(density)
    elif semantics == "paper":
        scale = safe_divide(jnp.ones_like(density), jnp.minimum(density, 1), density <= 0, 0.0)
    else:
        scale = _norm_ratio(*leaf.total(_dropped_norms, density, key))
    flags = {"elect": elect, "normalize": normalize}
    return leaf.emit(_dropped_sum, density, key, scale, weight, lam, **flags)


def _della(
    leaf: Leaf,
    weight: Array,
    density: Array,
    epsilon: Array,
    lam: Array,
    key: Array,
    elect: bool,
    normalize: bool,
    rescale: bool,
    semantics: str,
) -> Any:
    _check_semantics(semantics)
    check_epsilon(density, epsilon)
    by_chance = rescale and semantics == "paper"
    scale = jnp.ones_like(density)
    if rescale and not by_chance:
        scale = _norm_ratio(*leaf.total(_pruned_norms, density, epsilon, key))
    flags = {"by_chance": by_chance, "elect": elect, "normalize": normalize}
    return leaf.emit(_pruned_sum, density, epsilon, key, scale, weight, lam, **flags)


def _check_semantics(semantics: str) -> None:
    if semantics not in get_args(Semantics):
        raise ValueError(f"semantics: expected one of {get_args(Semantics)}, got {semantics!r}")


def _norm_ratio(before: Array, after: Array) -> Array:
    lost = (before < _TINY_NORM) | (after < _TINY_NORM)
    return safe_divide(before, after, lost, 1.0)


def _merge(block: Block, deltas: Array, weight: Array, lam: Array, elect: bool, normalize: bool):
    weight = spread(weight, deltas)
    weighted = deltas * weight
    if elect:
        agree = agreement(weighted).astype(deltas.dtype)
        moved, divisor = model_sum(weighted * agree), model_sum(weight * agree)
        lost = divisor == 0
    else:
        moved, divisor = model_sum(weighted), model_sum(weight)
        lost = jnp.abs(divisor) < 1e-8
    if normalize:
        moved = moved / jnp.where(lost, jnp.ones_like(divisor), divisor)
    return block.origin + lam * moved


def _trimmed_sum(block: Block, cut, weight, lam, *, elect: bool, normalize: bool) -> Array:
    kept = jnp.where(taken(magnitudes(block), cut, block), block.deltas, 0)
    return _merge(block, kept, weight, lam, elect, normalize)


def _banded_sum(block: Block, band, weight, lam, *, elect: bool, normalize: bool) -> Array:
    kept = jnp.where(in_band(block, band), block.deltas, 0)
    return _merge(block, kept, weight, lam, elect, normalize)


def _row_banded_sum(
    block: Block, kept, dropped, weight, lam, *, elect: bool, normalize: bool
) -> Array:
    deltas = block.deltas
    mask = row_band(jnp.abs(deltas), spread(kept, deltas), spread(dropped, deltas))
    return _merge(block, jnp.where(mask, deltas, 0), weight, lam, elect, normalize)


def _dropped(block: Block, density: Array, key: Array) -> Array:
    deltas = block.deltas
    chance = jnp.broadcast_to(spread(density, deltas), deltas.shape)
    return jnp.where(bernoulli_masks(block, key, chance), deltas, 0)


def _pruned(block: Block, density: Array, epsilon: Array, key: Array, by_chance: bool) -> Array:
    deltas = block.deltas
    chance = keep_probability(deltas, density, epsilon)
    kept = jnp.where(bernoulli_masks(block, key, chance), deltas, 0)
    return safe_divide(kept, chance, chance <= 0, 0.0) if by_chance else kept


def _norms(deltas: Array, kept: Array) -> tuple[Array, Array]:
    axes = tuple(range(1, deltas.ndim))
    return jnp.sum(jnp.abs(deltas), axis=axes), jnp.sum(jnp.abs(kept), axis=axes)


def _dropped_norms(block: Block, density: Array, key: Array) -> tuple[Array, Array]:
    return _norms(block.deltas, _dropped(block, density, key))


def _pruned_norms(block: Block, density, epsilon, key) -> tuple[Array, Array]:
    return _norms(block.deltas, _pruned(block, density, epsilon, key, by_chance=False))


def _dropped_sum(
    block: Block, density, key, scale, weight, lam, *, elect: bool, normalize: bool
) -> Array:
    kept = _dropped(block, density, key)
    return _merge(block, kept * spread(scale, kept), weight, lam, elect, normalize)


def _pruned_sum(
    block: Block,
    density,
    epsilon,
    key,
    scale,
    weight,
    lam,
    *,
    by_chance: bool,
    elect: bool,
    normalize: bool,
) -> Array:
    kept = _pruned(block, density, epsilon, key, by_chance)
    return _merge(block, kept * spread(scale, kept), weight, lam, elect, normalize)


def _variance(block: Block) -> Float[Array, "1 *s"]:
    deltas = block.deltas
    mean = model_sum(deltas) / deltas.shape[0]
    return (model_sum((deltas - mean[None]) ** 2) / deltas.shape[0])[None]


def _count_positive(block: Block) -> Array:
    return jnp.sum(block.models > 0, dtype=jnp.int32)


def _selected(block: Block, cut) -> Array:
    return jnp.where(taken(_variance(block), cut, block), block.deltas, 0)


def _selected_squares(block: Block, cut) -> Array:
    kept = _selected(block, cut)
    return jnp.sum(kept**2, axis=tuple(range(1, kept.ndim)))


def _sce(block: Block, cut, weight: Array, eps: Array) -> Array:
    kept = _selected(block, cut)
    votes = spread(weight, kept) * agreement(kept).astype(kept.dtype)
    divisor = jnp.maximum(model_sum(votes), eps)
    return block.origin + safe_divide(model_sum(kept * votes), divisor, divisor == 0, 0.0)

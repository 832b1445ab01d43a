"""What stays with each task beside a merged model: shared and task-specific masks."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxlab.merging.arrays import (
    check_leaves,
    math_dtype,
    model_sum,
    per_model,
    safe_divide,
    spread,
)


class Elected(NamedTuple):
    """A unified task vector and what turns it back into each task's."""

    unified: Float[Array, "*s"]
    masks: Bool[Array, "M *s"]
    scales: Float[Array, " M"]  # multiply the masked unified vector


def emr(base: Float[Array, "*s"], models: Float[Array, "M *s"]) -> Elected:
    """Elects a unified task vector; masks and scales lead back to each task.

    Args:
        base: the base's leaf.
        models: the models' leaves, stacked.

    Returns:
        Sign of the sum (a zero sum counts as negative) with the largest agreeing magnitude; per
        task the mask where its sign agrees, and the ratio of L1 norms (0 where nothing is kept).
        With several leaves, the paper takes the ratio over the whole model.

    Reference:
        Huang et al. 2024, EMR-Merging, section 3.
    """
    deltas = _deltas(base, models)
    sign = jnp.where(model_sum(deltas) > 0, 1, -1).astype(deltas.dtype)
    masks = deltas * sign[None] > 0
    unified = sign * jnp.max(jnp.where(masks, jnp.abs(deltas), 0), axis=0)
    axes = tuple(range(1, deltas.ndim))
    kept = jnp.sum(jnp.where(masks, jnp.abs(unified)[None], 0), axis=axes)
    scales = safe_divide(jnp.sum(jnp.abs(deltas), axis=axes), kept, kept == 0, 0.0)
    return Elected(unified.astype(base.dtype), masks, scales)


def tall_masks(
    base: Float[Array, "*s"], models: Float[Array, "M *s"], strength: ArrayLike = 0.4
) -> Bool[Array, "M *s"]:
    """Where a task's own vector explains its model better than the sum of all tasks does.

    Args:
        base: the base's leaf.
        models: the models' leaves, stacked.
        strength: a scalar or one number per model; larger masks are sparser.

    Returns:
        |d_m| > strength |sum d - d_m|.

    Reference:
        Wang et al. 2024, Localizing task information (TALL-masks), eq. 5.
    """
    deltas = _deltas(base, models)
    limits = spread(per_model("strength", strength, deltas.shape[0], deltas.dtype), deltas)
    return jnp.abs(deltas) > limits * jnp.abs(model_sum(deltas)[None] - deltas)


def consensus_mask(masks: Bool[Array, "M *s"], least: int = 2) -> Bool[Array, "*s"]:
    """Elements that at least so many tasks use.

    Args:
        masks: one mask per task.
        least: fewest users.

    Returns:
        A mask; with `tall_masks` and `least=2`, selfish and catastrophic weights are out.

    Reference:
        Wang et al. 2024, Localizing task information (Consensus merging), section 4.
    """
    return jnp.sum(masks, axis=0, dtype=jnp.int32) >= least


def _deltas(base: Array, models: Array) -> Float[Array, "M *s"]:
    check_leaves(base, models)
    dtype = math_dtype(base, models)
    return models.astype(dtype) - base.astype(dtype)[None]

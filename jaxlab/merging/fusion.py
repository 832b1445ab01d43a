"""Selective fusion by importance: how far an element moved, times how far its row did."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.merging.leaf import Block, Leaf
from jaxlab.merging.operators import operator
from jaxlab.merging.thresholds import largest, threshold_value


@operator(layout="rows", models=(1, 1))
def arcee_fusion(leaf: Leaf):
    """Takes the model's element where its importance is an outlier, the base's elsewhere.

    Importance is |x - b| times the divergence of the rows' softmax distributions; an outlier lies
    at or above median + 1.5 (third - first quartile). Rows run along the last axis.

    Args:
        leaf: base and models.

    Reference:
        Arcee AI 2024, Arcee Fusion (the method as mergekit defines it, with exact quartiles).
    """
    n = leaf.size
    scores = leaf.derive(_importance)
    ascending = [int(q * (n - 1)) for q in (0.25, 0.5, 0.75)]
    first, median, third = (
        threshold_value(
            largest(scores, jnp.full((1,), n - i, jnp.int32), signed=True), leaf.dtype, signed=True
        )
        for i in ascending
    )
    return leaf.emit(_fuse, median + 1.5 * (third - first))


def _importance(block: Block) -> Float[Array, "1 r c"]:
    x, b = block.models[0], block.origin
    p, q = jax.nn.softmax(x, axis=-1) + 1e-8, jax.nn.softmax(b, axis=-1) + 1e-8
    divergence = jnp.sum(p * jnp.log(p / q), axis=-1, keepdims=True)
    return (jnp.abs(x - b) * divergence)[None]


def _fuse(block: Block, threshold: Array) -> Array:
    important = jax.lax.stop_gradient(_importance(block))[0] >= threshold[0]
    return block.origin + jnp.where(important, block.models[0] - block.origin, 0)

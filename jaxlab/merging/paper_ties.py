"""TIES as its authors define it: one threshold for the whole model, unweighted disjoint means."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxlab.merging.arrays import is_concrete, keep_count, model_sum
from jaxlab.merging.leaf import ArrayLeaf
from jaxlab.merging.thresholds import largest, ordered_bits
from jaxlab.merging.trees import task_vectors

Disjoint = Literal["mean", "sum", "max"]


def ties_merging(
    base: PyTree,
    models: PyTree[Float[Array, "M ..."]],
    *,
    density: ArrayLike = 0.2,
    lam: ArrayLike = 1.0,
    disjoint: Disjoint = "mean",
) -> PyTree:
    """Trim, elect sign and merge over the whole model at once.

    Args:
        base: a model of floating leaves.
        models: fine-tuned models, stacked along a leading axis.
        density: share of the elements to keep of each model.
        lam: scale of the merged task vector.
        disjoint: what to do with entries that agree: their plain mean, their sum, or the largest.

    Returns:
        The merged model in the base's dtypes.

    Raises:
        ValueError: if `disjoint` is unknown.

    Reference:
        Yadav et al. 2023, TIES-Merging, algorithm 1.

    Pitfall:
        The authors' code keeps everything at or above the (n - int(n K))-th smallest magnitude:
        int(n K) + 1 elements, and all their equals. Zero sums take the sign that most parameters
        have.
    """
    if disjoint not in get_args(Disjoint):
        raise ValueError(f"disjoint: expected one of {get_args(Disjoint)}, got {disjoint!r}")
    deltas, structure = jax.tree.flatten(task_vectors(base, models))
    count = deltas[0].shape[0]
    flat = jnp.concatenate([d.reshape(count, -1) for d in deltas], axis=1)
    n = flat.shape[1]
    shares = density if is_concrete(density) else jnp.asarray(density)
    kept = jnp.minimum(keep_count(shares, n) + 1, n)
    scores = ArrayLeaf(None, jax.lax.stop_gradient(jnp.abs(flat)))
    threshold = largest(scores, jnp.broadcast_to(kept, (count,))).threshold

    def trim(d: Array) -> Array:
        bits = ordered_bits(jax.lax.stop_gradient(d), signed=False)
        limit = jnp.broadcast_to(threshold.reshape((count,) + (1,) * (d.ndim - 1)), bits.shape)
        return jnp.where(bits >= limit, d, 0)

    trimmed = [trim(d) for d in deltas]
    signs = [jnp.sign(jax.lax.stop_gradient(model_sum(d))) for d in trimmed]
    majority = jnp.sign(sum(jnp.sum(s) for s in signs))

    def join(b: Array, d: Array, sign: Array) -> Array:
        sign = jnp.where(sign == 0, majority, sign)[None]
        agree = jnp.where(sign > 0, d > 0, d < 0)
        kept = jnp.where(agree, d, 0)
        if disjoint == "max":
            moved = jnp.max(jnp.abs(kept), axis=0) * sign[0]
        else:
            moved = model_sum(kept)
            if disjoint == "mean":
                voters = jnp.sum(agree, axis=0).astype(d.dtype)
                moved = moved / jnp.maximum(voters, 1)
        return (b.astype(d.dtype) + lam * moved).astype(b.dtype)

    leaves = [join(b, d, s) for b, d, s in zip(jax.tree.leaves(base), trimmed, signs)]
    return jax.tree.unflatten(structure, leaves)

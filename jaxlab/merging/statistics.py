"""Operators that know the data through statistics: Fisher information and layer inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxlab.merging.arrays import (
    check_leaves,
    math_dtype,
    model_sum,
    per_model,
    safe_divide,
    spread,
    weighted_sum,
)


def fisher_diagonal(
    log_probs: Callable[[PyTree, PyTree], Float[Array, " y"]], params: PyTree, inputs: PyTree
) -> PyTree:
    """Diagonal Fisher information: mean over inputs of sum_y p(y|x) (d log p(y|x) / d theta)^2.

    Args:
        log_probs: normalised log-probabilities of all classes for one input.
        params: the model.
        inputs: pytree with a leading axis of examples.

    Returns:
        A pytree like the parameters, in their dtypes.

    Reference:
        Matena & Raffel 2022, Merging models with Fisher-weighted averaging, eq. 3.

    Pitfall:
        The square of a gradient that was summed over a batch has cross terms between examples;
        here each example's gradient is squared by itself.
    """

    def one(total: PyTree, x: PyTree) -> tuple[PyTree, None]:
        known = log_probs(params, x)
        probability = jnp.exp(known.astype(math_dtype(known)))
        jacobian = jax.jacrev(log_probs)(params, x)

        def add(t: Array, j: Array) -> Array:  # a sum in bfloat16 stops growing early
            return t + weighted_sum(probability.astype(t.dtype), j.astype(t.dtype) ** 2)

        return jax.tree.map(add, total, jacobian), None

    count = jax.tree.leaves(inputs)[0].shape[0]
    start = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), math_dtype(p)), params)
    total, _ = jax.lax.scan(one, start, inputs)
    return jax.tree.map(lambda t, p: (t / count).astype(p.dtype), total, params)


def fisher_merge(
    models: PyTree[Float[Array, "M ..."]],
    information: PyTree[Float[Array, "M ..."]],
    weight: ArrayLike = 1.0,
    *,
    floor: ArrayLike = 1e-6,
    normalize: bool = False,
) -> PyTree[Float[Array, "..."]]:
    """Average of models, each parameter weighted by its Fisher information.

    Args:
        models: pytree with a leading axis of models.
        information: diagonal Fisher information, of the same structure.
        weight: a scalar or one number per model.
        floor: added to the information; without information the mean is left.
        normalize: divide each model's information by its L2 norm over all leaves.

    Returns:
        The merged model in the models' dtypes.

    Raises:
        ValueError: if the structures differ.

    Reference:
        Matena & Raffel 2022, Merging models with Fisher-weighted averaging, eq. 4.
    """
    expected: Any = jax.tree.structure(models)
    if jax.tree.structure(information) != expected:
        raise ValueError("information: expected the structure of models, got another one")
    leaves = jax.tree.leaves(information)
    dtype = math_dtype(*leaves, *jax.tree.leaves(models))
    count = leaves[0].shape[0]
    share = per_model("weight", weight, count, dtype)
    if normalize:
        squares = [
            jnp.sum((x.astype(dtype) + floor) ** 2, axis=tuple(range(1, x.ndim))) for x in leaves
        ]
        inverse = 1 / jnp.sqrt(sum(squares[1:], squares[0]))
        share = share * inverse / jnp.sum(inverse)

    def merge(x: Array, f: Array) -> Array:
        check_leaves(None, x)
        f = spread(share, x) * (f.astype(dtype) + floor)
        total = model_sum(f)
        moved = model_sum(f * x.astype(dtype))
        return safe_divide(moved, total, total == 0, 0.0).astype(x.dtype)

    return jax.tree.map(merge, models, information)


def regmean(
    models: Float[Array, "M i o"],
    grams: Float[Array, "M i i"],
    *,
    ratio: ArrayLike = 0.9,
    jitter: ArrayLike = 1e-6,
) -> Float[Array, "i o"]:
    """The linear layer closest to all models' on their own inputs.

    Args:
        models: kernels, inputs first.
        grams: X^T X / rows of each model's inputs to this layer.
        ratio: shrinks the off-diagonal elements; 0 weighs inputs by their own second moments.
        jitter: added to the diagonal, times its mean.

    Returns:
        (sum C_m)^-1 sum C_m W_m in the models' dtype; the mean if there were no inputs at all.

    Raises:
        ValueError: if the shapes do not fit.

    Reference:
        Jin et al. 2023, Dataless knowledge fusion by merging weights (RegMean), eq. 2 and 3.2.
    """
    if models.ndim != 3 or grams.shape != (models.shape[0], models.shape[1], models.shape[1]):
        raise ValueError(
            f"grams: expected [M, i, i] for kernels [M, i, o], got {grams.shape} for {models.shape}"
        )
    dtype = math_dtype(models, grams)
    eye = jnp.eye(models.shape[1], dtype=dtype)
    shrunk = grams.astype(dtype) * (ratio + (1 - ratio) * eye)[None]
    mean = jnp.mean(jnp.diagonal(model_sum(shrunk)))
    shift = jnp.where(mean > 0, mean * jitter, 1.0) * eye / models.shape[0]
    shrunk = shrunk + shift[None]
    right = model_sum(jnp.matmul(shrunk, models.astype(dtype), precision=jax.lax.Precision.HIGHEST))
    factor = jax.scipy.linalg.cho_factor(model_sum(shrunk))
    return jax.scipy.linalg.cho_solve(factor, right).astype(models.dtype)

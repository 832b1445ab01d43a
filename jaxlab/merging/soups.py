"""Averages of whole models along a run or over runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxlab.merging.arrays import math_dtype, weighted_sum
from jaxlab.merging.trees import common_leaf, leaf_path

Tree = TypeVar("Tree")


class Average(NamedTuple):
    """A running mean of models."""

    mean: PyTree  # floats in float32, or float64 for float64 models; other leaves as the last had
    seen: Int[Array, ""]


def uniform_soup(models: PyTree[Float[Array, "M ..."]]) -> PyTree[Float[Array, "..."]]:
    """Plain mean of models.

    Args:
        models: pytree with a leading axis of models.

    Returns:
        The mean in the models' dtypes; leaves that are not floating are copied.

    Raises:
        ValueError: naming a leaf that is not floating and differs between models.

    Reference:
        Wortsman et al. 2022, Model soups. With the last checkpoints of one run it is LAWA
        (Kaddour 2022).
    """

    def average(path: Sequence[Any], x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return common_leaf(leaf_path(path), None, x)
        return jnp.mean(x.astype(math_dtype(x)), axis=0).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(average, models)


def greedy_soup(
    models: PyTree[Float[Array, "M ..."]], loss: Callable[[PyTree], Float[Array, ""]]
) -> tuple[PyTree[Float[Array, "..."]], Bool[Array, " M"]]:
    """Adds models, best first, as long as the mean does not get worse.

    Args:
        models: pytree with a leading axis of models.
        loss: validation loss of one model; traced once.

    Returns:
        The mean of the chosen models, and which were chosen; leaves that are not floating are
        copied.

    Raises:
        ValueError: naming a leaf that is not floating and differs between models.

    Reference:
        Wortsman et al. 2022, Model soups, recipe 1.
    """
    losses = jax.lax.map(loss, models)
    order = jnp.argsort(losses)

    def mean(chosen: Bool[Array, " M"]) -> PyTree:
        def average(path: Sequence[Any], x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return common_leaf(leaf_path(path), None, x)
            weight = chosen.astype(math_dtype(x))
            return (weighted_sum(weight, x.astype(weight.dtype)) / jnp.sum(weight)).astype(x.dtype)

        return jax.tree_util.tree_map_with_path(average, models)

    def consider(state, index):
        chosen, best = state
        longer = chosen.at[index].set(True)
        found = loss(mean(longer))
        better = found <= best
        return (jnp.where(better, longer, chosen), jnp.where(better, found, best)), None

    start = jnp.zeros(losses.shape, bool).at[order[0]].set(True)
    (chosen, _), _ = jax.lax.scan(consider, (start, losses[order[0]]), order[1:])
    return mean(chosen), chosen


def average_init(params: PyTree) -> Average:
    """An empty running mean (stochastic weight averaging).

    Args:
        params: a model, for its structure.

    Returns:
        Zeros and a count of zero.

    Reference:
        Izmailov et al. 2018, Averaging weights leads to wider optima, eq. 3.
    """

    def zeros(x: Array) -> Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.zeros(x.shape, math_dtype(x) if floating else x.dtype)

    return Average(jax.tree.map(zeros, params), jnp.zeros((), jnp.int32))


def average_update(average: Average, params: PyTree) -> Average:
    """Takes one more model into the mean; leaves that are not floating become its own."""
    count = average.seen + 1

    def move(mean: Array, x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return mean + (x.astype(mean.dtype) - mean) / count.astype(mean.dtype)

    return Average(jax.tree.map(move, average.mean, params), count)


def ema_update(mean: Tree, params: Tree, decay: ArrayLike, step: ArrayLike | None = None) -> Tree:
    """Exponential moving average: decay mean + (1 - decay) params.

    Args:
        mean: the average so far.
        params: the model now.
        decay: in [0, 1], traced.
        step: number of updates before this one; if given, the decay is at most
            (1 + step) / (10 + step), so that the start is forgotten quickly.

    Returns:
        The new average, in the average's dtypes; leaves that are not floating are the model's.
    """

    def move(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        dtype = math_dtype(old)
        rate = jnp.asarray(decay).astype(dtype)
        if step is not None:
            done = jnp.asarray(step).astype(dtype)
            rate = jnp.minimum(rate, (1 + done) / (10 + done))
        return (rate * old.astype(dtype) + (1 - rate) * new.astype(dtype)).astype(old.dtype)

    return jax.tree.map(move, mean, params)

"""Merging coefficients learned without labels, by the entropy of the merged model's predictions."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from jaxlab.merging.arrays import math_dtype
from jaxlab.merging.trees import PathSpec, leaf_path

Granularity = Literal["task", "layer"]


class Adapted(NamedTuple):
    """Coefficients after adaptation."""

    weight: Any  # [M], or per leaf [M] or, for leaves that hold all layers, [M, L]
    merged: PyTree
    entropy: Float[Array, " steps"]


def adamerging(
    key: Key[Array, ""],
    logits: Callable[[PyTree, PyTree], Float[Array, "*b k"]],
    base: PyTree[Float[Array, "..."]],
    models: PyTree[Float[Array, "M ..."]],
    inputs: PyTree,
    *,
    granularity: Granularity = "task",
    start: ArrayLike = 0.3,
    learning_rate: ArrayLike = 1e-3,
    steps: int = 500,
    batch: int = 32,
    clip: bool = False,
    spec: PathSpec = PathSpec(),
) -> Adapted:
    """Task arithmetic whose coefficients minimise the entropy of predictions on unlabelled inputs.

    Args:
        key: random key of the batches.
        logits: of a merged model for a batch of one task's inputs; what belongs to a task, such as
            its head, comes with its inputs.
        base: a model.
        models: fine-tuned models, stacked.
        inputs: unlabelled; leaves [M, n, ...], tasks first.
        granularity: one coefficient per task, or one per task and leaf (per layer, where `spec`
            says that a leaf holds all layers).
        start: first value of the coefficients.
        learning_rate: of Adam.
        steps: number of steps.
        batch: inputs of each task per step.
        clip: keep the coefficients in [0, 1].
        spec: where layers are, and which leaves stay the base's.

    Returns:
        Coefficients, the merged model, and the mean entropy before each step.

    Raises:
        ValueError: if the granularity is another one.

    Reference:
        Yang et al. 2024, AdaMerging: adaptive model merging for multi-task learning, eq. 3 to 5.

    Pitfall:
        Low entropy is not accuracy: a model that is sure and wrong is a minimum as well.
    """
    if granularity not in ("task", "layer"):
        raise ValueError(f"granularity: expected 'task' or 'layer', got {granularity!r}")
    leaves, structure = jax.tree_util.tree_flatten_with_path(base)  # type: Any, Any
    dtype = math_dtype(*(leaf for _, leaf in leaves))
    count = jax.tree.leaves(models)[0].shape[0]
    layers = [spec.axis_of(leaf_path(path)) for path, _ in leaves]
    skipped = [spec.skips(leaf_path(path)) for path, _ in leaves]

    def blank(leaf: Array, axis: int | None) -> Array:
        shape = (count,) if axis is None else (count, leaf.shape[axis])
        return jnp.full(shape, start, dtype)

    first = (
        jnp.full(count, start, dtype)
        if granularity == "task"
        else structure.unflatten([blank(leaf, axis) for (_, leaf), axis in zip(leaves, layers)])
    )

    def merged(weight: Any) -> PyTree:
        each = [weight] * len(leaves) if granularity == "task" else structure.flatten_up_to(weight)
        found = []
        stacked = structure.flatten_up_to(models)
        for (_, b), x, w, axis, skip in zip(leaves, stacked, each, layers, skipped):
            if skip:
                found.append(b)
                continue
            moved = x.astype(dtype) - b.astype(dtype)[None]
            shape = [count] + [1] * b.ndim
            if w.ndim == 2 and axis is not None:
                shape[1 + axis % b.ndim] = w.shape[1]
            total = jnp.sum(w.reshape(shape) * moved, axis=0)
            found.append((b.astype(dtype) + total).astype(b.dtype))
        return structure.unflatten(found)

    def entropy(weight: Any, sample: PyTree) -> Array:
        model = merged(weight)
        found = jax.vmap(lambda x: logits(model, x))(sample)
        share = jax.nn.softmax(found.astype(dtype))
        return jnp.mean(-jnp.sum(share * jnp.log(share + 1e-8), axis=-1))

    adam = optax.scale_by_adam()
    size = jax.tree.leaves(inputs)[0].shape[1]

    def step(carry: tuple, number: Array) -> tuple[tuple, Array]:
        weight, moments = carry
        rows = jax.random.randint(jax.random.fold_in(key, number), (batch,), 0, size)
        sample = jax.tree.map(lambda x: x[:, rows], inputs)
        value, gradient = jax.value_and_grad(entropy)(weight, sample)
        with jax.numpy_dtype_promotion("standard"):
            direction, moments = adam.update(gradient, moments)
        rate = jnp.asarray(learning_rate).astype(dtype)
        weight = jax.tree.map(lambda w, d: w - rate * d, weight, direction)
        if clip:
            weight = jax.tree.map(lambda w: jnp.clip(w, 0, 1), weight)
        return (weight, moments), value

    (weight, _), entropies = jax.lax.scan(step, (first, adam.init(first)), jnp.arange(steps))
    return Adapted(weight, merged(weight), entropies)

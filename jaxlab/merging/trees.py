"""Operators over whole models: pytrees whose leaves carry a leading axis of models."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from jaxlab.merging.arrays import is_concrete, math_dtype, weighted_sum
from jaxlab.merging.operators import Operator
from jaxlab.merging.randomness import leaf_key


class PerLayer(NamedTuple):
    """A coefficient with a leading axis of layers, for leaves that hold all layers."""

    values: ArrayLike


@dataclass(frozen=True)
class PathSpec:
    """Which leaves are treated how; patterns are searched in '/'-joined paths.

    Args:
        layer_axis: pairs of a pattern and the axis along which such leaves hold all layers of a
            scanned model. Thresholds, norms and angles are then taken per layer.
        skip: pattern of leaves that are not merged: they are taken from the base, or from the
            first model if there is none.
        layer_path: name of layer i of a leaf, which decides its random numbers; give the names of
            the unrolled model to get that model's numbers.
    """

    layer_axis: tuple[tuple[str, int], ...] = ()
    skip: str | None = None
    layer_path: Callable[[str, int], str] = field(default=lambda path, i: f"{path}/{i}")

    def skips(self, path: str) -> bool:
        """Whether a leaf is not merged."""
        return self.skip is not None and re.search(self.skip, path) is not None

    def axis_of(self, path: str) -> int | None:
        """The layer axis of a leaf of one model, or None."""
        for pattern, axis in self.layer_axis:
            if re.search(pattern, path):
                return axis
        return None


def leaf_path(path: Sequence[Any]) -> str:
    """The '/'-joined name of a leaf, as in 'layers/0/kernel'."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def stack_models(models: Sequence[PyTree]) -> PyTree[Array]:
    """Stacks models of one structure along a new leading axis.

    Args:
        models: pytrees of arrays.

    Returns:
        One pytree whose leaves are [M, ...].

    Raises:
        ValueError: naming the model, and the leaf, that differs from the first.
    """
    if not models:
        raise ValueError("models: expected at least one model, got none")
    structure: Any = jax.tree.structure(models[0])
    for m, model in enumerate(models):
        if jax.tree.structure(model) != structure:
            raise ValueError(f"models[{m}]: expected the structure of models[0], got another one")

    def stack(path: Sequence[Any], *leaves: Array) -> Array:
        for m, leaf in enumerate(leaves):
            if jnp.shape(leaf) != jnp.shape(leaves[0]):
                raise ValueError(
                    f"models[{m}]: expected {leaf_path(path)} of shape {jnp.shape(leaves[0])}, "
                    f"got {jnp.shape(leaf)}"
                )
        return jnp.stack([jnp.asarray(leaf) for leaf in leaves])

    return jax.tree_util.tree_map_with_path(stack, *models)


def task_vectors(base: PyTree, models: PyTree[Array]) -> PyTree[Float[Array, "M ..."]]:
    """Differences of stacked models to their base, in the dtype to compute in.

    Args:
        base: a model.
        models: models of the same structure, stacked.

    Returns:
        Task vectors; zeros for leaves that are not floating.

    Raises:
        ValueError: naming a leaf that is not floating and differs between models.
    """

    def subtract(path: Sequence[Any], b: Array, x: Array) -> Array:
        dtype = math_dtype(b, x)
        if not jnp.issubdtype(b.dtype, jnp.floating):
            common_leaf(leaf_path(path), b, x)
            return jnp.zeros(x.shape, dtype)
        return x.astype(dtype) - b.astype(dtype)[None]

    return jax.tree_util.tree_map_with_path(subtract, base, models)


def apply_task_vectors(
    base: PyTree, vectors: PyTree[Float[Array, "M ..."]], weight: Float[Array, " M"]
) -> PyTree:
    """base + sum_m w_m v_m, in the base's dtypes.

    Args:
        base: a model.
        vectors: stacked task vectors.
        weight: one number each.

    Returns:
        The merged model; leaves that are not floating are the base's.
    """

    def add(b: Array, v: Array) -> Array:
        if not jnp.issubdtype(b.dtype, jnp.floating):
            return b
        moved = weighted_sum(jnp.asarray(weight).astype(v.dtype), v)
        return (b.astype(v.dtype) + moved).astype(b.dtype)

    return jax.tree.map(add, base, vectors)


def merge(
    operator: Operator,
    base: PyTree | None,
    models: PyTree[Array],
    coefficients: Mapping[str, Any] | Callable[[str], Mapping[str, Any]],
    *,
    spec: PathSpec = PathSpec(),
    key: Key[Array, ""] | None = None,
) -> PyTree:
    """Merges whole models, leaf by leaf.

    Args:
        operator: one of `METHODS`.
        base: a model, or None.
        models: models of the same structure, stacked along a leading axis.
        coefficients: the operator's arguments for all leaves, or a function of a leaf's path that
            gives them. A `PerLayer` value holds one for each layer.
        spec: how leaves are treated.
        key: random key, for random operators.

    Returns:
        The merged model. Leaves that are not floating are copied if they are equal everywhere.

    Raises:
        ValueError: naming the leaf that cannot be merged.
    """
    if operator.random and key is None:
        raise ValueError(f"key: {operator.name} is random and expected a key, got None")
    named, structure = jax.tree_util.tree_flatten_with_path(models)  # type: Any, Any
    bases = [None] * len(named) if base is None else structure.flatten_up_to(base)
    merged = []
    for (path, leaf), origin in zip(named, bases):
        name = leaf_path(path)
        given = coefficients(name) if callable(coefficients) else coefficients
        merged.append(_merge_leaf(operator, name, origin, leaf, given, spec, key))
    return jax.tree.unflatten(structure, merged)


def _merge_leaf(
    operator: Operator,
    name: str,
    base: Array | None,
    models: Array,
    coefficients: Mapping[str, Any],
    spec: PathSpec,
    key: Array | None,
) -> Array:
    models = jnp.asarray(models)
    base = None if base is None else jnp.asarray(base)
    if not jnp.issubdtype(models.dtype, jnp.floating):
        return common_leaf(name, base, models)
    if spec.skips(name):
        return models[0] if base is None else base
    axis = spec.axis_of(name)
    values = dict(coefficients)
    layered = {k: jnp.asarray(v.values) for k, v in values.items() if isinstance(v, PerLayer)}
    plain = {k: v for k, v in values.items() if k not in layered}
    try:
        if axis is None:
            if layered:
                raise ValueError(f"{', '.join(layered)}: expected a leaf with a layer axis")
            if operator.random:
                assert key is not None
                plain["key"] = leaf_key(key, name)
            return operator(base, models, **plain)
        if not 1 - models.ndim <= axis < models.ndim - 1:
            raise ValueError(
                f"layer_axis: expected an axis of a leaf of shape {models.shape[1:]}, got {axis}"
            )
        axis = axis % (models.ndim - 1)
        count = models.shape[1 + axis]
        if operator.random:
            assert key is not None
            keys = [leaf_key(key, spec.layer_path(name, i)) for i in range(count)]
            layered["key"] = jnp.stack(keys)

        def one(b: Array | None, x: Array, per_layer: Mapping[str, Array]) -> Array:
            return operator(b, x, **plain, **per_layer)

        axes = (None if base is None else axis, 1 + axis, 0)
        return jax.vmap(one, in_axes=axes, out_axes=axis)(base, models, layered)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def common_leaf(name: str, base: Array | None, models: Array) -> Array:
    """A leaf that is not merged, since it is not floating: the same in all models.

    Args:
        name: its path.
        base: the base's leaf, or None.
        models: the models' leaves, stacked.

    Returns:
        The base's leaf, or the first model's.

    Raises:
        ValueError: naming the leaf, if known values differ.
    """
    first = models[0] if base is None else base
    if is_concrete(base, models):
        with jax.ensure_compile_time_eval():  # also while a program around it is being traced
            everyone = models if base is None else jnp.concatenate([base[None], models])
            equal = bool(jnp.all(everyone == everyone[:1]))
        if not equal:
            raise ValueError(
                f"{name}: expected equal values of a leaf of {models.dtype}, got different ones"
            )
    return first

"""Fully sharded data parallelism: parameters and batches spread over one axis of a mesh."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax.sharding import PartitionSpec

Tree = TypeVar("Tree")


def fsdp_specs(tree: Tree, axis: str, size: int, smallest: int = 2**10) -> Tree:
    """How to spread parameters, gradients or moments over the devices of an axis.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`.
        axis: name of the mesh axis.
        size: number of devices along it.
        smallest: leaves with fewer elements stay whole on every device.

    Returns:
        The tree with a `PartitionSpec` per leaf: the largest dimension that `size` divides is cut
        (the last of equals), and leaves without one stay whole.
    """

    def spec(leaf: jax.Array) -> PartitionSpec:
        cuttable = [i for i, n in enumerate(leaf.shape) if n % size == 0 and n >= size]
        if leaf.size < smallest or not cuttable:
            return PartitionSpec()
        where = max(cuttable, key=lambda i: (leaf.shape[i], i))
        return PartitionSpec(*[axis if i == where else None for i in range(leaf.ndim)])

    return jax.tree.map(spec, tree)


def constrain_fsdp(tree: Tree, axis: str = "data") -> Tree:
    """Keeps a tree spread over an axis of the mesh in context; the values do not change.

    Args:
        tree: arrays.
        axis: name of the mesh axis. Where no mesh with this axis is in context (`jax.set_mesh`, or
            the mesh given to `ensemble.run`), the tree is left alone.

    Returns:
        The same tree under sharding constraints.
    """
    size = _size(axis)
    if size == 1:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, fsdp_specs(tree, axis, size))


def constrain_batch(tree: Tree, axis: str = "data") -> Tree:
    """Spreads the leading axis of every leaf over an axis of the mesh in context.

    Args:
        tree: arrays [B, ...], B a multiple of the axis' size.
        axis: see `constrain_fsdp`.

    Returns:
        The same tree under sharding constraints.
    """
    if _size(axis) == 1:
        return tree
    spec = PartitionSpec(axis)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec), tree)


def _size(axis: str) -> int:
    return dict(jax.sharding.get_abstract_mesh().shape).get(axis, 1)

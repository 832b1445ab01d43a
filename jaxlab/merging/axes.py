"""What the axes of a model's leaves stand for: units that can be reordered, copied or added."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxlab.merging.trees import leaf_path


@dataclass(frozen=True)
class LeafAxes:
    """The axes of one leaf.

    Args:
        labels: for each axis the name of what it counts, or None.
        inputs: axes over which a linear map sums, as the rows of a kernel [in, out].
    """

    labels: tuple[str | None, ...]
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class AxisSpec:
    """Which axes of a model's leaves belong together.

    Args:
        leaves: pairs of a pattern, searched in '/'-joined paths, and the axes of such leaves; the
            first that matches counts, and a leaf without a match has no units.
        units: pairs of a label and of the labels within each of whose entries the units are
            counted anew: ("hidden", ("layer",)) are units of their own in every layer. A label
            comes after those it is within; labels that are not listed are names only.
        normalised: labels that a layer norm runs over.
    """

    leaves: tuple[tuple[str, LeafAxes], ...]
    units: tuple[tuple[str, tuple[str, ...]], ...]
    normalised: tuple[str, ...] = ()
    _within: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses labels out of order, and leaves that lack an axis their units are within."""
        object.__setattr__(self, "_within", dict(self.units))
        known: list[str] = []
        for label, within in self.units:
            late = [name for name in within if name in self._within and name not in known]
            if label in known or late:
                raise ValueError(f"units: expected {label!r} once and after {within}")
            known.append(label)
        for pattern, axes in self.leaves:
            for name in axes.labels:
                missing = sorted(set(self._within.get(name or "", ())) - set(axes.labels), key=str)
                if missing:
                    raise ValueError(f"leaves: {pattern!r} has {name!r} and expected {missing} too")

    def within(self, label: str) -> tuple[str, ...]:
        """Labels of the axes in each of whose entries such units are counted anew."""
        return self._within[label]

    def axes_of(self, path: str, ndim: int) -> LeafAxes:
        """The axes of a leaf.

        Args:
            path: its '/'-joined path.
            ndim: how many axes it has.

        Returns:
            The first match's axes, or unnamed ones.

        Raises:
            ValueError: if there are more or fewer.
        """
        for pattern, axes in self.leaves:
            if re.search(pattern, path):
                if len(axes.labels) != ndim:
                    raise ValueError(f"{path}: expected axes {axes.labels}, got {ndim}")
                return axes
        return LeafAxes((None,) * ndim)

    def sizes(self, params: PyTree) -> dict[str, int]:
        """How many entries each label has.

        Args:
            params: a model.

        Returns:
            Sizes by label, names included.

        Raises:
            ValueError: if two leaves disagree.
        """
        found: dict[str, int] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            name = leaf_path(path)
            for label, size in zip(self.axes_of(name, leaf.ndim).labels, leaf.shape):
                if label is not None and found.setdefault(label, size) != size:
                    raise ValueError(f"{name}: expected {found[label]} of {label!r}, got {size}")
        return found


def map_leaves(
    spec: AxisSpec, function: Callable[..., Array], params: PyTree, *others: PyTree
) -> PyTree:
    """Maps `function(axes, leaf, *leaves of others)` over a model.

    Args:
        spec: the meaning of axes.
        function: gets the axes of each leaf first.
        params: a model.
        *others: models of the same structure.

    Returns:
        A model of the same structure.
    """

    def apply(path: Any, leaf: Array, *rest: Array) -> Array:
        return function(spec.axes_of(leaf_path(path), jnp.ndim(leaf)), leaf, *rest)

    return jax.tree_util.tree_map_with_path(apply, params, *others)


def along(vector: Array, like: Array, axes: tuple[int, ...]) -> Array:
    """Lays the axes of a small array along some axes of a leaf.

    Args:
        vector: array whose i-th axis belongs to `axes[i]` of the leaf.
        like: the leaf.
        axes: distinct axes of the leaf.

    Returns:
        An array of the leaf's rank, of size one along all other axes.
    """
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    turned = jnp.transpose(vector, order)
    shape = [1] * like.ndim
    for i, size in zip(sorted(axes), turned.shape):
        shape[i] = size
    return turned.reshape(shape)

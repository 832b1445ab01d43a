"""One leaf of several models, seen by an operator through two questions.

An operator asks for sums over the leaf, and gives a function that makes the merged elements. It
never sees whether the leaf is one array or arrives from disk in blocks, so each operator is written
once and both ways agree.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.merging.arrays import check_leaves, math_dtype
from jaxlab.merging.host_selection import Selected

BlockFn = Callable[..., Any]
MOST_ELEMENTS = 2**31 - 1  # places in a leaf and counts of its elements are int32


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("base", "models", "start", "size"),
    meta_fields=("aligned",),
)
@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive elements of a leaf, in row-major order.

    Args:
        base: the base's elements, or None.
        models: the models' elements, in the dtype to compute in.
        start: position of the first element in the leaf.
        size: elements of the leaf; positions from there on are padding and hold zeros. None if
            there is no padding.
        aligned: whether `start` is a multiple of the length of a random block.
    """

    base: Float[Array, "*s"] | None
    models: Float[Array, "M *s"]
    start: Int[Array, ""] | int
    size: Int[Array, ""] | None
    aligned: bool

    @property
    def deltas(self) -> Float[Array, "M *s"]:
        """Task vectors x_m - b; the models themselves if there is no base."""
        return self.models if self.base is None else self.models - self.base[None]

    @property
    def origin(self) -> Float[Array, "*s"]:
        """What deltas are added to: the base, or zeros."""
        return jnp.zeros_like(self.models[0]) if self.base is None else self.base

    @property
    def positions(self) -> Int[Array, "*s"]:
        """Where each element stands in the leaf."""
        shape = self.models.shape[1:]
        count = functools.reduce(lambda a, b: a * b, shape, 1)
        return jnp.arange(count, dtype=jnp.int32).reshape(shape) + jnp.asarray(
            self.start, jnp.int32
        )

    @property
    def inside(self) -> Bool[Array, "*s"] | None:
        """False on padding; None if there is none."""
        return None if self.size is None else self.positions < self.size


def check_size(shape: tuple[int, ...]) -> None:
    """Refuses leaves whose elements cannot be counted.

    Args:
        shape: of one model's leaf.

    Raises:
        ValueError: if there are 2^31 elements or more.
    """
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(
            f"models: expected leaves of at most 2^31 - 1 elements, got shape {shape}; split the "
            "leaf along an axis, or give that axis as a layer axis"
        )


class Scores(Protocol):
    """What can be asked of numbers that are only compared and counted.

    Block functions are called as `fn(block, *args, **static)`. They must be defined at module
    level and `static` must be hashable, since their compiled forms are kept by these.
    """

    @property
    def count(self) -> int:
        """Number of models M."""

    @property
    def size(self) -> int:
        """Number of elements n."""

    @property
    def dtype(self) -> Any:
        """The dtype to compute in."""

    def total(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """Sums a function's results over all blocks."""

    def select(self, k: Array) -> Selected | None:
        """The k-th largest number of each model, if that can be found outside of any program."""

    def repeat(self, steps: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
        """state = body(i, state) for i in 0 .. steps - 1."""

    def repeat_until(
        self, done: Callable[[Any], Any], body: Callable[[Any], Any], state: Any
    ) -> Any:
        """state = body(state) until done(state)."""


class Leaf(Scores, Protocol):
    """What an operator may ask besides."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model's leaf."""

    @property
    def columns(self) -> int:
        """Length of the last axis."""

    @property
    def has_base(self) -> bool:
        """Whether there is a base."""

    def emit(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """Makes the merged leaf out of a function that makes merged elements."""

    def derive(self, fn: BlockFn, *args: Any, **static: Any) -> Scores:
        """Scores: a function's results [G, ...], as G models without a base.

        Constant under differentiation; asked several times, so it is worth keeping.
        """


class ArrayLeaf:
    """A leaf in memory; everything is traced.

    Args:
        base: the base's leaf of any float dtype, or None.
        models: the models' leaves, stacked.
        rows: whether blocks must be matrices whose rows run along the last axis.

    Raises:
        ValueError: if the arrays are not float leaves of one shape, or too large.
    """

    def __init__(self, base: Array | None, models: Array, *, rows: bool = False):
        check_leaves(base, models)
        self.shape = models.shape[1:]
        check_size(self.shape)
        self.out_dtype = models.dtype if base is None else base.dtype
        self.dtype = math_dtype(base, models)
        self.count = models.shape[0]
        self.size = math.prod(self.shape)
        self.columns = self.shape[-1] if self.shape else 1
        self.has_base = base is not None
        seen = (self.size // max(self.columns, 1), self.columns) if rows else self.shape
        self._block = Block(
            None if base is None else base.astype(self.dtype).reshape(seen),
            models.astype(self.dtype).reshape(self.count, *seen),
            start=0,
            size=None,
            aligned=True,
        )

    def total(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """See `Leaf`."""
        return fn(self._block, *args, **static)

    def emit(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """See `Leaf`."""
        return fn(self._block, *args, **static).reshape(self.shape).astype(self.out_dtype)

    def derive(self, fn: BlockFn, *args: Any, **static: Any) -> "ArrayLeaf":
        """See `Leaf`."""
        block, args = jax.lax.stop_gradient((self._block, args))
        results = fn(block, *args, **static)
        return ArrayLeaf(None, jax.lax.stop_gradient(results))

    def select(self, k: Array) -> None:
        """See `Leaf`."""

    def repeat(self, steps: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
        """See `Leaf`."""
        return jax.lax.fori_loop(0, steps, body, state)

    def repeat_until(
        self, done: Callable[[Any], Any], body: Callable[[Any], Any], state: Any
    ) -> Any:
        """See `Leaf`."""
        return jax.lax.while_loop(lambda s: ~done(s), body, state)

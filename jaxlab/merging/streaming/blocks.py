"""A leaf that arrives from its sources in blocks of one fixed size, whatever memory there is."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.merging.host_selection import SAMPLE, Selected, fits, gather, select
from jaxlab.merging.leaf import MOST_ELEMENTS, Block, BlockFn
from jaxlab.merging.operators import Layout
from jaxlab.merging.randomness import RANDOM_BLOCK
from jaxlab.merging.streaming.checkpoint import Source
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.safetensors import DTYPES

BLOCK = RANDOM_BLOCK  # elements; fixed, so that the result does not depend on the memory
_SMALLEST = 1 << 10
_OVERHEAD = 28 << 20  # what allocators and threads hold back, measured
Raw = tuple[Any, Any, int]  # base or None, models, start; padded


class Sink(Protocol):
    """Where merged elements go."""

    def write(self, start: int, values: np.ndarray) -> None:
        """Takes elements from `start` on, in row-major order."""


class StreamLeaf:
    """A leaf of several models that is read block by block, as often as the operator asks.

    Args:
        base: the base's tensor, or None.
        models: the models' tensors.
        sink: where `emit` puts the merged elements.
        layout: which blocks the operator can work on.
        random: whether the operator draws random numbers, which takes room.
        dtype: output dtype.
        memory: bytes that may be used for blocks, copies and kept scores.

    Raises:
        MergeError: if the layout needs more memory, or there are 2^31 elements or more.
    """

    def __init__(
        self,
        base: Source | None,
        models: Sequence[Source],
        sink: Sink,
        *,
        layout: Layout,
        random: bool,
        dtype: Any,
        memory: int,
    ):
        self._base, self._models, self._sink, self._out = base, tuple(models), sink, dtype
        shape = models[0].shape
        if math.prod(shape) > MOST_ELEMENTS:
            raise MergeError(
                f"has shape {shape}, more elements than the 2^31 - 1 that are possible"
            )
        sources = [*self._models, *([] if base is None else [base])]
        self.count, self.size = len(models), math.prod(shape)
        self.shape = shape
        self.columns = shape[-1] if shape else 1
        self.has_base = base is not None
        dtypes = {DTYPES[source.code] for source in sources}
        double = jax.dtypes.canonicalize_dtype(np.float64)  # float32 unless 64 bits are enabled
        self.dtype: Any = double.type if np.dtype(np.float64) in dtypes else jnp.float32
        self._raw = dtypes.pop() if len(dtypes) == 1 else np.dtype(self.dtype)
        self._shape = _block_shape(layout, shape, self.size, BLOCK)
        self._aligned = layout != "rows"
        length = math.prod(self._shape)
        needed = working_memory(len(sources), self._raw.itemsize, length, random)
        if needed > memory:
            raise MergeError(f"needs {_megabytes(needed)} of memory, more than --memory allows")
        # Samples for selections need room as well.
        self._spare = max(0, memory - needed - 16 * SAMPLE * len(sources))
        whole = len(sources) * self._raw.itemsize * length * -(-self.size // length)
        self._keeps = whole <= self._spare // 2
        if self._keeps:
            self._spare -= whole
        self._kept: list[Raw] | None = None

    def total(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """See `Leaf`."""
        program = _program(fn, _frozen(static), self.dtype, None, self._aligned)
        return _sum(program(*raw, self.size, *args) for raw in self._blocks())

    def emit(self, fn: BlockFn, *args: Any, **static: Any) -> None:
        """See `Leaf`; the merged elements go to the sink."""
        out = jax.dtypes.canonicalize_dtype(self._out)
        program = _program(fn, _frozen(static), self.dtype, out, self._aligned)
        pending: tuple[int, Any] | None = None
        for raw in self._blocks():
            ahead = raw[2], program(*raw, self.size, *args)
            if pending is not None:
                self._write(*pending)
            pending = ahead
        if pending is not None:
            self._write(*pending)

    def derive(self, fn: BlockFn, *args: Any, **static: Any) -> "StreamScores":
        """See `Leaf`."""
        return StreamScores(self, self._spare, fn, args, static)

    def select(self, k: Any) -> None:
        """See `Scores`."""

    def repeat(self, steps: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
        """See `Leaf`."""
        for i in range(steps):
            state = body(i, state)
        return state

    def repeat_until(
        self, done: Callable[[Any], Any], body: Callable[[Any], Any], state: Any
    ) -> Any:
        """See `Leaf`."""
        while not done(state):
            state = body(state)
        return state

    def _write(self, start: int, block: Any) -> None:
        values = np.asarray(block).reshape(-1).astype(self._out, copy=False)
        self._sink.write(start, values[: min(values.size, self.size - start)])

    def _blocks(self) -> Iterator[Raw]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Raw] = []
        length = math.prod(self._shape)
        for start in range(0, self.size, length):
            raw = self._read(start)
            if self._keeps:
                raw = (*jax.device_put(raw[:2]), start)
                kept.append(raw)
            yield raw
        if self._keeps:
            self._kept = kept

    def _read(self, start: int) -> Raw:
        base = None
        if self._base is not None:
            base = _aligned_empty(self._shape, self._raw)
            self._fill(base, self._base, start)
        models = _aligned_empty((self.count, *self._shape), self._raw)
        for i, source in enumerate(self._models):
            self._fill(models[i, ...], source, start)  # a view even where a model is one number
        return base, models, start

    def _fill(self, out: np.ndarray, source: Source, start: int) -> None:
        flat = out.reshape(-1)
        count = min(flat.size, self.size - start)
        if DTYPES[source.code] == self._raw:
            source.read_into(flat[:count], start)
        else:
            piece = np.empty(count, DTYPES[source.code])
            source.read_into(piece, start)
            flat[:count] = piece.astype(self._raw)
        flat[count:] = 0


class StreamScores:
    """Scores of a streamed leaf, made again whenever they are asked for.

    Once something was selected they are kept, if they fit.
    """

    def __init__(self, parent: StreamLeaf, spare: int, fn: BlockFn, args: Any, static: Any):
        self._parent, self._fn, self._args, self._static = parent, fn, args, static
        self._spare = spare
        self._rows: np.ndarray | None = None
        self.size, self.dtype = parent.size, parent.dtype
        self._program = _program(fn, _frozen(static), self.dtype, None, parent._aligned)
        first = next(iter(parent._blocks()))
        self.count = jax.eval_shape(self._program, *first, self.size, *args).shape[0]

    def total(self, fn: BlockFn, *args: Any, **static: Any) -> Any:
        """See `Leaf`."""
        program = _composed(
            self._fn,
            _frozen(self._static),
            fn,
            _frozen(static),
            self.dtype,
            self._parent._aligned,
        )
        blocks = self._parent._blocks()
        return _sum(program(*raw, self.size, self._args, *args) for raw in blocks)

    def select(self, k: Any) -> Selected | None:
        """See `Leaf`."""
        if fits(self.count, self.size, np.dtype(self.dtype).itemsize, self._spare):
            self._rows = gather(self._pieces, self.size)
        return select(self._pieces, self.size, [int(n) for n in np.asarray(k)], self._spare)

    def _pieces(self) -> Iterator[np.ndarray]:
        if self._rows is not None:
            yield self._rows
            return
        for raw in self._parent._blocks():
            scores = self._program(*raw, self.size, *self._args)
            flat = np.asarray(scores).reshape(self.count, -1)
            yield flat[:, : self.size - raw[2]]

    repeat = StreamLeaf.repeat
    repeat_until = StreamLeaf.repeat_until


def working_memory(sources: int, itemsize: int, length: int, random: bool = False) -> int:
    """Bytes that blocks of so many elements take while they are read, merged and written.

    Args:
        sources: models, and the base if there is one.
        itemsize: bytes of an element as it is read.
        length: elements of a block.
        random: whether there are random numbers and ranks besides.

    Returns:
        Bytes for two blocks in flight with their intermediate results.
    """
    results = 4 * ((12 if random else 2) * sources + 3)
    return _OVERHEAD + length * (3 * sources * itemsize + results)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that XLA takes on a CPU without a copy: its bytes begin at a multiple of 64."""
    count = math.prod(shape) * dtype.itemsize
    room = np.empty(count + 64, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + count].view(dtype).reshape(shape)


def _block_shape(layout: Layout, shape: tuple[int, ...], size: int, length: int) -> tuple[int, ...]:
    if layout == "whole":
        return shape
    if layout == "rows":
        columns = shape[-1] if shape else 1
        rows = size // max(columns, 1)
        most = max(1, length // max(columns, 1))
        return (most if rows >= most else _bucket(rows, 1), columns)
    return (length if size >= length else _bucket(size, min(_SMALLEST, length)),)


def _bucket(n: int, least: int) -> int:
    """The next power of two, so that few programs serve all small leaves."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def _megabytes(count: int) -> str:
    return f"{-(-count // 1_000_000)} MB"


def _frozen(static: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(static.items()))


def _sum(results: Iterator[Any]) -> Any:
    total = None
    for result in results:
        if total is None:
            total = result
        else:
            jax.block_until_ready(total)  # at most one block ahead of the computation
            total = jax.tree.map(jnp.add, total, result)
    return total


@functools.cache
def _program(
    fn: BlockFn, static: tuple[tuple[str, Any], ...], dtype: Any, out: Any, aligned: bool
) -> Callable[..., Any]:
    @jax.jit
    def run(base: Any, models: Any, start: Any, size: Any, *args: Any) -> Any:
        result = fn(_block(base, models, start, size, dtype, aligned), *args, **dict(static))
        return result if out is None else result.astype(out)

    return run


@functools.cache
def _composed(
    score: BlockFn,
    score_static: tuple[tuple[str, Any], ...],
    fn: BlockFn,
    static: tuple[tuple[str, Any], ...],
    dtype: Any,
    aligned: bool,
) -> Callable[..., Any]:
    @jax.jit
    def run(base: Any, models: Any, start: Any, size: Any, score_args: Any, *args: Any) -> Any:
        block = _block(base, models, start, size, dtype, aligned)
        scores = score(block, *score_args, **dict(score_static))
        derived = Block(None, scores, block.start, block.size, aligned)
        return fn(derived, *args, **dict(static))

    return run


def _block(base: Any, models: Any, start: Any, size: Any, dtype: Any, aligned: bool) -> Block:
    return Block(
        None if base is None else base.astype(dtype),
        models.astype(dtype),
        jnp.asarray(start, jnp.int32),
        jnp.asarray(size, jnp.int32),
        aligned,
    )

"""Tiles of the Mosaic GPU kernels: in shared memory by name, in bfloat16 pieces, and as masks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlab_kernels import algebra

SIZE = 64  # chunk, K and D
LAYOUT = plgpu.Layout.WGMMA


class Shared:
    """Tiles in shared memory, by name; "x.T" is tile x read transposed.

    Every write is fenced on both sides: the warps of the group may be a step apart, and both matrix
    instructions and copies read shared memory on their own.
    """

    def __init__(self, refs: dict[str, Any], interpret: bool):
        self.refs = refs
        self.interpret = interpret

    def read(self, name: str) -> jax.Array:
        return self.refs[name][...]

    def fetch(self, barrier: str, sources: dict[str, Any]) -> None:
        plgpu.commit_smem()
        for name, source in sources.items():
            plgpu.copy_gmem_to_smem(source, self.refs[name], self.refs[barrier])
        plgpu.barrier_wait(self.refs[barrier])

    def send(self, name: str, target) -> None:
        plgpu.copy_smem_to_gmem(self.refs[name], target)
        plgpu.wait_smem_to_gmem(0)

    def put(self, **values: jax.Array) -> None:
        plgpu.commit_smem()
        for name, value in values.items():
            self.refs[name][...] = value.astype(self.refs[name].dtype)
        plgpu.commit_smem()

    def product(self, *pairs: tuple[str, str]) -> jax.Array:
        """Sum of matrix products of tiles, float32."""
        if self.interpret:  # the interpreter knows no transposed operands of `wgmma`
            return functools.reduce(jnp.add, (self._product_of_values(*pair) for pair in pairs))

        def operand(name):
            ref = self.refs[name.removesuffix(".T")]
            return ref.transpose((1, 0)) if name.endswith(".T") else ref

        def accumulate(sums):
            for left, right in pairs:
                plgpu.wgmma(sums, operand(left), operand(right))
            return sums[...]

        return pl.run_scoped(accumulate, plgpu.ACC((SIZE, SIZE), jnp.float32))

    def _product_of_values(self, left: str, right: str) -> jax.Array:
        contract = (0 if left.endswith(".T") else 1, 1 if right.endswith(".T") else 0)
        x, y = (self.read(name.removesuffix(".T")) for name in (left, right))
        return algebra.dot(x, y, contract, operand_dtype=jnp.float32)

    def select(self, masks: list[jax.Array], x: jax.Array) -> list[jax.Array]:
        """Products of 0-1 matrices with one float32 tile, as exact as float32 sums."""
        self.put(**dict(zip(("p1", "p2", "p3"), pieces(x, 3))))
        results = []
        for mask in masks:
            self.put(p0=jnp.where(mask, jnp.float32(1), jnp.float32(0)))
            results.append(self.product(("p0", "p1"), ("p0", "p2"), ("p0", "p3")))
        return results


def pieces(x: jax.Array, count: int) -> list[jax.Array]:
    """Float32 as a sum of bfloat16 pieces, 8 bits each."""
    parts: list[jax.Array] = []
    for _ in range(count):
        parts.append(x.astype(jnp.bfloat16))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def keep(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A float32 tile where the mask holds, 0 elsewhere."""
    return jnp.where(mask, x, jnp.float32(0))


JOINED, FROM_START, TO_END, SURVIVES, COLUMN_TO_END = 1, 2, 4, 8, 16


def marks_of(count: jax.Array) -> jax.Array:
    """What resets do to every pair (t, s) of a chunk's rows, as bits; [B, T / 64, 64, 64].

    Bits: no reset between t and s, the incoming state reaches t, t reaches the outgoing state, the
    incoming state reaches the outgoing one, s reaches the outgoing state. Exact in bfloat16.
    """
    count = count.reshape(count.shape[0], -1, SIZE)
    row, col, last = count[..., :, None], count[..., None, :], count[..., -1:, None]
    bits = (
        (JOINED, row == col),
        (FROM_START, row == 0),
        (TO_END, row == last),
        (SURVIVES, last == 0),
        (COLUMN_TO_END, col == last),
    )
    marks = functools.reduce(jnp.add, (jnp.where(holds, bit, 0) for bit, holds in bits))
    return marks.astype(jnp.bfloat16)


class Masks:
    """Boolean [64, 64] tiles, t down and s across, evaluated where they are used."""

    def __init__(self, smem: Shared, has_resets: bool):
        self.smem, self.has_resets = smem, has_resets

    def index(self, axis: int) -> jax.Array:
        index = lax.broadcasted_iota(jnp.int32, (SIZE, SIZE), axis)
        return index if self.smem.interpret else plgpu.layout_cast(index, LAYOUT)

    def _has(self, bit: int) -> jax.Array:
        marks = self.smem.read("marks").astype(jnp.float32).astype(jnp.int32)
        return (marks & bit) != 0

    def _joined(self, mask: jax.Array) -> jax.Array:
        return mask & self._has(JOINED) if self.has_resets else mask

    def _keep(self, bit: int, x: jax.Array) -> jax.Array:
        return keep(self._has(bit), x) if self.has_resets else x

    def before(self) -> jax.Array:
        """s <= t, whatever lies between."""
        return self.index(0) >= self.index(1)

    def first_half(self) -> jax.Array:
        return self.index(1) <= (SIZE - 1) // 2

    def strict(self) -> jax.Array:
        """s < t with no reset in between; `lower` has s = t too; "_t" are transposes."""
        return self._joined(self.index(0) > self.index(1))

    def lower(self) -> jax.Array:
        return self._joined(self.index(0) >= self.index(1))

    def strict_t(self) -> jax.Array:
        return self._joined(self.index(0) < self.index(1))

    def lower_t(self) -> jax.Array:
        return self._joined(self.index(0) <= self.index(1))

    def columns_to_end(self) -> jax.Array:
        return self._has(COLUMN_TO_END) if self.has_resets else self.everything()

    def everything(self) -> jax.Array:
        return self.index(0) >= 0

    def from_start(self, x: jax.Array) -> jax.Array:
        """Keep the rows that the incoming state reaches."""
        return self._keep(FROM_START, x)

    def to_end(self, x: jax.Array) -> jax.Array:
        """Keep the rows that reach the outgoing state."""
        return self._keep(TO_END, x)

    def survives(self, x: jax.Array) -> jax.Array:
        """Keep everything if the incoming state reaches the outgoing one."""
        return self._keep(SURVIVES, x)

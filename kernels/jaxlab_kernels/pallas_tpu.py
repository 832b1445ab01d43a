"""WKV-7 on a TPU: one Pallas (Mosaic) program walks one group of heads along the sequence.

Grid (batch, head groups, chunks), chunks last and in order, so the state stays in VMEM. Operands
keep the model's own memory order, [B, T, H * N]: a block is L rows of 128 lanes, two heads for
N = 64. (As [B, T, H, 64] every array would be padded to 128 lanes in HBM.) The chunk algebra is
`algebra`'s.

The states that entered the chunks are saved as [B, T / L, D, H * K], dense in lanes for any K.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlab_kernels import algebra, calls

LANES = 128


def heads_per_program(heads: int, key_width: int, value_width: int) -> int:
    """Heads whose tiles lie side by side in a block: enough to fill 128 lanes, or all there are."""
    return min(heads, max(1, LANES // min(key_width, value_width)))


def forward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array,
    count: jax.Array | None,
    reset_state: jax.Array | None,
    *,
    chunk: int,
    operand_dtype,
    save: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Run the recurrence; arguments and results as for every `gradients.Implementation`.

    With `interpret` it runs on any platform, slowly.
    """
    plan = _Plan(r, v, chunk)
    operands = [plan.tokens(x) for x in (r, g, k, v, a, b)] + [plan.states(s0)]
    specs = [*plan.token_specs(), plan.state_spec()]
    if count is not None:
        operands.append(plan.counts(count))
        specs.append(plan.count_spec())
    if reset_state is not None:
        operands.append(plan.states(reset_state))
        specs.append(plan.state_spec())
    outputs = [plan.token_shape(v), plan.state_shape(jnp.float32)]
    output_specs = [plan.token_spec(plan.value_width), plan.state_spec()]
    if save:
        outputs.append(plan.checkpoint_shape(operand_dtype))
        output_specs.append(plan.checkpoint_spec())
    results = pl.pallas_call(
        functools.partial(
            _forward_kernel,
            plan=plan,
            operand_dtype=operand_dtype,
            has_count=count is not None,
            has_reset_state=reset_state is not None,
            saves=save,
        ),
        grid=plan.grid,
        in_specs=specs,
        out_specs=output_specs,
        out_shape=calls.varying_as(operands, outputs),
        scratch_shapes=[plan.scratch()],
        compiler_params=plan.compiler_params(),
        cost_estimate=plan.cost("forward", operands, outputs),
        interpret=interpret,
        name="wkv7_forward",
    )(*operands)
    return plan.untokens(results[0], v), plan.unstates(results[1]), results[2] if save else None


def backward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    count: jax.Array | None,
    reset_state: jax.Array | None,
    checkpoints: jax.Array,
    dy: jax.Array,
    ds1: jax.Array,
    *,
    chunk: int,
    operand_dtype,
    interpret: bool = False,
) -> tuple[jax.Array | None, ...]:
    """Pull cotangents of y and of the last state back; arguments and results likewise."""
    plan = _Plan(r, v, chunk, backwards=True)
    operands = [plan.tokens(x) for x in (r, g, k, v, a, b)]
    operands += [checkpoints, plan.tokens(dy), plan.states(ds1)]
    specs = plan.token_specs()
    specs += [plan.checkpoint_spec(), plan.token_spec(plan.value_width), plan.state_spec()]
    if count is not None:
        operands.append(plan.counts(count))
        specs.append(plan.count_spec())
    if reset_state is not None:
        operands.append(plan.states(reset_state))
        specs.append(plan.state_spec())
    states = 1 if reset_state is None else 2
    outputs = [plan.token_shape(x) for x in (r, g, k, v, a, b)]
    outputs += [plan.state_shape(jnp.float32)] * states
    results = pl.pallas_call(
        functools.partial(
            _backward_kernel,
            plan=plan,
            operand_dtype=operand_dtype,
            has_count=count is not None,
            has_reset_state=reset_state is not None,
        ),
        grid=plan.grid,
        in_specs=specs,
        out_specs=plan.token_specs() + [plan.state_spec()] * states,
        out_shape=calls.varying_as(operands, outputs),
        scratch_shapes=[plan.scratch()] * states,
        compiler_params=plan.compiler_params(),
        cost_estimate=plan.cost("backward", operands, outputs),
        interpret=interpret,
        name="wkv7_backward",
    )(*operands)
    gradients = [plan.untokens(x, like) for x, like in zip(results, (r, g, k, v, a, b))]
    dstates = [plan.unstates(x) for x in results[6:]]
    return *gradients, dstates[0], dstates[1] if states == 2 else None


class _Plan:
    """Shapes, blocks and the grid of one call. Heads are padded to whole groups."""

    def __init__(self, r: jax.Array, v: jax.Array, chunk: int, *, backwards: bool = False):
        self.batch, self.length, self.heads, self.key_width = r.shape
        self.value_width = v.shape[-1]
        self.chunk = chunk
        self.group = heads_per_program(self.heads, self.key_width, self.value_width)
        self.groups = math.ceil(self.heads / self.group)
        self.chunks = self.length // chunk
        self.grid = (self.batch, self.groups, self.chunks)
        self.backwards = backwards

    def cost(self, direction, operands, outputs) -> pl.CostEstimate:
        tokens = self.batch * self.length * self.groups * self.group
        widths = (self.key_width, self.value_width)
        return calls.estimate(direction, operands, outputs, tokens, self.chunk, widths)

    def _chunk(self, step):
        return self.chunks - 1 - step if self.backwards else step

    def _pad_heads(self, x: jax.Array, axis: int) -> jax.Array:
        missing = self.groups * self.group - self.heads
        if missing == 0:
            return x
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])

    def tokens(self, x: jax.Array) -> jax.Array:
        return self._pad_heads(x, 2).reshape(self.batch, self.length, -1)

    def untokens(self, x: jax.Array, like: jax.Array) -> jax.Array:
        return x.reshape(self.batch, self.length, -1, like.shape[-1])[:, :, : self.heads]

    def token_shape(self, x: jax.Array) -> jax.ShapeDtypeStruct:
        width = self.groups * self.group * x.shape[-1]
        return jax.ShapeDtypeStruct((self.batch, self.length, width), x.dtype)

    def token_spec(self, width: int) -> pl.BlockSpec:
        block = (1, self.chunk, self.group * width)
        return pl.BlockSpec(block, lambda i, j, n: (i, self._chunk(n), j))

    def token_specs(self) -> list[pl.BlockSpec]:
        """Blocks of r, g, k, v, a, b."""
        keys, values = self.token_spec(self.key_width), self.token_spec(self.value_width)
        return [keys, keys, keys, values, keys, keys]

    def states(self, x: jax.Array) -> jax.Array:
        return self._pad_heads(x, 1)

    def unstates(self, x: jax.Array) -> jax.Array:
        return x[:, : self.heads]

    def state_shape(self, dtype) -> jax.ShapeDtypeStruct:
        heads = self.groups * self.group
        return jax.ShapeDtypeStruct((self.batch, heads, self.value_width, self.key_width), dtype)

    def state_spec(self) -> pl.BlockSpec:
        block = (1, self.group, self.value_width, self.key_width)
        return pl.BlockSpec(block, lambda i, j, n: (i, j, 0, 0))

    def checkpoint_shape(self, dtype) -> jax.ShapeDtypeStruct:
        lanes = self.groups * self.group * self.key_width
        return jax.ShapeDtypeStruct((self.batch, self.chunks, self.value_width, lanes), dtype)

    def checkpoint_spec(self) -> pl.BlockSpec:
        block = (1, 1, self.value_width, self.group * self.key_width)
        return pl.BlockSpec(block, lambda i, j, n: (i, self._chunk(n), 0, j))

    def counts(self, count: jax.Array) -> jax.Array:
        return count.astype(jnp.float32).reshape(self.batch, self.chunks, 1, self.chunk)

    def count_spec(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, 1, self.chunk), lambda i, j, n: (i, self._chunk(n), 0, 0))

    def scratch(self):
        return pltpu.VMEM((self.group, self.value_width, self.key_width), jnp.float32)

    def compiler_params(self):
        return pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))

    def lanes(self, head: int) -> tuple[slice, slice]:
        """Where a head's keys and values lie in a block."""
        keys = slice(head * self.key_width, (head + 1) * self.key_width)
        return keys, slice(head * self.value_width, (head + 1) * self.value_width)


def _as_column(row: jax.Array) -> jax.Array:
    """[1, L] to [L, 1] without a transpose."""
    size = row.shape[1]
    square = jnp.broadcast_to(row, (size, size))
    down = jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    across = jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    return jnp.sum(jnp.where(down == across, square, jnp.zeros_like(square)), 1, keepdims=True)


def _forward_kernel(*refs, plan, operand_dtype, has_count, has_reset_state, saves):
    r, g, k, v, a, b, s0, *rest = refs
    count = _as_column(rest.pop(0)[0, 0]) if has_count else None
    reset_state = rest.pop(0) if has_reset_state else None
    y, s1, *_, state = rest
    saved = rest[2] if saves else None

    @pl.when(pl.program_id(2) == 0)
    def start():
        state[...] = s0[0]

    for head in range(plan.group):
        keys, values = plan.lanes(head)
        if saved is not None:
            saved[0, 0, :, keys] = state[head].astype(saved.dtype)
        out, state[head] = algebra.chunk_forward(
            r[0, :, keys],
            g[0, :, keys],
            k[0, :, keys],
            v[0, :, values],
            a[0, :, keys],
            b[0, :, keys],
            state[head],
            count=count,
            reset_state=None if reset_state is None else reset_state[0, head],
            operand_dtype=operand_dtype,
        )
        y[0, :, values] = out.astype(y.dtype)

    @pl.when(pl.program_id(2) == plan.chunks - 1)
    def finish():
        s1[0] = state[...]


def _backward_kernel(*refs, plan, operand_dtype, has_count, has_reset_state):
    r, g, k, v, a, b, saved, dy, ds1, *rest = refs
    count = _as_column(rest.pop(0)[0, 0]) if has_count else None
    reset_state = rest.pop(0) if has_reset_state else None
    states = 2 if has_reset_state else 1
    gradients, dstates, scratch = rest[:6], rest[6 : 6 + states], rest[6 + states :]

    @pl.when(pl.program_id(2) == 0)
    def start():
        scratch[0][...] = ds1[0]
        if has_reset_state:
            scratch[1][...] = jnp.zeros_like(scratch[1])

    for head in range(plan.group):
        keys, values = plan.lanes(head)
        results = algebra.chunk_backward(
            r[0, :, keys],
            g[0, :, keys],
            k[0, :, keys],
            v[0, :, values],
            a[0, :, keys],
            b[0, :, keys],
            saved[0, 0, :, keys].astype(jnp.float32),
            dy[0, :, values],
            scratch[0][head],
            count=count,
            reset_state=None if reset_state is None else reset_state[0, head],
            operand_dtype=operand_dtype,
        )
        for ref, gradient, lanes in zip(gradients, results, (keys, keys, keys, values, keys, keys)):
            ref[0, :, lanes] = gradient.astype(ref.dtype)
        scratch[0][head] = results[6]
        if has_reset_state:
            scratch[1][head] = scratch[1][head] + results[7]

    @pl.when(pl.program_id(2) == plan.chunks - 1)
    def finish():
        for out, total in zip(dstates, scratch):
            out[0] = total[...]

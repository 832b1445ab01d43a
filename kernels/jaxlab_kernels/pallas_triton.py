"""WKV-7 on a GPU through Pallas' Triton backend: one program walks one head along the sequence.

The state is the carry of a loop over chunks, in registers: this backend has no scratch memory.
Tiles are read straight from the model's [B, T, H, N] arrays. The chunk algebra is `algebra`'s.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxlab_kernels import algebra, calls, compat


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
    num_warps: int = 8,
    num_stages: int = 1,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Run the recurrence; arguments and results as for every `gradients.Implementation`.

    `num_warps` and `num_stages` are Triton's; with `interpret` it runs on any platform, slowly.
    """
    batch, length, heads, key_width = r.shape
    value_width = v.shape[-1]
    widths = (key_width, value_width)
    chunks = length // chunk
    state = jax.ShapeDtypeStruct(s0.shape, jnp.float32)
    outputs = [jax.ShapeDtypeStruct(v.shape, v.dtype), state]
    if save:
        saved = (batch, chunks, heads, value_width, key_width)
        outputs.append(jax.ShapeDtypeStruct(saved, operand_dtype))
    operands, rebuild = _present(r, g, k, v, a, b, s0, count, reset_state)

    def kernel(*refs):
        r, g, k, v, a, b, s0, count, reset_state = rebuild(refs[: len(operands)])
        y, last, *saved = refs[len(operands) :]
        i, head = pl.program_id(0), pl.program_id(1)
        start = None if reset_state is None else reset_state[i, head]

        def body(n, state):
            rows = pl.ds(pl.multiple_of(n * chunk, chunk), chunk)
            for ref in saved:
                ref[i, n, head] = state.astype(ref.dtype)
            out, state = algebra.chunk_forward(
                r[i, rows, head, :],
                g[i, rows, head, :],
                k[i, rows, head, :],
                v[i, rows, head, :],
                a[i, rows, head, :],
                b[i, rows, head, :],
                state,
                count=None if count is None else count[i, rows][:, None],
                reset_state=start,
                operand_dtype=operand_dtype,
                precision=_exact(operand_dtype, interpret),
            )
            y[i, rows, head, :] = out.astype(y.dtype)
            return state

        last[i, head] = lax.fori_loop(0, chunks, body, s0[i, head])

    results = _call(
        kernel,
        (batch, heads),
        outputs,
        operands,
        calls.estimate("forward", operands, outputs, batch * length * heads, chunk, widths),
        num_warps,
        num_stages,
        interpret,
    )
    return results[0], results[1], results[2] if save else None


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
    num_warps: int = 8,
    num_stages: int = 1,
    interpret: bool = False,
) -> tuple[jax.Array | None, ...]:
    """Pull cotangents of y and of the last state back; arguments and results likewise."""
    batch, length, heads, key_width = r.shape
    widths = (key_width, v.shape[-1])
    chunks = length // chunk
    inputs = (r, g, k, v, a, b)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    states = 1 if reset_state is None else 2
    outputs += [jax.ShapeDtypeStruct(ds1.shape, jnp.float32)] * states
    operands, rebuild = _present(*inputs, checkpoints, dy, ds1, count, reset_state)

    def kernel(*refs):
        r, g, k, v, a, b, saved, dy, ds1, count, reset_state = rebuild(refs[: len(operands)])
        gradients, dstates = refs[len(operands) :][:6], refs[len(operands) + 6 :]
        i, head = pl.program_id(0), pl.program_id(1)
        start = None if reset_state is None else reset_state[i, head]

        def body(step, totals):
            n = chunks - 1 - step
            rows = pl.ds(pl.multiple_of(n * chunk, chunk), chunk)
            results = algebra.chunk_backward(
                r[i, rows, head, :],
                g[i, rows, head, :],
                k[i, rows, head, :],
                v[i, rows, head, :],
                a[i, rows, head, :],
                b[i, rows, head, :],
                saved[i, n, head].astype(jnp.float32),
                dy[i, rows, head, :],
                totals[0],
                count=None if count is None else count[i, rows][:, None],
                reset_state=start,
                operand_dtype=operand_dtype,
                precision=_exact(operand_dtype, interpret),
            )
            for ref, gradient in zip(gradients, results):
                ref[i, rows, head, :] = gradient.astype(ref.dtype)
            return (results[6],) if states == 1 else (results[6], totals[1] + results[7])

        zeros = jnp.zeros(ds1.shape[2:], jnp.float32)
        totals = (ds1[i, head], zeros)[:states]
        for ref, total in zip(dstates, lax.fori_loop(0, chunks, body, totals)):
            ref[i, head] = total

    results = _call(
        kernel,
        (batch, heads),
        outputs,
        operands,
        calls.estimate("backward", operands, outputs, batch * length * heads, chunk, widths),
        num_warps,
        num_stages,
        interpret,
    )
    return (*results, None) if states == 1 else tuple(results)


def _exact(operand_dtype, interpret: bool) -> lax.PrecisionLike:
    """How sums of decays, inverses and float32 products keep their digits on tensor cores.

    HIGHEST means scalar multiply-adds here, which need several times the registers. Three passes
    are exact to about 2^-16 in bfloat16, far below bfloat16 operands' 2^-9, and 2^-21 in TF32.
    """
    if operand_dtype == jnp.bfloat16:
        return lax.DotAlgorithmPreset.BF16_BF16_F32_X3
    # A CPU has no TF32.
    return algebra.EXACT if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3


def _present(*arrays):
    """Drop absent operands; the second result puts the absent ones back among references."""
    present = [x for x in arrays if x is not None]

    def rebuild(refs):
        remaining = iter(refs)
        return [None if x is None else next(remaining) for x in arrays]

    return present, rebuild


def _call(kernel, grid, outputs, operands, estimate, num_warps, num_stages, interpret):
    compat.allow_triton()
    # Without Triton's own parameters the GPU lowering would be another one.
    params = pltriton.CompilerParams(num_warps=num_warps, num_stages=num_stages)
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=calls.varying_as(operands, outputs),
        compiler_params=params,
        cost_estimate=estimate,
        interpret=interpret,
        name="wkv7",
    )(*operands)

"""WKV-7 by chunks in plain XLA: a scan whose step maps the chunk algebra over batch and heads."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab_kernels import algebra
from jaxlab_kernels.gradients import Implementation

# Heads are axis 1 of a [L, H, N] tile and axis 0 of a state; counts have none.
_TILES = (1,) * 6


def _over_batch_and_heads(f: Callable, in_axes: tuple, out_axes: tuple) -> Callable:
    return jax.vmap(jax.vmap(f, in_axes=in_axes, out_axes=out_axes))


def _split(x: jax.Array | None, chunk: int) -> jax.Array | None:
    """[B, T, ...] to [T / chunk, B, chunk, ...]."""
    if x is None:
        return None
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _as_column(count: jax.Array | None) -> jax.Array | None:
    return None if count is None else count[..., None]


def _chunk_step(count, reset_state, v_dtype, operand_dtype) -> Callable:
    """A scan body: (state, tiles) -> (next state, y)."""

    def one(r, g, k, v, a, b, count, s0, reset_state):
        return algebra.chunk_forward(
            r, g, k, v, a, b, s0, count=count, reset_state=reset_state, operand_dtype=operand_dtype
        )

    mapped = _over_batch_and_heads(one, (*_TILES, None, 0, 0), (1, 0))

    def step(state, tiles):
        y, after = mapped(*tiles, state, reset_state)
        return after, y.astype(v_dtype)

    return step


def _forward(r, g, k, v, a, b, s0, count, reset_state, *, chunk, operand_dtype, save, saved_dtype):
    step = _chunk_step(count, reset_state, v.dtype, operand_dtype)

    def body(state, tiles):
        after, y = step(state, tiles)
        return after, (y, state.astype(saved_dtype) if save else None)

    tiles = tuple(_split(x, chunk) for x in (r, g, k, v, a, b, _as_column(count)))
    last, (y, checkpoints) = lax.scan(body, s0, tiles)
    return _join(y), last, checkpoints


def _backward(
    r, g, k, v, a, b, count, reset_state, checkpoints, dy, ds, *, chunk, operand_dtype
) -> tuple[jax.Array | None, ...]:
    def one(r, g, k, v, a, b, dy, count, s0, ds, reset_state):
        return algebra.chunk_backward(
            r,
            g,
            k,
            v,
            a,
            b,
            s0,
            dy,
            ds,
            count=count,
            reset_state=reset_state,
            operand_dtype=operand_dtype,
        )

    learned = reset_state is not None
    mapped = _over_batch_and_heads(
        one, (*_TILES, 1, None, 0, 0, 0), (*_TILES, 0, 0) if learned else (*_TILES, 0)
    )

    def body(carry, xs):
        ds, dreset = carry
        state, *tiles = xs
        out = mapped(*tiles, state.astype(ds.dtype), ds, reset_state)
        gradients = tuple(d.astype(x.dtype) for d, x in zip(out[:6], tiles[:6], strict=True))
        return (out[6], dreset + out[7] if learned else None), gradients

    tiles = (_split(x, chunk) for x in (r, g, k, v, a, b, dy, _as_column(count)))
    dreset = jnp.zeros_like(reset_state) if learned else None
    (ds0, dreset), gradients = lax.scan(body, (ds, dreset), (checkpoints, *tiles), reverse=True)
    return *(_join(d) for d in gradients), ds0, dreset


def _by_platform(f: Callable, *arrays, operand_dtype, **options):
    """Run f; on a CPU bfloat16 operands save nothing and XLA lacks some of their products."""
    if operand_dtype != jnp.bfloat16:
        return f(*arrays, operand_dtype=operand_dtype, **options)
    return lax.platform_dependent(
        *arrays,
        cpu=partial(f, operand_dtype=jnp.float32, **options),
        default=partial(f, operand_dtype=operand_dtype, **options),
    )


def forward(
    r, g, k, v, a, b, s0, count, reset_state, *, chunk: int, operand_dtype, save: bool
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Run all chunks; arguments as in `gradients`. Checkpoints are [T / chunk, B, H, D, K]."""
    saved_dtype = jnp.bfloat16 if operand_dtype == jnp.bfloat16 else s0.dtype
    return _by_platform(
        partial(_forward, chunk=chunk, save=save, saved_dtype=saved_dtype),
        *(r, g, k, v, a, b, s0, count, reset_state),
        operand_dtype=operand_dtype,
    )


def backward(
    r, g, k, v, a, b, count, reset_state, checkpoints, dy, ds, *, chunk: int, operand_dtype
) -> tuple[jax.Array | None, ...]:
    """Pull cotangents back through all chunks, each recomputed from its checkpoint."""
    return _by_platform(
        partial(_backward, chunk=chunk),
        *(r, g, k, v, a, b, count, reset_state, checkpoints, dy, ds),
        operand_dtype=operand_dtype,
    )


IMPLEMENTATION = Implementation(forward, backward)


def forward_with_autodiff(
    r, g, k, v, a, b, s0, count, reset_state, *, chunk: int
) -> tuple[jax.Array, jax.Array]:
    """The same forward pass for JAX to differentiate, to any order and in either mode.

    Each chunk is rematerialised, so reverse mode stores the inputs and one state per chunk.
    """
    step = _chunk_step(count, reset_state, v.dtype, s0.dtype)

    def body(state, tiles):
        *inputs, count = tiles
        # One cast for all uses, or the uses' cotangents would be added in bfloat16.
        return step(state, (*(x.astype(s0.dtype) for x in inputs), count))

    tiles = tuple(_split(x, chunk) for x in (r, g, k, v, a, b, _as_column(count)))
    last, y = lax.scan(jax.checkpoint(body, prevent_cse=False), s0, tiles)
    return _join(y), last

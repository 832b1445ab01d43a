"""One custom derivative for every chunked implementation.

An implementation is a pair of raw functions on whole arrays whose T is a multiple of the chunk:

    forward(r, g, k, v, a, b, s0, count, reset_state, *, chunk, operand_dtype, save)
        -> y, s_T, checkpoints (None unless save)
    backward(r, g, k, v, a, b, count, reset_state, checkpoints, dy, ds_T, *, chunk, operand_dtype)
        -> dr, dg, dk, dv, da, db, ds0, dreset_state (None without one)

`count` is int32 [B, T] or None, `reset_state` float32 [B, H, D, K] or None; checkpoints are the
implementation's own pytree with any layout.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Implementation(NamedTuple):
    forward: Callable
    backward: Callable


@cache
def differentiable(
    implementation: Implementation,
    chunk: int,
    operand_dtype,
    tuned: tuple[tuple[str, int], ...] = (),
) -> Callable:
    """Join forward and backward into f(r, g, k, v, a, b, s0, count, reset_state) -> (y, s_T).

    `tuned` are further options of the implementation's own, as pairs of name and value.
    """
    options = {"chunk": chunk, "operand_dtype": operand_dtype, **dict(tuned)}

    @jax.custom_vjp
    def run(r, g, k, v, a, b, s0, count, reset_state):
        y, last, _ = implementation.forward(
            r, g, k, v, a, b, s0, count, reset_state, save=False, **options
        )
        return y, last

    def fwd(r, g, k, v, a, b, s0, count, reset_state):
        y, last, checkpoints = implementation.forward(
            r, g, k, v, a, b, s0, count, reset_state, save=True, **options
        )
        return (y, last), (r, g, k, v, a, b, count, reset_state, checkpoints)

    def bwd(residuals, cotangents):
        *gradients, dreset = implementation.backward(*residuals, *cotangents, **options)
        return *gradients, None, dreset

    run.defvjp(fwd, bwd)
    return run


def fold_into_batch(f: Callable) -> Callable:
    """Make `vmap` of f fold the mapped axis into axis 0 of every argument and result.

    For functions without a batching rule of their own, whose arguments all begin with the batch.
    Arguments that are not mapped are repeated.
    """
    folded = jax.custom_batching.custom_vmap(f)

    @folded.def_vmap
    def rule(axis_size, in_batched, *args):
        def merge(x, batched):
            if not batched:
                x = jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        out = folded(*jax.tree.map(merge, args, tuple(in_batched)))
        split = jax.tree.map(lambda x: x.reshape(axis_size, -1, *x.shape[1:]), out)
        return split, jax.tree.map(lambda _: True, out)

    return folded

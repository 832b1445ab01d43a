"""What each Pallas call tells JAX: what it costs, and over which mesh axes its results vary."""

import jax
from jax.experimental import pallas as pl

from jaxlab_kernels import cost


def estimate(direction, operands, outputs, token_heads, chunk, widths) -> pl.CostEstimate:
    """Pallas' hint to XLA's scheduler: every operand read once, every output written once."""
    key_width, value_width = widths
    return pl.CostEstimate(
        flops=cost.flops(direction, token_heads, chunk, key_width, value_width)
        + cost.inverse_flops(token_heads, chunk),
        bytes_accessed=cost.nbytes(operands) + cost.nbytes(outputs),
        transcendentals=7 * token_heads * key_width,
    )


def varying_axes(operands) -> frozenset:
    """Mesh axes of an enclosing `shard_map` that any operand varies over."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in operands))


def varying_as(operands, outputs) -> list[jax.ShapeDtypeStruct]:
    """Outputs that vary over what any operand varies over; `shard_map` asks, with `check_vma`."""
    axes = jax.typeof(operands[0]).manual_axis_type.update(varying=varying_axes(operands))
    return [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes) for x in outputs]

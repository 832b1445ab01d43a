"""The fused Pallas kernels as implementations, and which of a GPU's two lowerings runs."""

from collections.abc import Callable
from functools import partial

import jax

from jaxlab_kernels import compat, pallas_mosaic_gpu, pallas_tpu, pallas_triton
from jaxlab_kernels.gradients import Implementation, fold_into_batch


def _on(platform: str, kernel: Callable) -> Callable:
    """Compile on the kernel's platform, interpret on a CPU; decided when the program is lowered.

    So a program for a TPU or a GPU can be lowered on a machine that has none.
    """

    def call(*args, **options):
        def run(*args):
            return jax.lax.platform_dependent(
                *args,
                cpu=partial(kernel, interpret=True, **options),
                **{platform: partial(kernel, interpret=False, **options)},
            )

        return fold_into_batch(run)(*args)

    return call


TPU = Implementation(_on("tpu", pallas_tpu.forward), _on("tpu", pallas_tpu.backward))
TRITON = Implementation(_on("cuda", pallas_triton.forward), _on("cuda", pallas_triton.backward))
MOSAIC_GPU = Implementation(
    _on("cuda", pallas_mosaic_gpu.forward), _on("cuda", pallas_mosaic_gpu.backward)
)


def choose_gpu_lowering(inputs, reset_state, chunk: int, operand_dtype) -> Implementation:
    """Pick a GPU's lowering: Mosaic on Hopper where JAX has begun to drop Triton, else Triton.

    Args:
        inputs: r, g, k, v, a, b.
        reset_state: as the implementations take it.
        chunk: rows of a chunk.
        operand_dtype: what matrix operands are rounded to.

    Returns:
        `MOSAIC_GPU` or `TRITON`; forward and backward of one call get the same.
    """
    fits = pallas_mosaic_gpu.supports(inputs, reset_state, chunk, operand_dtype)
    if compat.TRITON_IS_DEPRECATED and fits and _compute_capability() == "9.0":
        return MOSAIC_GPU
    return TRITON


def _compute_capability() -> str:
    try:
        return str(jax.local_devices(backend="cuda")[0].compute_capability)
    except RuntimeError:
        return "9.0"  # no GPU to ask; JAX's own lowering assumes the same


def _gpu_forward(*args, chunk: int, operand_dtype, save: bool):
    lowering = choose_gpu_lowering(args[:6], args[8], chunk, operand_dtype)
    return lowering.forward(*args, chunk=chunk, operand_dtype=operand_dtype, save=save)


def _gpu_backward(*args, chunk: int, operand_dtype):
    lowering = choose_gpu_lowering(args[:6], args[7], chunk, operand_dtype)
    return lowering.backward(*args, chunk=chunk, operand_dtype=operand_dtype)


GPU = Implementation(_gpu_forward, _gpu_backward)

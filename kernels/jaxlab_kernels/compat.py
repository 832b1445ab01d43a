"""Where the supported JAX versions differ in what the kernels use."""

import warnings

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

TRITON_IS_DEPRECATED = jax.__version_info__ >= (0, 11)


def allow_triton() -> None:
    """Say nothing when Pallas' Triton backend warns, at lowering, that it will be removed."""
    warnings.filterwarnings(
        "ignore", "The Pallas Triton backend is deprecated", category=DeprecationWarning
    )


def gpu_interpreter():
    """Parameters that make a Mosaic GPU kernel run on a CPU; public since JAX 0.11."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()

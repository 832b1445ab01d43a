"""Lower programs for accelerators that this machine does not have."""

import contextlib

import jax
from jax.sharding import AbstractMesh, AxisType


def lower(f, *shapes, platform: str, device_kind: str = "NVIDIA H100 80GB HBM3") -> str:
    """StableHLO of f for a platform; runs all of Pallas' lowering, but no device compiler."""
    with _a_gpu(device_kind) if platform == "cuda" else contextlib.nullcontext():
        return jax.jit(f).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def _a_gpu(device_kind):
    """From JAX 0.11 on, lowering for a GPU has to know which one."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind=device_kind, num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)

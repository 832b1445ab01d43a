"""Sequence-model kernels for JAX. Depends on jax alone."""

from jaxlab_kernels.op import wkv7
from jaxlab_kernels.sharding import sharded_wkv7, wkv7_along_axis

__all__ = ["sharded_wkv7", "wkv7", "wkv7_along_axis"]

"""Named tensors that stay on disk until they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

FLOATS = {jnp.dtype(name).name: jnp.dtype(name) for name in (
    "float64", "float32", "float16", "bfloat16",
)}  # fmt: skip


class CheckpointError(ValueError):
    """A file that is not a whole and harmless RWKV-7 checkpoint; the message is one sentence."""


class Tensor(NamedTuple):
    """A tensor known by shape and dtype; `read` brings its numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def contiguous(tensor: Tensor) -> bytes:
    """The little-endian, row-major bytes of a tensor."""
    array = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype)
    if array.shape != tensor.shape:
        raise ValueError(f"tensor: expected shape {tensor.shape}, got {array.shape}")
    return array.tobytes()

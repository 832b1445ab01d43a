"""Named tensors that stay on disk until they are read, and the file-writing they share."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

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


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under its name only when it is complete and on disk.

    Args:
        path: the final name; its folder must exist.

    Yields:
        The open file.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def contiguous(tensor: Tensor) -> bytes:
    """The little-endian, row-major bytes of a tensor."""
    array = np.ascontiguousarray(tensor.read(), dtype=tensor.dtype)
    if array.shape != tensor.shape:
        raise ValueError(f"tensor: expected shape {tensor.shape}, got {array.shape}")
    return array.tobytes()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

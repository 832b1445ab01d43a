"""Tensors of `.safetensors` files, which stay on disk until they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxlab.files import atomic
from jaxlab.rwkv7.checkpoints.tensors import FLOATS, CheckpointError, Tensor, contiguous
from jaxlab.safetensors import CODES, SafetensorsError, TensorInfo, encode_header, read_header


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Lists the tensors of a `.safetensors` file; their numbers are read when asked for.

    Args:
        path: the file.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: a header that does not describe the file, other than floating tensors, or
            a truncated file.
    """
    try:
        header = read_header(path)
    except SafetensorsError as error:
        raise CheckpointError(str(error)) from error
    for info in header.values():
        if info.dtype not in FLOATS.values():
            raise CheckpointError(
                f"{path}: {info.name!r} is {info.code}, expected one of {', '.join(FLOATS)}"
            )
    return {name: _lazy(info) for name, info in header.items()}


def _lazy(info: TensorInfo) -> Tensor:
    def read() -> np.ndarray:
        return np.fromfile(info.path, info.dtype, info.size, offset=info.offset).reshape(info.shape)

    return Tensor(info.shape, info.dtype, read)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a `.safetensors` file, one tensor in memory at a time.

    Args:
        path: the file; replaced only once complete.
        tensors: by name.
    """
    entries = [(name, CODES[tensor.dtype], tensor.shape) for name, tensor in tensors.items()]
    # "pt" is what loaders of the Hugging Face libraries ask for.
    head, _ = encode_header(entries, {"format": "pt"})
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write(head)
        for tensor in tensors.values():
            file.write(contiguous(tensor))

"""The `.safetensors` format: a JSON header and raw numbers, bfloat16 included."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.rwkv7.checkpoints.tensors import FLOATS, CheckpointError, Tensor, atomic, contiguous

_DTYPES = {
    "F64": FLOATS["float64"],
    "F32": FLOATS["float32"],
    "F16": FLOATS["float16"],
    "BF16": FLOATS["bfloat16"],
}
_MAX_HEADER = 100 << 20


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
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: truncated, or not a .safetensors file")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a table of tensors")
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        tensors[name], span = _tensor(path, name, entry, 8 + length)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise CheckpointError(f"{path}: its header leaves gaps or lets tensors overlap")
        end = stop
    if 8 + length + end != size:
        raise CheckpointError(
            f"{path}: truncated or overlong: expected {8 + length + end} bytes, got {size}"
        )
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _tensor(path: Path, name: str, entry: Any, base: int) -> tuple[Tensor, tuple[int, int]]:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(n) is int and n >= 0 for n in (*shape, begin, end)
        ):
            pass
        case _:
            raise CheckpointError(f"{path}: its header describes {name!r} wrongly")
    if kind not in _DTYPES:
        raise CheckpointError(f"{path}: {name!r} is {kind}, expected one of {', '.join(_DTYPES)}")
    dtype = _DTYPES[kind]
    count = math.prod(shape)
    if end - begin != count * dtype.itemsize:
        raise CheckpointError(
            f"{path}: {name!r} has {end - begin} bytes, expected {count * dtype.itemsize} "
            f"for {kind}{list(shape)}"
        )

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, count, offset=base + begin).reshape(shape)

    return Tensor(tuple(shape), dtype, read), (begin, end)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a `.safetensors` file, one tensor in memory at a time.

    Args:
        path: the file; replaced only once complete.
        tensors: by name.
    """
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    # "pt" is what loaders of the Hugging Face libraries ask for.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        end = position + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(contiguous(tensor))

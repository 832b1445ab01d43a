"""The safetensors format: header, dtypes, where each tensor's bytes are, and the index of shards.

Read here and not by the `safetensors` package, because merging writes tensors in place into files
whose layout is decided beforehand, and because NumPy has no bfloat16 there.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, Any] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
FLOATING = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
CODES = {dtype: code for code, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000  # as in the reference implementation


class SafetensorsError(ValueError):
    """A file that is not what the format asks for; the message is one sentence that names it."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file.

    Args:
        name: its name.
        code: dtype as the format spells it, "BF16".
        shape: its shape.
        path: the file.
        offset: first byte in the file.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def dtype(self) -> Any:
        """NumPy dtype."""
        return DTYPES[self.code]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Length in the file."""
        return self.size * self.dtype.itemsize


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Reads what a file says it holds, and checks that it can be true.

    Args:
        path: a .safetensors file.

    Returns:
        Tensors by name, in the order of their bytes.

    Raises:
        SafetensorsError: the file cannot be read, is cut short or is no such file, or its tensors
            overlap or leave gaps.
    """
    try:
        total = os.path.getsize(path)
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else _LARGEST_HEADER + 1
            if length > min(_LARGEST_HEADER, total - 8):
                raise SafetensorsError(f"{path}: truncated, or not a .safetensors file")
            text = file.read(length)
    except OSError as error:
        raise SafetensorsError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"{path}: its header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path}: its header is not a table of tensors")
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    position = 8 + length
    for info in tensors:
        if info.offset != position:
            raise SafetensorsError(f"{path}: its header leaves gaps or lets tensors overlap")
        position += info.nbytes
    if position != total:
        raise SafetensorsError(
            f"{path}: truncated or overlong: expected {position} bytes, got {total}"
        )
    return {info.name: info for info in tensors}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _tensor(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end]} if all(
            type(n) is int and n >= 0 for n in (*shape, begin, end)
        ):
            pass
        case _:
            raise SafetensorsError(f"{path}: its header describes {name!r} wrongly")
    if code not in DTYPES:
        raise SafetensorsError(f"{path}: {name!r} has dtype {code}, which is not supported")
    info = TensorInfo(name, code, tuple(shape), path, base + begin)
    if end - begin != info.nbytes:
        raise SafetensorsError(
            f"{path}: {name!r} has {end - begin} bytes, expected {info.nbytes} for "
            f"{code}{list(shape)}"
        )
    return info


def encode_header(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int]]:
    """Writes the header of a file whose tensors follow each other.

    Args:
        tensors: name, dtype code and shape of each.
        metadata: free strings.

    Returns:
        The bytes before the data, padded with spaces to a multiple of 8, and the offset of each
        tensor in the file.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position, begins = 0, []
    for name, code, shape in tensors:
        length = math.prod(shape) * DTYPES[code].itemsize
        header[name] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [position, position + length],
        }
        begins.append(position)
        position += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [8 + len(text) + begin for begin in begins]


def read_index(path: Path) -> dict[str, str]:
    """Reads which shard each tensor is in.

    Args:
        path: a `model.safetensors.index.json`.

    Returns:
        File names, in the folder of the index, by tensor.

    Raises:
        SafetensorsError: it is no index, names a file elsewhere, or one that is not there.
    """
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        for file in shards.values():
            if Path(file).name != file:
                raise ValueError("a shard is outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorsError(f"{path}: not an index of shards ({error})") from error
    for file in sorted(set(shards.values())):
        if not (path.parent / file).is_file():
            raise SafetensorsError(f"{path.parent}: the shard {file} is missing")
    return shards

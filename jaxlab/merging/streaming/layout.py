"""The safetensors format: header, dtypes, and where each tensor's bytes are."""

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

from jaxlab.merging.streaming.errors import MergeError

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
CODES = {dtype: code for code, dtype in DTYPES.items()}
FLOATING = {"F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
_LARGEST_HEADER = 100_000_000  # as in the reference implementation


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
        MergeError: naming the file, if it is cut short, no safetensors file, or its tensors overlap
            or leave gaps.
    """
    try:
        total = os.path.getsize(path)
        with path.open("rb") as file:
            head = file.read(8)
            if len(head) < 8:
                raise MergeError(f"{path} is no safetensors file: only {len(head)} bytes")
            (length,) = struct.unpack("<Q", head)
            if length > min(_LARGEST_HEADER, total - 8):
                raise MergeError(f"{path} is damaged: a header of {length} bytes in {total}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise MergeError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, MergeError):
            raise
        raise MergeError(f"{path} is damaged: its header is no JSON") from error
    if not isinstance(header, dict):
        raise MergeError(f"{path} is damaged: its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        try:
            begin, end = (int(x) for x in entry["data_offsets"])
            info = TensorInfo(
                name,
                entry["dtype"],
                tuple(int(n) for n in entry["shape"]),
                path,
                begin + 8 + length,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MergeError(f"{path} is damaged: the entry of {name!r} is incomplete") from error
        if info.code not in DTYPES:
            raise MergeError(f"{path}: {name} has dtype {info.code}, which is not supported")
        if min(info.shape, default=0) < 0 or end - begin != info.nbytes:
            raise MergeError(
                f"{path} is damaged: {name} of shape {info.shape} and {info.code} takes "
                f"{info.nbytes} bytes, but has {end - begin}"
            )
        tensors.append(info)
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    position = 8 + length
    for info in tensors:
        if info.offset != position:
            raise MergeError(f"{path} is damaged: the bytes of {info.name} overlap or leave a gap")
        position += info.nbytes
    if position != total:
        raise MergeError(
            f"{path} is damaged or not fully downloaded: expected {position} bytes, got {total}"
        )
    return {info.name: info for info in tensors}


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

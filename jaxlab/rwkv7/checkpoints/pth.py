"""PyTorch's `.pth` archives without PyTorch and without running anything they contain."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxlab.files import atomic
from jaxlab.rwkv7.checkpoints.tensors import FLOATS, CheckpointError, Tensor, contiguous

_STORAGES = {
    "DoubleStorage": FLOATS["float64"],
    "FloatStorage": FLOATS["float32"],
    "HalfStorage": FLOATS["float16"],
    "BFloat16Storage": FLOATS["bfloat16"],
}
_MAX_PICKLE = 64 << 20  # bytes; a thousand tensors need 0.2 MB
_MAX_ORDER = 16  # bytes; "little" needs 6
_LOADERS: dict[int, Any] = pickle._Unpickler.dispatch  # by instruction
# What a pickled dictionary of tensors consists of. BUILD carries a state dict's version numbers.
_OPCODES = frozenset((
    "PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MARK", "STOP",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "NEWTRUE",
    "NEWFALSE", "NONE", "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
))  # fmt: skip


class _StorageType(NamedTuple):
    """Stands for `torch.FloatStorage` and its kin; cannot be called."""

    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    numel: int


class _View(NamedTuple):
    """What `torch._utils._rebuild_tensor_v2` was given; checked only when all is unpickled."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def _rebuild(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> _View:  # rest: requires_grad, hooks, metadata
    return _View(storage, offset, shape, strides)


def _ordered() -> OrderedDict[Any, Any]:  # without arguments: their keys would be hashed
    return OrderedDict()


class _TensorsOnly(pickle._Unpickler):
    """Knows ordered dictionaries and tensors; any other name is refused, never looked up.

    In Python, not in C, because a key must be seen before it is hashed: the hash of n nested pairs
    of the same pair takes 2^n steps.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(_LOADERS)

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        _LOADERS[pickle.SETITEM[0]](self)

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # what came after the mark
        _LOADERS[pickle.SETITEMS[0]](self)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return _ordered
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        raise CheckpointError(
            f"asks for {module}.{name}, and only dictionaries of floating tensors are read; "
            "nothing was executed"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), str(), int(numel)):
                return _Storage(key, dtype, numel)
        raise CheckpointError("refers to something that is not a storage of floating numbers")


def _check_keys(keys: Iterable[Any]) -> None:
    if not all(type(key) is str for key in keys):
        raise CheckpointError("its pickle is malformed (an entry is not named by a text)")


def read_pth(path: Path) -> dict[str, Tensor]:
    """Lists the tensors of a `.pth` file; their numbers are read and checksummed when asked for.

    Args:
        path: an archive written by `torch.save` (1.6 or newer) or `write_pth`.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: anything but a whole archive with one dictionary of floating tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            prefixes = [name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")]
            if len(prefixes) != 1:
                raise CheckpointError(f"{path}: a zip archive, but not one written by torch.save")
            (prefix,) = prefixes
            if members[f"{prefix}data.pkl"].file_size > _MAX_PICKLE:
                raise CheckpointError(f"{path}: its data.pkl is larger than any list of tensors")
            order = f"{prefix}byteorder"
            if order in members and members[order].file_size > _MAX_ORDER:
                raise CheckpointError(f"{path}: its byteorder is larger than any word")
            if order in members and archive.read(order) != b"little":
                raise CheckpointError(f"{path}: big-endian numbers are not supported")
            pickled = archive.read(f"{prefix}data.pkl")
    except (CheckpointError, FileNotFoundError):
        raise
    except zipfile.BadZipFile as error:
        raise _not_an_archive(path, error) from error
    except Exception as error:  # encrypted, exotically compressed, or damaged in any way
        raise CheckpointError(f"{path}: damaged or unsupported ({error})") from error
    return {
        name: _tensor(path, name, view, prefix, members)
        for name, view in _unpickle(path, pickled).items()
    }


def _not_an_archive(path: Path, error: Exception) -> CheckpointError:
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        return CheckpointError(
            f"{path}: a legacy pickle from before PyTorch 1.6; "
            "load it with torch.load(..., weights_only=True) and torch.save it again"
        )
    if start == b"PK\x03\x04":
        return CheckpointError(f"{path}: truncated or damaged ({error})")
    return CheckpointError(f"{path}: not a .pth archive")


def _unpickle(path: Path, pickled: bytes) -> dict[str, _View]:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name not in _OPCODES:
                raise CheckpointError(f"no tensor needs the pickle instruction {opcode.name}")
            # The unpickler would allocate as many slots as the index says.
            if opcode.name == "LONG_BINPUT" and (argument or 0) > len(pickled):
                raise CheckpointError("its pickle is malformed")
        loaded = _TensorsOnly(io.BytesIO(pickled), encoding="utf-8").load()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: refused: {error}") from error
    except Exception as error:  # whatever a malformed pickle makes the unpickler raise
        raise CheckpointError(f"{path}: refused: its pickle is malformed ({error})") from error
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: refused: it holds no dictionary of tensors")
    for name, view in loaded.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise CheckpointError(f"{path}: refused: its entry {name!r:.60} is not a named tensor")
    return dict(loaded.items())


def _tensor(
    path: Path, name: str, view: _View, prefix: str, members: Mapping[str, zipfile.ZipInfo]
) -> Tensor:
    """Checks a view against its storage before any number is read."""
    storage, offset, shape, strides = view
    counts = isinstance(shape, tuple) and isinstance(strides, tuple) and (offset, *shape, *strides)
    if (
        not isinstance(storage, _Storage)
        or not counts
        or not all(type(n) is int and n >= 0 for n in counts)
        or len(shape) != len(strides)
    ):
        raise CheckpointError(f"{path}: refused: the tensor {name!r} is malformed")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(shape) > storage.numel or (math.prod(shape) and last >= storage.numel):
        raise CheckpointError(f"{path}: refused: the tensor {name!r} reaches beyond its storage")
    info = members.get(f"{prefix}data/{storage.key}")
    itemsize = storage.dtype.itemsize
    if info is None or info.file_size != storage.numel * itemsize:
        raise CheckpointError(f"{path}: damaged: the numbers of {name!r} are missing or incomplete")
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{path}: compressed tensors are not supported; torch.save it again")

    def read() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive:
                flat = np.frombuffer(archive.read(info), storage.dtype)
        except FileNotFoundError:
            raise
        except Exception as error:  # whatever a damaged archive makes the reader raise
            raise CheckpointError(f"{path}: damaged: {name!r} ({error})") from error
        steps = tuple(stride * itemsize for stride in strides)
        if not math.prod(shape):
            return np.zeros(shape, storage.dtype)
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)

    return Tensor(shape, storage.dtype, read)


def write_pth(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a `.pth` that `torch.load` reads, one tensor in memory at a time.

    Args:
        path: the file; replaced only once complete.
        tensors: by name.
    """
    with (
        atomic(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):

        def add(name: str, content: bytes) -> None:
            # A fixed date: the same tensors make the same bytes.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0)), content)

        add("data.pkl", _pickle(tensors))
        add("byteorder", b"little")
        for index, tensor in enumerate(tensors.values()):
            add(f"data/{index}", contiguous(tensor))
        add("version", b"3\n")


def _pickle(tensors: Mapping[str, Tensor]) -> bytes:
    """The instructions that `torch.save` writes for a dictionary of contiguous tensors."""
    storages = {dtype: name for name, dtype in _STORAGES.items()}

    def text(value: str) -> bytes:
        encoded = value.encode()
        return b"X" + struct.pack("<I", len(encoded)) + encoded

    def integer(value: int) -> bytes:
        if value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        encoded = pickle.encode_long(value)
        return b"\x8a" + bytes([len(encoded)]) + encoded

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    parts = [b"\x80\x02}("]
    for index, (name, tensor) in enumerate(tensors.items()):
        strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
        parts += [
            text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage"),
            f"ctorch\n{storages[tensor.dtype]}\n".encode(),
            text(str(index)) + text("cpu") + integer(math.prod(tensor.shape)) + b"tQ",
            integer(0) + integers(tensor.shape) + integers(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    return b"".join([*parts, b"u."])

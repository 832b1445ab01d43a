"""Checkpoints as they lie on disk: one or many safetensors files with a configuration."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxlab.merging.streaming.errors import MergeError
from jaxlab.safetensors import (
    CODES,
    INDEX,
    SINGLE,
    SafetensorsError,
    TensorInfo,
    read_header,
    read_index,
)


class Source(Protocol):
    """A tensor that can be read piece by piece."""

    @property
    def code(self) -> str:
        """Dtype as safetensors spells it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fills a contiguous array of the source's dtype with elements from `start` on."""


class ArraySource:
    """A tensor in memory."""

    def __init__(self, array: Any):
        self._flat = np.asarray(array).reshape(-1)
        self.shape = tuple(np.shape(array))
        if self._flat.dtype not in CODES:
            raise MergeError(f"arrays of {self._flat.dtype} cannot be merged")
        self.code = CODES[self._flat.dtype]

    def read_into(self, out: np.ndarray, start: int) -> None:
        """See `Source`."""
        out[...] = self._flat[start : start + out.size]


class FileSource:
    """A tensor in a file; pieces are read, not mapped, so that memory use is what is asked for."""

    def __init__(self, info: TensorInfo, descriptor: int):
        self._info, self._descriptor = info, descriptor
        self.shape, self.code = info.shape, info.code

    def read_into(self, out: np.ndarray, start: int) -> None:
        """See `Source`."""
        info = self._info
        target = memoryview(out.view(np.uint8))  # type: ignore[arg-type]
        offset = info.offset + start * info.dtype.itemsize
        while len(target):
            try:
                got = os.preadv(self._descriptor, [target], offset)
            except OSError as error:
                raise MergeError(f"{info.path} cannot be read: {error.strerror}") from error
            if got == 0:
                raise MergeError(f"{info.path} was cut short while {info.name} was read")
            target, offset = target[got:], offset + got


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """The tensors of one model, by name.

    Args:
        folder: a folder with `model.safetensors`, or shards and their index, or one such file.

    Raises:
        MergeError: naming what is missing or damaged.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.folder = folder if folder.is_dir() else folder.parent
        self._descriptors: dict[Path, int] = {}
        try:
            self.files = _files(folder)
            self.tensors = self._read_headers()
            self._check_index(folder)
        except SafetensorsError as error:
            raise MergeError(str(error)) from error

    def _read_headers(self) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for path in self.files:
            for name, info in read_header(path).items():
                if name in tensors:
                    raise MergeError(f"{self.folder}: {name} is in {tensors[name].path} and {path}")
                tensors[name] = info
        return tensors

    def _check_index(self, folder: Path) -> None:
        index = folder / INDEX
        if not folder.is_dir() or not index.is_file():
            return
        for name, file in read_index(index).items():
            info = self.tensors.get(name)
            if info is None or info.path.name != file:
                raise MergeError(f"{index} says that {name} is in {file}, where it is not")

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def source(self, name: str) -> FileSource:
        """Opens a tensor.

        Args:
            name: one of `tensors`.

        Returns:
            What reads it while this checkpoint is open.
        """
        info = self.tensors[name]
        if info.path not in self._descriptors:
            self._descriptors[info.path] = os.open(info.path, os.O_RDONLY)
        return FileSource(info, self._descriptors[info.path])

    def config(self) -> dict[str, Any] | None:
        """The contents of config.json, or None if there is none."""
        path = self.folder / "config.json"
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MergeError(f"{path} is no readable JSON file") from error


def _files(folder: Path) -> Sequence[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise MergeError(f"{folder} is neither a folder nor a file")
    if (folder / INDEX).is_file():
        return [folder / file for file in sorted(set(read_index(folder / INDEX).values()))]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise MergeError(f"{folder} holds no safetensors file")
    return found

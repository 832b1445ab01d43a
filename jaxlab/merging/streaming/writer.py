"""Output that is complete or absent: shards written in place in a folder of their own."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.plan import TensorPlan
from jaxlab.safetensors import DTYPES, INDEX, SINGLE, encode_header

_JOURNAL = "merge.journal"
_SYNC_BYTES, _SYNC_SECONDS = 256 << 20, 2.0  # what a resumed merge does again at most


@dataclass(frozen=True)
class Place:
    """Where a tensor goes."""

    file: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shards:
    """All files of the output: their headers, lengths, and the place of every tensor."""

    headers: Mapping[str, bytes]
    lengths: Mapping[str, int]
    places: Mapping[str, Place]
    index: str | None


def lay_out(tensors: Sequence[TensorPlan], shard_size: int) -> Shards:
    """Decides every byte offset of the output before anything is computed.

    Args:
        tensors: the merged model's tensors, in order.
        shard_size: most bytes of data in a file, unless one tensor has more.

    Returns:
        Headers, lengths, places and the index, if there are several files.
    """
    groups: list[list[TensorPlan]] = [[]]
    used = 0
    for tensor in tensors:
        count = _nbytes(tensor)
        if groups[-1] and used + count > shard_size:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += count
    total = len(groups)
    headers, lengths, places = {}, {}, {}
    for i, group in enumerate(groups):
        file = SINGLE if total == 1 else f"model-{i + 1:05d}-of-{total:05d}.safetensors"
        entries = [(tensor.name, tensor.code, tensor.shape) for tensor in group]
        headers[file], offsets = encode_header(entries, {"format": "pt"})
        lengths[file] = len(headers[file]) + sum(_nbytes(tensor) for tensor in group)
        for tensor, offset in zip(group, offsets):
            places[tensor.name] = Place(file, offset, _nbytes(tensor))
    index = None
    if total > 1:
        data = sum(place.nbytes for place in places.values())
        weight_map = {name: place.file for name, place in places.items()}
        index = json.dumps({"metadata": {"total_size": data}, "weight_map": weight_map}, indent=2)
    return Shards(headers, lengths, places, index)


def _nbytes(tensor: TensorPlan) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * DTYPES[tensor.code].itemsize


class Output:
    """A folder that gets its final name when everything is in it.

    Args:
        folder: the final name; must not exist yet, or be empty.
        shards: what will be written.
        identity: digest of everything that decides the bytes.
        resume: go on with what an interrupted merge left behind.

    Raises:
        MergeError: if the folder is taken, there is an unfinished merge and `resume` is off, the
            unfinished merge is another one, or another process is at work on it.
    """

    def __init__(self, folder: Path, shards: Shards, identity: str, *, resume: bool):
        self.folder, self.shards = folder.resolve(), shards  # "." has no name of its own
        self.partial = self.folder.with_name(f"{self.folder.name}.partial")
        self.done: set[str] = set()
        self._descriptors: dict[str, int] = {}
        self._unsynced: list[str] = []
        self._bytes, self._synced = 0, time.monotonic()
        self._lock: int | None = None
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise MergeError(f"{folder} exists already; give another folder or remove it")
        if self.partial.exists() and not resume:
            raise MergeError(
                f"{self.partial} holds an unfinished merge; go on with --resume, or remove it"
            )
        with _clean_errors(self.partial):
            started = self.partial.exists()
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.partial / _JOURNAL, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                raise MergeError(f"{self.partial} is being written by another process") from error
            try:
                self._open(identity, started)
            except BaseException:
                self.close()
                if not started:  # nothing was computed yet
                    shutil.rmtree(self.partial, ignore_errors=True)
                raise

    def _open(self, identity: str, started: bool) -> None:
        journal = (self.partial / _JOURNAL).read_text(encoding="utf-8")
        lines = journal.split("\n")[:-1]  # a line without its end was cut off
        if lines and lines[0] != identity:
            raise MergeError(
                f"{self.partial} is an unfinished merge of another recipe or other inputs; "
                "remove it to start anew"
            )
        self.done = set(lines[1:]) if lines else set()
        for file, length in self.shards.lengths.items():
            path = self.partial / file
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._descriptors[file] = descriptor
            os.posix_fallocate(descriptor, 0, length)  # a full disk is found out now
            _write_all(descriptor, self.shards.headers[file], 0)
        assert self._lock is not None
        if not lines:
            os.ftruncate(self._lock, 0)
            _write_all(self._lock, f"{identity}\n".encode(), 0)
        else:
            kept = "".join(f"{line}\n" for line in lines).encode()
            os.ftruncate(self._lock, len(kept))

    def sink(self, tensor: TensorPlan) -> "TensorSink":
        """What takes the elements of one tensor."""
        place = self.shards.places[tensor.name]
        return TensorSink(self._descriptors[place.file], place.offset, self.partial)

    def finish(self, tensor: TensorPlan) -> None:
        """Notes that a tensor is complete; a resumed merge will not make it again."""
        place = self.shards.places[tensor.name]
        # The disk begins with it at once, and the next sync has little left to wait for.
        os.posix_fadvise(
            self._descriptors[place.file], place.offset, place.nbytes, os.POSIX_FADV_DONTNEED
        )
        self._unsynced.append(tensor.name)
        self._bytes += place.nbytes
        waited = time.monotonic() - self._synced
        if self._bytes >= _SYNC_BYTES or waited >= _SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        """Data first, then the note that it is there."""
        with _clean_errors(self.partial):
            for file in {self.shards.places[name].file for name in self._unsynced}:
                os.fdatasync(self._descriptors[file])
            if self._lock is not None and self._unsynced:
                text = "".join(f"{name}\n" for name in self._unsynced).encode()
                _write_all(self._lock, text, os.fstat(self._lock).st_size)
                os.fdatasync(self._lock)
        self.done.update(self._unsynced)
        self._unsynced, self._bytes, self._synced = [], 0, time.monotonic()

    def commit(self, extra: Mapping[str, bytes]) -> None:
        """Gives the folder its final name.

        Args:
            extra: further files by name.
        """
        self._sync()
        with _clean_errors(self.partial):
            files = dict(extra)
            if self.shards.index is not None:
                files[INDEX] = self.shards.index.encode()
            for name, data in files.items():
                descriptor = os.open(
                    self.partial / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666
                )
                try:
                    _write_all(descriptor, data, 0)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
            if self.folder.is_dir():
                self.folder.rmdir()
            (self.partial / _JOURNAL).unlink()
            os.replace(self.partial, self.folder)
        self.close()

    def close(self) -> None:
        """Notes what is complete and lets go of the files; the unfinished folder stays."""
        with contextlib.suppress(MergeError):
            self._sync()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class TensorSink:
    """Writes the elements of one tensor to their place."""

    def __init__(self, descriptor: int, offset: int, folder: Path):
        self._descriptor, self._offset, self._folder = descriptor, offset, folder

    def write(self, start: int, values: np.ndarray) -> None:
        """Takes elements from `start` on, in row-major order."""
        data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        with _clean_errors(self._folder):
            _write_all(self._descriptor, data, self._offset + start * values.dtype.itemsize)


def digest(parts: Any) -> str:
    """A short name for data that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write_all(descriptor: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


@contextlib.contextmanager
def _clean_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise MergeError(
                f"no space left for {folder}; nothing was written under the final name"
            ) from error
        raise MergeError(f"{folder} cannot be written: {error.strerror}") from error

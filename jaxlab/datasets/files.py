"""The file format of data sets: safetensors with a description and a digest of every byte.

A file is a valid `.safetensors` file that any reader of that format opens:

- 8 bytes: length N of the header, little endian;
- N bytes: the header, JSON. Its `__metadata__` holds strings: `format` ("jaxlab-dataset"),
  `version` ("1"), `sha256`, and `about`, a JSON object that says what the data are (environment
  and its options, level, seed, behaviour policy's returns and training, versions, device);
- the tensors of n transitions and episodes of E rows each, one after the other: `obs` F32 [n, o],
  `action` F32 [n, a], `reward` F32 [n], `terminated` BOOL [n], `truncated` BOOL [n], `next_obs`
  F32 [n, o] (before any reset), `episode` I32 [n] (rows of an episode follow each other), and
  `log_prob` F32 [n], the log-density of the action under the policy that took it.

`sha256` is the SHA-256 of the whole file with 64 zeros in its own place, so that a file which
differs in a single bit from what was written is refused. Nothing in it depends on when or where it
was written: the same data give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlab.files import atomic
from jaxlab.safetensors import CODES, SafetensorsError, encode_header, read_header
from jaxlab.types import Transition

FORMAT, VERSION = "jaxlab-dataset", "1"
_BLANK = "0" * 64
_FIELDS = {
    "obs": ("F32", 2),
    "action": ("F32", 2),
    "reward": ("F32", 1),
    "terminated": ("BOOL", 1),
    "truncated": ("BOOL", 1),
    "next_obs": ("F32", 2),
    "episode": ("I32", 1),
    "log_prob": ("F32", 1),
}


class DatasetError(ValueError):
    """A data set that cannot be used or made; the message is one sentence."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions with what is known about them; arrays are NumPy's."""

    transitions: Transition  # [n]
    episode: np.ndarray  # int32 [n]
    log_prob: np.ndarray  # float32 [n]
    about: Mapping[str, Any]  # what the data are; JSON

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.episode)


def save(path: str | Path, dataset: Dataset) -> str:
    """Writes a data set, under its name only when it is complete.

    Args:
        path: the file, best named `.safetensors`.
        dataset: what to write.

    Returns:
        Its digest.

    Raises:
        ValueError: arrays of other dtypes or shapes than the format's, or an `about` that is no
            JSON.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in _arrays(dataset).items()}
    _check(arrays)
    try:
        about = json.dumps(dataset.about, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"about: {error}") from error
    metadata = {"about": about, "format": FORMAT, "sha256": _BLANK, "version": VERSION}
    table = [(name, CODES[array.dtype], array.shape) for name, array in arrays.items()]
    header, _ = encode_header(table, metadata)
    digest = hashlib.sha256(header)
    for array in arrays.values():
        digest.update(array.tobytes())
    place = header.index(_marker(_BLANK)) + len(_marker(""))
    header = header[:place] + digest.hexdigest().encode() + header[place + len(_BLANK) :]
    with atomic(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(header)
        for array in arrays.values():
            file.write(array.tobytes())
    return digest.hexdigest()


def load(path: str | Path) -> Dataset:
    """Reads a data set and verifies every byte of it.

    Args:
        path: a file that `save` wrote.

    Returns:
        The data set.

    Raises:
        DatasetError: the file cannot be read, is no data set, is of another version, or is not
            what was written: cut short, overlong or altered.
    """
    path = Path(path)
    try:
        tensors = read_header(path)
        content = path.read_bytes()
    except SafetensorsError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise DatasetError(f"{path}: not a data set: its header does not say {FORMAT!r}")
    if metadata.get("version") != VERSION:
        raise DatasetError(
            f"{path}: is of version {metadata.get('version')} of the format, expected {VERSION}"
        )
    stored = str(metadata.get("sha256"))
    place = content.find(_marker(stored), 0, 8 + length)
    found = "nothing"
    if place >= 0 and len(stored) == len(_BLANK):
        begin = place + len(_marker(""))
        digest = hashlib.sha256(content[:begin] + _BLANK.encode())
        digest.update(memoryview(content)[begin + len(_BLANK) :])
        found = digest.hexdigest()
    if found != stored:
        raise DatasetError(f"{path}: altered: its SHA-256 is {found}, its header says {stored}")
    arrays = {
        name: np.frombuffer(content, info.dtype, info.size, info.offset).reshape(info.shape)
        for name, info in tensors.items()
    }
    try:
        _check(arrays)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error
    fields: dict[str, Any] = {f.name: arrays[f.name] for f in dataclasses.fields(Transition)}
    return Dataset(
        transitions=Transition(**fields),
        episode=arrays["episode"],
        log_prob=arrays["log_prob"],
        about=json.loads(metadata["about"]),
    )


def _marker(digest: str) -> bytes:
    return f'"sha256":"{digest}'.encode()


def _arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    fields = {"episode": dataset.episode, "log_prob": dataset.log_prob}
    for field in dataclasses.fields(Transition):
        fields[field.name] = np.asarray(getattr(dataset.transitions, field.name))
    return {name: fields[name] for name in _FIELDS}


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    if set(arrays) != set(_FIELDS):
        raise ValueError(f"expected the tensors {sorted(_FIELDS)}, got {sorted(arrays)}")
    rows = len(arrays["episode"]) if arrays["episode"].ndim else 0
    for name, (code, rank) in _FIELDS.items():
        array = arrays[name]
        if CODES.get(array.dtype) != code or array.ndim != rank or len(array) != rows:
            raise ValueError(
                f"{name}: expected {code} of rank {rank} with {rows} rows, "
                f"got {array.dtype}{list(array.shape)}"
            )
    if arrays["obs"].shape != arrays["next_obs"].shape:
        raise ValueError(
            f"next_obs: expected the shape of obs, {arrays['obs'].shape}, "
            f"got {arrays['next_obs'].shape}"
        )

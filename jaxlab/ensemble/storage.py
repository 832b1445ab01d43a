"""What a run keeps on disk: streamed metrics, checkpoints, and the proof that they are whole.

    DIR/run.json                   identity of the run, written before the first update
    DIR/metrics/00000012.npz       rows of metrics from row 12 on, one file per host visit
    DIR/state-00000040/            all members after 40 rows, written by orbax
    DIR/manifest-00000040.json     what that checkpoint consists of, written last

A checkpoint counts only if its manifest verifies: the manifest carries its own digest, the digest
of every file of the state and of every metrics file before it. Orbax on its own loads a flipped
bit or a stale copy without a word.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

KEEP = 3  # checkpoints kept


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used: damaged, or made by another run."""


class Restored(NamedTuple):
    """What the newest checkpoint that verifies holds."""

    row: int
    members: Any  # pytree like the template, leaves [M, ...]
    table: dict[str, np.ndarray]  # metric -> [M, row]
    manifest: dict


def write_json(path: Path, content: Mapping) -> None:
    """Writes canonical JSON with a digest of itself, under the final name only when complete."""
    body = _canonical(content)
    _write(path, _canonical({"content": content, "sha256": _sha(body)}))


def read_json(path: Path) -> dict:
    """Reads what `write_json` wrote.

    Raises:
        CheckpointError: the file is missing, unreadable or not what was written.
    """
    try:
        document = json.loads(path.read_bytes())
        content, digest = document["content"], document["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    if _sha(_canonical(content)) != digest or set(document) != {"content", "sha256"}:
        raise CheckpointError(f"{path.name} does not match its own digest")
    return content


def append_rows(directory: Path, first: int, table: Mapping[str, np.ndarray]) -> dict:
    """Writes one file of metric rows ([M, n] each) and returns its entry for a manifest."""
    path = directory / "metrics" / f"{first:08d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{f"metric:{k}": v for k, v in table.items()})
        _sync(file)
    temporary.replace(path)
    return {"file": path.name, "first": first, "sha256": _sha(path.read_bytes())}


def read_rows(directory: Path) -> dict[str, np.ndarray]:
    """All rows streamed so far ([M, n] per metric): what a killed run leaves to look at."""
    parts = [_load(path) for path in sorted((directory / "metrics").glob("*.npz"))]
    return _join(parts)


def save(directory: Path, row: int, members: Any, parts: list[dict], identity: Mapping, **facts):
    """Writes a checkpoint of all members (leaves [M, ...], on the host) after `row` rows."""
    target = directory / f"state-{row:08d}"
    shutil.rmtree(target, ignore_errors=True)
    with _checkpointer() as checkpointer:
        checkpointer.save(target.absolute(), _to_plain(members))
    manifest = {"row": row, "identity": identity, "files": _digests(target), "parts": parts}
    write_json(directory / f"manifest-{row:08d}.json", {**manifest, **facts})
    for old in sorted(directory.glob("manifest-*.json"))[:-KEEP]:
        old.unlink()
        shutil.rmtree(directory / old.stem.replace("manifest", "state"), ignore_errors=True)


def restore(directory: Path, template: Any, identity: Mapping) -> Restored | None:
    """Loads the newest checkpoint that verifies, or None where there is none yet.

    Everything that a killed run left half-written or wrote after that checkpoint is removed.

    Raises:
        CheckpointError: the checkpoint belongs to another run (what differs is named), or there
            are checkpoints and none of them verifies.
    """
    manifest, refused = _newest(directory)
    if manifest is None:
        _tidy(directory, 0)
        return None
    differences = _differences(manifest["identity"], identity)
    if differences:
        raise CheckpointError(
            f"{directory} holds another run; it differs in {'; '.join(differences)}. "
            "Use another directory, or resume=False to start over in this one."
        )
    row = manifest["row"]
    members = _read_state(directory, row, template)
    table = _join([_load(directory / "metrics" / p["file"]) for p in manifest["parts"]])
    _tidy(directory, row)
    return Restored(row, members, table, {**manifest, "refused": refused})


def read_members(directory: Path, one: Any) -> Any:
    """All members (leaves [M, ...]) of the newest checkpoint that verifies; nothing is changed.

    Args:
        directory: where the run kept its checkpoints.
        one: abstract single member.

    Raises:
        CheckpointError: there is no checkpoint, none verifies, or the members are of other shapes.
    """
    manifest, _ = _newest(directory)
    if manifest is None:
        raise CheckpointError(f"{directory} holds no checkpoint")
    first = manifest["parts"][0]["file"]
    count = next(iter(_load(directory / "metrics" / first).values())).shape[0]
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), one)
    try:
        return _read_state(directory, manifest["row"], template)
    except ValueError as error:
        raise CheckpointError(
            f"{directory} holds members of another experiment: {error}"
        ) from error


def _newest(directory: Path) -> tuple[dict | None, list[str]]:
    """The newest manifest that verifies, and why newer ones did not."""
    refused: list[str] = []
    for path in sorted(directory.glob("manifest-*.json"), reverse=True):
        try:
            return _verify(directory, path), refused
        except CheckpointError as error:
            refused.append(str(error))
    if refused:
        raise CheckpointError(
            f"no checkpoint in {directory} verifies: {'; '.join(refused)}. "
            "Use resume=False to start over."
        )
    return None, refused


def _read_state(directory: Path, row: int, template: Any) -> Any:
    with _checkpointer() as checkpointer:
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _plain_shapes(template))
        plain = checkpointer.restore((directory / f"state-{row:08d}").absolute(), blank)
    return _from_plain(plain, template)


def clear(directory: Path) -> None:
    """Removes what an earlier run left in `directory`, and nothing else."""
    _tidy(directory, 0)
    for path in directory.glob("manifest-*.json"):
        path.unlink()
    for path in directory.glob("state-*"):
        shutil.rmtree(path, ignore_errors=True)


def _verify(directory: Path, path: Path) -> dict:
    manifest = read_json(path)
    row = manifest["row"]
    if path.name != f"manifest-{row:08d}.json":
        raise CheckpointError(f"{path.name} is a copy of the manifest of row {row}")
    found = _digests(directory / f"state-{row:08d}")
    for name in sorted(set(found) ^ set(manifest["files"])):
        what = "is missing" if name not in found else "does not belong there"
        raise CheckpointError(f"state-{row:08d}/{name} {what}")
    for name, digest in manifest["files"].items():
        if found[name] != digest:
            raise CheckpointError(f"state-{row:08d}/{name} is damaged")
    for part in manifest["parts"]:
        file = directory / "metrics" / part["file"]
        if not file.is_file() or _sha(file.read_bytes()) != part["sha256"]:
            raise CheckpointError(f"metrics/{part['file']} is missing or damaged")
    return manifest


def _tidy(directory: Path, row: int) -> None:
    """Drops half-written files and all that is newer than `row`."""
    for path in directory.glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob("*.tmp"):
        path.unlink()
    for path in directory.glob("metrics/*"):
        if path.suffix == ".tmp" or int(path.stem) >= row:
            path.unlink()
    for path in [*directory.glob("manifest-*.json"), *directory.glob("state-*")]:
        number = re.fullmatch(r"(?:manifest|state)-(\d{8})(?:\.json)?", path.name)
        if number and int(number[1]) > row:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _differences(stored: Mapping, asked: Mapping, prefix: str = "") -> list[str]:
    """Names every entry in which two identities differ."""
    found = []
    for name in sorted(set(stored) | set(asked)):
        was, now = stored.get(name), asked.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differences(was, now, f"{prefix}{name}.")
        elif was != now:
            found.append(f"{prefix}{name} (stored {was}, asked {now})")
    return found


@contextmanager
def _checkpointer():
    """An orbax checkpointer whose background thread has finished when the block ends."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        yield checkpointer
        checkpointer.wait_until_finished()


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_plain(tree) -> dict[str, np.ndarray]:
    """Host arrays by leaf number; keys as their data. The template brings the structure back."""
    return {
        f"{i:05d}": np.asarray(jax.random.key_data(x) if _is_key(x) else x)
        for i, x in enumerate(jax.tree.leaves(tree))
    }


def _plain_shapes(template) -> dict[str, Any]:
    def plain(x):
        return jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x

    return {f"{i:05d}": plain(x) for i, x in enumerate(jax.tree.leaves(template))}


def _from_plain(plain: Mapping[str, np.ndarray], template):
    leaves, structure = jax.tree.flatten(template)
    restored = [
        jax.random.wrap_key_data(jnp.asarray(x), impl="threefry2x32") if _is_key(t) else x
        for t, (_, x) in zip(leaves, sorted(plain.items()))
    ]
    return jax.tree.unflatten(structure, restored)


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {k.removeprefix("metric:"): file[k] for k in file.files}


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]} if parts else {}


def _digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): _sha(path.read_bytes())
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _canonical(content) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        _sync(file)
    temporary.replace(path)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())

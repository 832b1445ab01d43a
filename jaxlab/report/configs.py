"""Frozen dataclass configs as flat fields: what differs from a preset, and flags that say so."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf fields of nested dataclasses by dotted name, in declaration order.

    The entries of a tuple of dataclasses are named by their index, as on the command line.

    Args:
        config: a dataclass instance.
        prefix: put before every name.

    Returns:
        {"seeds": 4, "e1.steps": 100, "studies.0.steps": 16, ...}
    """
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{name}.")
        elif holds_dataclasses(value):
            for i, entry in enumerate(value):
                flat |= flatten(entry, f"{name}.{i}.")
        else:
            flat[name] = value
    return flat


def holds_dataclasses(value: Any) -> bool:
    """Whether a field's value is a tuple of dataclasses."""
    return isinstance(value, tuple) and bool(value) and all(map(dataclasses.is_dataclass, value))


def flatten_tree(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same for nested dicts, as read back from JSON."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_tree(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            entries = {str(i): entry for i, entry in enumerate(value)}
            flat |= flatten_tree(entries, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as nested dicts, lists and scalars that strict JSON can hold."""
    return _plain(config)


def digest(config: Any) -> str:
    """A short hash of every field's value."""
    return hashlib.sha256(json.dumps(plain(config), sort_keys=True).encode()).hexdigest()[:16]


def changes(config: Any, reference: Any) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs of one type differ.

    Args:
        config: what will run.
        reference: usually a preset.

    Returns:
        dotted name -> (reference's value, config's value); a field that one of them lacks, because
        a nested dataclass has another type there, appears with None on that side.
    """
    new, old = flatten(config), flatten(reference)
    names = dict.fromkeys([*old, *new])
    return {
        name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)
    }


def seeded(study: Any, preset: Any, seeds: int) -> Any:
    """A study's config with the seeds of the whole, unless it was given seeds of its own.

    Args:
        study: a part of the experiment's config, with a field `seeds`.
        preset: the same part of the preset.
        seeds: how many the whole experiment has.

    Returns:
        `study` itself where its seeds are not those of the preset.
    """
    return dataclasses.replace(study, seeds=seeds) if study.seeds == preset.seeds else study


def describe(differences: dict[str, tuple[Any, Any]]) -> tuple[str, ...]:
    """One readable phrase per changed field: "e1.steps 4000 -> 100"."""

    def show(value: Any) -> str:
        return repr(value) if isinstance(value, str) else str(value)

    return tuple(f"{name} {show(old)} -> {show(new)}" for name, (old, new) in differences.items())


def flags(differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """Command-line words that turn the reference config into the changed one."""
    words: list[str] = []
    for name, (_, value) in differences.items():
        parent, _, leaf = name.replace("_", "-").rpartition(".")
        scope = f"{parent}." if parent else ""
        if isinstance(value, bool):
            words.append(f"--{scope}{'' if value else 'no-'}{leaf}")
        elif isinstance(value, (tuple, list)):
            words += [f"--{scope}{leaf}", *map(str, value)]
        else:
            words += [f"--{scope}{leaf}", str(value)]
    return words

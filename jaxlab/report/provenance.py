"""Where a result came from: versions, device, commit. No host names, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "scipy",
    "brax",
    "orbax-checkpoint",
    "xarray",
)


def versions() -> dict[str, str]:
    """Versions of Python, jaxlab and the packages that decide its numbers."""
    import jaxlab

    found = {"python": platform.python_version(), "jaxlab": jaxlab.__version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """Kind and number of the accelerators in use, and of processors."""
    import jax

    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "cpu_count": cpu_count(),
    }


def cpu_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit(path: Path) -> dict[str, Any] | None:
    """The commit that an experiment file belongs to.

    Args:
        path: the experiment's file.

    Returns:
        {"commit": hash, "dirty": whether code or locked versions differ from it}; None outside a
        repository, before its first commit, and for a file that the repository ignores (an
        environment inside a checkout is not that checkout's code).
    """
    folder = path.resolve().parent
    revision = _git(folder, "rev-parse", "HEAD")
    if not revision or _git(folder, "check-ignore", str(path.resolve())):
        return None
    code = (":/*.py", ":/*.toml", ":/*.lock")
    return {"commit": revision, "dirty": bool(_git(folder, "status", "--porcelain", "--", *code))}

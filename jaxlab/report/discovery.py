"""Finds experiment programs and loads them by file path.

Experiments are files, not an importable package: the top-level name `experiments` is far too common
to claim in somebody's environment.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxlab
from jaxlab.report.program import Program, as_program

_MARKS = frozenset({"PAPER", "PRESETS"})


def _is_program(path: Path) -> bool:
    """Whether a file assigns the marks of an experiment, found without executing it.

    `jaxlab list` may stand in any folder, and a stranger's `experiments/` may hold scripts that
    must not run just because their names were listed.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return False
    assigned: set[str] = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        assigned.update(target.id for target in targets if isinstance(target, ast.Name))
    return assigned >= _MARKS


def programs_in(folder: Path) -> dict[str, Path]:
    """Experiment files of one folder.

    Args:
        folder: any folder; files whose names start with `_` and everything that does not define
            `PAPER` and `PRESETS` at its top level are ignored.

    Returns:
        name -> path, sorted by name.
    """
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    return {path.stem: path for path in files if _is_program(path)}


def _candidates(start: Path) -> Iterator[Path]:
    for parent in (start, *start.parents):
        yield parent / "experiments"
    package = Path(jaxlab.__file__).resolve().parent
    yield package.parent / "experiments"
    yield package / "_experiments"


def experiments_folder(start: Path | None = None) -> Path | None:
    """The folder that holds the experiments in force.

    Args:
        start: where to begin, the current folder if None.

    Returns:
        The nearest `experiments/` with a program in it, upwards from `start`; else the one beside
        the installed package (a checkout); else the copies shipped in the wheel; else None.
    """
    return next(filter(programs_in, _candidates((start or Path.cwd()).resolve())), None)


def discover(start: Path | None = None) -> dict[str, Path]:
    """Every experiment by name; see `experiments_folder` for where they are looked for."""
    folder = experiments_folder(start)
    return programs_in(folder) if folder else {}


def load_program(path: Path) -> Program:
    """Executes one experiment file and checks it against the contract.

    Args:
        path: the file.

    Returns:
        The program, named by the file.

    Raises:
        ValueError: the module breaks the contract.
        Exception: whatever executing the module raises.
    """
    module_name = f"jaxlab_experiment_{path.stem}"
    # As a package of its folder, so that an experiment may import its parts, `_name.py` beside it.
    folder = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(
        module_name, path, submodule_search_locations=folder
    )
    if spec is None or spec.loader is None:
        raise ValueError(f"path must be a Python file, got {path.name!r}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses resolve string annotations through sys.modules, so register before executing.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return as_program(module, path.stem, path)

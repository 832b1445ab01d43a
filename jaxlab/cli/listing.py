"""`jaxlab list`: what can be run, and what came of it so far."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlab.cli.usage import UsageError, parse


@dataclass(frozen=True)
class ListOptions:
    """No options."""


def main(words: Sequence[str]) -> int:
    """Prints one row per experiment.

    Args:
        words: what was typed after `list`.

    Returns:
        0. An experiment that cannot be loaded keeps its row, which then says why.
    """
    from rich.console import Console
    from rich.table import Table

    from jaxlab.report import collect, experiments_folder, load_program, programs_in

    parse(ListOptions, words, ListOptions(), "jaxlab list", "Experiments and stored verdicts.")
    folder = experiments_folder()
    if folder is None:
        raise UsageError(f"no experiments found from {Path.cwd()} upwards")
    table = Table("name", "paper", "summary", "presets", "stored verdict", pad_edge=False)
    stored, problems = collect([folder / "results"])
    for name, path in programs_in(folder).items():
        verdicts = "\n".join(
            f"{record.status.replace('_', ' ')} ({record.preset}"
            f"{', modified' if record.modified else ''}, n = {record.seeds})"
            for _, record in stored
            if record.experiment == name and record.status != "smoke"
        )
        try:
            program = load_program(path)
        except Exception as error:
            table.add_row(name, "", f"cannot be loaded: {error}", "", verdicts or "-")
            continue
        paper = f"{program.paper.number} {program.paper.title} ({program.paper.year})"
        presets = ", ".join(program.presets)
        table.add_row(name, paper, program.summary, presets, verdicts or "-")
    # Rows that wrap at 80 columns are hard to read from a pipe.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)
    for problem in problems:
        print(f"jaxlab: {problem}", file=sys.stderr)
    return 0

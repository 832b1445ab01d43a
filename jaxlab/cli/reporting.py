"""`jaxlab report`: every stored verdict on one page, and the scoreboard."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from jaxlab.cli.usage import UsageError, parse


def _options(words: Sequence[str]) -> Any:
    from tyro.conf import Positional, arg

    folders = arg(help="Folders with stored verdicts; experiments/results and runs if none.")
    fields: list[tuple[str, Any, Any]] = [
        ("directories", Annotated[tuple[Path, ...], Positional, folders], ()),
        ("out", Annotated[Path, arg(help="The page.")], Path("report.html")),
    ]
    options_type = dataclasses.make_dataclass("ReportOptions", fields, frozen=True)
    about = "Render every stored verdict into one self-contained page."
    return parse(options_type, words, options_type(), "jaxlab report", about)


def main(words: Sequence[str]) -> int:
    """Writes the page, and the scoreboard where there is a README with markers for it.

    Args:
        words: what was typed after `report`.

    Returns:
        0.

    Raises:
        UsageError: a folder does not exist, no verdict lies below any of them, or the page cannot
            be written.
    """
    from jaxlab.report import collect, experiments_folder, files, page, scoreboard

    options = _options(words)
    experiments = experiments_folder()
    results = experiments / "results" if experiments else None
    roots = list(options.directories)
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder")
    roots = roots or [root for root in (results, Path("runs")) if root is not None]
    stored, problems = collect(roots)
    for problem in problems:
        print(f"jaxlab: skipped, {problem}", file=sys.stderr)
    if not stored:
        looked = ", ".join(str(root) for root in roots)
        raise UsageError(f"no verdict.json below {looked}; make one with: jaxlab run NAME")
    rendered = page.render(stored)
    try:
        files.write_text(options.out, rendered)
    except OSError as error:
        raise UsageError(f"{options.out} cannot be written: {error.strerror}") from error
    print(f"{options.out}: {len(stored)} stored runs; open it in a browser")
    if results is not None and experiments is not None and experiments.name == "experiments":
        records = [record for _, record in collect([results])[0]]
        if scoreboard.update(experiments / "README.md", records):
            print("experiments/README.md: scoreboard of the verdicts of record")
    return 0

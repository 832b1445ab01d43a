"""The table of stored verdicts inside `experiments/README.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxlab.report import files, multiplicity
from jaxlab.report.record import Record
from jaxlab.report.summary import (
    STATUS_WORDS,
    SYMBOLS,
    criterion,
    duration,
    interval,
    number,
    seeds,
)

BEGIN = "<!-- scoreboard:begin (written by `jaxlab report`) -->"
END = "<!-- scoreboard:end -->"
_COLUMNS = (
    "No.",
    "Paper",
    "Experiment",
    "Verdict",
    "Effect [interval], threshold",
    "Seeds",
    "q",
    "Wall time",
)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def table(records: Sequence[Record]) -> str:
    """Markdown table of verdicts of record.

    Args:
        records: stored records; smoke and invalid ones are left out.

    Returns:
        The table, one row per judged record, followed by one sentence on multiplicity.
    """
    judged = multiplicity.judged(records)
    if not judged:
        return "No verdict has been stored yet."
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for record, q in zip(judged, multiplicity.q_values(judged)):
        effects = "<br>".join(
            _cell(f"{p.claim.name}: {interval(p.verdict)}, {criterion(p.claim)}")
            for p in record.parts
            if p.claim.required
        )
        setting = f"`{record.experiment}`, {record.preset}" + (
            f", modified: {', '.join(record.modified)}" if record.modified else ""
        )
        paper = f"{record.paper['title']} ({record.paper['venue']} {record.paper['year']})"
        verdict = f"{SYMBOLS[record.status]} {STATUS_WORDS[record.status]}"
        where = record.device["kind"] if record.device["platform"] != "cpu" else "CPU"
        cells = [
            _cell(record.paper["number"]),
            _cell(paper),
            _cell(setting),
            verdict,
            effects,
            seeds(record.parts),
            number(q),
            _cell(f"{duration(record.wall_seconds)}, {where}"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    expected = number(multiplicity.expected_false_reproduced(judged))
    lines += [
        "",
        f"Expected false “reproduced” among these {len(judged)}, were every effect just below its "
        f"threshold: at most {expected}. q: Benjamini-Hochberg over the claims' one-sided tests.",
    ]
    return "\n".join(lines)


def update(readme: Path, records: Sequence[Record]) -> bool:
    """Replaces what stands between the markers of a README.

    Args:
        readme: the file; nothing happens where it does not exist or has no markers.
        records: stored records.

    Returns:
        Whether the file has markers and now holds the table.
    """
    if not readme.is_file():
        return False
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    new = f"{before}{begin}\n\n{table(records)}\n\n{end}{after}"
    if new != text:
        files.write_text(readme, new)
    return True

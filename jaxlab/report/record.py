"""The stored form of a verdict: `verdict.json`, written once per run and read by the report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.report import files
from jaxlab.report.registration import (
    VERDICT_FILE,
    claim_from_json,
    claim_json,
    registered_digests,
)

if TYPE_CHECKING:
    from jaxlab.stats import Claim, Verdict

FORMAT = 1


@dataclass(frozen=True)
class Part:
    """One claim and what became of it."""

    claim: Claim
    verdict: Verdict


@dataclass(frozen=True)
class Record:
    """Everything `verdict.json` holds."""

    experiment: str
    paper: dict[str, Any]
    summary: str
    preset: str
    modified: tuple[str, ...]  # "e1.steps 4000 -> 100"; empty for an untouched preset
    seeds: int
    status: str
    conclusion: str
    parts: tuple[Part, ...]
    paired: dict[
        str, dict[str, list[float | None]]
    ]  # claim -> arm -> score per seed; None: diverged
    config: dict[str, Any]
    config_digest: str
    command: str  # regenerates the run
    versions: dict[str, str]
    device: dict[str, Any]
    wall_seconds: float  # of all finished visits
    resumed: bool  # wall_seconds then lacks visits that were killed
    earlier_registrations: int
    finished: str  # UTC, ISO 8601
    git: dict[str, Any] | None
    notes: tuple[str, ...]
    files: dict[str, Any]  # names of datasets and plots, relative to the record

    def setting(self) -> str:
        """What was run: "vagram, preset small, modified: seeds 16 -> 4"."""
        modified = f", modified: {', '.join(self.modified)}" if self.modified else ""
        return f"{self.experiment}, preset {self.preset}{modified}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `files.write_json`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        parts = [{"claim": claim_json(p.claim), "verdict": p.verdict.to_json()} for p in self.parts]
        return {"format": FORMAT} | fields | {"parts": parts}


def from_json(data: dict[str, Any]) -> Record:
    """Inverse of `Record.to_json`.

    Raises:
        ValueError: no JSON object, another format, or a field missing.
    """
    from jaxlab.stats import Verdict

    if not isinstance(data, dict):
        raise ValueError(f"verdict must be a JSON object, got {type(data).__name__}")
    if data.get("format") != FORMAT:
        raise ValueError(f"verdict format must be {FORMAT}, got {data.get('format')!r}")
    try:
        parts = tuple(
            Part(claim_from_json(p["claim"]), Verdict.from_json(p["verdict"]))
            for p in data["parts"]
        )
        fields = {f.name: data[f.name] for f in dataclasses.fields(Record)}
    except (KeyError, TypeError) as error:
        raise ValueError(f"verdict lacks a field: {error}") from error
    lists = {name: tuple(data[name]) for name in ("modified", "notes")}
    return Record(**(fields | lists | {"parts": parts}))


def load(directory: Path) -> Record:
    """Reads the record of one run directory and checks it against the registered claims.

    Args:
        directory: holds `verdict.json` and the `claims.json` written before the run.

    Returns:
        The record; its status is "invalid", with the reason among the notes, where the judged
        claims are not the registered ones.

    Raises:
        ValueError: the file cannot be read as a verdict; the message names it.
    """
    path = directory / VERDICT_FILE
    data = files.read_json(path)
    try:
        record = from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    judged = {part.claim.name: part.claim.digest() for part in record.parts}
    if judged == registered_digests(directory):
        return record
    note = "the judged claims are not the ones registered before the run"
    return dataclasses.replace(record, status="invalid", notes=(note, *record.notes))


def collect(roots: list[Path]) -> tuple[list[tuple[Path, Record]], list[str]]:
    """Every record below some folders.

    Args:
        roots: folders searched recursively; absent ones are skipped.

    Returns:
        ((run directory, record) ordered by paper number, experiment and preset; one sentence per
        file that could not be read).
    """
    found: dict[Path, Record] = {}
    problems = []
    for root in roots:
        for path in sorted(root.rglob(VERDICT_FILE)):
            directory = path.parent.resolve()
            if directory in found:
                continue
            try:
                found[directory] = load(directory)
            except ValueError as error:
                problems.append(str(error))
    order = sorted(
        found.items(),
        key=lambda item: (item[1].paper["number"], item[1].experiment, item[1].preset, item[0]),
    )
    return order, problems

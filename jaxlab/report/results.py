"""Turns an outcome into files: datasets, plots and the verdict."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.report import configs, files, provenance
from jaxlab.report.program import Outcome, Program
from jaxlab.report.record import Part, Record
from jaxlab.report.registration import CLAIMS_FILE, VERDICT_FILE, registered_digests
from jaxlab.report.summary import STATUS_WORDS, conclusion

if TYPE_CHECKING:
    from jaxlab.stats import Claim, Verdict
    from jaxlab.stats.plots import IntervalRow


def command(program: Program, config: Any) -> str:
    """The command line that runs a configuration."""
    changed = configs.changes(config, program.presets[config.preset])
    words = ["jaxlab", "run", program.name, "--preset", config.preset, *configs.flags(changed)]
    return shlex.join(words)


def judged_parts(
    outcome: Outcome, registered: Mapping[str, str], preset: str
) -> tuple[tuple[Claim, Verdict], ...]:
    """The outcome's parts, held to what was registered.

    Args:
        outcome: what the experiment handed back.
        registered: claim name -> digest, written before the run.
        preset: the preset's name; parts of `smoke` never carry a verdict.

    Returns:
        The parts; one whose claim is not the registered one is invalid.

    Raises:
        ValueError: a registered claim came back without a verdict.
    """
    missing = sorted(set(registered) - {claim.name for claim, _ in outcome.parts})
    if missing:
        raise ValueError(f"run returned no verdict for the registered claims {missing}")
    parts = []
    for claim, verdict in outcome.parts:
        if registered.get(claim.name) != claim.digest():
            note = "this claim is not the one registered before the run"
            notes = (note, *verdict.notes)
            verdict = dataclasses.replace(verdict, status="invalid", notes=notes)
        elif preset == "smoke":
            verdict = dataclasses.replace(verdict, status="smoke")
        parts.append((claim, verdict))
    return tuple(parts)


def overall(parts: tuple[tuple[Claim, Verdict], ...], preset: str) -> str:
    """Status of the whole: any foreign claim makes it invalid, the smoke preset makes it smoke."""
    from jaxlab.stats import combine

    if any(verdict.status == "invalid" for _, verdict in parts):
        return "invalid"
    return "smoke" if preset == "smoke" else combine(parts)


def save(
    directory: Path,
    program: Program,
    config: Any,
    outcome: Outcome,
    *,
    git: dict[str, Any] | None,
    wall_seconds: float,
    resumed: bool,
) -> Record:
    """Writes everything a run leaves behind.

    Args:
        directory: the run's folder, with its `claims.json`.
        program: the experiment.
        config: what ran.
        outcome: what came back.
        git: commit of the code, taken before the run; that of a finished visit stays, since its
            numbers are reused.
        wall_seconds: of this visit.
        resumed: whether checkpoints of earlier visits contributed.

    Returns:
        The record, as written to `verdict.json` last of all, so that its presence says that the
        other files are complete.

    Raises:
        ValueError: the outcome does not fit the registered claims.
    """
    registration = files.read_json(directory / CLAIMS_FILE)
    earlier = _earlier_visit(directory) if resumed else None
    pairs = judged_parts(outcome, registered_digests(directory), config.preset)
    status = overall(pairs, config.preset)
    for name, dataset in outcome.datasets.items():
        files.write_dataset(directory / "results" / f"{_slug(name)}.nc", dataset)
    parts = tuple(Part(claim, verdict) for claim, verdict in pairs)
    modified = configs.describe(configs.changes(config, program.presets[config.preset]))
    record = Record(
        experiment=program.name,
        paper=configs.plain(program.paper),
        summary=program.summary,
        preset=config.preset,
        modified=modified,
        seeds=config.seeds,
        status=status,
        conclusion=conclusion(status, parts, modified),
        parts=parts,
        paired={name: _scores(*arms) for name, arms in outcome.paired.items()},
        config=configs.plain(config),
        config_digest=configs.digest(config),
        command=command(program, config),
        versions=provenance.versions(),
        device=provenance.device(),
        wall_seconds=round(wall_seconds + (earlier["wall_seconds"] if earlier else 0.0), 1),
        resumed=resumed,
        earlier_registrations=registration["earlier_registrations"],
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        git=earlier["git"] if earlier else git,
        notes=outcome.notes,
        files={
            "datasets": [f"results/{_slug(name)}.nc" for name in outcome.datasets],
            "plots": _draw(directory, program, status, outcome, pairs),
        },
    )
    files.write_json(directory / VERDICT_FILE, record.to_json())
    return record


def _earlier_visit(directory: Path) -> dict[str, Any] | None:
    """The verdict of a finished visit to the same directory, whose work this one has reused."""
    path = directory / VERDICT_FILE
    return files.read_json(path) if path.exists() else None


def _scores(treatment: np.ndarray, control: np.ndarray) -> dict[str, list[float | None]]:
    def plain(scores: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in np.asarray(scores, np.float64)]

    return {"treatment": plain(treatment), "control": plain(control)}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def interval_row(claim: Claim, verdict: Verdict) -> IntervalRow:
    """A part as the plots want it; missing numbers become NaN."""
    from jaxlab.stats.plots import IntervalRow

    estimate, low, high = (
        np.nan if v is None else v for v in (verdict.estimate, verdict.low, verdict.high)
    )
    return IntervalRow(
        claim.name, claim.kind, estimate, low, high, verdict.threshold, verdict.status
    )


def _draw(
    directory: Path,
    program: Program,
    status: str,
    outcome: Outcome,
    parts: tuple[tuple[Claim, Verdict], ...],
) -> list[dict[str, str]]:
    """Writes every plot; returns file names with descriptions for those who cannot see them."""
    from jaxlab.stats import plots

    drawn: list[dict[str, str]] = []

    def keep(name: str, figure: Any, description: str) -> None:
        files.write_figure(directory / name, figure)
        drawn.append({"file": name, "description": description})

    rows = [interval_row(c, v) for c, v in parts]
    for curves in outcome.curves:
        figure = plots.curve_plot(
            curves.x,
            curves.scores,
            title=curves.title,
            x_label=curves.x_label,
            y_label=curves.y_label,
            lines=curves.lines,
        )
        description = f"{curves.title}: {curves.y_label} against {curves.x_label}"
        keep(f"curves-{_slug(curves.name)}.png", figure, description)
    for fronts in outcome.fronts:
        figure = plots.front_plot(
            fronts.angles,
            fronts.radii,
            title=fronts.title,
            x_label=fronts.x_label,
            y_label=fronts.y_label,
        )
        description = f"{fronts.title}: {fronts.y_label} against {fronts.x_label}"
        keep(f"front-{_slug(fronts.name)}.png", figure, description)
    for land in outcome.landscapes:
        figure = plots.landscape_plot(
            land.x,
            land.y,
            land.heights,
            land.points,
            title=land.title,
            x_label=land.x_label,
            y_label=land.y_label,
            height_label=land.height_label,
        )
        description = f"{land.title}: {land.height_label} over {land.x_label} and {land.y_label}"
        keep(f"landscape-{_slug(land.name)}.png", figure, description)
    if rows:
        seeds = sorted({verdict.n for _, verdict in parts})
        caption = (
            f"Two-sided {_levels(parts)} intervals over {_range(seeds)} seeds. "
            "Shaded: margin of an equivalence claim."
        )
        title = f"{program.name}: {STATUS_WORDS[status]}"
        figure = plots.interval_plot(rows, title=title, caption=caption)
        keep("intervals.png", figure, "Effect of every part relative to its threshold")
    compared = [
        plots.PairedRow(c.name, c.treatment, c.control, *outcome.paired[c.name], row)
        for (c, _), row in zip(parts, rows)
        if c.name in outcome.paired
    ]
    if compared:
        caption = "One line and one dot per seed; bar: interval of the claim; dashed: threshold."
        figure = plots.paired_plot(compared, title="Paired seeds", caption=caption)
        keep("paired.png", figure, "Scores of every seed under control and treatment")
    return drawn


def _levels(parts: tuple[tuple[Claim, Verdict], ...]) -> str:
    return ", ".join(
        f"{100 * (1 - alpha):.4g} %" for alpha in sorted({claim.alpha for claim, _ in parts})
    )


def _range(values: list[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"

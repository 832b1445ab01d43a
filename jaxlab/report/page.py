"""Every stored verdict on one static page: no script, no network, nothing beside the file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from jaxlab.report import configs, multiplicity
from jaxlab.report.board import badge, board
from jaxlab.report.record import Part, Record
from jaxlab.report.summary import STATUS_WORDS, criterion, duration, interval, number, seeds


def render(stored: Sequence[tuple[Path, Record]]) -> str:
    """The page.

    Args:
        stored: (run directory, record); plots are read from the directory and embedded.

    Returns:
        One self-contained HTML document.
    """
    judged = [(path, r) for path, r in stored if r.status in multiplicity.JUDGED]
    others = [(path, r) for path, r in stored if r.status not in multiplicity.JUDGED]
    anchors = [f"claim-{i}" for i in range(len(judged))]
    style = resources.files("jaxlab.report").joinpath("page.css").read_text(encoding="utf-8")
    records = [record for _, record in judged]
    q = multiplicity.q_values(records)
    body = []
    if judged:
        body += ["<h2>Verdict board</h2>", board(records, anchors), _reading(records)]
        body += ["<h2>All verdicts</h2>", _overview(records, anchors, q)]
        body += ["<h2>Claim by claim</h2>"]
        body += [_card(path, record, a) for (path, record), a in zip(judged, anchors)]
    if others:
        body += [
            "<h2>Runs without a verdict</h2>",
            '<p class="muted">Smoke runs show that a program works; invalid runs were judged by '
            "other claims than the ones registered. Neither says anything about a paper.</p>",
        ]
        body += [_card(path, r, f"other-{i}") for i, (path, r) in enumerate(others)]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>jaxlab verdicts</title>\n<style>\n{style}</style>\n</head>\n<body>",
            _header(records, [record for _, record in others]),
            "<main>",
            *body,
            "</main>",
            "<footer>Written by <code>jaxlab report</code>.</footer>\n</body>\n</html>\n",
        ]
    )


def _header(judged: Sequence[Record], others: Sequence[Record]) -> str:
    counts = {status: 0 for status in STATUS_WORDS}
    for record in (*judged, *others):
        counts[record.status] += 1
    pills = "".join(
        f"<li>{badge(status)} <b>{count}</b></li>" for status, count in counts.items() if count
    )
    n, papers = len(judged), len({record.paper["number"] for record in judged})
    sentence = (
        f"{n} verdict{'s' if n != 1 else ''} on {papers} paper{'s' if papers != 1 else ''}, each "
        "against a threshold registered before the run. A claim is reproduced when the whole "
        "confidence interval reaches the threshold, not reproduced when the whole interval misses "
        "it, and inconclusive otherwise."
        if n
        else "No verdict yet: only runs that were not meant to give one."
    )
    return (
        f'<header class="top"><h1>jaxlab verdicts</h1><p class="lede">{sentence}</p>'
        f'<ul class="counts">{pills}</ul></header>'
    )


def _reading(records: Sequence[Record]) -> str:
    expected = multiplicity.expected_false_reproduced(records)
    return (
        '<p class="small">Bars are two-sided intervals over seeds, divided by each part\'s '
        "threshold, so that 1 (dashed) is the common line; for a margin of non-inferiority or an "
        "upper bound the distance to the limit is shown in the same unit, for a threshold of 0 in "
        "half intervals, and for an equivalence the shaded band is the margin. Each verdict stands "
        "at its own level. If every effect lay just below its threshold, at most "
        f"<b>{number(expected)}</b> false “reproduced” would be expected among these "
        f"{len(records)}; q is the Benjamini-Hochberg value of the one-sided tests against the "
        "thresholds.</p>"
    )


def _cell(label: str, content: str, css: str = "") -> str:
    return f'<td data-label="{escape(label)}" class="{css}">{content}</td>'


def _table(labels: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[str]) -> str:
    """Cells are HTML already; on a phone each row becomes a small card labelled by cell."""
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    body = []
    for row in rows:
        cells = [_cell(labels[0], row[0], "lead")]
        cells += [
            _cell(label, content, "num" if label in numeric else "")
            for label, content in zip(labels[1:], row[1:])
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table class="stack"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    )


def _overview(records: Sequence[Record], anchors: Sequence[str], q: Sequence[float]) -> str:
    rows = [
        [
            f'<a href="#{anchor}">{escape(r.paper["number"])} · {escape(r.paper["title"])}</a>'
            f'<br><span class="small">{escape(r.setting())}</span>',
            badge(r.status),
            number(multiplicity.p_value(r)),
            number(value),
            seeds(r.parts),
            escape(duration(r.wall_seconds)),
        ]
        for r, anchor, value in zip(records, anchors, q)
    ]
    labels = ("Paper", "Verdict", "p", "q", "Seeds", "Time")
    return f'<div class="card">{_table(labels, rows, ("p", "q", "Seeds", "Time"))}</div>'


def _card(directory: Path, record: Record, anchor: str) -> str:
    paper = record.paper
    flags = "".join(f'<span class="flag">modified: {escape(m)}</span>' for m in record.modified)
    if record.earlier_registrations:
        flags += (
            f'<span class="flag">registered {record.earlier_registrations + 1} times '
            "in this folder</span>"
        )
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    return "\n".join(
        [
            f'<article class="card {escape(record.status)}" id="{escape(anchor)}">',
            f"<header><div><h3>{escape(paper['number'])} · {escape(paper['title'])}</h3>"
            f'<div class="small">{escape(paper["authors"])}, {escape(paper["venue"])} '
            f"{escape(str(paper['year']))}</div></div>{badge(record.status)}</header>",
            f'<p class="conclusion">{escape(record.conclusion)}</p>',
            f"<p>{escape(record.summary)}</p>",
            f'<p class="small">Experiment <code>{escape(record.experiment)}</code>, preset '
            f"<code>{escape(record.preset)}</code>, {record.seeds} seeds, "
            f"{escape(_device(record))}, {escape(_wall(record))}. {flags}</p>",
            "<h4>Parts</h4>",
            _parts(record.parts),
            _guards(record.parts),
            f"<h4>Notes</h4><ul>{notes}</ul>" if notes else "",
            "<h4>Run it again</h4>",
            f"<pre>{escape(record.command)}</pre>",
            _plots(directory, record),
            _details("Configuration", configs.flatten_tree(record.config)),
            _details("Versions and machine", _machine(record)),
            _details("Claim digests", {p.claim.name: p.claim.digest() for p in record.parts}),
            "</article>",
        ]
    )


def _device(record: Record) -> str:
    device = record.device
    if device["platform"] == "cpu":
        cores = device["cpu_count"]
        return f"{cores} CPU core{'s' if cores != 1 else ''}"
    return f"{device['count']} × {device['kind']}"


def _wall(record: Record) -> str:
    return duration(record.wall_seconds) + (
        " (resumed; killed visits excluded)" if record.resumed else ""
    )


_PART_COLUMNS = ("Verdict", "Effect [interval]", "Threshold", "n", "ρ", "Wins", "Failed", "p")


def _parts(parts: Sequence[Part]) -> str:
    """Two rows per part: what is claimed, over the whole width, then the numbers."""
    bodies = []
    for part in parts:
        claim, verdict = part.claim, part.verdict
        kind = claim.kind if claim.required else f"{claim.kind}, secondary"
        arms = f": {claim.treatment}"
        if claim.kind in ("superiority", "equivalence"):
            arms += f" against {claim.control}"
        notes = "".join(f"<br>{escape(note)}" for note in verdict.notes)
        cells = [
            f'<span class="{escape(verdict.status)}"><b class="tone">'
            f"{escape(STATUS_WORDS[verdict.status])}</b></span>",
            escape(interval(verdict)),
            escape(criterion(claim)),
            str(verdict.n),
            escape(number(verdict.rho)),
            escape(number(verdict.sign_proportion)),
            f"{verdict.failures[0]}, {verdict.failures[1]}",
            escape(number(verdict.p_value)),
        ]
        numbers = "".join(
            _cell(label, content, "num") for label, content in zip(_PART_COLUMNS, cells)
        )
        bodies.append(
            f'<tbody><tr><td class="lead" colspan="{len(_PART_COLUMNS)}">'
            f'<b>{escape(claim.name)}</b> <span class="small">({escape(kind)})</span><br>'
            f'{escape(claim.statement)}<br><span class="small">{escape(claim.metric)}'
            f"{escape(arms)}{notes}</span></td></tr><tr>{numbers}</tr></tbody>"
        )
    head = "".join(f"<th>{escape(label)}</th>" for label in _PART_COLUMNS)
    return (
        f'<table class="stack parts"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'
        '<p class="small">ρ: correlation of the arms over seeds, which is what pairing buys. '
        "Wins: share of seeds in which the treatment is ahead. Failed: diverged seeds (treatment, "
        "control), counted with the worst score. p: one-sided, against the threshold.</p>"
    )


def _guards(parts: Sequence[Part]) -> str:
    items = []
    for part in parts:
        for name, passed, detail in part.verdict.guards:
            symbol, css = ("✓", "reproduced") if passed else ("✗", "not_reproduced")
            word = "passed" if passed else "failed"
            detail = f" – {escape(detail)}" if detail else ""
            items.append(
                f'<li class="{css}"><b class="tone" role="img" aria-label="{word}">{symbol}</b>'
                f'{escape(name)} <span class="muted">({escape(part.claim.name)}){detail}'
                "</span></li>"
            )
    return f'<h4>Guards</h4><ul class="guards">{"".join(items)}</ul>' if items else ""


def _plots(directory: Path, record: Record) -> str:
    figures = []
    for plot in record.files["plots"]:
        # Only a plain name: a record must not be able to embed files from elsewhere.
        path = directory / Path(plot["file"]).name
        if not path.is_file():
            continue
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        text = escape(plot["description"])
        figures.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{data}" loading="lazy">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    return "".join(figures)


def _details(title: str, fields: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in fields.items()
    )
    return f'<details><summary>{escape(title)}</summary><dl class="fields">{rows}</dl></details>'


def _machine(record: Record) -> dict[str, Any]:
    git = record.git
    commit = f"{git['commit']}{' with local changes' if git['dirty'] else ''}" if git else "none"
    device = record.device
    return record.versions | {
        "device": f"{device['count']} × {device['kind']} ({device['platform']})",
        "CPU cores": device["cpu_count"],
        "wall time": _wall(record),
        "finished": record.finished,
        "commit": commit,
        "config digest": record.config_digest,
    }

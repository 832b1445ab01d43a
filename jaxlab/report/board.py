"""The verdict board: every part's interval on one scale whose 1 is its own threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from jaxlab.report.record import Part, Record
from jaxlab.report.results import interval_row
from jaxlab.report.summary import STATUS_WORDS, SYMBOLS, criterion, interval

_CLIP = (-3.0, 6.0)  # farther limits are cut off, with an arrow
_SHAPES = {
    "reproduced": '<circle r="6.5"/>',
    "not_reproduced": '<path d="M-6-6L6 6M-6 6L6-6"/>',
    "inconclusive": '<path d="M0-7.5L7.5 0L0 7.5L-7.5 0Z"/>',
    "smoke": '<rect x="-5.5" y="-5.5" width="11" height="11"/>',
    "invalid": '<path d="M-7-5.5H7L0 7Z"/>',
}


def badge(status: str) -> str:
    """The verdict as a coloured pill with its symbol."""
    words, symbol = STATUS_WORDS[status], SYMBOLS[status]
    return (
        f'<span class="badge {escape(status)}"><span aria-hidden="true">{symbol}</span>'
        f"{escape(words)}</span>"
    )


class _Scale:
    """Percent positions on an axis shared by every row."""

    def __init__(self, triples: Sequence[tuple[float, float, float]]):
        values = [v for triple in triples for v in triple if math.isfinite(v)]
        low = max(_CLIP[0], min([-0.3, *values]))
        high = min(_CLIP[1], max([2.2, *values]))
        margin = 0.04 * (high - low)
        self.low, self.high = low - margin, high + margin

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return 100 * (inside - self.low) / (self.high - self.low)

    def ticks(self) -> range:
        return range(math.ceil(self.low), math.floor(self.high) + 1)


def _line(css: str, x1: float, x2: float, y1: str = "0", y2: str = "100%") -> str:
    return f'<line class="{css}" x1="{x1:.2f}%" x2="{x2:.2f}%" y1="{y1}" y2="{y2}"/>'


def _track(scale: _Scale, part: Part, triple: tuple[float, float, float]) -> str:
    """One row's drawing; positions are percentages, so it fits any width without scaling text."""
    estimate, low, high = triple
    marks = []
    if part.claim.kind == "equivalence":
        left, right = scale.at(-1), scale.at(1)
        marks.append(
            f'<rect class="track-band" x="{left:.2f}%" width="{right - left:.2f}%" '
            'y="4" height="22"/>'
        )
    marks += [_line("track-zero", scale.at(0), scale.at(0))]
    marks += [_line("track-one", scale.at(1), scale.at(1))]
    status = part.verdict.status
    if np.isfinite(triple).all():
        marks.append(_line("track-bar", scale.at(low), scale.at(high), "50%", "50%"))
        if low < scale.low:
            marks.append('<text class="track-arrow" x="0" y="20">◂</text>')
        if high > scale.high:
            marks.append('<text class="track-arrow" x="100%" y="20" text-anchor="end">▸</text>')
        if scale.low <= estimate <= scale.high:
            marks.append(
                f'<svg class="track-point shape-{status}" x="{scale.at(estimate):.2f}%" y="50%" '
                f'overflow="visible">{_SHAPES[status]}</svg>'
            )
        label = f"{part.claim.name}: {interval(part.verdict)}, {STATUS_WORDS[status]}"
    else:
        marks.append('<text x="2" y="20">no interval</text>')
        label = f"{part.claim.name}: no interval, {STATUS_WORDS[status]}"
    return f'<svg role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'


def _axis(scale: _Scale) -> str:
    labels = "".join(
        f'<text x="{scale.at(tick):.2f}%" y="15" text-anchor="middle">{tick}</text>'
        for tick in scale.ticks()
    )
    return (
        '<div class="row axis"><div class="name"></div>'
        f'<div class="track"><svg aria-hidden="true">{labels}</svg></div>'
        '<div class="value muted">effect / threshold</div></div>'
    )


def board(records: Sequence[Record], anchors: Sequence[str]) -> str:
    """The board as HTML with one inline SVG per part.

    Args:
        records: what to show, one group each.
        anchors: id of each record's section.

    Returns:
        A `div`; empty text without records.
    """
    from jaxlab.stats.plots import relative_to_threshold

    if not records:
        return ""
    triples = [
        [relative_to_threshold(interval_row(part.claim, part.verdict)) for part in record.parts]
        for record in records
    ]
    scale = _Scale([triple for group in triples for triple in group])
    html = ['<div class="card board">']
    for record, anchor, group in zip(records, anchors, triples):
        html.append(
            f'<div class="group"><a href="#{escape(anchor)}">{escape(record.paper["number"])} · '
            f"{escape(record.paper['title'])}</a>{badge(record.status)}"
            f'<span class="small">{escape(record.setting())}</span></div>'
        )
        for part, triple in zip(record.parts, group):
            secondary = "" if part.claim.required else ' <span class="muted">(secondary)</span>'
            html.append(
                f'<div class="row {escape(part.verdict.status)}">'
                f'<div class="name"><span class="tone" aria-hidden="true">'
                f"{SYMBOLS[part.verdict.status]}</span> {escape(part.claim.name)}{secondary}"
                f'</div><div class="track">{_track(scale, part, triple)}</div>'
                f'<div class="value num">{escape(interval(part.verdict))}<br>'
                f'<span class="muted">{escape(criterion(part.claim))}</span></div></div>'
            )
    html += [_axis(scale), "</div>"]
    return "\n".join(html)

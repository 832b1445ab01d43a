"""Every part of a claim against its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxlab.stats.plots.style import (
    INK,
    MUTED,
    STATUS_COLOURS,
    STATUS_MARKERS,
    add_caption,
    halo,
    sized_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class IntervalRow(NamedTuple):
    """One part of a claim, in the units of its metric."""

    label: str
    kind: str  # "superiority", "equivalence", "bound" or "ordering"
    estimate: float
    low: float
    high: float
    threshold: float
    status: str


def relative_to_threshold(row: IntervalRow) -> tuple[float, float, float]:
    """Estimate and interval on the scale where the threshold is 1 and right is better.

    effect / threshold for a positive threshold. A negative threshold (non-inferiority) and a bound
    (small is good) need a signed distance in units of the threshold's size instead:
    1 + (effect - threshold) / |threshold|, mirrored for bounds; it is the same number where both
    are defined. With a threshold of zero the unit is half the interval's width.

    Args:
        row: one part; an equivalence is shown as effect / margin, inside when within -1 and 1.

    Returns:
        (estimate, low, high), low <= estimate <= high; NaN where the row has NaN.
    """
    unit = abs(row.threshold) or (row.high - row.low) / 2 or 1.0
    if row.kind == "equivalence":
        return row.estimate / unit, row.low / unit, row.high / unit
    if row.kind == "bound":
        return tuple(1 - (v - row.threshold) / unit for v in (row.estimate, row.high, row.low))  # type: ignore[return-value]
    return tuple(1 + (v - row.threshold) / unit for v in (row.estimate, row.low, row.high))  # type: ignore[return-value]


def interval_plot(rows: Sequence[IntervalRow], *, title: str, caption: str = "") -> Figure:
    """Every part's interval on one axis whose 1 is the part's own threshold.

    Args:
        rows: the parts, drawn from top to bottom.
        title: says the verdict.
        caption: small print, for example the number of seeds.

    Returns:
        The figure. A part without a finite interval keeps its row and says so.
    """
    with sized_figure(7.6, 1.5 + 0.5 * len(rows)) as figure:
        axes = figure.add_subplot()
        scaled = [relative_to_threshold(row) for row in rows]
        bounds = [v for triple in scaled for v in triple if np.isfinite(v)]
        margins = [-1.0] if any(row.kind == "equivalence" for row in rows) else []
        left, right = min([-0.15, *margins, *bounds]), max([2.0, *bounds])
        margin = 0.1 * (right - left)
        axes.set_xlim(left - margin, right + margin)
        axes.axvline(0, color="#B9B5AD", lw=1)
        axes.axvline(1, color=INK, lw=1.4, ls=(0, (4, 2)))
        for y, (row, (estimate, low, high)) in enumerate(zip(rows, scaled)):
            colour = STATUS_COLOURS[row.status]
            if row.kind == "equivalence":
                axes.barh(y, 2, left=-1, height=0.62, color="#E9E6E0", zorder=0)
            if not np.isfinite([estimate, low, high]).all():
                axes.text(0.06, y, "no interval", color=MUTED, va="center", fontsize=8.5)
                continue
            axes.plot([low, high], [y, y], color=colour, lw=3, solid_capstyle="round")
            axes.plot(
                estimate,
                y,
                STATUS_MARKERS[row.status],
                color=colour,
                ms=8,
                mec="white",
                mew=1.2,
                zorder=3,
            )
            text = f"{row.estimate:.3g} [{row.low:.3g}, {row.high:.3g}]"
            axes.annotate(
                text,
                ((low + high) / 2, y),
                (0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=MUTED,
                path_effects=halo(),
            )
        axes.set_yticks(range(len(rows)), [f"{r.label}\n{status_words(r)}" for r in rows])
        for label, row in zip(axes.get_yticklabels(), rows):
            label.set_color(STATUS_COLOURS[row.status])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.45, -0.65)
        axes.set_xlabel("effect / threshold (dashed line: the threshold)")
        axes.set_title(title)
        if any(r.kind != "equivalence" and r.threshold == 0 for r in rows):
            caption += "\nA threshold of 0 is at 1 too; the unit is then half the interval."
        add_caption(figure, caption.strip())
        return figure


def status_words(row: IntervalRow) -> str:
    """Verdict and threshold, as a label."""
    sign = {"equivalence": "within ±", "bound": "≤ "}.get(row.kind, "≥ ")
    return f"{row.status.replace('_', ' ')} ({sign}{row.threshold:g})"

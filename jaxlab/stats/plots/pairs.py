"""Two arms, seed by seed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxlab.stats.plots.intervals import IntervalRow, status_words
from jaxlab.stats.plots.style import (
    ARM_COLOURS,
    INK,
    STATUS_COLOURS,
    STATUS_MARKERS,
    add_caption,
    sized_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LETTERS_OF_X_LABEL = 72  # more in one line would leave the figure


class PairedRow(NamedTuple):
    """One comparison of two arms on the same seeds, in the units of its metric."""

    label: str
    treatment_name: str
    control_name: str
    treatment: np.ndarray  # [n]
    control: np.ndarray  # [n]
    interval: IntervalRow  # of treatment - control


def paired_plot(rows: Sequence[PairedRow], *, title: str, caption: str = "") -> Figure:
    """Each seed's line from control to treatment, and the differences beside their threshold.

    Args:
        rows: comparisons, drawn from top to bottom.
        title: of the figure.
        caption: small print.

    Returns:
        The figure; diverged seeds cannot be drawn and are counted in the row's title.
    """
    with sized_figure(7.6, 0.9 + 2.35 * len(rows)) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        grid = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1, 1.5))
        for row, (slopes, strip) in zip(rows, grid):
            treatment = np.asarray(row.treatment, np.float64)
            control = np.asarray(row.control, np.float64)
            alive = np.isfinite(treatment) & np.isfinite(control)
            _draw_slopes(slopes, row, treatment[alive], control[alive])
            _draw_differences(strip, row, (treatment - control)[alive])
            failed = int((~alive).sum())
            label = row.label + (f" ({failed} diverged, not drawn)" if failed else "")
            slopes.set_title(label, fontsize=9.5)
        add_caption(figure, caption)
        return figure


def _draw_slopes(axes: Axes, row: PairedRow, treatment: np.ndarray, control: np.ndarray) -> None:
    for c, t in zip(control, treatment):
        colour = ARM_COLOURS[0] if t >= c else ARM_COLOURS[1]
        axes.plot([0, 1], [c, t], color=colour, ls="-" if t >= c else (0, (4, 2)), lw=1, alpha=0.6)
    axes.plot(np.zeros_like(control), control, "o", color=INK, ms=3)
    axes.plot(np.ones_like(treatment), treatment, "o", color=INK, ms=3)
    names = [textwrap.fill(name, 16) for name in (row.control_name, row.treatment_name)]
    axes.set_xticks([0, 1], names, color=INK, fontsize=9)
    axes.set_xlim(-0.25, 1.25)
    axes.grid(axis="x", visible=False)


def _draw_differences(axes: Axes, row: PairedRow, difference: np.ndarray) -> None:
    """A strip of dots above the interval; heights repeat the golden ratio, so nothing is random."""
    heights = 0.35 + 0.5 * ((np.arange(len(difference)) * 0.618034) % 1)
    ci = row.interval
    axes.plot(difference, heights, "o", color=INK, ms=4, alpha=0.55, mew=0)
    axes.axvline(0, color="#B9B5AD", lw=1)
    limits = (-ci.threshold, ci.threshold) if ci.kind == "equivalence" else (ci.threshold,)
    for limit in limits:
        axes.axvline(limit, color=INK, lw=1.3, ls=(0, (4, 2)))
    colour = STATUS_COLOURS[ci.status]
    if np.isfinite([ci.low, ci.high, ci.estimate]).all():
        axes.plot([ci.low, ci.high], [0.12, 0.12], color=colour, lw=3, solid_capstyle="round")
        marker = STATUS_MARKERS[ci.status]
        axes.plot(ci.estimate, 0.12, marker, color=colour, ms=8, mec="white", mew=1.2, zorder=3)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    words = f"{row.treatment_name} - {row.control_name}, {status_words(ci)}"
    axes.set_xlabel(textwrap.fill(words, LETTERS_OF_X_LABEL), fontsize=8.5)

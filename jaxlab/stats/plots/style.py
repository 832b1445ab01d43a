"""What all figures share: colours, line styles, symbols, titles and small print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
ARM_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
STATUS_COLOURS = {
    "reproduced": "#0072B2",
    "not_reproduced": "#D55E00",
    "inconclusive": "#6E6E6E",
    "smoke": "#9A9A9A",
    "invalid": "#A1447A",
}
STATUS_MARKERS = {
    "reproduced": "o",
    "not_reproduced": "X",
    "inconclusive": "D",
    "smoke": "s",
    "invalid": "v",
}
INK, MUTED, GRID = "#22211F", "#6B6862", "#E6E3DD"
STYLE: Any = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": "#B9B5AD",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}

_LETTERS_PER_INCH, _BESIDE = 14, 0.8  # of a legend; inches that the axes leave to their labels


@contextlib.contextmanager
def sized_figure(width: float, height: float) -> Iterator[Figure]:
    """A figure of this size, in inches, in the style of all."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def title_and_legend(figure: Figure, axes: Axes, title: str) -> None:
    """Above the axes, where they take no width from the curves and hide none of them."""
    labels = axes.get_legend_handles_labels()[1]
    entries, longest = len(labels), max(map(len, labels))
    fitting = int(_LETTERS_PER_INCH * (figure.get_figwidth() - _BESIDE) / (longest + 8))
    columns = max(1, min(2 if entries == 4 else 3, entries, fitting))
    rows = -(-entries // columns)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        handlelength=2.8,
        fontsize=9,
        borderaxespad=0.2,
    )
    axes.set_title(title, pad=12 + 15 * rows)


def add_caption(figure: Figure, text: str) -> None:
    """A line of small print under the axes, inside the constrained layout."""
    figure.supxlabel(text, fontsize=8, color=MUTED, x=0.01, ha="left")


def halo() -> list[Any]:
    """Path effects that keep text readable over lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]

"""Scores over two numbers: fronts, and landscapes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxlab.stats.plots.curves import _what_is_drawn, draw_arms
from jaxlab.stats.plots.style import (
    ARM_COLOURS,
    INK,
    add_caption,
    sized_figure,
    title_and_legend,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def front_plot(
    angles: np.ndarray,
    radii: Mapping[str, np.ndarray],
    *,
    title: str,
    x_label: str,
    y_label: str,
    level: float = 0.95,
) -> Figure:
    """Trade-offs of two objectives: how far each arm's front reaches in every direction.

    Args:
        angles: directions [A] from the origin in radians, 0 along x.
        radii: arm -> [n_seeds, A].
        title: of the figure.
        x_label: of the first objective.
        y_label: of the second objective.
        level: coverage of the pointwise band.

    Returns:
        The figure; centre and band are those of the seeds' radii along each ray.

    Raises:
        ValueError: no arm, or radii that do not fit the angles.
    """
    arms = {name: np.asarray(values, np.float64) for name, values in radii.items()}
    if not arms or any(v.ndim != 2 or v.shape[1:] != angles.shape for v in arms.values()):
        shapes = {name: values.shape for name, values in arms.items()}
        raise ValueError(f"radii: expected arrays [n_seeds, {len(angles)}], got {shapes}")
    x, y = np.cos(angles), np.sin(angles)
    with sized_figure(6.2, 5.6) as figure:
        axes = figure.add_subplot()
        failed = draw_arms(axes, arms, level, lambda radius: (radius * x, radius * y))
        axes.set(xlabel=x_label, ylabel=y_label)
        title_and_legend(figure, axes, title)
        counts = [len(values) for values in arms.values()]
        words = f"Along each ray from the origin. {_what_is_drawn(counts, failed, level)}"
        add_caption(figure, textwrap.fill(words, 90))
        return figure


def landscape_plot(
    x: np.ndarray,
    y: np.ndarray,
    heights: np.ndarray,
    points: Mapping[str, np.ndarray],
    *,
    title: str,
    x_label: str,
    y_label: str,
    height_label: str,
) -> Figure:
    """A score over two numbers, with where searches ended.

    Args:
        x: the first number [nx], rising.
        y: the second number [ny], rising.
        heights: [n_seeds, nx, ny].
        points: arm -> [n_seeds, 2], where each seed's search ended, in x and y.
        title: of the figure.
        x_label: of the first number.
        y_label: of the second number.
        height_label: of the score.

    Returns:
        The figure: shades and contours of the mean over seeds, its highest point, and a symbol for
        each seed of each arm. Points outside of the box are drawn at its edge.

    Raises:
        ValueError: heights or points that do not fit.
    """
    table = np.asarray(heights, np.float64)
    if table.ndim != 3 or table.shape[1:] != (len(x), len(y)):
        raise ValueError(f"heights: expected [n_seeds, {len(x)}, {len(y)}], got {table.shape}")
    if bad := [name for name, rows in points.items() if np.shape(rows)[1:] != (2,)]:
        raise ValueError(f"points: expected arrays [n_seeds, 2], got others for {bad}")
    mean = table.mean(axis=0)
    with sized_figure(6.6, 5.8) as figure:
        axes = figure.add_subplot()
        shades = axes.contourf(x, y, mean.T, levels=16, cmap="cividis")
        axes.contour(
            x, y, mean.T, levels=list(shades.levels)[::2], colors="white", linewidths=0.5, alpha=0.6
        )
        bar = figure.colorbar(shades, ax=axes)
        bar.set_label(height_label)
        bar.outline.set_visible(False)
        top = np.unravel_index(np.argmax(mean), mean.shape)
        axes.plot(x[top[0]], y[top[1]], "*", color="white", ms=15, mec=INK, label="highest mean")
        for i, (name, rows) in enumerate(points.items()):
            inside = np.clip(rows, [x[0], y[0]], [x[-1], y[-1]])
            axes.plot(
                *inside.T,
                "osD^vP"[i % 6],
                color=ARM_COLOURS[(i + 1) % len(ARM_COLOURS)],
                ms=6.5,
                mec="white",
                mew=0.8,
                label=name,
                clip_on=False,
            )
        axes.grid(visible=False)
        axes.set(xlabel=x_label, ylabel=y_label, aspect="equal")
        title_and_legend(figure, axes, title)
        words = f"Shades: mean over n = {len(table)} seeds; symbols: single seeds."
        add_caption(figure, words)
        return figure

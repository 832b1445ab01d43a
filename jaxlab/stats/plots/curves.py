"""Curves with bands over seeds, and performance profiles."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxlab.stats.plots.style import (
    ARM_COLOURS,
    ARM_DASHES,
    MUTED,
    add_caption,
    halo,
    sized_figure,
    title_and_legend,
)

if TYPE_CHECKING:
    from jaxtyping import Array
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MIN_SEEDS_FOR_IQM = 5  # below, Yuen's interval does not exist
MAX_SEEDS_DRAWN_SINGLY = 10
LETTERS_OF_Y_LABEL = 48  # more in one line would run into the small print, or out of the figure


def _pointwise(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, low and high [T] over the seeds of values [n, T]; NaN where a seed is not finite."""
    from jaxlab.stats.intervals import t_interval, yuen_interval

    if len(values) >= MIN_SEEDS_FOR_IQM:
        return yuen_interval(values.T, level)
    if len(values) >= 2:
        return t_interval(values.T, level)
    return values[0], values[0], values[0]


def _what_is_drawn(counts: Sequence[int], failed: int, level: float) -> str:
    n = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    centre, band = (
        ("interquartile mean", "Yuen") if min(counts) >= MIN_SEEDS_FOR_IQM else ("mean", "Student")
    )
    words = [
        f"Line: {centre}, n = {n} seeds per arm",
        f"band: pointwise {level:.0%} {band} interval",
    ]
    if max(counts) <= MAX_SEEDS_DRAWN_SINGLY:
        words.append("thin: single seeds")
    if failed:
        words.append(f"not drawn: {failed} diverged")
    return "; ".join(words) + "."


def curve_plot(
    x: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, float] | None = None,
    level: float = 0.95,
) -> Figure:
    """Scores over time, one line and one band of seeds per arm.

    Args:
        x: time [T].
        scores: arm -> [n_seeds, T].
        title: of the figure.
        x_label: of time, with its unit.
        y_label: of the score, with its unit.
        lines: label -> height of a horizontal reference.
        level: coverage of the pointwise band.

    Returns:
        The figure; its caption says what line and band are and how many seeds they stand for.

    Raises:
        ValueError: no arm, or scores that do not fit x.
    """
    x = np.asarray(x, np.float64)
    arms = {name: np.asarray(values, np.float64) for name, values in scores.items()}
    if not arms or any(v.ndim != 2 or len(v) < 1 or v.shape[1:] != x.shape for v in arms.values()):
        shapes = {name: values.shape for name, values in arms.items()}
        raise ValueError(f"scores: expected arrays [n_seeds, {x.size}], got {shapes}")
    with sized_figure(7.6, 4.5) as figure:
        axes = figure.add_subplot()
        failed = draw_arms(axes, arms, level, lambda y: (np.broadcast_to(x, y.shape), y))
        for name, height in (lines or {}).items():
            axes.axhline(height, color=MUTED, lw=1.1, ls=(0, (1, 2)))
            axes.annotate(
                name,
                (1, height),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=MUTED,
                path_effects=halo(),
            )
        axes.margins(x=0.01)
        if (x == np.round(x)).all():  # there are no 2.25 tasks
            axes.locator_params(axis="x", integer=True)
        axes.set(xlabel=x_label, ylabel=textwrap.fill(y_label, LETTERS_OF_Y_LABEL))
        title_and_legend(figure, axes, title)
        counts = [len(values) for values in arms.values()]
        add_caption(figure, _what_is_drawn(counts, failed, level))
        return figure


def draw_arms(
    axes: Axes,
    arms: Mapping[str, np.ndarray],
    level: float,
    place: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> int:
    """Band, single seeds and centre of every arm.

    Args:
        axes: where to.
        arms: name -> scores [n_seeds, X].
        level: of the band.
        place: scores [..., X] -> where they lie, two arrays of that shape.

    Returns:
        How many seeds diverged and are left out.
    """
    failed = 0
    for i, (name, values) in enumerate(arms.items()):
        colour, dashes = ARM_COLOURS[i % len(ARM_COLOURS)], ARM_DASHES[i % len(ARM_DASHES)]
        alive = np.isfinite(values).all(axis=1)
        failed += int((~alive).sum())
        if not alive.any():
            axes.plot([], [], color=colour, label=f"{name} (all seeds diverged)")
            continue
        centre, low, high = _pointwise(values[alive], level)
        edge = [np.concatenate([a, b[::-1]]) for a, b in zip(place(low), place(high))]
        axes.fill(*edge, color=colour, alpha=0.17, lw=0)
        if len(values) <= MAX_SEEDS_DRAWN_SINGLY:
            xs, ys = place(values[alive])
            axes.plot(xs.T, ys.T, color=colour, alpha=0.3, lw=0.7)
        axes.plot(*place(centre), color=colour, ls=dashes, lw=2.2, label=name)
    return failed


def profile_plot(
    key: Array,
    scores: Mapping[str, np.ndarray],
    taus: np.ndarray,
    *,
    title: str,
    x_label: str,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Figure:
    """Performance profiles: the share of runs that score above tau, with pointwise bootstrap bands.

    Args:
        key: of the bootstrap.
        scores: arm -> [n_seeds] or [n_seeds, tasks], finite.
        taus: fixed grid of scores [T], increasing.
        title: of the figure.
        x_label: of the score, with its unit.
        num_resamples: of the bootstrap.
        level: coverage of the band.

    Returns:
        The figure.

    Reference: Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2021), section 4.2.
    """
    import jax.numpy as jnp

    from jaxlab.stats.bootstrap import stratified_bootstrap
    from jaxlab.stats.metrics import performance_profile

    grid = jnp.asarray(taus, jnp.float32)
    with sized_figure(7.6, 4.2) as figure:
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(scores.items()):
            runs = jnp.asarray(values, jnp.float32)
            profile = stratified_bootstrap(
                key,
                runs,
                lambda sample: performance_profile(sample.reshape(-1), grid),
                num_resamples,
                level=level,
            )
            colour = ARM_COLOURS[i % len(ARM_COLOURS)]
            low, high = np.asarray(profile.low), np.asarray(profile.high)
            axes.fill_between(grid, low, high, color=colour, alpha=0.17, lw=0, step="post")
            dashes = ARM_DASHES[i % len(ARM_DASHES)]
            estimate = np.asarray(profile.estimate)
            label = f"{name} ({runs.size} runs)"
            axes.step(grid, estimate, where="post", color=colour, ls=dashes, lw=2.2, label=label)
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel=x_label, ylabel="share of runs with a higher score")
        title_and_legend(figure, axes, title)
        add_caption(
            figure, f"Band: pointwise {level:.0%} bootstrap interval, {num_resamples} resamples."
        )
        return figure

"""Figures of a verdict: intervals against thresholds, curves with bands, paired seeds, profiles.

Every function returns a `matplotlib.figure.Figure` and touches no global state (no pyplot), so a
caller saves it wherever and in whatever format it likes. Colours are those of Okabe and Ito, which
stay distinct under the common colour-vision deficiencies; line styles and symbols repeat the
information. Every band says in the caption what it is, of how many seeds.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_ARM_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
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
MIN_SEEDS_FOR_IQM = 5  # below, Yuen's interval does not exist
MAX_SEEDS_DRAWN_SINGLY = 10
_INK, _MUTED, _GRID = "#22211F", "#6B6862", "#E6E3DD"
_STYLE: Any = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.edgecolor": "#B9B5AD",
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


class IntervalRow(NamedTuple):
    """One part of a claim, in the units of its metric."""

    label: str
    kind: str  # "superiority", "equivalence", "bound" or "ordering"
    estimate: float
    low: float
    high: float
    threshold: float
    status: str


@contextlib.contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _title_and_legend(axes: Axes, title: str, entries: int) -> None:
    """Above the axes, where they take no width from the curves and hide none of them."""
    columns = 2 if entries == 4 else min(entries, 3)
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


def _caption(figure: Figure, text: str) -> None:
    """A line of small print under the axes, inside the constrained layout."""
    figure.supxlabel(text, fontsize=8, color=_MUTED, x=0.01, ha="left")


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


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
    with _figure(7.6, 1.5 + 0.5 * len(rows)) as figure:
        axes = figure.add_subplot()
        scaled = [relative_to_threshold(row) for row in rows]
        bounds = [v for triple in scaled for v in triple if np.isfinite(v)]
        margins = [-1.0] if any(row.kind == "equivalence" for row in rows) else []
        left, right = min([-0.15, *margins, *bounds]), max([2.0, *bounds])
        margin = 0.1 * (right - left)
        axes.set_xlim(left - margin, right + margin)
        axes.axvline(0, color="#B9B5AD", lw=1)
        axes.axvline(1, color=_INK, lw=1.4, ls=(0, (4, 2)))
        for y, (row, (estimate, low, high)) in enumerate(zip(rows, scaled)):
            colour = STATUS_COLOURS[row.status]
            if row.kind == "equivalence":
                axes.barh(y, 2, left=-1, height=0.62, color="#E9E6E0", zorder=0)
            if not np.isfinite([estimate, low, high]).all():
                axes.text(0.06, y, "no interval", color=_MUTED, va="center", fontsize=8.5)
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
                color=_MUTED,
                path_effects=_halo(),
            )
        axes.set_yticks(range(len(rows)), [f"{r.label}\n{_status_words(r)}" for r in rows])
        for label, row in zip(axes.get_yticklabels(), rows):
            label.set_color(STATUS_COLOURS[row.status])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.45, -0.65)
        axes.set_xlabel("effect / threshold (dashed line: the threshold)")
        axes.set_title(title)
        _caption(figure, caption)
        return figure


def _status_words(row: IntervalRow) -> str:
    sign = {"equivalence": "within ±", "bound": "≤ "}.get(row.kind, "≥ ")
    return f"{row.status.replace('_', ' ')} ({sign}{row.threshold:g})"


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
    failed = 0
    with _figure(7.6, 4.5) as figure:
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(arms.items()):
            colour = ARM_COLOURS[i % len(ARM_COLOURS)]
            alive = np.isfinite(values).all(axis=1)
            failed += int((~alive).sum())
            if not alive.any():
                axes.plot([], [], color=colour, label=f"{name} (all seeds diverged)")
                continue
            centre, low, high = _pointwise(values[alive], level)
            axes.fill_between(x, low, high, color=colour, alpha=0.17, lw=0)
            if len(values) <= MAX_SEEDS_DRAWN_SINGLY:
                axes.plot(x, values[alive].T, color=colour, alpha=0.3, lw=0.7)
            dashes = _ARM_DASHES[i % len(_ARM_DASHES)]
            axes.plot(x, centre, color=colour, ls=dashes, lw=2.2, label=name)
        for name, height in (lines or {}).items():
            axes.axhline(height, color=_MUTED, lw=1.1, ls=(0, (1, 2)))
            axes.annotate(
                name,
                (1, height),
                (-2, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=_MUTED,
                path_effects=_halo(),
            )
        axes.margins(x=0.01)
        axes.set(xlabel=x_label, ylabel=y_label)
        _title_and_legend(axes, title, len(arms))
        counts = [len(values) for values in arms.values()]
        _caption(figure, _what_is_drawn(counts, failed, level))
        return figure


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
    failed = 0
    with _figure(6.2, 5.6) as figure:
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(arms.items()):
            colour = ARM_COLOURS[i % len(ARM_COLOURS)]
            alive = np.isfinite(values).all(axis=1)
            failed += int((~alive).sum())
            if not alive.any():
                axes.plot([], [], color=colour, label=f"{name} (all seeds diverged)")
                continue
            centre, low, high = _pointwise(values[alive], level)
            edge = np.concatenate([low * x, (high * x)[::-1]])
            axes.fill(edge, np.concatenate([low * y, (high * y)[::-1]]), color=colour, alpha=0.17)
            if len(values) <= MAX_SEEDS_DRAWN_SINGLY:
                rays = values[alive].T
                axes.plot(rays * x[:, None], rays * y[:, None], color=colour, alpha=0.3, lw=0.7)
            dashes = _ARM_DASHES[i % len(_ARM_DASHES)]
            axes.plot(centre * x, centre * y, color=colour, ls=dashes, lw=2.2, label=name)
        axes.set(xlabel=x_label, ylabel=y_label)
        _title_and_legend(axes, title, len(arms))
        counts = [len(values) for values in arms.values()]
        words = f"Along each ray from the origin. {_what_is_drawn(counts, failed, level)}"
        _caption(figure, textwrap.fill(words, 90))
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
    with _figure(6.6, 5.8) as figure:
        axes = figure.add_subplot()
        shades = axes.contourf(x, y, mean.T, levels=16, cmap="cividis")
        axes.contour(x, y, mean.T, levels=8, colors="white", linewidths=0.5, alpha=0.6)
        bar = figure.colorbar(shades, ax=axes)
        bar.set_label(height_label)
        bar.outline.set_visible(False)
        top = np.unravel_index(np.argmax(mean), mean.shape)
        axes.plot(x[top[0]], y[top[1]], "*", color="white", ms=15, mec=_INK, label="highest mean")
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
        _title_and_legend(axes, title, 1 + len(points))
        words = f"Shades: mean over n = {len(table)} seeds; symbols: single seeds."
        _caption(figure, words)
        return figure


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
    with _figure(7.6, 0.9 + 2.35 * len(rows)) as figure:
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
        _caption(figure, caption)
        return figure


def _draw_slopes(axes: Axes, row: PairedRow, treatment: np.ndarray, control: np.ndarray) -> None:
    for c, t in zip(control, treatment):
        colour = ARM_COLOURS[0] if t >= c else ARM_COLOURS[1]
        axes.plot([0, 1], [c, t], color=colour, ls="-" if t >= c else (0, (4, 2)), lw=1, alpha=0.6)
    axes.plot(np.zeros_like(control), control, "o", color=_INK, ms=3)
    axes.plot(np.ones_like(treatment), treatment, "o", color=_INK, ms=3)
    names = [textwrap.fill(name, 16) for name in (row.control_name, row.treatment_name)]
    axes.set_xticks([0, 1], names, color=_INK, fontsize=9)
    axes.set_xlim(-0.25, 1.25)
    axes.grid(axis="x", visible=False)


def _draw_differences(axes: Axes, row: PairedRow, difference: np.ndarray) -> None:
    """A strip of dots above the interval; heights repeat the golden ratio, so nothing is random."""
    heights = 0.35 + 0.5 * ((np.arange(len(difference)) * 0.618034) % 1)
    ci = row.interval
    axes.plot(difference, heights, "o", color=_INK, ms=4, alpha=0.55, mew=0)
    axes.axvline(0, color="#B9B5AD", lw=1)
    limits = (-ci.threshold, ci.threshold) if ci.kind == "equivalence" else (ci.threshold,)
    for limit in limits:
        axes.axvline(limit, color=_INK, lw=1.3, ls=(0, (4, 2)))
    colour = STATUS_COLOURS[ci.status]
    if np.isfinite([ci.low, ci.high, ci.estimate]).all():
        axes.plot([ci.low, ci.high], [0.12, 0.12], color=colour, lw=3, solid_capstyle="round")
        marker = STATUS_MARKERS[ci.status]
        axes.plot(ci.estimate, 0.12, marker, color=colour, ms=8, mec="white", mew=1.2, zorder=3)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{row.treatment_name} - {row.control_name}, {_status_words(ci)}", fontsize=8.5)


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
    with _figure(7.6, 4.2) as figure:
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
            dashes = _ARM_DASHES[i % len(_ARM_DASHES)]
            estimate = np.asarray(profile.estimate)
            label = f"{name} ({runs.size} runs)"
            axes.step(grid, estimate, where="post", color=colour, ls=dashes, lw=2.2, label=label)
        axes.set_ylim(-0.02, 1.02)
        axes.set(xlabel=x_label, ylabel="share of runs with a higher score")
        _title_and_legend(axes, title, len(scores))
        _caption(
            figure, f"Band: pointwise {level:.0%} bootstrap interval, {num_resamples} resamples."
        )
        return figure

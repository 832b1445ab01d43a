import io

import jax
import numpy as np
import pytest

from jaxlab.stats.plots import (
    IntervalRow,
    PairedRow,
    curve_plot,
    front_plot,
    interval_plot,
    landscape_plot,
    paired_plot,
    profile_plot,
    relative_to_threshold,
)


def row(kind, estimate, low, high, threshold, status="inconclusive"):
    return IntervalRow("part", kind, estimate, low, high, threshold, status)


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer)
    return buffer.getvalue()


def texts(figure):
    import matplotlib.text

    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (row("superiority", 1.0, 0.5, 1.5, 0.5), (2, 1, 3)),
        (row("ordering", 0.0, -0.5, 0.5, 0.5), (0, -1, 1)),
        # Non-inferiority with margin 80: no loss is twice as good as needed.
        (row("superiority", 0.0, -80.0, 40.0, -80.0), (2, 1, 2.5)),
        (row("equivalence", 0.0, -0.3, 0.15, 0.15), (0, -2, 1)),
        # An upper bound of 9: exactly there is 1, below is to the right.
        (row("bound", 9.0, 4.5, 18.0, 9.0), (1, 0, 1.5)),
        (row("superiority", 1.0, 0.0, 2.0, 0.0), (2, 1, 3)),
    ],
)
def test_relative_to_threshold(given, expected):
    assert relative_to_threshold(given) == pytest.approx(expected)


def test_the_decision_is_readable_on_the_common_scale():
    rng = np.random.default_rng(0)
    for _ in range(200):
        threshold = rng.normal()
        low, estimate, high = np.sort(rng.normal(size=3))
        for kind in ("superiority", "bound"):
            scaled = relative_to_threshold(row(kind, estimate, low, high, threshold))
            assert scaled[1] <= scaled[0] <= scaled[2]
            reached = low >= threshold if kind == "superiority" else high <= threshold
            missed = high < threshold if kind == "superiority" else low > threshold
            assert (scaled[1] >= 1) == reached and (scaled[2] < 1) == missed


def test_interval_plot_draws_the_given_limits():
    rows = [
        row("superiority", 1.0, 0.75, 1.25, 0.5, "reproduced"),
        row("equivalence", 0.0, -0.1, 0.1, 0.2, "reproduced"),
        row("superiority", np.nan, np.nan, np.nan, 0.5, "invalid"),
    ]
    figure = interval_plot(rows, title="t", caption="20 seeds")
    bars = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_linewidth() == 3]
    assert bars == [pytest.approx([1.5, 2.5]), pytest.approx([-0.5, 0.5])]
    assert "no interval" in texts(figure) and "20 seeds" in texts(figure)
    assert png(figure).startswith(b"\x89PNG")


def test_interval_plot_says_its_unit_where_the_threshold_is_zero():
    zero, other = (row("superiority", 1.0, 0.5, 1.5, threshold) for threshold in (0.0, 0.5))
    words = "half the interval"
    assert words in texts(interval_plot([other, zero], title="t", caption="20 seeds"))
    equal = row("equivalence", 0.0, 0.0, 0.0, 0.1)
    assert words not in texts(interval_plot([other, equal], title="t", caption="20 seeds"))


def test_a_long_y_label_stays_clear_of_the_small_print():
    label = "dominated volume, share of the box up to the own models"
    scores = {f"an arm with a long name, {i}": np.ones((6, 3)) * i for i in range(10)}
    figure = curve_plot(np.arange(2, 5), scores, title="T", x_label="X", y_label=label)
    png(figure)  # lays it out
    (axes,) = figure.axes
    caption, beside = figure._supxlabel.get_window_extent(), axes.yaxis.label.get_window_extent()
    assert beside.y0 > caption.y1 and beside.y1 < figure.bbox.y1


def test_ticks_of_counts_are_whole():
    figure = curve_plot(
        np.arange(2, 5), {"a": np.ones((6, 3))}, title="T", x_label="tasks", y_label="Y"
    )
    png(figure)
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())


@pytest.mark.parametrize(("n", "words"), [(3, ("mean", "Student", "thin")), (12, ("Yuen",))])
def test_curve_plot_says_what_it_draws(n, words):
    x = np.arange(4)
    scores = np.random.default_rng(0).normal(size=(n, 4))
    figure = curve_plot(
        x, {"a": scores, "b": scores + 1}, title="T", x_label="X", y_label="Y", lines={"top": 2.0}
    )
    text = texts(figure)
    for word in (*words, f"n = {n} seeds", "T", "X", "Y", "top", "a", "b", "95%"):
        assert word in text
    assert png(figure).startswith(b"\x89PNG")


def test_curve_plot_centre_is_the_interquartile_mean():
    import scipy.stats

    scores = np.random.default_rng(0).normal(size=(16, 5)) ** 3
    figure = curve_plot(np.arange(5), {"a": scores}, title="", x_label="", y_label="")
    (line,) = [line for line in figure.axes[0].lines if line.get_linewidth() == 2.2]
    np.testing.assert_allclose(line.get_ydata(), scipy.stats.trim_mean(scores, 0.25), rtol=1e-12)


def test_curve_plot_counts_diverged_seeds():
    scores = np.ones((6, 3))
    scores[1, 2] = np.nan
    dead = np.full((6, 3), np.nan)
    figure = curve_plot(np.arange(3), {"a": scores, "b": dead}, title="", x_label="", y_label="")
    assert "7 diverged" in texts(figure) and "all seeds diverged" in texts(figure)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "a")
    np.testing.assert_allclose(line.get_ydata(), 1)  # of the seeds that live, to the end
    png(figure)


def test_front_plot_draws_the_mean_radius_along_each_ray():
    angles = np.linspace(0, np.pi / 2, 7)
    radii = np.linspace(1, 2, 5)[:, None] * np.ones((5, 7))
    dead = np.full((5, 7), np.nan)
    figure = front_plot(angles, {"a": radii, "b": dead}, title="t", x_label="x", y_label="y")
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_label() == "a")
    np.testing.assert_allclose(np.hypot(*line.get_xydata().T), 1.5)
    np.testing.assert_allclose(np.arctan2(*line.get_xydata().T[::-1]), angles)
    assert "not drawn: 5 diverged" in " ".join(figure._supxlabel.get_text().split())
    with pytest.raises(ValueError, match="radii: expected arrays"):
        front_plot(angles, {"a": radii[:, 1:]}, title="", x_label="", y_label="")


def test_landscape_plot_marks_the_highest_mean_and_keeps_points_inside():
    x, y = np.linspace(0, 1, 5), np.linspace(0, 2, 9)
    bump = -((x[:, None] - 0.25) ** 2) - (y[None] - 1.5) ** 2
    heights = np.stack([bump + 1, bump - 1])
    words = {"title": "t", "x_label": "x", "y_label": "y", "height_label": "h"}
    points = {"a": np.array([[0.5, 0.5], [3.0, -1.0]])}
    figure = landscape_plot(x, y, heights, points, **words)
    axes, bar = figure.axes
    top, searched = axes.lines
    np.testing.assert_allclose(top.get_xydata(), [[0.25, 1.5]])
    np.testing.assert_allclose(searched.get_xydata(), [[0.5, 0.5], [1.0, 0.0]])
    assert bar.get_ylabel() == "h" and "n = 2 seeds" in texts(figure)
    with pytest.raises(ValueError, match=r"heights: expected \[n_seeds, 5, 9\]"):
        landscape_plot(x, y, heights[:, :3], points, **words)
    with pytest.raises(ValueError, match="points: expected"):
        landscape_plot(x, y, heights, {"a": np.ones(2)}, **words)


@pytest.mark.parametrize("scores", [{}, {"a": np.ones(3)}, {"a": np.ones((2, 4))}])
def test_curve_plot_refuses_wrong_shapes(scores):
    with pytest.raises(ValueError, match="scores: expected"):
        curve_plot(np.arange(3), scores, title="", x_label="", y_label="")


def test_paired_plot_draws_each_seed():
    control = np.arange(6.0)
    treatment = control + np.array([1, 1, 1, -1, 1, np.nan])
    kinds = [row(k, 1, 0, 2, 0.5) for k in ("superiority", "equivalence")]
    rows = [PairedRow("p", "new", "old", treatment, control, r) for r in kinds]
    figure = paired_plot(rows, title="t")
    slopes, strip = figure.axes[:2]
    assert len([line for line in slopes.lines if len(line.get_xdata()) == 2]) == 5
    np.testing.assert_array_equal(strip.lines[0].get_xdata(), [1, 1, 1, -1, 1])
    assert "1 diverged" in texts(figure)
    png(figure)


def test_long_names_of_arms_stay_within_the_figure():
    names = "evolved per layer and part", "random search per layer and part"
    arms = np.arange(6.0) + 1, np.arange(6.0)
    part = row("superiority", 1, 0.5, 1.5, 0.0, "not_reproduced")
    figure = paired_plot([PairedRow("p", *names, *arms, part)] * 2, title="t")
    png(figure)  # lays it out
    for strip in figure.axes[1::2]:
        label = strip.xaxis.label.get_window_extent()
        assert label.x1 < figure.bbox.x1 and label.x0 > figure.axes[0].get_window_extent().x1
        assert "".join(strip.get_xlabel().split("\n")).endswith("(≥ 0)")


def test_profile_plot_is_the_share_above():
    scores = {"a": np.arange(10.0), "b": np.ones((4, 2))}
    taus = np.array([-1.0, 4.5, 9.0])
    figure = profile_plot(jax.random.key(0), scores, taus, title="t", x_label="x", num_resamples=50)
    a, b = figure.axes[0].lines
    np.testing.assert_allclose(a.get_ydata(), [1, 0.5, 0])
    np.testing.assert_allclose(b.get_ydata(), [1, 0, 0])
    assert "8 runs" in texts(figure) and "50 resamples" in texts(figure)
    png(figure)


def test_plots_leave_the_global_style_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    interval_plot([row("superiority", 1, 0, 2, 0.5)], title="t")
    assert dict(matplotlib.rcParams) == before


def test_legends_fit_over_their_axes():
    arms = {f"an arm with a name of some length, {i}": np.zeros((3, 4)) for i in range(7)}
    figure = curve_plot(np.arange(4), arms, title="", x_label="", y_label="")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.get_legend().get_window_extent().x1 <= axes.get_window_extent().x1

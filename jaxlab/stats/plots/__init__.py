"""Figures of a verdict: intervals against thresholds, curves with bands, paired seeds, profiles.

Every function returns a `matplotlib.figure.Figure` and touches no global state (no pyplot), so a
caller saves it wherever and in whatever format it likes. Colours are those of Okabe and Ito, which
stay distinct under the common colour-vision deficiencies; line styles and symbols repeat the
information. Every band says in the caption what it is, of how many seeds.
"""

from jaxlab.stats.plots.curves import curve_plot, profile_plot
from jaxlab.stats.plots.intervals import IntervalRow, interval_plot, relative_to_threshold
from jaxlab.stats.plots.pairs import PairedRow, paired_plot
from jaxlab.stats.plots.planes import front_plot, landscape_plot

__all__ = [
    "IntervalRow",
    "PairedRow",
    "curve_plot",
    "front_plot",
    "interval_plot",
    "landscape_plot",
    "paired_plot",
    "profile_plot",
    "relative_to_threshold",
]

"""Confidence intervals of a mean, a trimmed mean, a difference and a proportion.

All work on the last axis, under jit, vmap and grad: a quantile depends only on static sizes and
the level, so it is a constant of the compiled program. NumPy input is answered in NumPy at its own
precision (decisions are taken in float64), anything else in JAX.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.arrays import safe_sqrt
from jaxlab.stats._arrays import (
    AnyArray,
    as_float,
    check_fraction,
    check_size,
    namespace,
)
from jaxlab.stats.bootstrap import Bootstrap, resample_seeds, stratified_bootstrap
from jaxlab.stats.metrics import trimmed_mean

__all__ = [
    "Bootstrap",
    "Interval",
    "clopper_pearson_interval",
    "mean_error",
    "proportion_interval",
    "resample_seeds",
    "stratified_bootstrap",
    "t_interval",
    "t_quantile",
    "trimmed_mean_error",
    "welch_interval",
    "wilson_interval",
    "yuen_interval",
]


class Interval(NamedTuple):
    """A two-sided confidence interval; a named tuple of arrays with the same leading axes."""

    estimate: Any  # [*b]
    low: Any  # [*b]
    high: Any  # [*b]


def t_quantile(level: float, df: Any) -> Any:
    """Half-width, in standard errors, of the two-sided Student interval (static `df`)."""
    from scipy.special import stdtrit

    check_fraction("level", level)
    return stdtrit(df, 0.5 + level / 2)


def _mean_variance(x: Any) -> tuple[Any, Any]:
    """Mean and unbiased variance; equal values give exactly that value and exactly zero."""
    xp = namespace(x)
    first = x[..., :1]
    shifted = x - first
    mean = xp.mean(shifted, axis=-1, keepdims=True)
    variance = xp.sum((shifted - mean) ** 2, axis=-1) / (x.shape[-1] - 1)
    return (first + mean)[..., 0], variance


def mean_error(x: Float[AnyArray, "*b n"]) -> tuple[Any, Any, int]:
    """Mean [*b], its standard error [*b] and the degrees of freedom, from n >= 2 values."""
    x = as_float(x)
    check_size("d", x, 2)
    n = x.shape[-1]
    mean, variance = _mean_variance(x)
    return mean, safe_sqrt(variance) / math.sqrt(n), n - 1


def trimmed_mean_error(x: Float[AnyArray, "*b n"], trim: float) -> tuple[Any, Any, int]:
    """Trimmed mean [*b], Yuen's standard error [*b] and degrees of freedom, from n >= 5 values."""
    x = as_float(x)
    xp = namespace(x)
    check_size("d", x, 5)
    mean = trimmed_mean(x, trim)
    n = x.shape[-1]
    g = int(trim * n)
    h = n - 2 * g
    if h < 2:
        raise ValueError(f"trim: expected to leave at least 2 of {n} values, got {trim!r}")
    ordered = xp.sort(x, axis=-1)
    winsorised = xp.clip(ordered, ordered[..., g : g + 1], ordered[..., n - g - 1 : n - g])
    _, variance = _mean_variance(winsorised)
    return mean, safe_sqrt(variance) * math.sqrt((n - 1) / (h * (h - 1))), h - 1


def _around(center: Any, half: Any) -> Interval:
    return Interval(center, center - half, center + half)


def t_interval(d: Float[AnyArray, "*b n"], level: float = 0.95) -> Interval:
    """Student t interval of the mean.

    Args:
        d: independent values, for instance one paired difference per seed [*b, n], n >= 2.
        level: coverage.

    Returns:
        Mean and interval, each [*b]; exactly zero width for equal values, NaN if any is NaN.

    Raises:
        ValueError: fewer than two values, or a level outside (0, 1).
    """
    center, error, df = mean_error(d)
    return _around(center, float(t_quantile(level, df)) * error)


def yuen_interval(d: Float[AnyArray, "*b n"], level: float = 0.95, trim: float = 0.25) -> Interval:
    """Yuen's interval of the trimmed mean (the interquartile mean at `trim=0.25`).

    Args:
        d: independent values [*b, n], n >= 5.
        level: coverage.
        trim: share of values trimmed from each end.

    Returns:
        Trimmed mean and interval, each [*b]; zero width for equal values, NaN if any is NaN.

    Raises:
        ValueError: fewer than five values, trim outside [0, 0.5) or leaving fewer than two of them,
            or a level outside (0, 1).

    Reference: Yuen, The two-sample trimmed t for unequal population variances (1974).

    Pitfall: `scipy.stats.mstats.trimmed_mean_ci` uses s_w / ((1 - 2g/n) sqrt(n)) with g = trim n,
        which is slightly smaller than Yuen's s_w sqrt((n - 1) / (h (h - 1))) used here.
    """
    center, error, df = trimmed_mean_error(d, trim)
    return _around(center, float(t_quantile(level, df)) * error)


def welch_interval(
    x: Float[AnyArray, "*b n"], y: Float[AnyArray, "*b m"], level: float = 0.95
) -> Interval:
    """Welch's interval of mean(x) - mean(y) for unpaired arms of unequal variance.

    Args:
        x: independent values of one arm [*b, n], n >= 2.
        y: independent values of the other arm [*b, m], m >= 2.
        level: coverage.

    Returns:
        Difference of means and interval, each [*b]; zero width if both arms are constant.

    Raises:
        ValueError: fewer than two values in an arm, or a level outside (0, 1).

    Reference: Welch, The generalization of Student's problem (1947).

    Pitfall: never for paired seeds (ignores their correlation), and Student's pooled version has
        false positives when variances differ.
    """
    x, y = as_float(x), as_float(y)
    check_size("x", x, 2)
    check_size("y", y, 2)
    xp = namespace(x, y)
    n, m = x.shape[-1], y.shape[-1]
    mean_x, var_x = _mean_variance(x)
    mean_y, var_y = _mean_variance(y)
    total = var_x / n + var_y / m
    constant = total == 0
    share = (var_x / n) / xp.where(constant, xp.ones_like(total), total)
    spread = share**2 / (n - 1) + (1 - share) ** 2 / (m - 1)  # reciprocal degrees of freedom
    # The degrees of freedom are traced but lie in a static range, over which the quantile is smooth
    # in their reciprocal: interpolate an exact table instead of inverting the distribution.
    grid = np.linspace(1 / (n + m - 2), 1 / (min(n, m) - 1), 1025)
    # Half precision cannot hold the grid.
    wide = total.dtype if jnp.finfo(total.dtype).bits >= 32 else np.dtype(np.float32)
    knots, table = (xp.asarray(v, wide) for v in (grid, t_quantile(level, 1 / grid)))
    quantile = xp.interp(spread.astype(wide), knots, table).astype(total.dtype)
    return _around(mean_x - mean_y, quantile * safe_sqrt(total))


def _check_trials(k: Any, n: int) -> None:
    if n < 1:
        raise ValueError(f"n: expected at least one trial, got {n!r}")
    if isinstance(k, int | np.integer) and not 0 <= k <= n:
        raise ValueError(f"k: expected between 0 and n = {n} successes, got {k!r}")


def wilson_interval(k: int | Int[Array, "*b"], n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion.

    Args:
        k: successes [*b], 0 <= k <= n.
        n: trials (static).
        level: coverage.

    Returns:
        k / n and interval, each [*b], inside [0, 1].

    Raises:
        ValueError: no trials, a Python `k` outside 0..n, or a level outside (0, 1).

    Reference: Wilson, Probable inference (1927).
    """
    from scipy.special import ndtri

    _check_trials(k, n)
    check_fraction("level", level)
    z = float(ndtri(0.5 + level / 2))
    successes = jnp.asarray(k)
    p = successes.astype(float) / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * jnp.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # At the ends one limit is 0 or 1 by algebra, but only up to rounding by arithmetic.
    low = jnp.where(successes == 0, 0.0, center - half)
    high = jnp.where(successes == n, 1.0, center + half)
    return Interval(p, low, high)


def clopper_pearson_interval(k: int | Int[Array, "*b"], n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact (conservative) interval of a proportion.

    Args:
        k: successes [*b], 0 <= k <= n.
        n: trials (static; the limits for all n + 1 outcomes become a table).
        level: coverage.

    Returns:
        k / n and interval, each [*b], inside [0, 1].

    Raises:
        ValueError: no trials, a Python `k` outside 0..n, or a level outside (0, 1).

    Reference: Clopper and Pearson, The use of confidence or fiducial limits (1934).
    """
    from scipy.special import betaincinv

    _check_trials(k, n)
    check_fraction("level", level)
    tail = (1 - level) / 2
    ks = np.arange(n + 1)
    low = np.zeros(n + 1)
    low[1:] = betaincinv(ks[1:], n - ks[1:] + 1, tail)
    high = np.ones(n + 1)
    high[:-1] = betaincinv(ks[:-1] + 1, n - ks[:-1], 1 - tail)
    successes = jnp.asarray(k)
    return Interval(
        successes.astype(float) / n,
        jnp.asarray(low, float)[successes],
        jnp.asarray(high, float)[successes],
    )


def proportion_interval(k: int | Int[Array, "*b"], n: int, level: float = 0.95) -> Interval:
    """Interval of a proportion: Clopper-Pearson at 0 or n successes, Wilson in between.

    Args:
        k: successes [*b], 0 <= k <= n.
        n: trials (static).
        level: coverage.

    Returns:
        k / n and interval, each [*b], inside [0, 1].
    """
    at_end = (jnp.asarray(k) == 0) | (jnp.asarray(k) == n)
    exact, score = clopper_pearson_interval(k, n, level), wilson_interval(k, n, level)
    return Interval(*(jnp.where(at_end, e, s) for e, s in zip(exact, score)))

"""How many seeds a claim needs. Host functions, exact up to quadrature."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from jaxlab.stats._arrays import check_fraction
from jaxlab.stats.intervals import t_quantile

_LIMIT = 10_000_000


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(400)


def _average_over_sd(n: int, fn: Callable[[np.ndarray], np.ndarray]) -> float:
    """Expectation of `fn(s)` over the sample standard deviation s of n unit normals."""
    from scipy.special import gammaincinv

    nodes, weights = _quadrature()
    df = n - 1
    s = np.sqrt(2 / df * gammaincinv(df / 2, (nodes + 1) / 2))
    return float(np.sum(weights / 2 * fn(s)))


def _superiority_power(d: float, n: int, alpha: float) -> float:
    from scipy.special import ndtr

    t = t_quantile(1 - alpha, n - 1)
    return _average_over_sd(n, lambda s: ndtr(np.sqrt(n) * d - t * s))


def _equivalence_power(margin: float, n: int, alpha: float) -> float:
    from scipy.special import ndtr

    t = t_quantile(1 - 2 * alpha, n - 1)
    return _average_over_sd(n, lambda s: np.maximum(0.0, 2 * ndtr(np.sqrt(n) * margin - t * s) - 1))


def _smallest(reached: Callable[[int], bool], what: str) -> int:
    high = 2
    while not reached(high):
        high *= 2
        if high > _LIMIT:
            raise ValueError(f"{what}: expected an effect within reach of {_LIMIT} seeds")
    low = high // 2  # not reached, or 1 when two seeds are enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def seeds_for_power(d: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Seeds for a superiority claim to come out `reproduced` with the given probability.

    Args:
        d: (true effect - threshold) / standard deviation of the paired differences, positive.
        power: wanted probability that the lower limit reaches the threshold.
        alpha: one minus the level of the two-sided interval.

    Returns:
        The smallest number of seeds, at least 2.

    Raises:
        ValueError: `d` not positive or beyond ten million seeds; power or alpha not in (0, 1).
    """
    if not d > 0:
        raise ValueError(f"d: expected a positive standardised effect, got {d!r}")
    check_fraction("power", power)
    check_fraction("alpha", alpha)
    return _smallest(lambda n: _superiority_power(d, n, alpha) >= power, "d")


def tost_seeds(margin_over_sd: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Seeds for an equivalence claim to come out `reproduced` when the true difference is zero.

    Args:
        margin_over_sd: margin / standard deviation of the paired differences, positive.
        power: wanted probability that the 1 - 2 alpha interval lies inside the margins.
        alpha: level of each one-sided test.

    Returns:
        The smallest number of seeds, at least 2.

    Raises:
        ValueError: margin not positive or too small; power not in (0, 1); alpha not in (0, 0.5).
    """
    if not margin_over_sd > 0:
        raise ValueError(f"margin_over_sd: expected a positive number, got {margin_over_sd!r}")
    check_fraction("power", power)
    check_fraction("2 * alpha", 2 * alpha)
    return _smallest(
        lambda n: _equivalence_power(margin_over_sd, n, alpha) >= power, "margin_over_sd"
    )


def power_curve(d: float, seeds: Sequence[int], alpha: float = 0.05) -> np.ndarray:
    """Probability of `reproduced` for each number of seeds.

    Args:
        d: (true effect - threshold) / standard deviation of the paired differences; any sign.
        seeds: numbers of seeds, each at least 2.
        alpha: one minus the level of the two-sided interval.

    Returns:
        Probabilities, float64 [len(seeds)].

    Raises:
        ValueError: fewer than two seeds, or alpha outside (0, 1).
    """
    check_fraction("alpha", alpha)
    if any(n < 2 for n in seeds):
        raise ValueError(f"seeds: expected at least 2 everywhere, got {list(seeds)!r}")
    return np.array([_superiority_power(d, n, alpha) for n in seeds])

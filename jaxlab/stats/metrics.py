"""Summaries of scores (higher is better), each over the last axis.

Shape letters: `n`, `m` runs; `t` thresholds; `*b` any leading axes. For a run x task table flatten
first (`iqm(scores.reshape(-1))`) where the summary pools tasks, or put tasks on a leading axis.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.stats._arrays import AnyArray, AnyResult, as_float, check_size, namespace


def trimmed_mean(x: Float[AnyArray, "*b n"], trim: float) -> Float[AnyResult, "*b"]:
    """Mean after dropping `floor(trim * n)` values from each end.

    Args:
        x: values [*b, n].
        trim: share dropped from each end, 0 <= trim < 0.5.

    Returns:
        Trimmed mean [*b]; NaN if any value is NaN.

    Raises:
        ValueError: `trim` out of range, or no values.

    Pitfall: sorting puts NaN last, so a naive version trims diverged runs as if they were the best.
    """
    x = as_float(x)
    xp = namespace(x)
    check_size("x", x, 1)
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim: expected 0 <= trim < 0.5, got {trim!r}")
    n = x.shape[-1]
    g = int(trim * n)
    kept = xp.sort(x, axis=-1)[..., g : n - g]
    # Measured from one kept value, so that equal values average to exactly themselves.
    first = kept[..., :1]
    mean = (first + xp.mean(kept - first, axis=-1, keepdims=True))[..., 0]
    return xp.where(xp.any(xp.isnan(x), axis=-1), xp.full_like(mean, xp.nan), mean)


def iqm(x: Float[AnyArray, "*b n"]) -> Float[AnyResult, "*b"]:
    """Interquartile mean: the mean of the middle half of the values.

    Args:
        x: scores [*b, n]; pool runs and tasks on the last axis, normalised to one scale.

    Returns:
        IQM [*b]; the plain mean for n < 4; NaN if any score is NaN.

    Reference: Agarwal et al., Deep RL at the Edge of the Statistical Precipice (2021), section 4.3.

    Pitfall: blind to up to 25 % failed runs, and `iqm(a) - iqm(b) != iqm(a - b)`: decide on the
        IQM of paired differences and report the failure rate beside it.
    """
    return trimmed_mean(x, 0.25)


def optimality_gap(x: Float[Array, "*b n"], gamma: float = 1.0) -> Float[Array, "*b"]:
    """Mean shortfall of the scores below `gamma`; scores above it earn nothing more.

    Args:
        x: scores [*b, n].
        gamma: the score that counts as solved.

    Returns:
        `gamma - mean(min(x, gamma))`, [*b].

    Reference: Agarwal et al. (2021), section 4.3.
    """
    x = as_float(x)
    return gamma - jnp.mean(jnp.minimum(x, gamma), axis=-1)


def prob_improvement(
    x: Float[AnyArray, "*b n"], y: Float[AnyArray, "*b m"]
) -> Float[AnyResult, "*b"]:
    """Probability that a random run of X scores above a random run of Y, ties counted one half.

    Args:
        x: scores of X [*b, n]; put tasks on a leading axis and average the result over it.
        y: scores of Y [*b, m].

    Returns:
        Mann-Whitney U / (n m), [*b].

    Reference: Agarwal et al. (2021), section 4.3.

    Pitfall: an unpaired quantity that says nothing about the size of the improvement. A NaN score
        neither wins nor ties: replace it by the worst score first.
    """
    x, y = as_float(x), as_float(y)
    xp = namespace(x, y)
    check_size("x", x, 1)
    check_size("y", y, 1)
    left, right = x[..., :, None], y[..., None, :]
    wins = xp.mean(left > right, axis=(-2, -1), dtype=x.dtype)
    ties = xp.mean(left == right, axis=(-2, -1), dtype=x.dtype)
    return wins + 0.5 * ties


def sign_proportion(d: Float[AnyArray, "*b n"]) -> Float[AnyResult, "*b"]:
    """Share of positive paired differences, zeros counted one half.

    Args:
        d: paired differences [*b, n].

    Returns:
        `mean(d > 0) + mean(d == 0) / 2`, [*b]: the paired analogue of `prob_improvement`.
    """
    d = as_float(d)
    xp = namespace(d)
    check_size("d", d, 1)
    return xp.mean(d > 0, axis=-1, dtype=d.dtype) + 0.5 * xp.mean(d == 0, axis=-1, dtype=d.dtype)


def performance_profile(x: Float[Array, "*b n"], taus: Float[Array, " t"]) -> Float[Array, "*b t"]:
    """Share of runs that score strictly above each threshold.

    Args:
        x: scores [*b, n], runs and tasks pooled on the last axis.
        taus: thresholds [t], fixed before the run.

    Returns:
        F(tau) [*b, t], non-increasing in tau. A NaN score lies above no threshold.

    Reference: Agarwal et al. (2021), section 4.2 (run-score distribution).
    """
    x = as_float(x)
    taus = as_float(taus).astype(x.dtype)
    if taus.ndim != 1:
        raise ValueError(f"taus: expected one axis of thresholds, got shape {taus.shape}")
    taus = taus.reshape((1,) * (x.ndim - 1) + (-1, 1))
    return jnp.mean(x[..., None, :] > taus, axis=-1, dtype=x.dtype)


def normalize(
    x: Float[Array, "*b"], lo: float | Float[Array, "..."], hi: float | Float[Array, "..."]
) -> Float[Array, "*b"]:
    """Puts scores on the scale where `lo` (say random) is 0 and `hi` (say expert) is 1.

    Args:
        x: scores [*b].
        lo: score mapped to 0, broadcastable to x (per task: [k] beside x [n, k]).
        hi: score mapped to 1, broadcastable to x.

    Returns:
        `(x - lo) / (hi - lo)`, [*b], not clipped.

    Raises:
        ValueError: `lo` and `hi` are the same number.
    """
    x = as_float(x)
    if isinstance(lo, int | float) and isinstance(hi, int | float) and lo == hi:
        raise ValueError(f"hi: expected a score different from lo, got lo = hi = {lo!r}")
    lo_, hi_ = (jnp.broadcast_to(jnp.asarray(v, x.dtype), x.shape) for v in (lo, hi))
    return (x - lo_) / (hi_ - lo_)


def replace_diverged(
    x: Float[Array, "*b n"], worst: float
) -> tuple[Float[Array, "*b n"], Float[Array, "*b"]]:
    """Scores every diverged (non-finite) run as the worst attainable one.

    Args:
        x: scores [*b, n].
        worst: the worst attainable score.

    Returns:
        The scores with non-finite ones replaced [*b, n], and the failure rate [*b].

    Pitfall: dropping diverged runs rewards the arm that diverges.
    """
    x = as_float(x)
    finite = jnp.isfinite(x)
    return jnp.where(finite, x, worst), jnp.mean(~finite, axis=-1, dtype=x.dtype)

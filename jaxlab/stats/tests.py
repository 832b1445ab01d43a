"""Hypothesis tests, equivalence, multiplicity and rank correlation, over the last axis."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.arrays import safe_sqrt
from jaxlab.stats._arrays import as_float, check_fraction, check_size
from jaxlab.stats.intervals import mean_error, t_interval


def sign_flip_test(
    key: Array,
    d: Float[Array, "*b n"],
    num: int = 10_000,
    exact_up_to: int = 14,
    alternative: Literal["two-sided", "greater"] = "two-sided",
) -> Float[Array, "*b"]:
    """Randomisation test of paired differences: under the null every sign is as likely as its flip.

    Args:
        key: typed random key; unused when all 2^n sign patterns are enumerated.
        d: paired differences [*b, n].
        num: random sign patterns when n > exact_up_to.
        exact_up_to: largest n whose 2^n patterns are enumerated, at most 20.
        alternative: "two-sided", or "greater" for mean(d) > 0.

    Returns:
        p value [*b]; (1 + hits) / (1 + num) when sampled, so never zero; NaN if any d is NaN.

    Raises:
        ValueError: no values, an unknown alternative, num below one, or exact_up_to above 20.

    Reference: Fisher, The Design of Experiments (1935), section 21; Phipson and Smyth (2010).

    Pitfall: sums equal in mathematics differ by rounding; without a tolerance the observed pattern
        may not count as being as extreme as itself.
    """
    d = jnp.asarray(as_float(d))
    check_size("d", d, 1)
    if alternative not in ("two-sided", "greater"):
        raise ValueError(f"alternative: expected 'two-sided' or 'greater', got {alternative!r}")
    if exact_up_to > 20 or num < 1:
        raise ValueError(
            f"exact_up_to, num: expected at most 20 and at least 1, got {exact_up_to!r}, {num!r}"
        )
    n = d.shape[-1]
    exact = n <= exact_up_to
    if exact:
        bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
        signs = jnp.asarray(1 - 2 * bits, d.dtype)
    else:
        signs = jax.random.rademacher(key, (num, n), d.dtype)
    # Full precision: reduced-precision matrix units would break the ties.
    sums = jnp.einsum("...n,pn->...p", d, signs, precision="highest")
    observed = jnp.sum(d, axis=-1, keepdims=True)
    if alternative == "two-sided":
        sums, observed = jnp.abs(sums), jnp.abs(observed)
    slack = n * jnp.finfo(d.dtype).eps * jnp.sum(jnp.abs(d), axis=-1, keepdims=True)
    hits = jnp.sum(sums >= observed - slack, axis=-1, dtype=d.dtype)
    p = hits / 2**n if exact else (1 + hits) / (1 + num)
    return jnp.where(jnp.isnan(observed[..., 0]), jnp.nan, p)


class Equivalence(NamedTuple):
    """Two one-sided tests of |mean difference| < margin."""

    estimate: Any  # [*b] mean difference
    low: Any  # [*b] lower limit of the 1 - 2 alpha interval
    high: Any  # [*b] upper limit of the 1 - 2 alpha interval
    p_value: Any  # [*b] the larger of the two one-sided p values
    equivalent: Any  # [*b] bool: the interval lies strictly inside (-margin, margin)


def tost(d: Float[Array, "*b n"], margin: float, alpha: float = 0.05) -> Equivalence:
    """Two one-sided t tests: is the mean difference smaller than `margin` in both directions?

    Args:
        d: paired differences [*b, n], n >= 2.
        margin: largest difference that still counts as none, in the units of d.
        alpha: level of each one-sided test.

    Returns:
        The 1 - 2 alpha interval, p value and decision, each [*b].

    Raises:
        ValueError: a Python margin that is not positive, or alpha outside (0, 0.5).

    Reference: Schuirmann, A comparison of the two one-sided tests procedure (1987).

    Pitfall: a non-significant difference is never evidence of equality.
    """
    d = jnp.asarray(as_float(d))
    if isinstance(margin, int | float) and not margin > 0:
        raise ValueError(f"margin: expected a positive number, got {margin!r}")
    check_fraction("2 * alpha", 2 * alpha)
    center, low, high = t_interval(d, 1 - 2 * alpha)
    _, error, df = mean_error(d)
    inside = margin - jnp.abs(center)  # distance to the nearer margin: the binding test
    constant = error == 0
    t = inside / jnp.where(constant, 1.0, error)
    half, shape = jnp.full_like(t, 0.5), jnp.full_like(t, df / 2)
    tail = 0.5 * jax.scipy.special.betainc(shape, half, df / (df + t**2))
    p = jnp.where(t > 0, tail, 1 - tail)
    p = jnp.where(constant, jnp.where(inside > 0, 0.0, 1.0), p)
    return Equivalence(center, low, high, p, (low > -margin) & (high < margin))


def _adjust(p: Float[Array, " m"]) -> tuple[Array, Array]:
    p = jnp.asarray(as_float(p))
    if p.ndim != 1:
        raise ValueError(f"p: expected one axis of p values, got shape {p.shape}")
    p = jnp.where(jnp.isnan(p), 1.0, p)  # a test that could not be made rejects nothing
    order = jnp.argsort(p)
    return p[order], jnp.argsort(order)


def holm(p: Float[Array, " m"]) -> Float[Array, " m"]:
    """Adjusts p values so that rejecting those below alpha keeps the family-wise error at alpha.

    Args:
        p: p values [m]; NaN counts as 1.

    Returns:
        Adjusted p values [m], in the order given.

    Reference: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    ordered, back = _adjust(p)
    m = ordered.shape[0]
    scaled = ordered * jnp.arange(m, 0, -1).astype(ordered.dtype)
    return jnp.minimum(jax.lax.cummax(scaled), 1.0)[back]


def benjamini_hochberg(p: Float[Array, " m"]) -> Float[Array, " m"]:
    """q values: rejecting those below alpha keeps the expected share of false rejections at alpha.

    Args:
        p: p values [m]; NaN counts as 1.

    Returns:
        q values [m], in the order given.

    Reference: Benjamini and Hochberg, Controlling the false discovery rate (1995).
    """
    ordered, back = _adjust(p)
    m = ordered.shape[0]
    scaled = ordered * m / jnp.arange(1, m + 1).astype(ordered.dtype)
    return jnp.minimum(jax.lax.cummin(scaled, reverse=True), 1.0)[back]


def _pair(x: Any, y: Any) -> tuple[Array, Array, Array]:
    x, y = jnp.asarray(as_float(x)), jnp.asarray(as_float(y))
    check_size("x", x, 2)
    check_size("y", y, 2)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"y: expected {x.shape[-1]} values as in x, got shape {y.shape}")
    shape = np.broadcast_shapes(x.shape, y.shape)
    x, y = jnp.broadcast_to(x, shape), jnp.broadcast_to(y, shape)
    return x, y, jnp.any(jnp.isnan(x) | jnp.isnan(y), axis=-1)


def _cosine(a: Array, b: Array, axes: tuple[int, ...], nan: Array) -> Array:
    scale = safe_sqrt(jnp.sum(a * a, axis=axes) * jnp.sum(b * b, axis=axes))
    value = jnp.sum(a * b, axis=axes) / jnp.where(scale == 0, 1.0, scale)
    return jnp.where(nan, jnp.nan, value)


def _comparisons(x: Array) -> Array:
    left, right = x[..., :, None], x[..., None, :]
    return (left > right).astype(x.dtype) - (left < right).astype(x.dtype)


def kendall(x: Float[Array, "*#b n"], y: Float[Array, "*#b n"]) -> Float[Array, "*b"]:
    """Kendall's tau-b: how monotone is y in x, ties allowed.

    Args:
        x: positions, for instance sizes [*b, n] or [n].
        y: values [*b, n] or [n].

    Returns:
        tau in [-1, 1], [*b]; 0 if x or y is constant (no order to find); NaN if any value is NaN.

    Reference: Kendall, The treatment of ties in ranking problems (1945).
    """
    x, y, nan = _pair(x, y)
    return _cosine(_comparisons(x), _comparisons(y), (-2, -1), nan)


def spearman(x: Float[Array, "*#b n"], y: Float[Array, "*#b n"]) -> Float[Array, "*b"]:
    """Spearman's rank correlation, with average ranks for ties.

    Args:
        x: values [*b, n] or [n].
        y: values [*b, n] or [n].

    Returns:
        rho in [-1, 1], [*b]; 0 if x or y is constant; NaN if any value is NaN.

    Reference: Spearman, The proof and measurement of association between two things (1904).
    """
    x, y, nan = _pair(x, y)
    # Wins minus losses against all others is twice the centred average rank.
    ranks_x, ranks_y = jnp.sum(_comparisons(x), axis=-1), jnp.sum(_comparisons(y), axis=-1)
    return _cosine(ranks_x, ranks_y, (-1,), nan)

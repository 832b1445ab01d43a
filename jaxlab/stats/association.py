"""Association of two measurements over runs that come in clusters."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.arrays import safe_sqrt
from jaxlab.stats._arrays import as_float, check_size
from jaxlab.stats.bootstrap import Bootstrap, stratified_bootstrap
from jaxlab.stats.tests import kendall, spearman

Kind = Literal["pearson", "spearman", "kendall"]


def pearson(x: Float[Array, "*b n"], y: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    """Pearson's correlation.

    Args:
        x: values.
        y: values.

    Returns:
        r in [-1, 1]; NaN if x or y is constant, for then nothing is said about association.
    """
    x, y = jnp.asarray(as_float(x)), jnp.asarray(as_float(y))
    check_size("x", x, 2)
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {x.shape}, got {y.shape}")
    x, y = (v - jnp.mean(v, axis=-1, keepdims=True) for v in (x, y))
    scale = safe_sqrt(jnp.sum(x * x, axis=-1)) * safe_sqrt(jnp.sum(y * y, axis=-1))
    product = jnp.sum(x * y, axis=-1) / jnp.where(scale == 0, 1.0, scale)
    return jnp.where(scale == 0, jnp.nan, jnp.clip(product, -1, 1))


def correlation(
    x: Float[Array, "*b n"], y: Float[Array, "*b n"], kind: Kind = "spearman"
) -> Float[Array, "*b"]:
    """Correlation of a given kind.

    Args:
        x: values.
        y: values.
        kind: "pearson", "spearman" (ranks, ties averaged) or "kendall" (tau-b).

    Returns:
        The coefficient; NaN if x or y is constant or holds a NaN. (`spearman` and `kendall` of
        this package call a constant unordered, and answer 0.)

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
    value = {"pearson": pearson, "spearman": spearman, "kendall": kendall}[kind](x, y)
    x, y = jnp.asarray(as_float(x)), jnp.asarray(as_float(y))
    constant = (jnp.ptp(x, axis=-1) == 0) | (jnp.ptp(y, axis=-1) == 0)
    return jnp.where(constant, jnp.nan, value)


def partial_correlation(
    x: Float[Array, "*b n"], y: Float[Array, "*b n"], given: Float[Array, "*b n"]
) -> Float[Array, "*b"]:
    """Pearson's correlation of what a third measurement does not explain linearly.

    Args:
        x: values.
        y: values.
        given: the third measurement.

    Returns:
        The coefficient; NaN if one of the three is constant, or the third explains one entirely.

    Reference:
        Fisher 1924, The distribution of the partial correlation coefficient.
    """
    xy, xz, yz = pearson(x, y), pearson(x, given), pearson(y, given)
    left = (1 - xz**2, 1 - yz**2)  # shares of the variance that are not explained
    # Of what is explained entirely, rounding leaves a few units of the last place.
    explained = jnp.minimum(*left) <= 32 * jnp.finfo(xy.dtype).eps
    scale = safe_sqrt(jnp.where(explained, 0, left[0] * left[1]))
    return jnp.where(scale == 0, jnp.nan, (xy - xz * yz) / jnp.where(scale == 0, 1.0, scale))


def cluster_bootstrap(
    key: Array,
    x: Float[Array, "G m"],
    y: Float[Array, "G m"],
    statistic: Callable[[Array, Array], Any],
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Bootstrap:
    """Percentile interval of an association, resampling whole clusters.

    Args:
        key: typed random key.
        x: m members of each of G clusters, for instance the models of one training seed.
        y: the other measurement of the same members.
        statistic: of the members of all clusters, (x[G m], y[G m]) -> any pytree.
        num_resamples: number of resamples.
        level: coverage.

    Returns:
        Estimate, percentile limits and draws. With one member per cluster it is the ordinary
        bootstrap, number for number.

    Raises:
        ValueError: if x and y have not one shape [G, m].

    Reference:
        Davison & Hinkley 1997, Bootstrap methods and their application, section 3.8.

    Pitfall:
        Members of a cluster share their data and their luck; resampling them one by one pretends
        that there are G m independent ones.
    """
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"x, y: expected one shape [G, m], got {x.shape} and {y.shape}")

    def of_all(pair: tuple[Array, Array]) -> Any:
        return statistic(pair[0].reshape(-1), pair[1].reshape(-1))

    # As the trailing axis of one task, the members of a cluster stay together.
    stacked = (x[:, None], y[:, None])
    return stratified_bootstrap(key, stacked, of_all, num_resamples, chunk=256, level=level)

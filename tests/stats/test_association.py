"""Correlations against SciPy, also with ties; intervals over clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.stats import (
    cluster_bootstrap,
    correlation,
    partial_correlation,
    pearson,
    stratified_bootstrap,
)

SCIPY = {
    "pearson": scipy.stats.pearsonr,
    "spearman": scipy.stats.spearmanr,
    "kendall": scipy.stats.kendalltau,
}


@pytest.mark.parametrize("kind", SCIPY)
@pytest.mark.parametrize("ties", [False, True])
def test_agrees_with_scipy(kind, ties):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 17))
    if ties:
        x, y = np.round(2 * x), np.round(2 * y + x)
    ours = jax.jit(lambda a, b: correlation(a, b, kind))(jnp.float32(x), jnp.float32(y))
    expected = [SCIPY[kind](a, b).statistic for a, b in zip(x, y)]
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert ours.shape == (5,)
    alone = correlation(jnp.float32(x[2]), jnp.float32(y[2]), kind)
    np.testing.assert_allclose(alone, ours[2], atol=1e-6)


@pytest.mark.parametrize("kind", SCIPY)
def test_a_constant_is_not_uncorrelated_but_unknown(kind):
    x = jnp.arange(4.0)
    assert np.isnan(correlation(jnp.full(4, 0.1), x, kind))
    assert np.isnan(correlation(x, jnp.full(4, -3.0), kind))
    assert np.isnan(correlation(x, x.at[1].set(jnp.nan), kind))
    np.testing.assert_allclose(correlation(x, -2 * x, kind), -1, atol=1e-6)


def test_partial_correlation_is_that_of_residuals():
    rng = np.random.default_rng(1)
    given = rng.normal(size=40)
    x, y = 2 * given + rng.normal(size=40), -given + rng.normal(size=40)

    def residual(v):
        design = np.stack([np.ones(40), given], axis=1)
        return v - design @ np.linalg.lstsq(design, v, rcond=None)[0]

    expected = scipy.stats.pearsonr(residual(x), residual(y)).statistic
    ours = partial_correlation(*(jnp.float32(v) for v in (x, y, given)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.isnan(partial_correlation(jnp.float32(given), jnp.float32(y), jnp.float32(given)))


def test_clusters_of_one_are_the_ordinary_bootstrap(key):
    x, y = jnp.asarray(np.random.default_rng(2).normal(size=(2, 12)), jnp.float32)
    clustered = cluster_bootstrap(key, x[:, None], y[:, None], pearson, 300)
    plain = stratified_bootstrap(key, (x, y), lambda v: pearson(*v), 300)
    for one, other in zip(clustered, plain):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_copies_in_a_cluster_do_not_make_it_surer(key):
    x, y = jnp.asarray(np.random.default_rng(3).normal(size=(2, 12, 1)), jnp.float32)
    single = cluster_bootstrap(key, x, y, pearson, 500)
    copies = cluster_bootstrap(key, jnp.repeat(x, 8, 1), jnp.repeat(y, 8, 1), pearson, 500)
    np.testing.assert_allclose(copies.estimate, single.estimate, rtol=1e-4)
    np.testing.assert_allclose(copies.high - copies.low, single.high - single.low, rtol=1e-3)
    apart = cluster_bootstrap(
        key, jnp.repeat(x, 8, 0), jnp.repeat(y, 8, 0), pearson, 500
    )  # as if every copy were a seed
    assert apart.high - apart.low < 0.6 * (single.high - single.low)


def test_refusals(key):
    with pytest.raises(ValueError, match="kind: expected one of"):
        correlation(jnp.arange(3.0), jnp.arange(3.0), "cosine")
    with pytest.raises(ValueError, match="y: expected the shape of x"):
        pearson(jnp.arange(3.0), jnp.arange(4.0))
    with pytest.raises(ValueError, match=r"x, y: expected one shape \[G, m\]"):
        cluster_bootstrap(key, jnp.arange(3.0), jnp.arange(3.0), pearson)


def test_what_the_third_measurement_explains_has_no_partial_correlation():
    given, other = jnp.asarray(np.random.default_rng(4).normal(size=(2, 200, 20)), jnp.float32)
    line = 3 * given + 1  # correlated up to rounding
    assert np.isnan(partial_correlation(line, other, given)).all()
    assert np.isnan(partial_correlation(other, line, given)).all()
    assert np.isnan(partial_correlation(line, -2 * given, given)).all()
    assert np.isnan(partial_correlation(other, other + given, other)).all()
    assert np.isfinite(partial_correlation(line + 0.1 * other, other, given)).all()

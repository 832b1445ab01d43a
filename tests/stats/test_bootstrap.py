"""The bootstrap against SciPy's, its pairing, and indices that nothing can move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxlab.stats import iqm, performance_profile, resample_seeds, stratified_bootstrap


def _scores(n, k, seed=0):
    return np.random.default_rng(seed).normal(np.arange(k), 1.0, (n, k)).astype(np.float32)


def test_interval_agrees_with_scipys_stratified_bootstrap(key):
    scores = _scores(10, 5)
    ours = stratified_bootstrap(key, jnp.asarray(scores), lambda s: iqm(s.reshape(-1)), 20_000)
    theirs = scipy_stats.bootstrap(
        tuple(scores.T),
        lambda *tasks, axis: scipy_stats.trim_mean(np.concatenate(tasks, axis), 0.25, axis=axis),
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    np.testing.assert_allclose(ours.estimate, scipy_stats.trim_mean(scores, 0.25, axis=None), 1e-5)
    np.testing.assert_allclose([ours.low, ours.high], theirs, atol=0.03)


def test_draws_are_the_statistic_at_the_published_indices(key):
    scores = jnp.asarray(_scores(6, 3))
    got = stratified_bootstrap(key, scores, jnp.mean, num_resamples=50, chunk=7)
    index = np.asarray(resample_seeds(key, 6, 50, tasks=3))
    expected = [np.asarray(scores)[index[b], np.arange(3)].mean() for b in range(50)]
    np.testing.assert_allclose(got.draws, expected, rtol=1e-5)
    np.testing.assert_allclose(
        [got.low, got.high], np.quantile(expected, [0.025, 0.975]), rtol=1e-5
    )


def test_tasks_draw_their_seeds_independently(key):
    index = resample_seeds(key, 50, 40, tasks=2)
    assert 0.9 < np.mean(index[..., 0] != index[..., 1]) < 1.0


def test_trailing_axes_of_a_seed_stay_together(key):
    curve = jnp.arange(8.0)[:, None, None] * jnp.ones((8, 1, 4))
    got = stratified_bootstrap(key, curve, lambda s: s.mean(axis=(0, 1)), 100)
    assert got.draws.shape == (100, 4)
    np.testing.assert_array_equal(got.draws, np.broadcast_to(got.draws[:, :1], (100, 4)))


def test_indices_cover_all_seeds_evenly(key):
    index = np.asarray(resample_seeds(key, 7, 4000))
    assert index.shape == (4000, 7)
    assert index.dtype == np.int32
    counts = np.bincount(index.reshape(-1), minlength=7)
    assert scipy_stats.chisquare(counts).pvalue > 1e-3


def test_indices_depend_on_neither_chunk_nor_number_of_resamples(key):
    np.testing.assert_array_equal(resample_seeds(key, 9, 1000)[:10], resample_seeds(key, 9, 10))
    scores = jnp.arange(9.0)  # sums of small integers are exact: equal draws mean equal indices
    whole = stratified_bootstrap(key, scores, jnp.sum, 100, chunk=1000).draws
    parts = stratified_bootstrap(key, scores, jnp.sum, 100, chunk=7).draws
    np.testing.assert_array_equal(whole, parts)


def test_indices_are_the_same_bits_with_x64(key):
    narrow = np.asarray(resample_seeds(key, 20, 64, tasks=3))
    with jax.enable_x64(True):
        wide = np.asarray(resample_seeds(jax.random.key(0), 20, 64, tasks=3))
    np.testing.assert_array_equal(narrow, wide)


def test_indices_are_pinned():
    # A change here changes every published interval.
    index = resample_seeds(jax.random.key(42), 20, 2)
    np.testing.assert_array_equal(index[:, :6], [[4, 11, 19, 1, 10, 19], [5, 12, 4, 12, 15, 4]])


def test_paired_bootstrap_of_identical_arms_has_exactly_zero_width(key):
    scores = jnp.asarray(_scores(10, 4))

    def difference(arms):
        return iqm(arms["a"].reshape(-1)) - iqm(arms["b"].reshape(-1))

    arms = {"a": scores, "b": scores}
    got = stratified_bootstrap(key, arms, difference, 500)
    assert got.low == got.estimate == got.high == 0
    assert np.all(got.draws == 0)
    unpaired = stratified_bootstrap(key, arms, difference, 500, paired=False)
    assert unpaired.high - unpaired.low > 0.1


@pytest.mark.parametrize("fn", [jnp.mean, jnp.median, lambda s: iqm(s.reshape(-1))])
def test_constant_data_have_exactly_zero_width(key, fn):
    bootstrap = jax.jit(lambda s: stratified_bootstrap(key, s, fn, 300, chunk=64))
    for value in (0.1, 1 / 3, 12345.678):
        got = bootstrap(jnp.full((7, 3), value))
        assert got.low == got.estimate == got.high


def test_unpaired_arms_may_differ_in_size(key):
    arms = (jnp.arange(5.0), jnp.arange(8.0))
    got = stratified_bootstrap(key, arms, lambda a: a[0].mean() - a[1].mean(), 200, paired=False)
    assert got.low < got.estimate == -1.5 < got.high
    with pytest.raises(ValueError, match="scores: expected paired arms with the same seeds"):
        stratified_bootstrap(key, arms, lambda a: a[0].mean() - a[1].mean(), 200)


def test_profile_band_contains_the_profile(key):
    scores, taus = jnp.asarray(_scores(12, 2)), jnp.linspace(-2.0, 4.0, 81)
    got = stratified_bootstrap(key, scores, lambda s: performance_profile(s.reshape(-1), taus), 200)
    assert got.low.shape == (81,)
    assert np.all((got.low <= got.estimate) & (got.estimate <= got.high))


def test_bad_sizes_are_refused_by_name(key):
    with pytest.raises(ValueError, match="num_resamples, chunk: expected at least 1"):
        stratified_bootstrap(key, jnp.ones(3), jnp.mean, num_resamples=0)
    with pytest.raises(ValueError, match=r"scores: expected arrays \[n, ...\] with n >= 1"):
        stratified_bootstrap(key, jnp.ones((0, 2)), jnp.mean)
    with pytest.raises(ValueError, match="n, num_resamples: expected at least 1 of each"):
        resample_seeds(key, 0, 3)

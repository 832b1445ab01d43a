"""The k-th largest by bisection and by sampling on the host, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import band_mask, host_selection, norm_match, top_mask
from jaxlab.merging.arrays import keep_count
from jaxlab.merging.leaf import ArrayLeaf, Block
from jaxlab.merging.thresholds import largest, ordered_bits, taken, threshold_value


def by_sorting(row, k):
    """A mask of the k largest; a stable sort gives ties to the first."""
    order = np.argsort(-row.astype(np.float64), kind="stable")
    mask = np.zeros(row.size, bool)
    mask[order[:k]] = True
    return mask


def rows(seed, n=500):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=n)
    coarse = rng.integers(-4, 5, size=n)  # many ties
    zeros = np.where(rng.random(n) < 0.7, 0.0, rng.normal(size=n))
    tiny = rng.normal(size=n) * 1e-40  # denormal in float32
    return np.abs(np.stack([smooth, coarse, zeros, tiny])).astype(np.float32)


def masks(x, k, signed=False):
    leaf = ArrayLeaf(None, jnp.asarray(x))
    cut = largest(leaf, jnp.asarray(k, jnp.int32), signed=signed)
    block = Block(None, jnp.asarray(x), 0, None, True)
    return np.asarray(taken(block.models, cut, block, signed=signed))


@pytest.mark.parametrize("k", [0, 1, 7, 150, 499, 500])
def test_bisection_takes_what_sorting_takes(k):
    x = rows(0)
    expected = np.stack([by_sorting(row, k) for row in x])
    assert np.array_equal(masks(x, [k] * 4), expected)
    if k:
        cut = largest(ArrayLeaf(None, jnp.asarray(x)), jnp.full(4, k, jnp.int32))
        kth = np.sort(x, axis=1)[:, -k]
        assert np.array_equal(threshold_value(cut, jnp.float32), kth)


def test_signed_scores_and_traced_ranks():
    x = rows(1) - 1
    for ks in ([3, 100, 250, 400], [500, 0, 1, 499]):
        expected = np.stack([by_sorting(row, k) for row, k in zip(x, ks)])
        assert np.array_equal(masks(x, ks, signed=True), expected)
    sweep = jnp.arange(0, 500, 61, dtype=jnp.int32)
    leaf = ArrayLeaf(None, jnp.asarray(x[:1]))
    cuts = jax.jit(jax.vmap(lambda k: largest(leaf, k[None], signed=True)))(sweep)
    values = threshold_value(cuts, jnp.float32, signed=True)[1:, 0]
    assert np.array_equal(values, np.sort(x[0])[::-1][np.asarray(sweep[1:]) - 1])


def test_ordered_bits_are_ordered():
    x = np.sort(np.float32([-np.inf, -3e38, -1, -1e-45, 0, 1e-45, 1e-38, 1, 3e38, np.inf]))
    bits = np.asarray(ordered_bits(jnp.asarray(x), signed=True)).astype(np.int64)
    assert (np.diff(bits) > 0).all()
    assert ordered_bits(jnp.float32(-0.0), signed=False) == 0


@pytest.mark.parametrize("k", [0, 1, 2000, 150_000, 299_999, 300_000])
@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_selection_from_pieces_is_the_bisection(k, kind, monkeypatch):
    monkeypatch.setattr(host_selection, "SAMPLE", 1 << 12)
    x = rows(2, n=300_000)[kind : kind + 1]

    def pieces():
        return (x[:, i : i + 70_001] for i in range(0, x.shape[1], 70_001))

    direct = host_selection.select(pieces, x.shape[1], [k], spare=1 << 30)
    sampled = host_selection.select(pieces, x.shape[1], [k], spare=0)
    expected = by_sorting(x[0], k)
    place = np.arange(x.shape[1])
    for found in (direct, sampled):
        mask = (x[0] > found.values[0]) | ((x[0] == found.values[0]) & (place < found.positions[0]))
        assert np.array_equal(mask, expected)


def test_a_missed_bracket_is_noticed():
    """Sorted in phase with the sample, numbers fool it; the answer is then None, never wrong."""
    n = host_selection.SAMPLE * 6
    x = np.zeros((1, n), np.float32)
    stride = (n // host_selection.SAMPLE) | 1
    x[0, ::stride] = 1.0 + np.random.default_rng(0).random(x[0, ::stride].size)
    x[0, 1::stride] = -1.0 - np.random.default_rng(1).random(x[0, 1::stride].size)
    k = n - 10
    found = host_selection.select(lambda: iter([x]), n, [k], spare=0)
    assert found is None or found.values[0] == np.sort(x[0])[-k]


def test_known_fractions_are_counted_in_float64():
    assert keep_count(0.29, 100) == 28
    assert keep_count(np.float32(0.7), 10) == 7
    assert keep_count([0.0, 1e-9, 0.5, 1.0, 2.0], 11, least=1).tolist() == [0, 1, 5, 11, 11]
    traced = jax.jit(lambda s: keep_count(s, 1000))(jnp.float32([0.0, 0.25, 0.999, 1.0]))
    assert np.abs(traced - np.array([0, 250, 999, 1000])).max() <= 1
    assert traced[0] == 0 and traced[-1] == 1000
    x = jnp.arange(100.0)
    assert jax.jit(lambda x: top_mask(x, 0.29))(x).sum() == top_mask(x, 0.29).sum() == 28
    assert jax.jit(top_mask)(x, 0.5).sum() == 50


def test_top_and_band_masks():
    rng = np.random.default_rng(3)
    x = rng.permutation(np.r_[-50:0, 1:51]).astype(np.float32)  # magnitudes 1..50, each twice
    assert set(np.abs(x[np.asarray(top_mask(x, 0.2))])) == set(range(41, 51))
    assert top_mask(x, 1e-9).sum() == 1 and top_mask(x, 0.0).sum() == 0
    band = np.asarray(band_mask(x, 0.3, 0.1))
    assert band.sum() == 30 and set(np.abs(x[band])) == set(range(31, 46))
    assert np.array_equal(band, band_mask(-3 * x, 0.3, 0.1))
    order = rng.permutation(100)
    distinct = x + np.sign(x) * np.linspace(0, 0.1, 100, dtype=np.float32)
    assert np.array_equal(
        np.asarray(band_mask(distinct, 0.3, 0.1))[order], band_mask(distinct[order], 0.3, 0.1)
    )
    # Fewer outliers go where the kept share would not be reached; a small leaf has none.
    assert set(np.abs(x[np.asarray(band_mask(x, 0.9, 0.5))])) == set(range(1, 46))
    assert band_mask(x[:20], 0.5, 0.01).sum() == 10
    assert band_mask(x, 1.0, 0.1).all()


def test_bands_of_rows():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(7, 40)).astype(np.float32)
    mask = np.asarray(band_mask(x, 0.21, 0.1, axis=-1))
    for row, kept in zip(np.abs(x), mask):
        order = np.argsort(-row)
        assert set(np.flatnonzero(kept)) == set(order[4:12])
    assert np.array_equal(
        band_mask(x[:1], 0.21, 0.1, axis=-1), np.asarray(band_mask(x[:1], 0.21, 0.1))
    )
    with pytest.raises(ValueError, match="axis: expected None or -1, got 0"):
        band_mask(x, 0.5, 0.1, axis=0)


def test_norm_match():
    a, b = np.float32([3, 4, 0]), np.float32([0, 0, 10])
    np.testing.assert_allclose(norm_match(a, b), [6, 8, 0], rtol=1e-6)
    assert np.array_equal(norm_match(a, 0 * b), np.zeros(3))
    assert np.array_equal(norm_match(0 * a, b), np.zeros(3))
    gradient = jax.grad(lambda a, b: norm_match(a, b).sum(), argnums=(0, 1))
    for args in ((a, b), (0 * a, b), (a, 0 * b)):
        assert all(np.isfinite(g).all() for g in gradient(*args))

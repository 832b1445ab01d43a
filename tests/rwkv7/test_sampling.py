import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.rwkv7 import Sampler, filtered_logits, sample, top_k, top_p

PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)) + 3.0  # a shift changes nothing


def kept(filtered):
    return set(np.flatnonzero(np.isfinite(filtered)).tolist())


@pytest.mark.parametrize(
    ("k", "want"),
    [(1, {1}), (2, {1, 3}), (4, {0, 1, 3, 4}), (5, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})],
)
def test_top_k(k, want):
    assert kept(top_k(LOGITS, k)) == want
    assert kept(jax.jit(top_k)(LOGITS, k)) == want
    np.testing.assert_array_equal(top_k(LOGITS, 0), LOGITS)


def test_top_k_takes_the_earlier_of_equal_logits():
    assert kept(top_k(jnp.asarray([1.0, 2.0, 1.0, 2.0, 1.0]), 3)) == {0, 1, 3}


@pytest.mark.parametrize(
    ("p", "want"),
    [
        (0.0, {1}),
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 3, 4}),
        (0.94, {0, 1, 3, 4}),
        (0.96, {0, 1, 2, 3, 4}),
        (1.0, {0, 1, 2, 3, 4}),
    ],
)
def test_top_p_is_the_smallest_set_that_reaches_p(p, want):
    assert kept(top_p(LOGITS, p)) == want
    assert kept(jax.jit(top_p)(LOGITS, p)) == want


def test_top_p_one_keeps_what_rounding_would_cut():
    logits = jnp.concatenate([jnp.zeros(50_000), jnp.full(10, -60.0)])
    np.testing.assert_array_equal(top_p(logits, 1.0), logits)


def test_filters_are_applied_in_order():
    """Top-p sees the distribution after temperature and top-k: 0.4 / 0.7 = 0.571."""
    assert kept(filtered_logits(LOGITS, Sampler(1.0, 2, 0.57))) == {1}
    assert kept(filtered_logits(LOGITS, Sampler(1.0, 2, 0.58))) == {1, 3}
    # At temperature 1/2 probabilities are proportional to their squares: 0.16 / 0.285 = 0.561.
    assert kept(filtered_logits(LOGITS, Sampler(0.5, None, 0.56))) == {1}
    assert kept(filtered_logits(LOGITS, Sampler(0.5, None, 0.57))) == {1, 3}
    squares = PROBABILITIES**2
    np.testing.assert_allclose(
        jax.nn.softmax(filtered_logits(LOGITS, Sampler(0.5))), squares / squares.sum(), rtol=1e-5
    )


def test_temperature_zero_is_the_most_likely_token_with_certainty(key):
    filtered = filtered_logits(LOGITS, Sampler(0.0, 3, 0.9))
    assert kept(filtered) == {1} and float(filtered[1]) == 0.0
    token, log_prob = sample(key, LOGITS, Sampler(temperature=0.0))
    assert int(token) == 1 and float(log_prob) == 0.0
    slope = jax.grad(lambda t: filtered_logits(LOGITS, Sampler(t))[0])(1.0)
    assert np.isfinite(slope)


def test_every_row_may_have_its_own_numbers():
    rows = jnp.stack([LOGITS, LOGITS, LOGITS])
    sampler = Sampler(
        jnp.asarray([1.0, 0.0, 2.0]), jnp.asarray([2, 0, 0]), jnp.asarray([1, 1, 0.31])
    )
    got = filtered_logits(rows, sampler)
    assert [kept(row) for row in got] == [{1, 3}, {1}, {1, 3}]
    for index in range(3):
        one = Sampler(*(leaf[index] for leaf in sampler))
        np.testing.assert_array_equal(got[index], filtered_logits(rows[index], one))
    mapped = jax.vmap(filtered_logits)(rows, sampler)
    np.testing.assert_array_equal(mapped, got)


def test_frequencies_are_the_filtered_distribution():
    sampler = Sampler(0.7, 4, 0.95)
    want = np.asarray(jax.nn.softmax(filtered_logits(LOGITS, sampler)))
    n = 20_000
    keys = jax.random.split(jax.random.key(1), n)
    tokens, log_probs = jax.jit(jax.vmap(lambda k: sample(k, LOGITS, sampler)))(keys)
    found = np.bincount(tokens, minlength=5) / n
    np.testing.assert_array_equal(found[want == 0], 0)
    assert (np.abs(found - want) <= 4 * np.sqrt(want * (1 - want) / n)).all()
    np.testing.assert_allclose(np.exp(log_probs), want[np.asarray(tokens)], rtol=1e-5)


def test_low_precision_logits_are_filtered_in_float32():
    assert filtered_logits(LOGITS.astype(jnp.bfloat16), Sampler(0.7, 2, 0.9)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_mass_is_summed_in_float32(dtype):
    flat = jnp.zeros(4096, dtype)
    got = top_p(flat, 0.9)
    assert got.dtype == dtype and abs(len(kept(got)) - 0.9 * 4096) < 2

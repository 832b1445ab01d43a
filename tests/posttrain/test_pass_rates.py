import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain


@pytest.mark.parametrize("n", [1, 5, 40])
def test_pass_at_k_is_the_ratio_of_binomials(n):
    c = np.arange(n + 1)
    for k in {1, 2, n // 2 + 1, n} - ({2} if n < 2 else set()):
        want = [1 - math.comb(n - x, k) / math.comb(n, k) for x in c]
        got = posttrain.pass_at_k(n, jnp.asarray(c), k)
        np.testing.assert_allclose(got, want, atol=2e-6)
        traced = jax.jit(lambda c, k: posttrain.pass_at_k(n, c, k))(jnp.asarray(c), k)
        np.testing.assert_allclose(traced, want, atol=2e-6)
        want = [math.comb(x, k) / math.comb(n, k) for x in c]
        np.testing.assert_allclose(posttrain.pass_pow_k(n, jnp.asarray(c), k), want, atol=2e-6)
    np.testing.assert_allclose(posttrain.pass_at_k(n, jnp.asarray(c), 1), c / n, atol=1e-6)
    np.testing.assert_array_equal(posttrain.pass_at_k(n, jnp.asarray(c), n), c > 0)


def test_pass_at_k_is_accurate_for_many_samples():
    n = 8192
    for c, k in ((1, 4096), (3, 100), (100, 16), (4000, 2), (8000, 192)):
        want = 1 - math.comb(n - c, k) / math.comb(n, k)
        assert float(posttrain.pass_at_k(n, jnp.int32(c), k)) == pytest.approx(want, abs=1e-5)
    rises = [float(posttrain.pass_at_k(n, jnp.int32(7), k)) for k in (1, 2, 10, 100, 1000)]
    assert rises == sorted(rises)


def test_the_estimate_is_unbiased():
    """Its mean over binomial counts is the probability that k independent samples pass."""
    n, p, k = 12, 0.3, 4
    weight = np.asarray([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    mean = float(weight @ np.asarray(posttrain.pass_at_k(n, jnp.arange(n + 1), k)))
    assert mean == pytest.approx(float(posttrain.exact_pass_at_k(jnp.float32(p), k)), abs=1e-6)


def test_refusals():
    for n, k in ((0, 1), (3, 4), (3, 0)):
        with pytest.raises(ValueError, match="n, k: expected"):
            posttrain.pass_at_k(n, jnp.int32(0), k)


ANSWERS = jnp.asarray(
    [[3, 1, 1, 3, -1], [-1, -2, -1, 4, -1], [5, 6, 6, 5, 6], [-1, -1, -1, -1, -1]]
)


def test_majorities():
    assert posttrain.majority_answer(ANSWERS).tolist() == [3, 4, 6, -1]  # a tie goes to the first
    right = jnp.asarray([3, -1, 5, -1])
    assert posttrain.majority_at_k(ANSWERS, right).tolist() == [1, 0, 0, 0]
    scores = jnp.asarray([[0.1, 0.9, 0.9], [0.5, 0.2, 0.1]])
    correct = jnp.asarray([[1, 1, 0], [0, 1, 1]])
    assert posttrain.best_of_k(scores, correct).tolist() == [1, 0]
    assert posttrain.distinct_answers(ANSWERS).tolist() == [2, 1, 2, 0]


def test_answer_entropy():
    def h(*counts):
        p = np.asarray(counts) / sum(counts)
        return -(p * np.log(p)).sum()

    want = [h(2, 2, 1), h(4, 1), h(2, 3), 0.0]
    np.testing.assert_allclose(posttrain.answer_entropy(ANSWERS), want, atol=1e-6)
    weights = jnp.asarray([0.5, 0.25, 0.25, 0.0, 0.0])
    got = posttrain.answer_entropy(ANSWERS[0], weights)
    assert float(got) == pytest.approx(h(1, 1), abs=1e-6)


def test_an_unreadable_score_is_never_the_best():
    nan = jnp.nan
    scores = jnp.asarray([[0.1, nan, 0.3], [nan, -2.0, -3.0], [nan, nan, nan]])
    correct = jnp.asarray([[0, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert posttrain.best_of_k(scores, correct).tolist() == [1, 1, 0]


def test_numpy_integers_are_checked_too():
    with pytest.raises(ValueError, match="n, k: expected 1 <= k <= n, got n = 5 and k = 10"):
        posttrain.pass_at_k(5, jnp.array([0, 1]), np.int64(10))

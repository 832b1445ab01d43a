import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain
from jaxlab.posttrain import masking

MODES = ("token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm")
X = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
MASK = np.asarray([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32)


def norm(mode):
    return 8.0 if mode.endswith("norm") else None


@pytest.mark.parametrize(
    ("mode", "want"),
    list(zip(MODES, [(1 + 2 + 3 + 9) / 4, (2 + 9) / 2, (6 + 9) / 2, (6 + 9) / 2 / 8])),
)
def test_definitions(mode, want):
    got = posttrain.aggregate(jnp.asarray(X), jnp.asarray(MASK), mode, norm(mode))
    assert float(got) == pytest.approx(want)
    with_empty = posttrain.aggregate(
        jnp.asarray(X), jnp.asarray(MASK), mode, norm(mode), count_empty_rows=True
    )
    assert float(with_empty) == pytest.approx(want if mode == "token_mean" else want * 2 / 3)


@pytest.mark.parametrize("mode", MODES)
def test_equal_lengths_and_microbatches_and_nothing(mode):
    x, full = jnp.asarray(X), jnp.ones((3, 4))
    scale = {"seq_mean_token_sum": 4, "seq_mean_token_sum_norm": 4 / 8}.get(mode, 1)
    whole = posttrain.aggregate(x, full, mode, norm(mode))
    assert float(whole) == pytest.approx(X.mean() * scale)
    parts = [
        posttrain.aggregate_parts(x[i : i + 1], jnp.asarray(MASK)[i : i + 1], mode, norm(mode))
        for i in range(3)
    ]
    total, count = (sum(float(p[i]) for p in parts) for i in range(2))
    want = posttrain.aggregate(x, jnp.asarray(MASK), mode, norm(mode))
    assert total / count == pytest.approx(float(want))
    assert float(posttrain.aggregate(x, jnp.zeros((3, 4)), mode, norm(mode))) == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_what_is_hidden_has_no_influence(mode):
    def loss(x):
        return posttrain.aggregate(3 * x, jnp.asarray(MASK), mode, norm(mode))

    junk = jnp.where(jnp.asarray(MASK) > 0, jnp.asarray(X), jnp.nan)
    np.testing.assert_array_equal(loss(junk), loss(jnp.asarray(X)))
    slope = jax.grad(loss)(junk)
    np.testing.assert_array_equal(slope, jax.grad(loss)(jnp.asarray(X)))


def test_moments():
    x, mask = jnp.asarray(X), jnp.asarray(MASK)
    kept = X[MASK > 0]
    assert float(posttrain.masked_mean(x, mask)) == pytest.approx(kept.mean())
    for ddof in (0, 1):
        assert float(posttrain.masked_var(x, mask, ddof)) == pytest.approx(kept.var(ddof=ddof))
    lonely = jnp.zeros((3, 4)).at[0, 1].set(1)
    assert float(posttrain.masked_var(x, lonely, 1)) == 0.0
    white = np.asarray(posttrain.masked_whiten(jnp.where(mask > 0, x, jnp.nan), mask))
    np.testing.assert_allclose(white[MASK > 0], (kept - kept.mean()) / kept.std(), rtol=1e-5)
    np.testing.assert_array_equal(white[MASK == 0], 0)
    kept_mean = posttrain.masked_whiten(x, mask, shift_mean=False)
    assert float(posttrain.masked_mean(kept_mean, mask)) == pytest.approx(kept.mean())


def test_refusals():
    x, mask = jnp.asarray(X), jnp.asarray(MASK)
    with pytest.raises(ValueError, match="mode: expected one of"):
        posttrain.aggregate(x, mask, "mean")
    for mode, given in (("token_mean", 3.0), ("seq_mean_token_sum_norm", None)):
        with pytest.raises(ValueError, match="norm: expected a number"):
            posttrain.aggregate(x, mask, mode, given)
    with pytest.raises(ValueError, match="mask: expected the shape"):
        posttrain.masked_mean(x, mask[:2])
    with pytest.raises(ValueError, match="tokens: expected shape"):
        masking.check_mask(jnp.zeros((2, 3, 4)), jnp.zeros((2, 2)), mask)
    with pytest.raises(ValueError, match="mask: expected shape"):
        masking.check_mask(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)), mask)


def test_log_probabilities_and_entropy():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)) * 3
    tokens = rng.integers(0, 5, (2, 3))
    p = np.exp(logits / 0.7)
    p /= p.sum(-1, keepdims=True)
    got = posttrain.token_log_probs(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens), 0.7)
    np.testing.assert_allclose(
        got, np.log(np.take_along_axis(p, tokens[..., None], -1)[..., 0]), rtol=1e-5
    )
    entropy = posttrain.token_entropy(jnp.asarray(logits, jnp.float32), 0.7)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1), rtol=1e-4)
    one_way = jnp.asarray([0.0, -jnp.inf, -jnp.inf])
    assert float(posttrain.token_entropy(one_way)) == 0.0
    low = posttrain.token_log_probs(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(tokens))
    assert low.dtype == jnp.float32
    total, count = posttrain.sequence_log_prob(
        jnp.asarray([[1.0, 2.0], [3.0, jnp.nan]]), jnp.asarray([[1.0, 1.0], [0.0, 0.0]])
    )
    assert total.tolist() == [3, 0] and count.tolist() == [2, 1]

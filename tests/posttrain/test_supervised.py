import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(4, 3, 5)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, 5, (4, 3)))
MASK = jnp.asarray([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], jnp.float32)
M = np.asarray(MASK)
LOGP = posttrain.token_log_probs(LOGITS, TOKENS)


def test_sft_is_the_likelihood_with_weights_and_smoothing():
    nll = -np.asarray(LOGP, np.float64)
    loss, metrics = posttrain.sft_loss(LOGITS, TOKENS, MASK)
    assert float(loss) == pytest.approx((nll * M).sum() / 6, rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(float(loss), rel=1e-6)
    hits = (np.argmax(LOGITS, -1) == TOKENS) & (np.asarray(MASK) > 0)
    assert float(metrics["accuracy"]) == pytest.approx(hits.sum() / 6)
    weights = jnp.asarray([2.0, 0.0, 1.0, jnp.nan])
    loss, _ = posttrain.sft_loss(LOGITS, TOKENS, MASK, weights=weights)
    want = (nll * M)[[0, 2]].sum(1) @ [2.0, 1.0] / 6
    assert float(loss) == pytest.approx(float(want), rel=1e-5)
    e = 0.3
    loss, _ = posttrain.sft_loss(LOGITS, TOKENS, MASK, label_smoothing=e)
    target = (1 - e) * np.eye(5)[np.asarray(TOKENS)] + e / 5
    cross = -(target * np.asarray(jax.nn.log_softmax(LOGITS))).sum(-1)
    assert float(loss) == pytest.approx((cross * M).sum() / 6, rel=1e-5)


def test_hidden_logits_and_tokens_do_not_matter():
    def loss(logits, tokens):
        return posttrain.sft_loss(logits, tokens, MASK, label_smoothing=0.1)[0]

    junk = jnp.where(MASK[..., None] > 0, LOGITS, jnp.nan)
    strange = jnp.where(MASK > 0, TOKENS, -7)
    got = jax.jit(jax.value_and_grad(loss))(junk, strange)
    want = jax.value_and_grad(loss)(LOGITS, TOKENS)
    assert float(got[0]) == pytest.approx(float(want[0]), rel=1e-6)
    np.testing.assert_allclose(got[1], want[1], atol=1e-7)


def test_reward_weighted_regression_goes_from_all_to_the_best():
    rewards = jnp.asarray([0.0, 1.0, 0.5, 0.2])

    def loss(tau, **options):
        return float(
            posttrain.reward_weighted_regression(LOGP, MASK, rewards, tau=tau, **options)[0]
        )

    sums = -np.asarray(LOGP * MASK).sum(1)
    everything = sums.sum() / 3
    for options in ({}, {"normalize": "none"}, {"normalize": "group", "group": 2}):
        assert loss(1e6, **options) == pytest.approx(everything, rel=1e-4)
    assert loss(1e-3) == pytest.approx(4 * sums[1] / 3, rel=1e-4)
    assert loss(1e-3, normalize="group", group=2) == pytest.approx(
        2 * (sums[1] + sums[2]) / 3, rel=1e-4
    )
    raw = np.exp(np.asarray(rewards) / 0.7)
    assert loss(0.7, normalize="none") == pytest.approx((raw * sums).sum() / 3, rel=1e-5)
    clipped = np.minimum(raw, 2.0)
    assert loss(0.7, normalize="none", clip=2.0) == pytest.approx(
        (clipped * sums).sum() / 3, rel=1e-5
    )
    weights = raw / raw.mean()
    got = posttrain.reward_weighted_regression(LOGP, MASK, rewards, tau=0.7)
    assert float(got[0]) == pytest.approx((weights * sums).sum() / 3, rel=1e-5)
    effective = weights.sum() ** 2 / (weights**2).sum()
    assert float(got[1]["effective_samples"]) == pytest.approx(effective, rel=1e-5)
    assert np.isfinite(loss(1e-3)) and np.isfinite(loss(1e-3, normalize="group", group=4))
    with pytest.raises(ValueError, match="normalize: expected one of"):
        posttrain.exponential_weights(rewards, normalize="row")
    with pytest.raises(ValueError, match="group: expected rows per prompt"):
        posttrain.exponential_weights(rewards, normalize="group")
    with pytest.raises(ValueError, match="group: expected a divisor"):
        posttrain.exponential_weights(rewards, normalize="group", group=3)


def test_selection_takes_so_many_right_ones_at_random():
    correct = jnp.asarray([True, True, True, False, False, False, False, False])
    keys = jax.random.split(jax.random.key(0), 300)
    kept = np.asarray(jax.vmap(lambda k: posttrain.select_correct(k, correct, 4, 2))(keys)).reshape(
        300, 2, 4
    )
    np.testing.assert_array_equal(kept[:, 0].sum(1), 2)
    np.testing.assert_array_equal(kept[:, 1], 0)
    np.testing.assert_array_equal(kept[:, 0, 3], 0)
    np.testing.assert_allclose(kept[:, 0, :3].mean(0), 2 / 3, atol=4 * np.sqrt(2 / 9 / 300))
    all_of = posttrain.select_correct(keys[0], correct, 4, 9)
    np.testing.assert_array_equal(all_of, correct.astype(jnp.float32))


def test_copies_within_a_group_are_found_by_what_counts():
    tokens = jnp.asarray([[1, 2, 9], [1, 2, 8], [1, 3, 9], [1, 2, 7], [1, 2, 7], [1, 2, 7]])
    mask = jnp.asarray([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
    got = posttrain.first_of_equals(tokens, mask.astype(jnp.float32), 3)
    assert got.tolist() == [1, 0, 1, 1, 1, 0]


def test_ids_that_cannot_occur_cost_nothing_without_smoothing():
    possible = jnp.asarray([True, True, True, False, True])
    logits = jnp.where(possible, LOGITS, -jnp.inf)
    tokens = jnp.where(TOKENS == 3, 0, TOKENS)
    small, renumbered = LOGITS[..., jnp.asarray([0, 1, 2, 4])], jnp.where(tokens > 3, 3, tokens)
    for smoothing in (0.0, jnp.float32(0.0)):
        loss = lambda x, t: posttrain.sft_loss(x, t, MASK, label_smoothing=smoothing)[0]  # noqa: E731
        got, slope = jax.value_and_grad(loss)(logits, tokens)
        want, there = jax.value_and_grad(loss)(small, renumbered)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        np.testing.assert_allclose(slope[..., jnp.asarray([0, 1, 2, 4])], there, atol=1e-6)
        np.testing.assert_array_equal(slope[..., 3], 0.0)


@pytest.mark.parametrize("group", [0, 3])
def test_groups_that_do_not_fit_are_refused(group):
    right, key = jnp.ones(4, bool), jax.random.key(0)
    for use in (
        lambda: posttrain.select_correct(key, right, group, 1),
        lambda: posttrain.first_of_equals(TOKENS, MASK, group),
        lambda: posttrain.exponential_weights(jnp.ones(4), normalize="group", group=group),
    ):
        with pytest.raises(ValueError, match=f"group: expected a divisor of 4 rows, got {group}"):
            use()

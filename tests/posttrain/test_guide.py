"""Guidance: limiting cases, the shaped ratios, and what its gradient is, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

V, T, STOP = 3, 3, 2
PLAIN, HINTED = jnp.asarray([1]), jnp.asarray([0])


@pytest.fixture(scope="module")
def drawn():
    keys = jax.random.split(jax.random.key(0), 4)
    log_probs, old = (-jax.random.exponential(k, (6, 5)) for k in keys[:2])
    mask = (jnp.arange(5)[None] < jnp.asarray([[5], [3], [1], [4], [2], [5]])).astype(jnp.float32)
    return log_probs, old, jax.random.normal(keys[2], (6,)), mask


def test_without_hints_it_is_the_clipped_surrogate(drawn):
    log_probs, old, advantages, mask = drawn
    ours = posttrain.guide_policy_loss(log_probs, old, advantages, mask, jnp.zeros(6, bool))
    plain = posttrain.ppo_clip_loss(log_probs, old, advantages, mask)
    np.testing.assert_allclose(ours[0], plain[0], rtol=1e-6)
    assert float(ours[1]["hinted_share"]) == 0


def test_hinted_rows_are_not_clipped(drawn):
    log_probs, old, advantages, mask = drawn
    hinted = jnp.ones(6, bool)
    loss, metrics = posttrain.guide_policy_loss(log_probs, old, advantages, mask, hinted)
    ratio = np.exp(np.asarray(log_probs - old, np.float64)) * np.asarray(mask)
    want = -(ratio * np.asarray(advantages)[:, None]).sum() / mask.sum()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    size = ratio.sum() ** 2 / (ratio**2).sum() / mask.sum()
    np.testing.assert_allclose(metrics["effective_share"], size, rtol=1e-5)


def test_shapes_of_the_ratio(drawn):
    log_probs, old, _, mask = drawn
    ratio = posttrain.importance_ratio(log_probs, old, mask)
    np.testing.assert_array_equal(posttrain.shape_ratio(ratio, mask), ratio)
    large = 1e6 * posttrain.shape_ratio(ratio, mask, "constant", 1e6)
    np.testing.assert_allclose(large, ratio, rtol=1e-4)
    power = posttrain.shape_ratio(ratio, mask, "power", 0.5)
    np.testing.assert_allclose(power, np.sqrt(ratio), rtol=1e-6)
    # The quantile of what counts: what the mask hides changes nothing.
    gamma = np.quantile(np.asarray(ratio)[np.asarray(mask) > 0], 0.9)
    wild = jnp.where(mask > 0, ratio, 1e9)
    shaped = posttrain.shape_ratio(wild, mask, "percentile", 0.9)
    np.testing.assert_allclose(
        np.asarray(shaped)[np.asarray(mask) > 0],
        np.asarray(ratio / (ratio + gamma))[np.asarray(mask) > 0],
        rtol=1e-5,
    )
    assert np.isfinite(posttrain.shape_ratio(ratio, 0 * mask, "percentile", 0.9)).all()
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'cube'"):
        posttrain.shape_ratio(ratio, mask, "cube")


@pytest.mark.parametrize("w", [1e-3, 0.1, 10.0])
def test_gradient_factor_of_the_constant_shape(w):
    gamma = 0.1
    slope = jax.grad(
        lambda x: posttrain.shape_ratio(jnp.exp(x)[None, None], jnp.ones((1, 1)), "constant", gamma)
        .sum()
    )(jnp.log(w))  # fmt: skip
    np.testing.assert_allclose(slope, gamma * w / (w + gamma) ** 2, rtol=1e-4)


def test_the_quantile_and_advantages_are_constants(drawn):
    log_probs, old, advantages, mask = drawn
    ratio = posttrain.importance_ratio(log_probs, old, mask)
    slope = jax.grad(lambda r: posttrain.shape_ratio(r, mask, "percentile", 0.5).sum())(ratio)
    gamma = np.quantile(np.asarray(ratio)[np.asarray(mask) > 0], 0.5)
    np.testing.assert_allclose(slope, gamma / (np.asarray(ratio) + gamma) ** 2, rtol=1e-4)

    def loss(advantages):
        return posttrain.guide_policy_loss(log_probs, old, advantages, mask, jnp.ones(6, bool))[0]

    np.testing.assert_array_equal(jax.grad(loss)(advantages), 0)


def test_needs_guidance():
    rewards = jnp.asarray([[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1.0]])
    np.testing.assert_array_equal(posttrain.needs_guidance(rewards), [True, False, False])


def expected_gradient(make_table, rewards, product):
    """Exact mean over hinted completions of the update's gradient, and the true gradient."""
    model = make_table(V, T + 1)
    params = model.init(jax.random.key(0))
    completions = posttrain.all_completions(V, T, STOP)
    old, whole = posttrain.enumerate_policy(model, params, HINTED, completions)
    weight = jax.lax.stop_gradient(jnp.exp(whole))

    def surrogate(params):
        new, total = posttrain.enumerate_policy(model, params, PLAIN, completions)
        if product:
            return jnp.sum(weight * rewards * jnp.exp(total - whole))
        ratio = posttrain.importance_ratio(new, old, completions.mask)
        return jnp.sum(weight * rewards * (ratio * completions.mask).sum(1))

    def value(params):
        total = posttrain.enumerate_policy(model, params, PLAIN, completions)[1]
        return jnp.sum(jnp.exp(total) * rewards)

    return jax.grad(surrogate)(params), jax.grad(value)(params)


def test_products_of_ratios_are_unbiased_ratios_of_tokens_are_not(make_table):
    count = posttrain.all_completions(V, T, STOP).tokens.shape[0]
    rewards = jnp.asarray(np.random.default_rng(1).random(count) < 0.4, jnp.float32)
    got, want = expected_gradient(make_table, rewards, product=True)
    np.testing.assert_allclose(got, want, atol=1e-6)
    got, want = expected_gradient(make_table, rewards, product=False)
    assert float(jnp.abs(got - want).max()) > 1e-2
    got, _ = expected_gradient(make_table, jnp.ones(count), product=True)
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_gain_is_split_by_what_k_samples_find():
    # One problem found in 2 of 4 samples before, one never; both always after.
    before, after = jnp.asarray([2, 0]), jnp.asarray([4, 4])
    gain = posttrain.gain_decomposition(before, after, 4, 2)
    # First problem: missed by one with 1/2, by two with 1/6.
    np.testing.assert_allclose(gain.solved, (1 / 2 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(gain.new, (1 / 6 + 1) / 2, rtol=1e-6)
    np.testing.assert_allclose(gain.distilled, (1 / 2 - 1 / 6) / 2, rtol=1e-5)
    none = posttrain.gain_decomposition(jnp.asarray([2]), jnp.asarray([4]), 4, 4)
    np.testing.assert_allclose(none.new, 0, atol=1e-6)


def test_under_jit_vmap_and_grad(drawn):
    log_probs, old, advantages, mask = drawn
    hinted = jnp.arange(6) % 2 == 0

    def loss(log_probs, gamma):
        def shape(ratio, counted):
            return posttrain.shape_ratio(ratio, counted, "percentile", gamma)

        return posttrain.guide_policy_loss(log_probs, old, advantages, mask, hinted, shape=shape)[0]

    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(log_probs, jnp.asarray([0.5, 0.9]))
    assert each.shape == (2, 6, 5) and bool(jnp.isfinite(each).all())
    assert bool((each * (1 - mask)[None] == 0).all())

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

R = np.asarray([1.0, 0.0, 0.0, 3.0, 2.0, 2.0, 2.0, 2.0, -1.0, 5.0, 0.5, 0.5], np.float32)


def table(x):
    return np.asarray(x).reshape(3, 4)


def test_group_estimators_are_their_formulas():
    r = table(R).astype(np.float64)
    mean, std = r.mean(1, keepdims=True), r.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        table(posttrain.grpo_advantages(jnp.asarray(R), 4)), (r - mean) / (std + 1e-4), rtol=1e-5
    )
    population = posttrain.grpo_advantages(jnp.asarray(R), 4, ddof=0, eps=1e-6)
    want = (r - mean) / (r.std(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(table(population), want, rtol=1e-5)
    batch = posttrain.grpo_advantages(jnp.asarray(R), 4, scale="batch")
    np.testing.assert_allclose(table(batch), (r - mean) / (r.std(ddof=1) + 1e-4), rtol=1e-5)
    np.testing.assert_allclose(table(posttrain.dr_grpo_advantages(jnp.asarray(R), 4)), r - mean)
    others = (r.sum(1, keepdims=True) - r) / 3
    got = posttrain.rloo_advantages(jnp.asarray(R), 4)
    np.testing.assert_allclose(table(got), r - others, atol=1e-6)
    np.testing.assert_array_equal(posttrain.rloo_advantages(jnp.asarray(R), 1), 0)


@pytest.mark.parametrize("function", ["grpo_advantages", "dr_grpo_advantages", "rloo_advantages"])
def test_equal_rewards_have_no_advantage_and_missing_ones_do_not_count(function):
    estimate = getattr(posttrain, function)
    np.testing.assert_array_equal(estimate(jnp.full(7, 0.1), 7), 0)
    with_gap = jnp.asarray([1.0, jnp.nan, 0.0, 4.0])
    got = np.asarray(estimate(with_gap, 4))
    want = np.asarray(estimate(with_gap[jnp.asarray([0, 2, 3])], 3))
    assert got[1] == 0
    np.testing.assert_allclose(got[[0, 2, 3]], want, rtol=1e-6)
    np.testing.assert_array_equal(estimate(jnp.full(4, jnp.nan), 4), 0)
    slopes = jax.grad(lambda r: jnp.sum(estimate(r, 4) ** 2))(jnp.asarray(R))
    np.testing.assert_array_equal(slopes, 0)
    # Permuting groups permutes; a row in another group is another estimate.
    moved = table(estimate(jnp.asarray(table(R)[[2, 0, 1]].ravel()), 4))
    np.testing.assert_allclose(moved, table(estimate(jnp.asarray(R), 4))[[2, 0, 1]], rtol=1e-6)
    with pytest.raises(ValueError, match="rewards: expected"):
        estimate(jnp.asarray(R), 5)


MASK = np.asarray([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
REWARDS = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
VALUES = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)


def by_loops(gamma, lam, bootstrap):
    """Over lists of the chosen tokens alone, from the end."""
    advantages, returns = np.zeros((4, 5)), np.zeros((4, 5))
    to_go = np.zeros((4, 5))
    for b in range(4):
        chosen = np.flatnonzero(MASK[b])
        value_next, advantage, g = bootstrap[b], 0.0, 0.0
        for t in chosen[::-1]:
            delta = REWARDS[b, t] + gamma * value_next - VALUES[b, t]
            advantage = delta + gamma * lam * advantage
            advantages[b, t], returns[b, t] = advantage, advantage + VALUES[b, t]
            value_next = VALUES[b, t]
            g = REWARDS[b, t] + gamma * g
            to_go[b, t] = g
    return advantages, returns, to_go


@pytest.mark.parametrize("bootstrap", [None, np.asarray([0.0, 2.0, 1.0, -1.0], np.float32)])
def test_gae_steps_over_what_others_wrote(bootstrap):
    want = by_loops(0.9, 0.8, np.zeros(4) if bootstrap is None else bootstrap)
    hidden = [jnp.where(jnp.asarray(MASK) > 0, jnp.asarray(x), jnp.nan) for x in (REWARDS, VALUES)]
    given = None if bootstrap is None else jnp.asarray(bootstrap)
    got = jax.jit(lambda r, v, g, m: posttrain.gae(r, v, jnp.asarray(MASK), g, m, bootstrap=given))(
        *hidden, 0.9, 0.8
    )
    np.testing.assert_allclose(got[0], want[0], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    to_go = posttrain.returns_to_go(hidden[0], jnp.asarray(MASK), 0.9)
    np.testing.assert_allclose(to_go, want[2], atol=1e-5)


def test_reinforce_pp():
    mask = jnp.asarray(MASK)
    got = np.asarray(posttrain.reinforce_pp_advantages(jnp.asarray(REWARDS), mask, 0.9))
    raw = by_loops(0.9, 1.0, np.zeros(4))[2][MASK > 0]
    np.testing.assert_allclose(got[MASK > 0], (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[MASK == 0], 0)
    rewards = posttrain.terminal_rewards(jnp.asarray([1.0, 0.0, 5.0, 4.0]), mask)
    assert rewards.tolist() == [[0, 0, 0, 1, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 4]]
    got = posttrain.reinforce_pp_advantages(rewards, mask, baseline_group=2)
    spread = np.repeat([[0.5], [-0.5], [-2.0], [2.0]], 5, axis=1)[MASK > 0]
    want = (spread - spread.mean()) / spread.std()
    np.testing.assert_allclose(np.asarray(got)[MASK > 0], want, rtol=1e-4)


def test_steps():
    q = jnp.asarray([[0.5, 0.2, 1.0]])
    advantages = posttrain.step_advantages(q, jnp.asarray([0.4]))
    np.testing.assert_allclose(advantages, [[0.1, -0.3, 0.8]], rtol=1e-5)
    assert float(advantages.sum()) == pytest.approx(1.0 - 0.4)
    tokens = posttrain.broadcast_steps(advantages, jnp.asarray([[0, 0, 1, 2, 3, -1]]))
    np.testing.assert_allclose(tokens, [[0.1, 0.1, -0.3, 0.8, 0, 0]], rtol=1e-5)


@pytest.mark.parametrize("baseline_group", [None, 4])
def test_rows_that_cannot_be_scored_take_no_part_in_whitening(baseline_group):
    rewards = jnp.asarray([1.0, jnp.nan, 0.0, 4.0, 2.0, jnp.nan, -1.0, 0.0])
    mask = jnp.tile(jnp.asarray(MASK), (2, 1)).at[2::4].set(1)
    estimate = jax.jit(
        lambda r, m: posttrain.reinforce_pp_advantages(
            posttrain.terminal_rewards(r, m), m, baseline_group=baseline_group
        )
    )
    got = np.asarray(estimate(rewards, mask), np.float64)
    counts = (np.asarray(mask) > 0) & np.isfinite(np.asarray(rewards))[:, None]
    table = np.asarray(rewards).reshape(2, 4)
    level = np.nanmean(table, axis=1) if baseline_group else np.zeros(2)
    centred = (table - level[:, None]).reshape(-1, 1) * np.ones((1, 5))
    chosen = centred[counts]
    np.testing.assert_allclose(got[counts], (chosen - chosen.mean()) / chosen.std(), atol=1e-5)
    np.testing.assert_array_equal(got[~counts], 0)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

RNG = np.random.default_rng(0)
LOGP = jnp.asarray(RNG.normal(size=(3, 4)) - 2, jnp.float32)
OLD = jnp.asarray(RNG.normal(size=(3, 4)) - 2, jnp.float32)
A = jnp.asarray([1.0, -2.0, 0.5])
MASK = jnp.asarray([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]], jnp.float32)


def slope(loss, logp=LOGP):
    return np.asarray(jax.grad(lambda x: loss(x)[0])(logp))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: posttrain.ppo_clip_loss(x, LOGP, A, MASK),
        lambda x: posttrain.ppo_clip_loss(x, LOGP, A, MASK, clip_high=0.5, dual_clip=3.0),
        lambda x: posttrain.ppo_clip_loss(x, LOGP, A, MASK, level="sequence_token"),
        lambda x: posttrain.cispo_loss(x, LOGP, A, MASK),
    ],
)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(loss):
    want = slope(lambda x: posttrain.reinforce_loss(x, A, MASK, mode="token_mean"))
    np.testing.assert_allclose(slope(loss), want, rtol=1e-6)
    centred = jnp.asarray([1.0, -1.0, 0.0])
    same = jnp.ones_like(MASK)
    value = posttrain.ppo_clip_loss(LOGP, LOGP, centred, same)[0]
    assert float(value) == pytest.approx(0, abs=1e-7)  # the loss says nothing, the gradient does


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.3, 1, False), (0.7, -1, False), (1.3, -1, True), (0.7, 1, True), (1.1, 1, True)],
)
def test_corners_of_the_clip(ratio, advantage, moves):
    old = jnp.full((1, 1), -1.0)
    logp, one = old + jnp.log(ratio), jnp.ones((1, 1))
    given = jnp.asarray([float(advantage)])
    got = slope(lambda x: posttrain.ppo_clip_loss(x, old, given, one), logp)
    want = -advantage * ratio if moves else 0.0
    assert float(got[0, 0]) == pytest.approx(want, rel=1e-5)
    clipped = posttrain.ppo_clip_loss(logp, old, given, one)[1]["clip_fraction"]
    assert float(clipped) == (0.0 if moves else 1.0)


def test_clip_higher_dual_clip_and_ratio_limit():
    old, one = jnp.full((1, 1), -1.0), jnp.ones((1, 1))

    def value(ratio, advantage, **options):
        loss = posttrain.ppo_clip_loss(
            old + jnp.log(ratio), old, jnp.asarray([advantage]), one, **options
        )
        return -float(loss[0])

    assert value(1.25, 1.0, clip_high=0.28) == pytest.approx(1.25)
    assert value(1.25, 1.0) == pytest.approx(1.2)
    assert value(5.0, -1.0) == pytest.approx(-5.0)
    assert value(5.0, -1.0, dual_clip=3.0) == pytest.approx(-3.0)
    assert value(5.0, 1.0, dual_clip=3.0) == pytest.approx(1.2)
    assert value(5.0, -1.0, ratio_limit=4.0) == pytest.approx(-4.0)
    assert value(1e8, -1.0) == pytest.approx(-1e8, rel=1e-4)
    assert value(1e30, -1.0) == pytest.approx(-np.exp(20.0), rel=1e-4)  # no infinity


def test_levels_of_the_ratio():
    difference = np.where(MASK > 0, LOGP - OLD, 0)
    mean = difference.sum(1) / np.asarray(MASK).sum(1)
    token = posttrain.importance_ratio(LOGP, OLD, MASK)
    np.testing.assert_allclose(token, np.exp(difference), rtol=1e-5)
    for level in ("sequence", "sequence_token"):
        got = posttrain.importance_ratio(LOGP, OLD, MASK, level)
        want = np.where(MASK > 0, np.exp(mean)[:, None], 1)
        np.testing.assert_allclose(got, want, rtol=1e-5)
    # The two share the gradient of a sum over the sequence up to its spread over the tokens.
    per_sequence = jax.grad(lambda x: posttrain.importance_ratio(x, OLD, MASK, "sequence")[0, 0])(
        LOGP
    )
    np.testing.assert_allclose(per_sequence[0, :3], np.exp(mean[0]) / 3, rtol=1e-5)
    per_token = jax.grad(
        lambda x: posttrain.importance_ratio(x, OLD, MASK, "sequence_token")[0, 0]
    )(LOGP)
    np.testing.assert_allclose(per_token[0], [np.exp(mean[0]), 0, 0, 0], rtol=1e-5)
    with pytest.raises(ValueError, match="level: expected one of"):
        posttrain.importance_ratio(LOGP, OLD, MASK, "row")


def test_cispo_never_silences_a_token():
    old, one = jnp.full((1, 1), -1.0), jnp.ones((1, 1))
    for ratio, factor in ((1.5, 1.5), (9.0, 5.0)):
        logp = old + jnp.log(ratio)
        got = slope(lambda x: posttrain.cispo_loss(x, old, jnp.asarray([1.0]), one), logp)
        assert float(got[0, 0]) == pytest.approx(-factor, rel=1e-5)


def test_truncated_importance_weights():
    behavior = OLD - jnp.asarray([[0.1, 1.0, -1.0, 0.0]] * 3)
    weights = np.asarray(posttrain.truncated_importance(OLD, behavior, MASK, cap=2.0))
    want = np.minimum(np.exp([0.1, 1.0, -1.0, 0.0]), 2.0)
    np.testing.assert_allclose(weights[2], want, rtol=1e-5)
    np.testing.assert_array_equal(weights[0, 3], 1)
    masked = np.asarray(posttrain.truncated_importance(OLD, behavior, MASK, cap=2.0, floor=0.5))
    np.testing.assert_allclose(masked[2], [np.exp(0.1), 0, 0, 1], rtol=1e-5)
    loss = posttrain.reinforce_loss(LOGP, A, MASK, weights=jnp.asarray(weights))[0]
    plain = -(np.asarray(A)[:, None] * LOGP * weights * MASK).sum() / 3
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)


def test_value_loss():
    values, returns, one = jnp.asarray([[1.0, 4.0]]), jnp.asarray([[0.0, 1.0]]), jnp.ones((1, 2))
    loss, metrics = posttrain.value_loss(values, returns, one)
    assert float(loss) == pytest.approx(0.5 * (1 + 9) / 2)
    assert float(metrics["explained_variance"]) == pytest.approx(1 - 5 / 0.25)
    old = jnp.asarray([[0.5, 2.0]])
    clipped, _ = posttrain.value_loss(values, returns, one, old_values=old, clip=0.2)
    assert float(clipped) == pytest.approx(0.5 * (1.0 + 9.0) / 2)  # the larger error of the two
    inside, _ = posttrain.value_loss(
        jnp.asarray([[0.0, 1.0]]), returns, one, old_values=old, clip=0.2
    )
    assert float(inside) == pytest.approx(0.5 * (0.3**2 + 0.8**2) / 2)
    with pytest.raises(ValueError, match="old_values, clip"):
        posttrain.value_loss(values, returns, one, clip=0.2)


@pytest.mark.parametrize("name", ["ppo", "cispo", "reinforce", "value"])
def test_what_is_hidden_has_no_influence(name):
    def loss(logp, old, advantages):
        if name == "ppo":
            return posttrain.ppo_clip_loss(logp, old, advantages, MASK, level="sequence_token")[0]
        if name == "cispo":
            return posttrain.cispo_loss(logp, old, advantages, MASK)[0]
        if name == "reinforce":
            return posttrain.reinforce_loss(logp, advantages, MASK)[0]
        return posttrain.value_loss(logp, advantages, MASK, old_values=old, clip=0.1)[0]

    wide = jnp.broadcast_to(A[:, None], MASK.shape)
    clean, dirty = (
        [jnp.where(MASK > 0, x, junk) for x in (LOGP, OLD, wide)] for junk in (0.0, jnp.nan)
    )
    both = [jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*x) for x in (clean, dirty)]
    assert float(both[0][0]) == float(both[1][0])
    for index in range(3):
        np.testing.assert_array_equal(both[0][1][index], both[1][1][index])
    np.testing.assert_array_equal(both[0][1][1], 0)  # old and advantages are constants
    np.testing.assert_array_equal(both[0][1][2], 0)
    many = jax.vmap(loss)(*(jnp.stack([x, x]) for x in clean))
    np.testing.assert_allclose(many, both[0][0], rtol=1e-6)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets, values
from jaxlab.types import Transition
from jaxlab.values import Support, ValueHead

HEADS = [
    ValueHead(),
    ValueHead("hl_gauss", Support(-5.0, 15.0, 41, "bins")),
    ValueHead("c51", Support(-5.0, 15.0, 41)),
    ValueHead("quantile", num_quantiles=7),
]
GAMMA = 0.5
BATCH = Transition(
    obs=jnp.eye(3),
    action=jnp.array([0, 1, 1]),
    reward=jnp.array([1.0, 2.0, 3.0]),
    terminated=jnp.array([False, True, False]),
    truncated=jnp.array([False, False, True]),
    next_obs=jnp.roll(jnp.eye(3), 1, axis=1),
)


def _apply(head):
    return lambda params, obs: head.apply(params, obs)


def test_q_learning_of_a_scalar_table_by_hand():
    head = HEADS[0]
    online = {"kernel": jnp.array([[1.0, 0.0], [0.0, 4.0], [2.0, 3.0]]), "bias": jnp.zeros(2)}
    target = {"kernel": jnp.array([[5.0, 6.0], [7.0, 1.0], [2.0, 8.0]]), "bias": jnp.zeros(2)}
    # Next states 1, 2, 0; the second row ends there, the third one is only truncated.
    loss, metrics = values.q_learning_loss(head, online, target, _apply(head), BATCH, GAMMA)
    y = np.array([1 + 0.5 * 7, 2.0, 3 + 0.5 * 6])
    q = np.array([1.0, 4.0, 3.0])
    np.testing.assert_allclose(loss, np.mean((y - q) ** 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-6)
    loss, _ = values.q_learning_loss(head, online, target, _apply(head), BATCH, GAMMA, double=True)
    y = np.array([1 + 0.5 * 1, 2.0, 3 + 0.5 * 5])  # the online network's actions 1 and 0
    np.testing.assert_allclose(loss, np.mean((y - q) ** 2), rtol=1e-6)
    mask = jnp.array([1, 0, 0])
    loss, _ = values.q_learning_loss(head, online, target, _apply(head), BATCH, GAMMA, mask=mask)
    np.testing.assert_allclose(loss, 3.5**2, rtol=1e-6)
    cql, metrics = values.cql_loss(head, online, target, _apply(head), BATCH, GAMMA, 2.0)
    penalty = np.mean(np.log(np.exp([[1, 0], [0, 4], [2, 3]]).sum(-1)) - np.array([1.0, 4.0, 3.0]))
    np.testing.assert_allclose(metrics["cql"], penalty, rtol=1e-5)
    y = np.array([1 + 0.5 * 7, 2.0, 3 + 0.5 * 6])
    np.testing.assert_allclose(cql, np.mean((y - q) ** 2) + 2 * penalty, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_sarsa_bootstraps_with_the_actions_of_the_data(head, key):
    online, target = (head.init(k, 3, 2) for k in jax.random.split(key))
    best = jnp.argmax(head.mean(head.apply(target, BATCH.next_obs)), axis=-1)
    loss, metrics = jax.jit(
        lambda a: values.sarsa_loss(head, online, target, _apply(head), BATCH, a, GAMMA)
    )(best)
    q_loss, _ = values.q_learning_loss(head, online, target, _apply(head), BATCH, GAMMA)
    np.testing.assert_allclose(loss, q_loss, rtol=1e-5)
    other, _ = values.sarsa_loss(head, online, target, _apply(head), BATCH, 1 - best, GAMMA)
    assert float(other) != float(loss)
    q = head.mean(head.select(head.apply(online, BATCH.obs), BATCH.action))
    np.testing.assert_allclose(metrics["q"], jnp.mean(q), rtol=1e-5, atol=1e-6)
    if head.kind == "scalar":
        following = head.apply(target, BATCH.next_obs)[jnp.arange(3), 1 - best]
        y = BATCH.reward + GAMMA * jnp.where(BATCH.terminated, 0.0, following)
        np.testing.assert_allclose(other, jnp.mean((q - y) ** 2), rtol=1e-5)


@pytest.mark.parametrize("head", HEADS, ids=lambda h: h.kind)
def test_every_head_solves_a_chain(head):
    """Values 1 + g v_1, 2, 3 + g v_0 of the states: the fixed point of the batch's transitions."""
    params = head.init(jax.random.key(0), 3, 1)
    apply_fn = lambda p, obs: head.apply(p, obs)[:, 0]  # noqa: E731

    def step(carry, _):
        params, target, velocity = carry
        loss = lambda p: values.td_value_loss(head, p, target, apply_fn, BATCH, GAMMA)  # noqa: E731
        gradient, _ = jax.grad(loss, has_aux=True)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
        return (params, nets.polyak(target, params, 0.1), velocity), None

    start = (params, params, jax.tree.map(jnp.zeros_like, params))
    (params, _, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, length=1500))(start)
    v0 = 1 + GAMMA * 2.0
    np.testing.assert_allclose(
        head.mean(apply_fn(params, jnp.eye(3))), [v0, 2.0, 3 + GAMMA * v0], atol=0.05
    )


@pytest.mark.parametrize("head", HEADS[1::2], ids=lambda h: h.kind)
def test_losses_send_no_gradient_to_the_target_network(head, key):
    params, target = (head.init(k, 3, 2) for k in jax.random.split(key))

    @jax.jit
    def gradients(params, target, gamma):
        def loss(params, target):
            return values.cql_loss(
                head, params, target, _apply(head), BATCH, gamma, 0.5, double=True
            )

        return jax.grad(loss, (0, 1), has_aux=True)(params, target)

    (online_grad, target_grad), metrics = gradients(params, target, 0.9)
    assert all(not x.any() for x in jax.tree.leaves(target_grad))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((online_grad, metrics)))
    assert np.abs(online_grad["kernel"]).max() > 0
    swept = jax.vmap(gradients, (None, None, 0))(params, target, jnp.array([0.0, 0.9]))
    np.testing.assert_allclose(
        swept[0][0]["kernel"][1], online_grad["kernel"], rtol=1e-4, atol=1e-6
    )


def test_rows_that_a_mask_hides_may_hold_nan_also_for_gradients(key):
    head = HEADS[0]
    online, target = (head.init(k, 3, 2) for k in jax.random.split(key))
    hidden = BATCH.replace(
        obs=BATCH.obs.at[1].set(jnp.nan),
        next_obs=BATCH.next_obs.at[1].set(jnp.nan),
        reward=BATCH.reward.at[1].set(jnp.nan),
    )
    two = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], BATCH)
    follow = jnp.array([0, 1, 1])

    def losses(params, batch, follow, mask):
        common = (head, params, target, _apply(head), batch)
        return (
            values.q_learning_loss(*common, GAMMA, mask=mask)[0]
            + values.sarsa_loss(*common, follow, GAMMA, mask)[0]
            + values.cql_loss(*common, GAMMA, 0.5, mask=mask)[0]
        )

    got = jax.value_and_grad(losses)(online, hidden, follow, jnp.array([1, 0, 1]))
    want = jax.value_and_grad(losses)(online, two, follow[jnp.array([0, 2])], None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    with pytest.raises(ValueError, match=r"mask: expected leading axes of \(3,"):
        values.q_learning_loss(head, online, target, _apply(head), BATCH, GAMMA, mask=jnp.ones(2))

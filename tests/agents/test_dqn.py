import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import dqn
from jaxlab.types import Transition
from jaxlab.values import Support, ValueHead

SUPPORT = Support(-4.0, 16.0, 21)
HEADS = {
    "scalar": ValueHead("scalar", SUPPORT),
    "hl_gauss": ValueHead("hl_gauss", dataclasses.replace(SUPPORT, kind="bins")),
    "c51": ValueHead("c51", SUPPORT),
}
# A chain 0 -> 1 -> 2 -> end; action 1 goes on and earns 1, 2, 3, action 0 ends it with 0.5.
CHAIN = Transition(
    obs=jnp.repeat(jnp.eye(3), 2, axis=0),
    action=jnp.tile(jnp.array([0, 1], jnp.int32), 3),
    reward=jnp.array([0.5, 1.0, 0.5, 2.0, 0.5, 3.0]),
    terminated=jnp.array([True, False, True, False, True, True]),
    truncated=jnp.zeros(6, bool),
    next_obs=jnp.repeat(jnp.roll(jnp.eye(3), -1, axis=0), 2, axis=0),
)
GAMMA = 0.5
BEST = np.array([[0.5, 1 + 0.5 * 3.5], [0.5, 2 + 0.5 * 3.0], [0.5, 3.0]])


def _config(kind, **changes):
    return dqn.DQNConfig(head=HEADS[kind], hidden=(32,), target_every=20, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEADS)
def test_solves_a_chain_by_q_learning_and_by_sarsa(kind, key):
    config = _config(kind)

    def train(sarsa):
        following = jnp.zeros(6, jnp.int32) if sarsa else None  # the data's policy gives up next

        def step(state, _):
            return dqn.update(state, CHAIN, config, 1e-2, GAMMA, following)[0], None

        state, _ = jax.lax.scan(step, dqn.init(key, config, 3, 2), None, length=600)
        return dqn.q_values(state.params, config, jnp.eye(3))

    q, given_up = jax.jit(lambda: (train(False), train(True)))()
    np.testing.assert_allclose(q, BEST, atol=0.08)
    expected = np.array([[0.5, 1.25], [0.5, 2.25], [0.5, 3.0]])
    np.testing.assert_allclose(given_up, expected, atol=0.08)


def test_every_head_starts_at_the_centre(key):
    obs = jax.random.normal(key, (50, 3))
    for kind in HEADS:
        state = dqn.init(key, _config(kind), 3, 4)
        np.testing.assert_allclose(dqn.q_values(state.params, _config(kind), obs), 6.0, atol=0.6)
        assert dqn.q_values(state.params, _config(kind), obs[None]).shape == (1, 50, 4)


def test_the_target_is_copied_when_due_and_rate_zero_changes_nothing(key):
    config = dataclasses.replace(_config("scalar"), target_every=3)
    update = jax.jit(lambda s, lr: dqn.update(s, CHAIN, config, lr, GAMMA)[0])
    state = start = dqn.init(key, config, 3, 2)
    for step in range(1, 7):
        before, state = state, update(state, 1e-2)
        assert int(state.step) == step
        expected = state.params if step % 3 == 0 else before.target
        for got, wanted in zip(jax.tree.leaves(state.target), jax.tree.leaves(expected)):
            np.testing.assert_array_equal(got, wanted)
    frozen = update(start, 0.0)
    for got, wanted in zip(jax.tree.leaves(frozen.params), jax.tree.leaves(start.params)):
        np.testing.assert_array_equal(got, wanted)


def test_a_step_of_the_scalar_head_is_one_of_adam_on_the_squared_error(key):
    config = _config("scalar")
    state = dqn.init(key, config, 3, 2)
    state = state.replace(target=jax.tree.map(lambda x: x + 0.1, state.target))
    best = dqn.q_values(state.target, config, CHAIN.next_obs).max(-1)
    y = CHAIN.reward + GAMMA * jnp.where(CHAIN.terminated, 0.0, best)

    def loss(params):
        q = dqn.q_values(params, config, CHAIN.obs)
        return jnp.mean((q[jnp.arange(6), CHAIN.action] - y) ** 2)

    gradient = jax.grad(loss)(state.params)
    after, metrics = dqn.update(state, CHAIN, config, 1e-3, GAMMA)
    np.testing.assert_allclose(metrics["loss"], loss(state.params), rtol=1e-5)
    # Adam's first step: the gradient over its own magnitude.
    expected = jax.tree.map(lambda p, g: p - 1e-3 * g / (jnp.abs(g) + 1e-8), state.params, gradient)
    for got, wanted in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected)):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=2e-6)


def test_double_takes_the_online_networks_choice(key):
    head = ValueHead()
    config = dqn.DQNConfig(head=head, hidden=(4,), double=True)
    state = dqn.init(key, config, 3, 2)

    def with_bias(bias):
        kernel = jnp.zeros_like(state.params["head"]["kernel"])
        return state.params | {"head": {"kernel": kernel, "bias": jnp.array(bias)}}

    state = state.replace(params=with_bias([1.0, 0.0]), target=with_bias([5.0, 9.0]))
    batch = dataclasses.replace(CHAIN, terminated=jnp.zeros(6, bool))
    q = np.where(np.asarray(batch.action) == 0, 1.0, 0.0)
    for double, value in ((True, 5.0), (False, 9.0)):
        _, metrics = dqn.update(
            state, batch, dataclasses.replace(config, double=double), 1e-3, GAMMA
        )
        expected = np.mean((np.asarray(batch.reward) + GAMMA * value - q) ** 2)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_exploration_is_uniform_for_its_share(key):
    config = _config("scalar")
    params = dqn.init(key, config, 3, 4).params
    obs = jnp.broadcast_to(jnp.array([1.0, 0.0, 0.0]), (8000, 3))
    greedy = int(jnp.argmax(dqn.q_values(params, config, obs[0])))
    act = jax.jit(lambda epsilon: dqn.act(key, params, config, obs, epsilon))
    assert set(np.unique(act(0.0))) == {greedy}
    share = np.bincount(act(0.4), minlength=4) / 8000
    expected = np.full(4, 0.1) + 0.6 * (np.arange(4) == greedy)
    np.testing.assert_allclose(share, expected, atol=0.02)


def test_seeds_under_vmap_are_the_loop(key):
    config = _config("hl_gauss")
    keys = jax.random.split(key, 3)

    def run(key, lr):
        state = dqn.init(key, config, 3, 2)
        return dqn.update(state, CHAIN, config, lr, GAMMA)[0].params

    rates = jnp.array([1e-3, 3e-3, 1e-2])
    together = jax.jit(jax.vmap(run))(keys, rates)
    for i in range(3):
        alone = jax.jit(run)(keys[i], rates[i])
        for got, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone)):
            np.testing.assert_allclose(got[i], wanted, atol=1e-6)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="hidden: expected at least one positive width"):
        dqn.DQNConfig(hidden=())
    with pytest.raises(ValueError, match="target_every: expected at least 1, got 0"):
        dqn.DQNConfig(target_every=0)

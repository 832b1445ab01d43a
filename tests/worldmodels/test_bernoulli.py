"""Models of bits, and rollouts whose end is a probability."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import panflute, procmaze
from jaxlab.worldmodels import bernoulli, soft_rollout


def test_likelihood_in_closed_form(key):
    rng = np.random.default_rng(0)
    logits, mean, going = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=5)
    bits, reward = rng.integers(2, size=(5, 3)), rng.normal(size=5)
    ended = np.array([True, False, False, True, False])
    parts = [jnp.asarray(x, jnp.float32) for x in (logits, mean, going)]
    loss, metrics = bernoulli.negative_log_likelihood(
        bernoulli.BernoulliPrediction(*parts),
        jnp.asarray(bits, jnp.float32),
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(ended),
    )
    p, c = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-going))
    obs = -np.where(bits, np.log(p), np.log(1 - p)).sum(axis=1) * ~ended
    gauss = 0.5 * (reward - mean) ** 2 + 0.5 * math.log(2 * math.pi)
    ends = -np.where(ended, np.log(1 - c), np.log(c))
    for name, expected in (("obs", obs), ("reward", gauss), ("continues", ends)):
        np.testing.assert_allclose(metrics[f"{name}_nll"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, (obs + gauss + ends).mean(), rtol=1e-5)


def test_a_sure_and_right_model_has_no_loss_left():
    bits = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    reward = jnp.array([2.0, -1.0])
    prediction = bernoulli.BernoulliPrediction(80 * (2 * bits - 1), reward, None)
    _, metrics = bernoulli.negative_log_likelihood(prediction, bits, reward, jnp.zeros(2, bool))
    assert float(metrics["obs_nll"]) < 1e-30
    np.testing.assert_allclose(metrics["reward_nll"], 0.5 * math.log(2 * math.pi), rtol=1e-6)
    wrong = prediction._replace(next_obs=-prediction.next_obs)
    loss, _ = bernoulli.negative_log_likelihood(wrong, bits, reward, jnp.zeros(2, bool))
    np.testing.assert_allclose(loss, 160 + 0.5 * math.log(2 * math.pi), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("episodic", [True, False])
def test_shapes_gradients_and_what_reaches_what(key, episodic):
    params = bernoulli.init(key, 6, 3, (8, 8), episodic)
    obs = jax.random.bernoulli(key, 0.5, (7, 6)).astype(jnp.float32)
    action = jnp.arange(7) % 3
    prediction = jax.jit(bernoulli.apply)(params, obs, action)
    assert prediction.next_obs.shape == (7, 6) and prediction.reward.shape == (7,)
    assert (prediction.continues is not None) == episodic
    one = bernoulli.apply(params, obs[2], action[2])
    np.testing.assert_allclose(one.next_obs, prediction.next_obs[2], rtol=1e-5, atol=1e-6)

    def obs_loss(params, ended):
        return bernoulli.negative_log_likelihood(
            bernoulli.apply(params, obs, action), obs, obs[:, 0], ended
        )[0]

    grads = jax.grad(obs_loss)(params, jnp.zeros(7, bool))
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(grads))
    silent = jax.grad(obs_loss)(params, jnp.ones(7, bool))  # after an end no bit counts
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(silent.next_obs))
    assert any(np.any(np.asarray(x)) for x in jax.tree.leaves(silent.reward))


def constant(logits, reward, going):
    """A model that predicts the same whatever it sees, for 2 bits and 2 actions."""

    def layer(bias):
        return ({"kernel": jnp.zeros((4, len(bias))), "bias": jnp.array(bias)},)

    return bernoulli.BernoulliParams(layer(logits), layer([reward]), layer([going]))


def test_bits_are_drawn_with_their_probability_and_not_with_their_logit(key):
    params = constant([math.log(1 / 15), 3.0], 0.5, -1.0)
    obs, action = jnp.zeros((40_000, 2)), jnp.zeros(40_000, jnp.int32)
    bits, reward, going = bernoulli.make_soft_step(params)(key, obs, action)
    means = np.mean(bits, axis=0)
    np.testing.assert_allclose(means, [1 / 16, 1 / (1 + math.exp(-3))], atol=0.006)
    assert abs(np.corrcoef(np.asarray(bits).T)[0, 1]) < 0.02
    np.testing.assert_allclose(reward[0], 0.5)
    np.testing.assert_allclose(going[0], 1 / (1 + math.e), rtol=1e-5)
    bits, _, _ = bernoulli.make_soft_step(params, "threshold")(key, obs, action)
    np.testing.assert_array_equal(np.unique(bits, axis=0), [[0, 1]])
    with pytest.raises(ValueError, match="sampling: expected one of"):
        bernoulli.make_soft_step(params, "logit")


def test_weights_are_the_probability_of_being_reached(key):
    going = jnp.array([0.9, 0.5, 0.0, 0.8, 0.7])

    def step(key, state, action):
        t = state[:, 0].astype(jnp.int32)
        return state + 1, jnp.zeros(3), going[t]

    steps = soft_rollout(key, step, lambda k, o: jnp.zeros(3, jnp.int32), jnp.zeros((3, 1)), 5)
    # The third step ends the task: it counts itself, and nothing behind it does.
    np.testing.assert_allclose(steps.weight[:, 0], [1, 0.9, 0.45, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(steps.continues[:, 1], going)
    np.testing.assert_array_equal(steps.obs[1:], steps.next_obs[:-1])
    with pytest.raises(ValueError, match="horizon: expected at least one"):
        soft_rollout(key, step, lambda k, o: o, jnp.zeros((3, 1)), 0)


@pytest.mark.slow
@pytest.mark.parametrize("env", [panflute(3, spontaneous=False), procmaze(3, spontaneous=False)])
def test_an_exact_model_repeats_the_simulator_bit_for_bit(key, env):
    """Observations determine these states, so that a model can be made of the simulator."""
    from jaxlab.agents.dyna_q import simulator_step

    states = jax.vmap(env.reset)(jax.random.split(key, 4))
    simulator = simulator_step(env)

    def policy(key, obs):
        lean = jnp.sum(obs, axis=-1, keepdims=True)
        return jax.random.categorical(key, lean * jnp.linspace(0, 1, env.num_actions)[None])

    true = soft_rollout(key, simulator, policy, states, 6, jax.vmap(env.observe))

    def model(key, carry, action):
        """Takes observations alone, and finds the state among all that lead from the start."""
        obs, hidden = carry
        assert obs.shape == (4, env.obs_dim)
        hidden, reward, going = simulator(key, hidden, action)
        return (jax.vmap(env.observe)(hidden), hidden), reward, going

    start = (jax.vmap(env.observe)(states), states)
    imagined = soft_rollout(key, model, policy, start, 6, lambda carry: carry[0])
    jax.tree.map(np.testing.assert_array_equal, true, imagined)
    assert len(np.unique(true.action)) > 1


def test_rollouts_are_constants_of_differentiation(key):
    params = bernoulli.init(key, 2, 2, (4,), True)

    def reward(params):
        step = bernoulli.make_soft_step(params)
        zeros = jnp.zeros((3, 2))
        steps = soft_rollout(key, step, lambda k, o: jnp.zeros(3, jnp.int32), zeros, 2)
        return jnp.sum(steps.reward) + jnp.sum(steps.weight)

    assert not any(np.any(np.asarray(g)) for g in jax.tree.leaves(jax.grad(reward)(params)))

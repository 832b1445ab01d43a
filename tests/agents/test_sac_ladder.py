"""A ladder of decision problems whose values are known: each rung adds one thing to get right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import sac
from jaxlab.types import Transition

CONFIG = sac.SACConfig(hidden=(32, 32), auto_alpha=False)
BATCH, UPDATES = 64, 1200


_init = jax.jit(sac.init, static_argnums=(1, 3, 4))
_update_many = jax.jit(sac.update_many, static_argnums=3)


def _learn(key, *data, **hparams):
    """Fits an agent on uniform draws from fixed transitions; one program for every rung."""
    data = jax.tree.map(lambda *x: jnp.concatenate(x), *data)
    hparams = {"init_alpha": 1e-6, "actor_lr": 3e-3, "critic_lr": 3e-3, "tau": 0.05} | hparams
    scalars = sac.hyperparams(1, **hparams)
    state = _init(key, CONFIG, scalars, 1, 1)
    rows = jax.random.randint(key, (UPDATES, BATCH), 0, data.reward.shape[0])
    batches = jax.tree.map(lambda x: x[rows], data)
    return _update_many(key, state, batches, CONFIG, scalars)[0]


def _data(key, obs, reward_fn, next_obs, terminated, truncated=False, rows=512):
    action = jax.random.uniform(key, (rows, 1), minval=-1.0)
    obs = jnp.broadcast_to(jnp.asarray(obs, jnp.float32), (rows, 1))
    return Transition(
        obs=obs,
        action=action,
        reward=reward_fn(obs[:, 0], action[:, 0]),
        terminated=jnp.full((rows,), terminated),
        truncated=jnp.full((rows,), truncated),
        next_obs=jnp.broadcast_to(jnp.asarray(next_obs, jnp.float32), (rows, 1)),
    )


def _q(state, obs, action):
    return sac.q_values(state.critics, CONFIG, jnp.array([obs]), jnp.array([action]))


@pytest.mark.slow
def test_constant_reward(key):
    data = _data(key, 0.0, lambda o, a: jnp.ones_like(o), 0.0, terminated=True)
    state = _learn(key, data)
    np.testing.assert_allclose(_q(state, 0.0, 0.3), [1.0, 1.0], atol=0.05)


def test_reward_that_depends_on_the_observation(key):
    left = _data(key, -1.0, lambda o, a: o, 0.0, terminated=True)
    right = _data(key, 1.0, lambda o, a: o, 0.0, terminated=True)
    state = _learn(key, left, right)
    np.testing.assert_allclose(_q(state, -1.0, 0.3), [-1.0, -1.0], atol=0.05)
    np.testing.assert_allclose(_q(state, 1.0, 0.3), [1.0, 1.0], atol=0.05)


def test_two_steps_are_discounted_once(key):
    first = _data(key, 0.0, lambda o, a: jnp.zeros_like(o), 1.0, terminated=False)
    second = _data(key, 1.0, lambda o, a: jnp.ones_like(o), 0.0, terminated=True)
    state = _learn(key, first, second, gamma=0.7)
    np.testing.assert_allclose(_q(state, 1.0, 0.0), [1.0, 1.0], atol=0.05)
    np.testing.assert_allclose(_q(state, 0.0, 0.0), [0.7, 0.7], atol=0.05)


@pytest.mark.parametrize("truncated", [False, True])
def test_an_endless_reward_sums_to_the_geometric_series(key, truncated):
    data = _data(key, 0.0, lambda o, a: jnp.ones_like(o), 0.0, False, truncated)
    state = _learn(key, data, gamma=0.5)
    np.testing.assert_allclose(_q(state, 0.0, 0.3), [2.0, 2.0], atol=0.05)


def test_reward_that_depends_on_the_action(key):
    data = _data(key, 0.0, lambda o, a: 1 - (a - 0.5) ** 2, 0.0, terminated=True)
    state = _learn(key, data)
    best = sac.act(state, CONFIG, jnp.zeros(1))
    np.testing.assert_allclose(best, [0.5], atol=0.1)
    np.testing.assert_allclose(_q(state, 0.0, float(best[0])), [1.0, 1.0], atol=0.05)


def test_reward_that_depends_on_observation_and_action(key):
    left = _data(key, -1.0, lambda o, a: 1 - (a - 0.5 * o) ** 2, 0.0, terminated=True)
    right = _data(key, 1.0, lambda o, a: 1 - (a - 0.5 * o) ** 2, 0.0, terminated=True)
    state = _learn(key, left, right)
    np.testing.assert_allclose(
        sac.act(state, CONFIG, jnp.array([[-1.0], [1.0]]))[:, 0], [-0.5, 0.5], atol=0.12
    )


def test_entropy_alone_makes_the_policy_uniform(key):
    """Without reward the best policy on [-1, 1] is the uniform one."""
    data = _data(key, 0.0, lambda o, a: jnp.zeros_like(o), 0.0, terminated=True)
    state = _learn(key, data, init_alpha=1.0)
    drawn = sac.act(state, CONFIG, jnp.zeros((20000, 1)), key)
    # A tanh-Gaussian is close to uniform at best: variance 1/3, symmetric.
    assert float(jnp.mean(drawn)) == pytest.approx(0.0, abs=0.1)
    assert float(jnp.var(drawn)) == pytest.approx(1 / 3, abs=0.05)

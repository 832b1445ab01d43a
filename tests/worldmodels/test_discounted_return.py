import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm


def counter(key, obs, action):
    """Counts up by the action, earns what it counted, ends at 3; beyond it everything is NaN."""
    following = obs + action
    reward = jnp.where(obs[:, 0] >= 3, jnp.nan, obs[:, 0])
    return following, reward, following[:, 0] >= 3, {}


def test_sum_stops_with_the_step_that_terminates(key):
    start = jnp.array([[0.0], [2.0], [-4.0]])
    one = lambda k, obs: jnp.ones_like(obs)  # noqa: E731
    got = jax.jit(lambda s: wm.discounted_return(key, counter, one, s, 4, 0.5))(start)
    expected = [0 + 0.5 * 1 + 0.25 * 2, 2.0, -4 - 0.5 * 3 - 0.25 * 2 - 0.125 * 1]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="horizon: expected at least one step, got 0"):
        wm.discounted_return(key, counter, one, start, 0, 0.5)


def test_a_constant_reward_gives_a_geometric_sum(key):
    def step(key, obs, action):
        return obs, jnp.ones(len(obs)), jnp.zeros(len(obs), bool), {}

    def policy(key, obs):
        return jax.random.normal(key, obs.shape)

    got = jax.vmap(lambda g: wm.discounted_return(key, step, policy, jnp.zeros((2, 1)), 10, g))(
        jnp.array([0.0, 0.9, 1.0])
    )
    np.testing.assert_allclose(got[:, 0], [1.0, (1 - 0.9**10) / 0.1, 10.0], rtol=1e-5)

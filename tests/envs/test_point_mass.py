import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import episode_returns, exact_step_fn, make, uniform_policy
from jaxlab.envs.point_mass import HALF_WIDTH, STEP, optimal_value


def test_optimal_value_solves_the_bellman_equation(key):
    obs = jax.random.uniform(key, (50, 4), minval=-3.0, maxval=3.0)
    straight = jnp.clip(-obs / STEP, -1, 1)
    model = exact_step_fn(make("point_mass", dims=4))
    following, reward, ended, _ = model(key, obs, straight)
    value = optimal_value(obs, 0.9)
    np.testing.assert_allclose(value, reward + 0.9 * optimal_value(following, 0.9), rtol=1e-5)
    assert not bool(jnp.any(ended))
    # No other action is better.
    for i in range(20):
        other = jax.random.uniform(jax.random.fold_in(key, i), obs.shape, minval=-1.0)
        following, reward, _, _ = model(key, obs, other)
        assert bool(jnp.all(value > reward + 0.9 * optimal_value(following, 0.9)))
    np.testing.assert_allclose(optimal_value(jnp.zeros(4), 0.96), 25.0, rtol=1e-5)


def test_reference_returns(key):
    env = make("point_mass")
    random = episode_returns(key, env, uniform_policy(env), 1024)
    np.testing.assert_allclose(random.mean(), env.spec.random_return, atol=0.4)
    straight = episode_returns(key, env, lambda _, obs: jnp.clip(-obs / STEP, -1, 1), 1024)
    np.testing.assert_allclose(straight.mean(), env.spec.expert_return, atol=0.05)
    assert make("point_mass", dims=2).spec.expert_return is None


def test_starts_fill_the_box(key):
    env = make("point_mass")
    obs = jax.vmap(lambda k: env.reset(k)[1])(jax.random.split(key, 500))
    assert obs.shape == (500, 8)
    assert HALF_WIDTH - 0.01 < float(jnp.max(jnp.abs(obs))) <= HALF_WIDTH
    np.testing.assert_allclose(jnp.mean(obs**2), HALF_WIDTH**2 / 3, rtol=0.05)


def test_dimensions_must_be_positive():
    with pytest.raises(ValueError, match="dims: expected at least 1, got 0"):
        make("point_mass", dims=0)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import score_plans


def integrator(key, obs, action):
    """x' = x + u, reward -x'^2, terminates above 2, and is NaN from there on."""
    del key
    next_obs = obs + action
    next_obs = jnp.where(obs > 2.0, jnp.nan, next_obs)
    return next_obs, -(next_obs[:, 0] ** 2), next_obs[:, 0] > 2.0, None


def test_sums_rewards_of_each_plan(key):
    plans = jnp.array([[[1.0], [0.0]], [[-1.0], [-1.0]]])
    np.testing.assert_allclose(score_plans(key, integrator, jnp.zeros(1), plans), [-2.0, -5.0])


def test_nothing_counts_after_a_predicted_termination(key):
    plans = jnp.array([[[3.0], [1.0], [1.0]]])  # terminates at once; later steps are NaN
    np.testing.assert_allclose(score_plans(key, integrator, jnp.zeros(1), plans), [-9.0])


def test_every_step_has_its_own_key_and_vmap_equals_loop(key):
    def noisy(key, obs, action):
        noise = jax.random.normal(key, obs.shape)
        return noise, noise[:, 0], jnp.zeros(obs.shape[0], bool), None

    plans = jnp.zeros((1, 2, 1))
    total = score_plans(key, noisy, jnp.zeros(1), plans)
    k1, k2 = jax.random.split(key, 2)
    first, second = (jax.random.normal(k, (1, 1))[:, 0] for k in (k1, k2))
    assert float(first[0]) != float(second[0])
    np.testing.assert_allclose(total, first + second, rtol=1e-6)

    keys, starts = jax.random.split(key, 3), jnp.array([[0.0], [0.5], [1.0]])
    plans = jax.random.normal(key, (4, 5, 1))
    batched = jax.vmap(lambda k, s: score_plans(k, integrator, s, plans))(keys, starts)
    loop = [score_plans(k, integrator, s, plans) for k, s in zip(keys, starts)]
    np.testing.assert_allclose(batched, np.stack(loop), rtol=1e-5)


def test_particles_are_averaged_and_lie_plan_by_plan(key):
    obs, plans = jnp.zeros((1,)), jnp.array([[[1.0], [2.0]], [[10.0], [20.0]]])
    offsets = jnp.array([0.0, 1.0, 2.0])

    def step(key, obs, action):
        assert obs.shape == (6, 1) and action.shape == (6, 1)
        reward = action[:, 0] + jnp.tile(offsets, 2)  # particle j earns its offset too
        return obs, reward, jnp.zeros(6, bool), {}

    returns = score_plans(key, step, obs, plans, 3)
    np.testing.assert_allclose(returns, [3.0 + 2 * 1.0, 30.0 + 2 * 1.0])
    with pytest.raises(ValueError, match="particles: expected at least 1, got 0"):
        score_plans(key, step, obs, plans, 0)


def test_one_lost_particle_loses_the_plan(key):
    def step(key, obs, action):
        lost = jnp.arange(4) == 1
        reward = jnp.where(lost, jnp.nan, action[:, 0])
        return obs, reward, jnp.zeros(4, bool), {}

    returns = score_plans(key, step, jnp.zeros((1,)), jnp.ones((2, 3, 1)), 2)
    assert np.isnan(returns[0]) and float(returns[1]) == 3.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.uint8])
def test_returns_do_not_have_the_precision_of_the_observations(key, dtype):
    def step(key, obs, action):
        reward = jnp.ones(2, jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32)
        return obs, reward, jnp.zeros(2, bool), {}

    returns = score_plans(key, step, jnp.zeros((3,), dtype), jnp.zeros((2, 600, 1)))
    np.testing.assert_array_equal(returns, 600.0)  # in bfloat16 the sum would stop at 256
    assert returns.dtype == jnp.float32

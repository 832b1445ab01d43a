"""Model-predictive control: episodes are those of the environment, and planning helps."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import search
from jaxlab.agents import mpc_episode
from jaxlab.envs import cartpole_swingup, exact_step_fn, pendulum
from jaxlab.envs.cartpole import observe
from jaxlab.envs.core import ClockedState

PLANNER = search.make_planner(search.CEMConfig(8, 1, 16, 4, 2, bounds="clip"))


def play(key, env, start, steps, step_fn=None):
    step_fn = exact_step_fn(env) if step_fn is None else step_fn
    return jax.jit(lambda k: mpc_episode(k, env, step_fn, PLANNER, {"sigma": 1.0}, start, steps))(
        key
    )


def test_an_episode_is_the_environments_own(key):
    env = pendulum()
    start = env.reset(key)[1]
    total, seen = play(key, env, start, 12)
    state = ClockedState(start, jnp.int32(0))
    step = jax.jit(env.step)
    for t in range(12):
        np.testing.assert_array_equal(seen.obs[t], state.physics)
        state, out = step(state, seen.action[t], key)
        np.testing.assert_array_equal(out.next_obs, seen.next_obs[t])
        np.testing.assert_array_equal(out.reward, seen.reward[t])
    np.testing.assert_allclose(total, np.sum(seen.reward), rtol=1e-6)
    assert np.all(np.abs(seen.action) <= 1) and np.all(np.asarray(seen.valid) == 1)


def test_nothing_counts_after_the_end(key):
    env = cartpole_swingup()
    start = observe(jnp.float32(2.35), jnp.float32(2.0), jnp.float32(0), jnp.float32(0))
    total, seen = play(key, env, start, 10)
    left = np.abs(np.asarray(seen.next_obs)[:, 0]) > 2.4
    end = int(left.argmax())
    assert left.any() and end < 5
    np.testing.assert_array_equal(seen.valid, np.arange(10) <= end)
    np.testing.assert_allclose(total, np.asarray(seen.reward)[: end + 1].sum(), rtol=1e-6)


def test_the_model_decides_what_is_planned_and_the_environment_what_happens(key):
    env = pendulum()
    exact, start = exact_step_fn(env), jnp.array([0.0, 1.0, 0.0])

    def mirrored(key, obs, action):
        return exact(key, obs, -action)

    _, right = play(key, env, start, 1)
    _, wrong = play(key, env, start, 1, mirrored)
    np.testing.assert_allclose(wrong.action, -right.action, atol=0.5)
    assert float(right.action[0, 0]) < -0.5  # against falling on
    got = jax.jit(exact)(key, start[None], wrong.action[:1])[0]
    np.testing.assert_allclose(wrong.next_obs, got, rtol=1e-6)

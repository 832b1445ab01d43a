"""Time limits, automatic resets and exact models of a counter, an environment one can count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import (
    EnvSpec,
    auto_reset,
    episode_returns,
    exact_step_fn,
    observed_env,
    uniform_policy,
)


def counter(end, episode_length=5):
    """Counts steps from 0, pays the new count, terminates on reaching `end`."""
    return observed_env(
        EnvSpec("counter", 1, 1, episode_length, None, None),
        initial_obs=lambda key: jnp.zeros(1),
        transition_fn=lambda key, obs, action: obs + 1,
        reward_fn=lambda obs, action, next_obs: next_obs[..., 0],
        termination_fn=lambda obs, action, next_obs: next_obs[..., 0] >= end,
    )


def run(env, steps):
    def act(state, key):
        return env.step(state, jnp.zeros(1), key)

    state, _ = env.reset(jax.random.key(0))
    return jax.lax.scan(act, state, jax.random.split(jax.random.key(1), steps))[1]


def test_raw_environment_goes_on_past_its_end():
    out = run(counter(end=3), 5)
    np.testing.assert_array_equal(out.next_obs[:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(out.terminated, [False, False, True, True, True])


@pytest.mark.parametrize(
    "end, terminated, truncated",
    [
        (3, [0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]),
        (9, [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]),
        (5, [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]),  # both at once: the task's end wins
    ],
)
def test_auto_reset_restarts_clock_and_state(end, terminated, truncated):
    out = run(auto_reset(counter(end)), 6)
    np.testing.assert_array_equal(out.terminated, np.array(terminated, bool))
    np.testing.assert_array_equal(out.truncated, np.array(truncated, bool))
    done = np.array(terminated, bool) | np.array(truncated, bool)
    np.testing.assert_array_equal(out.obs[done], 0)
    assert (np.asarray(out.next_obs)[done] == min(end, 5)).all()
    np.testing.assert_array_equal(out.obs[~done], out.next_obs[~done])


def test_auto_reset_splits_its_key_between_dynamics_and_reset():
    noisy = counter(end=1)._replace(
        reset=lambda key: (counter(1).reset(key)[0], jax.random.normal(key, (1,)))
    )
    key = jax.random.key(4)
    _, out = auto_reset(noisy).step(noisy.reset(key)[0], jnp.zeros(1), key)
    np.testing.assert_array_equal(out.obs, jax.random.normal(jax.random.split(key)[1], (1,)))


def test_exact_model_has_no_clock():
    model = exact_step_fn(counter(end=99, episode_length=2))
    obs = jnp.zeros((4, 1))
    for _ in range(5):
        obs, _, terminated, _ = model(jax.random.key(0), obs, jnp.zeros((4, 1)))
    np.testing.assert_array_equal(obs, 5)
    assert not terminated.any()


@pytest.mark.parametrize("end, expected", [(3, 1 + 2 + 3), (9, 1 + 2 + 3 + 4 + 5)])
def test_episode_returns_stop_at_the_end(end, expected):
    env = counter(end)
    returns = episode_returns(jax.random.key(0), env, uniform_policy(env), 7)
    np.testing.assert_array_equal(returns, np.full(7, expected, np.float32))


def test_episode_returns_ignore_what_follows_the_end():
    env = counter(end=2)

    def step(state, action, key):
        state, out = env.step(state, action, key)
        broken = out.next_obs[0] > 2
        return state, out.replace(reward=jnp.where(broken, jnp.nan, out.reward))

    # Lanes of different lengths, so that the short ones are stepped past their end.
    def reset(key):
        state, obs = env.reset(key)
        late = -jax.random.bernoulli(key).astype(jnp.float32)
        return state.replace(physics=obs + late), obs + late

    lanes = episode_returns(
        jax.random.key(0), env._replace(step=step, reset=reset), uniform_policy(env), 16
    )
    np.testing.assert_array_equal(lanes, 3.0)  # 1 + 2, or 0 + 1 + 2


def test_uniform_policy_fills_the_action_box():
    policy = uniform_policy(counter(3))
    draws = jax.vmap(lambda key: policy(key, jnp.zeros(1)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert draws.min() >= -1 and draws.max() <= 1
    np.testing.assert_allclose([draws.mean(), draws.var()], [0, 1 / 3], atol=0.03)


def test_refusals():
    env = counter(3)
    with pytest.raises(ValueError, match=r"env: .*auto_reset"):
        auto_reset(auto_reset(env))
    with pytest.raises(ValueError, match=r"env: .*auto_reset"):
        episode_returns(jax.random.key(0), auto_reset(env), uniform_policy(env), 2)
    with pytest.raises(ValueError, match=r"env: .*counter"):
        exact_step_fn(env._replace(transition_fn=None))
    with pytest.raises(ValueError, match=r"episode_length: .*got 0"):
        counter(3, episode_length=0)

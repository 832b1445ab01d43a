"""The brax adapter: silence, scaling, episode ends, and the observations' worth as states."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import auto_reset, exact_step_fn, make
from jaxlab.envs.brax import RANDOM_LIFETIME
from jaxlab.envs.brax_tasks import (
    TERMINATIONS,
    hopper_termination,
    inverted_double_pendulum_termination,
    inverted_pendulum_termination,
    walker2d_termination,
)


def random_play(env, *, lanes, steps, seed=0):
    """Transitions of uniform actions with automatic resets, and the states they started from."""
    running = auto_reset(env)

    def act(carry, key):
        state, obs = carry
        action = jax.random.uniform(key, (lanes, env.spec.action_dim), minval=-1, maxval=1)
        after, out = jax.vmap(running.step)(state, action, jax.random.split(key, lanes))
        return (after, out.obs), (obs, action, out)

    @jax.jit
    def play(key):
        start = jax.vmap(env.reset)(jax.random.split(key, lanes))
        return jax.lax.scan(act, start, jax.random.split(key, steps))[1]

    return play(jax.random.key(seed))


@pytest.mark.slow
def test_making_an_environment_is_silent_under_warnings_as_errors():
    code = (
        "import jax; from jaxlab.envs import make; env = make('brax/inverted_pendulum');"
        "jax.eval_shape(env.reset, jax.random.key(0))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == "" and done.stderr == ""


def test_inverted_pendulum_spec():
    assert make("brax/inverted_pendulum").spec.episode_length == 1000
    spec = make("brax/inverted_pendulum", episode_length=300).spec
    assert (spec.obs_dim, spec.action_dim, spec.episode_length) == (4, 1, 300)
    assert spec.expert_return == 300 and spec.random_return is None
    assert make("brax/inverted_pendulum", episode_length=RANDOM_LIFETIME).spec.random_return > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "backend, gain",
    [
        ("spring", [0.14, 2.5, 0.0, 0.04]),
        pytest.param("generalized", [0.05, 1.0, 0.05, 0.2], marks=pytest.mark.slow),
    ],
)
def test_linear_feedback_reaches_the_expert_return(backend, gain):
    env = make("brax/inverted_pendulum", backend=backend)

    @jax.jit
    def balance(key):
        def act(carry, key):
            state, obs = carry
            state, out = env.step(state, (jnp.array(gain) * obs).sum(keepdims=True), key)
            return (state, out.obs), out

        return jax.lax.scan(act, env.reset(key), jax.random.split(key, 1000))[1]

    out = balance(jax.random.key(0))
    assert not out.terminated.any()
    np.testing.assert_array_equal(out.truncated, np.arange(1, 1001) == 1000)
    assert out.reward.sum() == env.spec.expert_return


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["generalized", "spring"])
def test_inverted_pendulum_functions_agree_with_brax(backend):
    env = make("brax/inverted_pendulum", backend=backend)
    obs, action, out = random_play(env, lanes=32, steps=400)
    np.testing.assert_array_equal(env.termination_fn(obs, action, out.next_obs), out.terminated)
    np.testing.assert_array_equal(env.reward_fn(obs, action, out.next_obs), out.reward)
    assert 0.01 < out.terminated.mean() < 0.5


@pytest.mark.slow
def test_inverted_pendulum_observation_is_its_state_in_joint_coordinates():
    env = make("brax/inverted_pendulum", backend="generalized")
    obs, action, out = random_play(env, lanes=32, steps=200)
    next_obs, reward, terminated, _ = jax.jit(exact_step_fn(env))(jax.random.key(0), obs, action)
    np.testing.assert_allclose(next_obs, out.next_obs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(reward, out.reward)
    np.testing.assert_array_equal(terminated, out.terminated)


def test_observation_is_not_the_state_of_springs():
    with pytest.raises(ValueError, match="whole state"):
        exact_step_fn(make("brax/inverted_pendulum", backend="spring"))


@pytest.mark.slow
def test_hopper_functions_agree_with_brax():
    env = make("brax/hopper")
    obs, action, out = random_play(env, lanes=32, steps=400)
    assert out.terminated.sum() > 100
    agree = env.termination_fn(obs, action, out.next_obs) == out.terminated
    assert agree.mean() >= 0.999
    error = env.reward_fn(obs, action, out.next_obs) - out.reward
    assert 1 - error.var() / out.reward.var() >= 0.999
    assert np.abs(error).max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TERMINATIONS))
def test_termination_function_agrees_with_brax(name):
    env = make(f"brax/{name}", episode_length=100)
    obs, action, out = random_play(env, lanes=8, steps=150)
    agree = env.termination_fn(obs, action, out.next_obs) == out.terminated
    assert agree.mean() >= 0.999


@pytest.mark.parametrize(
    "theta, fallen", [(0.0, False), (0.19, False), (-0.19, False), (0.21, True), (-0.21, True)]
)
def test_inverted_pendulum_termination(theta, fallen):
    next_obs = jnp.array([5.0, theta, 9.0, -9.0])
    assert bool(inverted_pendulum_termination(next_obs, jnp.zeros(1), next_obs)) is fallen


def test_hopper_termination():
    standing = np.zeros(11, np.float32)
    standing[0] = 1.25

    def ends(index, value):
        obs = standing.copy()
        obs[index] = value
        return bool(hopper_termination(jnp.array(obs), jnp.zeros(3), jnp.array(obs)))

    assert not ends(0, 1.25) and not ends(0, 150.0) and not ends(7, 99.0)
    assert ends(0, 0.69) and ends(1, 0.21) and ends(1, -0.21)
    assert ends(7, 101.0) and ends(7, -200.0)  # the copied parenthesis misses the second
    assert ends(3, np.nan) and ends(0, np.inf)


def test_walker_termination_uses_its_own_bounds():
    obs = jnp.zeros((5, 17)).at[:, 0].set(jnp.array([0.79, 1.2, 2.01, 1.2, 1.2]))
    obs = obs.at[:, 1].set(jnp.array([0.0, 0.9, 0.0, 1.1, -1.1]))
    ends = walker2d_termination(obs, jnp.zeros((5, 6)), obs)
    np.testing.assert_array_equal(ends, [True, False, True, True, True])


def test_double_pendulum_termination_reads_the_height_of_the_tip():
    first, second = jnp.array([0.0, 0.9, 0.9]), jnp.array([0.0, -0.9, -1.8])
    rest = jnp.zeros((3, 3))
    obs = jnp.concatenate(
        [
            jnp.zeros((3, 1)),
            jnp.stack([jnp.sin(first), jnp.sin(second)], 1),
            jnp.stack([jnp.cos(first), jnp.cos(second)], 1),
            rest,
        ],
        axis=1,
    )
    height = 0.6 * np.cos(first) + 0.6 * np.cos(first + second)
    np.testing.assert_array_equal(
        inverted_double_pendulum_termination(obs, jnp.zeros((3, 1)), obs), height <= 1
    )


def test_step_leaves_the_state_it_was_given_alone():
    env = make("brax/hopper")

    def trace(key):
        state, _ = env.reset(key)
        before = dict(state.physics.metrics)
        env.step(state, jnp.ones(3), key)
        assert all(state.physics.metrics[name] is value for name, value in before.items())
        return 0

    jax.eval_shape(trace, jax.random.key(0))


def test_refusals():
    with pytest.raises(ValueError, match=r"backend: .*warp"):
        make("brax/hopper", backend="warp")

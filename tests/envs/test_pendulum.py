"""Pendulum against float64 integration and hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import exact_step_fn, make
from jaxlab.envs.pendulum import angle, observe


def numpy_step(theta, speed, torque):
    """Gym's Pendulum-v1 update, written out with its numbers."""
    cost = ((theta + np.pi) % (2 * np.pi) - np.pi) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
    speed = np.clip(speed + (15 * np.sin(theta) + 3 * torque) * 0.05, -8, 8)
    return theta + speed * 0.05, speed, -cost


def test_trajectory_equals_float64_integration():
    model = jax.jit(exact_step_fn(make("pendulum")))
    rng = np.random.default_rng(0)
    theta, speed = rng.uniform(-np.pi, np.pi, 32), rng.uniform(-1, 1, 32)
    obs = observe(jnp.float32(theta), jnp.float32(speed))
    for t in range(60):
        action = rng.uniform(-1.5, 1.5, (32, 1))
        theta, speed, reward = numpy_step(theta, speed, 2 * np.clip(action[:, 0], -1, 1))
        obs, got, _, _ = model(jax.random.key(0), obs, jnp.float32(action))
        expected = np.stack([np.cos(theta), np.sin(theta), speed / 8], axis=-1)
        np.testing.assert_allclose(obs, expected, atol=3e-6 * (t + 10))
        np.testing.assert_allclose(got, reward, atol=3e-5 * (t + 10))


@pytest.mark.parametrize("theta, expected", [(0.0, 0.0), (np.pi, -(np.pi**2)), (1.0, -1.0)])
def test_reward_at_rest_is_minus_squared_angle(theta, expected):
    obs = observe(jnp.float32(theta), jnp.float32(0.0))
    env = make("pendulum")
    np.testing.assert_allclose(env.reward_fn(obs, jnp.zeros(1), obs), expected, rtol=1e-5)
    np.testing.assert_allclose(
        env.reward_fn(obs, jnp.full(1, 9.0), obs), expected - 0.001 * 4, rtol=1e-5
    )


def test_upright_is_a_fixed_point_and_speed_is_bounded():
    model = exact_step_fn(make("pendulum"))
    up = observe(jnp.float32(0.0), jnp.float32(0.0))
    np.testing.assert_array_equal(model(jax.random.key(0), up, jnp.zeros(1))[0], up)
    fast = observe(jnp.float32(1.5), jnp.float32(8.0))
    assert model(jax.random.key(0), fast, jnp.ones(1))[0][2] == 1


def test_motor_cannot_hold_the_pendulum_sideways():
    model = exact_step_fn(make("pendulum"))
    side = observe(jnp.float32(np.pi / 2), jnp.float32(0.0))
    falls = model(jax.random.key(0), side, -jnp.ones(1))[0][2]
    np.testing.assert_allclose(8 * falls, (15 - 6) * 0.05, rtol=1e-5)


def test_angle_has_a_gradient_even_where_it_is_undefined():
    assert np.isfinite(jax.grad(lambda obs: angle(obs))(jnp.zeros(3))).all()
    thetas = jnp.linspace(-3.1, 3.1, 13)
    np.testing.assert_allclose(angle(observe(thetas, 0 * thetas)), thetas, atol=1e-6)


def test_initial_states_cover_all_angles():
    obs = jax.vmap(lambda k: make("pendulum").reset(k)[1])(
        jax.random.split(jax.random.key(0), 4000)
    )
    quarters = np.histogram(angle(obs), bins=4, range=(-np.pi, np.pi))[0]
    np.testing.assert_allclose(quarters / 4000, 0.25, atol=0.03)
    assert np.abs(obs[:, 2]).max() <= 1 / 8 and np.abs(obs[:, 2]).max() > 0.9 / 8

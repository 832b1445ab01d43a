"""Cart-pole against its Lagrangian: mass matrix, energy, and hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import exact_step_fn, make
from jaxlab.envs.cartpole import accelerations, observe, transition

CART, POLE, HALF, GRAVITY = 1.0, 0.1, 0.5, 9.8


def lagrangian_accelerations(theta, theta_speed, force):
    """Solve M(q) q'' = f for (x'', theta''); uniform pole: inertia m l^2 / 3 about its centre."""
    coupling = POLE * HALF * np.cos(theta)
    mass = np.array([[CART + POLE, coupling], [coupling, POLE * HALF**2 * 4 / 3]])
    forces = [force + POLE * HALF * theta_speed**2 * np.sin(theta)]
    forces.append(POLE * GRAVITY * HALF * np.sin(theta))
    return np.linalg.solve(mass, np.array(forces))


def energy(obs):
    _, x_speed, cos, _, theta_speed = np.moveaxis(np.asarray(obs, np.float64), -1, 0)
    kinetic = (
        0.5 * (CART + POLE) * x_speed**2
        + POLE * HALF * cos * x_speed * theta_speed
        + 0.5 * POLE * HALF**2 * 4 / 3 * theta_speed**2
    )
    return kinetic + POLE * GRAVITY * HALF * cos


def test_accelerations_equal_the_lagrangian():
    rng = np.random.default_rng(0)
    for theta, theta_speed, force in rng.uniform(-1, 1, (20, 3)) * [np.pi, 8, 10]:
        np.testing.assert_allclose(
            accelerations(jnp.float32(theta), jnp.float32(theta_speed), jnp.float32(force)),
            lagrangian_accelerations(theta, theta_speed, force),
            rtol=1e-4,
            atol=1e-4,
        )


def test_trajectory_equals_float64_integration():
    model = jax.jit(exact_step_fn(make("cartpole_swingup")))
    rng = np.random.default_rng(1)
    q, speed = np.array([0.1, 2.5]), np.array([0.0, 0.3])
    obs = observe(*(jnp.float32(v) for v in (q[0], speed[0], q[1], speed[1])))
    for t in range(80):
        action = rng.uniform(-1.5, 1.5)
        acceleration = lagrangian_accelerations(q[1], speed[1], 10 * np.clip(action, -1, 1))
        speed = speed + 0.02 * acceleration
        q = q + 0.02 * speed
        obs = model(jax.random.key(0), obs, jnp.float32([action]))[0]
        expected = [q[0], speed[0], np.cos(q[1]), np.sin(q[1]), speed[1]]
        np.testing.assert_allclose(obs, expected, atol=5e-6 * (t + 10))


@pytest.mark.parametrize("time_step, tolerance", [(2e-3, 2e-2), (2e-4, 2e-3)])
def test_free_swing_conserves_energy_to_first_order(time_step, tolerance):
    start = observe(*(jnp.float32(v) for v in (0.0, 0.5, 1.0, 0.0)))

    def swing(obs, _):
        obs = transition(jax.random.key(0), obs, jnp.zeros(1), time_step=time_step)
        return obs, obs

    path = jax.jit(lambda obs: jax.lax.scan(swing, obs, length=int(2 / time_step))[1])(start)
    assert np.ptp(np.asarray(path)[:, 4]) > 5  # it does swing
    drift = np.abs(energy(path) - energy(start)).max()
    assert drift < tolerance


def test_no_outer_force_conserves_momentum():
    obs = observe(*(jnp.float32(v) for v in (0.0, 0.5, 2.0, 1.0)))

    def momentum(obs):
        return (CART + POLE) * obs[1] + POLE * HALF * obs[2] * obs[4]

    start = momentum(obs)
    for _ in range(100):
        obs = transition(jax.random.key(0), obs, jnp.zeros(1), time_step=1e-4)
    np.testing.assert_allclose(momentum(obs), start, rtol=1e-4)


@pytest.mark.parametrize(
    "x, theta, expected",
    [
        (0.0, 0.0, 1.0),
        (0.0, np.pi, np.exp(-4)),
        (1.0, 0.0, np.exp(-1)),
        (-1.0, np.pi / 2, np.exp(-1)),
    ],
)
def test_reward_is_a_bump_around_the_goal(x, theta, expected):
    obs = observe(jnp.float32(x), jnp.float32(0), jnp.float32(theta), jnp.float32(0))
    reward = make("cartpole_swingup").reward_fn(obs, jnp.zeros(1), obs)
    np.testing.assert_allclose(reward, expected, rtol=1e-5)


@pytest.mark.parametrize("x, expected", [(2.39, False), (2.41, True), (-2.41, True), (0.0, False)])
def test_leaving_the_track_terminates(x, expected):
    obs = observe(jnp.float32(x), jnp.float32(0), jnp.float32(1), jnp.float32(0))
    assert bool(make("cartpole_swingup").termination_fn(obs, jnp.zeros(1), obs)) is expected


def test_episodes_start_hanging():
    obs = jax.vmap(lambda k: make("cartpole_swingup").reset(k)[1])(
        jax.random.split(jax.random.key(0), 500)
    )
    assert np.asarray(obs)[:, 2].max() < -0.998
    assert np.abs(np.asarray(obs)[:, [0, 1, 3, 4]]).max() <= 0.05

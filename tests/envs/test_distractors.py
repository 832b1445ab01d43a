"""Distractors follow their law, and the environment does not notice them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import (
    auto_reset,
    distractor_matrix,
    distractor_step,
    make,
    spectral_radius,
    with_distractors,
)

KINDS = ["linear", "nonlinear", "noise"]
kinds = pytest.mark.parametrize("kind", KINDS)


def largest_eigenvalue(matrix):
    return np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64))).max()


@pytest.mark.parametrize("dims", [1, 2, 5, 20, 40])
def test_stable_map_has_spectral_radius_095(dims):
    for seed in range(4):
        matrix = distractor_matrix(jax.random.key(seed), dims)
        np.testing.assert_allclose(largest_eigenvalue(matrix), 0.95, rtol=1e-5)


@pytest.mark.parametrize(
    "matrix, expected",
    [
        ([[2.0, 0.0], [0.0, -3.0]], 3.0),
        ([[0.0, -2.0], [2.0, 0.0]], 2.0),  # complex pair
        ([[1.0, 1000.0], [0.0, 0.5]], 1.0),  # far from normal
        ([[1e20, 0.0], [0.0, 1.0]], 1e20),
        ([[0.0, 3.0], [0.0, 0.0]], 0.0),  # nilpotent
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_spectral_radius_closed_forms(matrix, expected):
    np.testing.assert_allclose(spectral_radius(jnp.array(matrix)), expected, rtol=1e-4)


def test_spectral_radius_under_jit_and_vmap():
    matrices = jax.random.normal(jax.random.key(0), (5, 6, 6))
    batched = jax.jit(jax.vmap(spectral_radius))(matrices)
    np.testing.assert_allclose(batched, [largest_eigenvalue(m) for m in matrices], rtol=1e-5)


def test_unstable_map_is_the_raw_gaussian():
    key = jax.random.key(0)
    matrix = distractor_matrix(key, 30, stable=False)
    np.testing.assert_array_equal(matrix, jax.random.normal(key, (30, 30)))
    scaled = distractor_matrix(key, 30)
    np.testing.assert_allclose(
        scaled * largest_eigenvalue(matrix), 0.95 * matrix, rtol=1e-4, atol=1e-6
    )


def test_nonlinear_map_has_variance_four_over_dims_and_stays_busy():
    matrix = distractor_matrix(jax.random.key(0), 40, "nonlinear")
    np.testing.assert_allclose(np.var(np.asarray(matrix)), 4 / 40, rtol=0.1)
    values = 0.1 * jnp.ones(40)
    for _ in range(300):
        values = distractor_step(jax.random.key(0), values, matrix, "nonlinear")
    assert np.abs(values).max() <= 2 and np.std(np.asarray(values)) > 0.5


def test_laws():
    matrix = jnp.array([[0.5, 1.0], [0.0, -0.5]])
    values = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    key = jax.random.key(0)
    moved = np.array([[2.5, -1.0], [1.0, -0.5]])
    np.testing.assert_allclose(distractor_step(key, values, matrix, "linear"), moved)
    np.testing.assert_allclose(
        distractor_step(key, values, matrix, "nonlinear"), 2 * np.sin(moved), rtol=1e-6
    )
    noise = distractor_step(key, jnp.zeros((4000, 2)), matrix, "noise")
    np.testing.assert_allclose([noise.mean(), noise.std()], [0, 1], atol=0.03)


@kinds
@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_environment_does_the_same_operations_as_without(name, kind):
    env = make(name)
    noisy = with_distractors(env, 4, kind, key=jax.random.key(9))
    state, obs = env.reset(jax.random.key(2))
    noisy_state, noisy_obs = noisy.reset(jax.random.key(2))
    n = env.spec.obs_dim
    np.testing.assert_array_equal(obs, noisy_obs[:n])
    for seed in range(4):  # op by op there is no fusion: equal to the last bit
        action, key = jax.random.uniform(jax.random.key(seed), (1,)), jax.random.key(seed)
        state, out = env.step(state, action, key)
        noisy_state, noisy_out = noisy.step(noisy_state, action, key)
        jax.tree.map(np.testing.assert_array_equal, state, noisy_state.env)
        np.testing.assert_array_equal(out.next_obs, noisy_out.next_obs[:n])
        np.testing.assert_array_equal(out.reward, noisy_out.reward)


@pytest.mark.slow
@kinds
@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_environment_is_unaffected_through_resets(name, kind):
    env = make(name, episode_length=7)

    def play(env):
        running = auto_reset(env)

        def act(state, key):
            state, out = running.step(state, jax.random.uniform(key, (1,), minval=-1), key)
            return state, (state, out)

        state, obs = env.reset(jax.random.key(2))
        return obs, jax.lax.scan(act, state, jax.random.split(jax.random.key(3), 30))[1]

    start, (states, out) = jax.jit(lambda: play(env))()
    noisy = with_distractors(env, 4, kind, key=jax.random.key(9))
    noisy_start, (noisy_states, noisy_out) = jax.jit(lambda: play(noisy))()
    n = env.spec.obs_dim

    def close(one, other):  # two programs: XLA may fuse, and so round, differently
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)

    close(start, noisy_start[:n])
    jax.tree.map(close, states, noisy_states.env)
    close(out.next_obs, noisy_out.next_obs[:, :n])
    close(out.obs, noisy_out.obs[:, :n])
    close(out.reward, noisy_out.reward)
    np.testing.assert_array_equal(out.terminated, noisy_out.terminated)
    np.testing.assert_array_equal(out.truncated, noisy_out.truncated)


@kinds
def test_distractors_are_appended_follow_their_law_and_restart(kind):
    env = make("pendulum", episode_length=5)
    noisy = with_distractors(env, 4, kind, key=jax.random.key(9))
    running = auto_reset(noisy)
    matrix = distractor_matrix(jax.random.key(9), 4, kind)
    assert noisy.spec.obs_dim == 7 and noisy.spec.name == f"pendulum+4_{kind}"
    assert noisy.spec.random_return == make("pendulum", episode_length=5).spec.random_return
    state, obs = noisy.reset(jax.random.key(0))
    step = jax.jit(running.step)
    for t in range(10):
        before = obs
        state, out = step(state, jnp.zeros(1), jax.random.key(t))
        if kind != "noise":
            expected = distractor_step(jax.random.key(0), before[3:], matrix, kind)
            np.testing.assert_allclose(out.next_obs[3:], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(state.distractors, out.obs[3:])
        assert bool(out.truncated) == (t % 5 == 4)
        assert (np.asarray(out.obs[3:]) != np.asarray(out.next_obs[3:])).any() == bool(
            out.truncated
        )
        obs = out.obs


@pytest.mark.parametrize("kind, std", [("linear", 0.1), ("nonlinear", 0.1), ("noise", 1.0)])
def test_initial_values(kind, std):
    noisy = with_distractors(make("pendulum"), 5, kind, key=jax.random.key(9))
    obs = jax.vmap(lambda k: noisy.reset(k)[1])(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(np.asarray(obs)[:, 3:].std(axis=0), std, rtol=0.1)
    wide = with_distractors(make("pendulum"), 5, key=jax.random.key(9), initial_std=2.0)
    obs = jax.vmap(lambda k: wide.reset(k)[1])(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(np.asarray(obs)[:, 3:].std(axis=0), 2, rtol=0.1)


def test_noise_is_independent_of_the_environment_and_of_the_past():
    noisy = with_distractors(make("pendulum"), 2, "noise", key=jax.random.key(9))

    def both(key):
        reset_key, step_key = jax.random.split(key)
        state, first = noisy.reset(reset_key)
        second = noisy.step(state, jnp.zeros(1), step_key)[1].next_obs
        return jnp.concatenate([first, second[3:]])

    seen = jax.vmap(both)(jax.random.split(jax.random.key(0), 3000))
    np.testing.assert_allclose(np.corrcoef(np.asarray(seen).T) - np.eye(7), 0, atol=0.08)


def test_wrappers_nest():
    twice = with_distractors(
        with_distractors(make("pendulum"), 2, key=jax.random.key(0)),
        3,
        "nonlinear",
        key=jax.random.key(1),
    )
    state, obs = twice.reset(jax.random.key(0))
    out = twice.step(state, jnp.zeros(1), jax.random.key(1))[1]
    assert obs.shape == out.next_obs.shape == (twice.spec.obs_dim,) == (8,)
    np.testing.assert_allclose(twice.reward_fn(obs, jnp.zeros(1), out.next_obs), out.reward)


def test_no_distractors_is_the_environment_itself():
    env = make("pendulum")
    assert with_distractors(env, 0, key=jax.random.key(0)) is env


@pytest.mark.parametrize(
    "options, match",
    [
        ({"dims": -1}, r"dims: .*-1"),
        ({"dims": 2, "kind": "fractal"}, r"kind: .*fractal"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match):
        with_distractors(make("pendulum"), key=jax.random.key(0), **options)
    with pytest.raises(ValueError, match=r"env: .*auto_reset"):
        with_distractors(auto_reset(make("pendulum")), 2, key=jax.random.key(0))

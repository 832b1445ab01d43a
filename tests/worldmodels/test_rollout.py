import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm


def counter_step(key, obs, action):
    """Counts up by one; reaching 3 terminates. The reward is the action."""
    next_obs = obs + 1
    return next_obs, action[:, 0], next_obs[:, 0] >= 3, {"seen": obs[:, 0]}


def zero_policy(key, obs):
    return jnp.zeros((obs.shape[0], 1))


def noise(key, shape):
    """Multiples of 2^-10: with them all sums below are exact, in whatever way they are compiled."""
    return jax.random.randint(key, shape, -1024, 1024) / 1024


def noisy_step(key, obs, action):
    next_obs = 0.5 * obs + action + noise(key, obs.shape)
    return next_obs, -jnp.sum(obs, -1), jnp.zeros(obs.shape[:1], bool), {}


def noisy_policy(key, obs):
    return 0.25 * obs + noise(key, obs.shape)


def run(on_done, start, horizon, **kwargs):
    start_obs = jnp.asarray(start, jnp.float32)[:, None]
    return wm.rollout(
        jax.random.key(3), counter_step, zero_policy, start_obs, horizon, on_done=on_done, **kwargs
    )


def test_a_branch_is_the_environments_trajectory_bitwise(key):
    start = jnp.array([[0.25, 0.125], [-1.0, 2.0]])
    out = jax.jit(lambda k: wm.rollout(k, noisy_step, noisy_policy, start, 4))(key)

    @jax.jit
    def act_and_step(step_key, obs):
        policy_key, model_key, _ = jax.random.split(step_key, 3)
        action = noisy_policy(policy_key, obs)
        return action, noisy_step(model_key, obs, action)

    obs = start
    for i, step_key in enumerate(jax.random.split(key, 4)):
        action, (next_obs, reward, _, _) = act_and_step(step_key, obs)
        np.testing.assert_array_equal(out.transition.obs[i], obs)
        np.testing.assert_array_equal(out.transition.action[i], action)
        np.testing.assert_array_equal(out.transition.next_obs[i], next_obs)
        np.testing.assert_array_equal(out.transition.reward[i], reward)
        obs = next_obs
    np.testing.assert_array_equal(out.t, [[0, 0], [1, 1], [2, 2], [3, 3]])
    # Different steps, policies and models draw different noise.
    assert len(np.unique(np.asarray(out.transition.action))) == out.transition.action.size


def test_mask_holds_a_row_at_its_terminal_state():
    out = run("mask", [0, 2, -9], 5)
    np.testing.assert_array_equal(out.valid.T, [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1] * 5])
    np.testing.assert_array_equal(out.transition.obs[:, :, 0].T[0], [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(out.transition.obs[:, :, 0].T[1], [2, 3, 3, 3, 3])
    np.testing.assert_array_equal(out.t.T, [[0, 1, 2, 2, 2], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(out.info["seen"], out.transition.obs[:, :, 0])


def test_restart_begins_again_from_start_states():
    out = run("restart", [0, 2, 1], 40)
    obs, terminated = np.asarray(out.transition.obs[..., 0]), np.asarray(out.transition.terminated)
    assert np.all(obs < 3)  # never goes on from a terminal state
    assert np.all(out.valid)
    # Within a branch the count goes on; after a termination it is a start state, at t = 0.
    ended = terminated[:-1]
    np.testing.assert_array_equal(obs[1:][~ended], obs[:-1][~ended] + 1)
    np.testing.assert_array_equal(np.asarray(out.t[1:])[ended], 0)
    np.testing.assert_array_equal(np.asarray(out.t[1:])[~ended], np.asarray(out.t[:-1])[~ended] + 1)
    assert set(obs[1:][ended]) == {0.0, 1.0, 2.0}
    # The terminal observation itself is kept as next_obs.
    np.testing.assert_array_equal(np.asarray(out.transition.next_obs[..., 0])[terminated], 3)


@pytest.mark.parametrize("on_done", ["restart", "mask"])
def test_only_the_last_counting_step_is_truncated(on_done):
    out = run(on_done, [-9, 0], 5)
    np.testing.assert_array_equal(out.transition.truncated[:, 0], [0, 0, 0, 0, 1])
    assert not np.any(out.transition.truncated & out.transition.terminated)
    short = jax.jit(lambda n: run(on_done, [-9, 0], 5, length=n))(jnp.int32(3))
    np.testing.assert_array_equal(short.valid[:, 0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(short.transition.truncated[:, 0], [0, 0, 1, 0, 0])
    # The second row terminates at that very step: not truncated.
    np.testing.assert_array_equal(short.transition.truncated[:, 1] & short.valid[:, 1], False)
    np.testing.assert_array_equal(short.transition.obs, out.transition.obs)


@pytest.mark.slow
def test_vmap_is_a_loop(key):
    keys = jax.random.split(key, 3)
    start = jnp.array([[0.3], [-1.0]])
    one = jax.jit(lambda k: wm.rollout(k, noisy_step, noisy_policy, start, 3))
    many = jax.vmap(one)(keys)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), many, one(keys[i])
        )


@pytest.mark.slow
def test_grad_is_the_product_of_the_steps_slopes(key):
    def bent_step(key, obs, action):
        next_obs = 0.9 * jnp.sin(obs) + noise(key, obs.shape)
        return next_obs, action[:, 0], jnp.zeros(obs.shape[:1], bool), {}

    start = jnp.array([[0.3], [-1.0]])
    last = lambda s: wm.rollout(key, bent_step, zero_policy, s, 3).transition.next_obs[-1]  # noqa: E731
    grad = jax.grad(lambda s: jnp.sum(last(s)))(start)
    obs, want = start, jnp.ones_like(start)
    for step_key in jax.random.split(key, 3):
        want = want * 0.9 * jnp.cos(obs)
        obs = 0.9 * jnp.sin(obs) + noise(jax.random.split(step_key, 3)[1], (2, 1))
    np.testing.assert_allclose(last(start), obs, rtol=1e-5)
    np.testing.assert_allclose(grad, want, rtol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"horizon: .*got 0"):
        run("mask", [0], 0)
    for length in (0, 3):
        with pytest.raises(ValueError, match=rf"length: expected 1 to 2 \(horizon\), got {length}"):
            run("mask", [0], 2, length=length)
    with pytest.raises(ValueError, match=r"on_done: .*got 'stop'"):
        run("stop", [0], 2)

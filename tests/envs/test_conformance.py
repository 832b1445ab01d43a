"""What every environment owes: one suite over the registry."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import auto_reset, exact_step_fn, make, with_distractors

LANES, STEPS, LIMIT = 6, 40, 9

LIGHT = {
    "pendulum": lambda **kw: make("pendulum", **kw),
    "cartpole_swingup": lambda **kw: make("cartpole_swingup", **kw),
    "point_mass": lambda **kw: make("point_mass", dims=3, **kw),
    "pendulum+linear": lambda **kw: with_distractors(
        make("pendulum", **kw), 3, "linear", key=jax.random.key(7)
    ),
    "pendulum+nonlinear": lambda **kw: with_distractors(
        make("pendulum", **kw), 3, "nonlinear", key=jax.random.key(7)
    ),
    "cartpole_swingup+noise": lambda **kw: with_distractors(
        make("cartpole_swingup", **kw), 3, "noise", key=jax.random.key(7)
    ),
}
BRAX = {
    "brax/inverted_pendulum": lambda **kw: make("brax/inverted_pendulum", **kw),
    "brax/inverted_pendulum/generalized": lambda **kw: make(
        "brax/inverted_pendulum", backend="generalized", **kw
    ),
    "brax/hopper": lambda **kw: make("brax/hopper", **kw),
}
ALL = LIGHT | BRAX

light = pytest.mark.parametrize("name", LIGHT)
every = pytest.mark.parametrize(
    "name",
    [
        *LIGHT,
        "brax/inverted_pendulum",
        pytest.param("brax/inverted_pendulum/generalized", marks=pytest.mark.slow),
        pytest.param("brax/hopper", marks=pytest.mark.slow),
    ],
)


@functools.cache
def world(name):
    """Compiled functions of an environment with a short time limit and one automatic rollout."""
    env = ALL[name](episode_length=LIMIT)
    running = auto_reset(env)
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))

    @jax.jit
    def rollout(key):
        def act(carry, key):
            state, obs = carry
            keys = jax.random.split(key, LANES)
            action = jax.random.uniform(key, (LANES, env.spec.action_dim), minval=-1, maxval=1)
            after, out = jax.vmap(running.step)(state, action, keys)
            return (after, out.obs), (state, obs, action, keys, out)

        start = jax.vmap(env.reset)(jax.random.split(key, LANES))
        return jax.lax.scan(act, start, jax.random.split(key, STEPS))[1]

    return SimpleNamespace(env=env, reset=reset, step=step, rollout=rollout)


@functools.cache
def played(name):
    return world(name).rollout(jax.random.key(3))


def lane_keys(seed):
    return jax.random.split(jax.random.key(seed), LANES)


def actions(name, seed=0):
    shape = (LANES, world(name).env.spec.action_dim)
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one, other):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, other)


@every
def test_step_shapes_and_dtypes(name):
    env = world(name).env
    state, obs = jax.eval_shape(env.reset, jax.random.key(0))
    action = jax.ShapeDtypeStruct((env.spec.action_dim,), jnp.float32)
    after, out = jax.eval_shape(env.step, state, action, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)  # shapes, dtypes and weak types
    assert (obs.shape, obs.dtype) == ((env.spec.obs_dim,), jnp.float32)
    assert out.obs == out.next_obs == obs
    assert (out.reward.shape, out.reward.dtype) == ((), jnp.float32)
    assert out.terminated.shape == out.truncated.shape == ()
    assert out.terminated.dtype == out.truncated.dtype == jnp.bool_


@pytest.mark.slow
@every
def test_reset_is_decided_by_its_key(name):
    reset = world(name).reset
    assert_equal(reset(lane_keys(0)), reset(lane_keys(0)))
    obs = np.asarray(reset(lane_keys(0))[1])
    assert len(np.unique(obs, axis=0)) == LANES
    assert (obs != np.asarray(reset(lane_keys(1))[1])).any(axis=1).all()


@pytest.mark.slow
@every
def test_step_is_decided_by_its_arguments(name):
    w = world(name)
    state, _ = w.reset(lane_keys(0))
    first = w.step(state, actions(name), lane_keys(2))
    assert_equal(first, w.step(state, actions(name), lane_keys(2)))
    moved = np.asarray(first[1].next_obs) != np.asarray(
        w.step(state, -actions(name), lane_keys(2))[1].next_obs
    )
    assert moved.any(axis=1).all()


@every
def test_state_stays_finite_through_resets(name):
    states = played(name)[0]
    for leaf in jax.tree.leaves(states):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()


@every
def test_actions_are_clipped(name):
    w = world(name)
    state, _ = w.reset(lane_keys(0))
    one = jnp.ones((LANES, w.env.spec.action_dim))
    high, far = w.step(state, one, lane_keys(2)), w.step(state, 5 * one, lane_keys(2))
    assert_equal(high, far)
    assert_equal(w.step(state, -one, lane_keys(2)), w.step(state, -7 * one, lane_keys(2)))
    half = w.step(state, 0.5 * one, lane_keys(2))
    assert (np.asarray(half[1].next_obs) != np.asarray(high[1].next_obs)).any(axis=1).all()


@every
def test_clock_truncates_and_never_terminates(name):
    out = played(name)[4]
    terminated, truncated = np.asarray(out.terminated), np.asarray(out.truncated)
    age = np.zeros(LANES, int)
    for t in range(STEPS):
        age += 1
        assert (truncated[t] == ((age == LIMIT) & ~terminated[t])).all()
        age[terminated[t] | truncated[t]] = 0
    assert truncated.any()


@pytest.mark.slow
@every
def test_auto_reset_keeps_the_last_observation(name):
    w = world(name)
    state, _, action, keys, out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played(name))
    both = jax.vmap(jax.random.split)(keys)
    raw = jax.jit(lambda s, a, k: jax.lax.map(lambda x: w.step(*x)[1], (s, a, k)))(
        *jax.tree.map(lambda x: x.reshape(STEPS, LANES, *x.shape[1:]), (state, action, both[:, 0]))
    )
    raw = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), raw)
    assert_close(out.next_obs, raw.next_obs)
    done = np.asarray(out.terminated | out.truncated)
    np.testing.assert_array_equal(out.obs[~done], out.next_obs[~done])
    assert (np.asarray(out.obs)[done] != np.asarray(out.next_obs)[done]).any(axis=1).all()


@every
def test_auto_reset_draws_every_initial_state_anew(name):
    w = world(name)
    _, _, _, keys, out = played(name)
    done = np.asarray(out.terminated | out.truncated)
    firsts = np.asarray(out.obs)[done]
    assert len(firsts) > LANES
    assert len(np.unique(firsts, axis=0)) == len(firsts)
    t = int(np.argmax(done.any(axis=1)))
    fresh = w.reset(jax.vmap(jax.random.split)(keys[t])[:, 1])[1]
    assert_close(out.obs[t][done[t]], fresh[done[t]])


@every
def test_reward_and_termination_functions_agree_with_the_environment(name):
    env = world(name).env
    _, obs, action, _, out = played(name)
    reward = env.reward_fn(obs, action, out.next_obs)
    assert reward.shape == out.reward.shape
    np.testing.assert_allclose(reward, out.reward, atol=0.06 if "hopper" in name else 1e-5)
    np.testing.assert_array_equal(
        env.termination_fn(obs, action, out.next_obs), np.asarray(out.terminated)
    )


@light
def test_exact_model_repeats_the_environment(name):
    w = world(name)
    model = jax.jit(jax.vmap(exact_step_fn(w.env)))
    state, obs = w.reset(lane_keys(0))
    for seed in range(LIMIT):
        action = actions(name, seed)
        state, out = w.step(state, action, lane_keys(seed))
        obs, reward, terminated, _ = model(lane_keys(seed), obs, action)
        assert_close((obs, reward), (out.next_obs, out.reward))
        assert_equal(terminated, np.asarray(out.terminated))


@light
def test_exact_model_runs_the_same_operations(name):
    env = world(name).env
    model = exact_step_fn(env)
    state, obs = env.reset(jax.random.key(0))
    for seed in range(3):  # op by op there is no fusion: equal to the last bit
        action, key = actions(name, seed)[0], jax.random.key(seed)
        state, out = env.step(state, action, key)
        obs, reward, terminated, _ = model(key, obs, action)
        assert_equal((obs, reward, terminated), (out.next_obs, out.reward, out.terminated))


@light
def test_exact_model_takes_any_leading_axes(name):
    env = world(name).env
    model = exact_step_fn(env)
    _, obs, action, _, out = played(name)
    next_obs, reward, terminated, info = model(jax.random.key(0), obs, action)
    assert next_obs.shape == obs.shape and info == {}
    assert reward.shape == terminated.shape == obs.shape[:-1]
    if "noise" not in name:
        assert_close(next_obs, out.next_obs)


@light
def test_vmap_equals_loop(name):
    w = world(name)
    state, obs = w.reset(lane_keys(0))
    batched = w.step(state, actions(name), lane_keys(2))
    for i, key in enumerate(lane_keys(0)):
        alone = jax.jit(w.env.reset)(key)
        assert_close(alone[1], obs[i])
        stepped = jax.jit(w.env.step)(alone[0], actions(name)[i], lane_keys(2)[i])
        assert_close(stepped, jax.tree.map(lambda x, i=i: x[i], batched))


@light
def test_jit_equals_eager(name):
    env = world(name).env
    state, _ = env.reset(jax.random.key(0))
    action = actions(name)[0]
    assert_close(
        env.step(state, action, jax.random.key(1)),
        jax.jit(env.step)(state, action, jax.random.key(1)),
    )


@light
def test_gradients_through_a_step_are_finite_and_act(name):
    env = world(name).env
    state, _ = env.reset(jax.random.key(0))

    def moved(action):
        return auto_reset(env).step(state, action, jax.random.key(1))[1].next_obs.sum()

    gradient = jax.grad(moved)(0.5 * jnp.ones(env.spec.action_dim))
    assert np.isfinite(gradient).all() and (np.asarray(gradient) != 0).all()


@light
def test_half_precision_actions_leave_the_physics_in_single(name):
    env = world(name).env
    state, _ = env.reset(jax.random.key(0))
    out = env.step(state, actions(name)[0].astype(jnp.bfloat16), jax.random.key(1))[1]
    assert out.next_obs.dtype == out.reward.dtype == jnp.float32


@every
def test_spec_orders_its_returns(name):
    spec = ALL[name]().spec
    assert spec.obs_dim > 0 and spec.action_dim > 0
    if spec.expert_return is not None:
        assert spec.random_return is not None and spec.random_return < spec.expert_return

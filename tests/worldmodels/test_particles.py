import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets, worldmodels
from jaxlab.worldmodels import EnsembleConfig, make_particle_step_fn, make_step_fn

CONFIG = EnsembleConfig(members=5, elites=3, hidden=(8,))


def never(obs, action, next_obs):
    return next_obs[..., 0] > 1e9


@functools.cache
def model(config=CONFIG):
    state = worldmodels.init(jax.random.key(0), config, 2, 1)
    # Statistics other than the identity, and elites that are not the first members.
    return dataclasses.replace(
        state,
        input_normalizer=nets.Normalizer(jnp.array([0.1, -0.2, 0.3]), jnp.array([2.0, 0.5, 1.5])),
        target_normalizer=nets.Normalizer(jnp.array([0.5, 0.0, -1.0]), jnp.array([0.3, 2.0, 4.0])),
        elites=jnp.array([4, 0, 2])[: config.elites],
    )


def drifting(drifts):
    """A deterministic model of one dimension: member e adds drifts[e], whatever the state."""
    config = EnsembleConfig(
        members=len(drifts), elites=len(drifts), hidden=(), deterministic=True, predict_reward=False
    )
    state = worldmodels.init(jax.random.key(0), config, 1, 1)
    (layer,) = state.params.net
    layer = {"kernel": jnp.zeros_like(layer["kernel"]), "bias": jnp.asarray(drifts)[:, None]}
    return dataclasses.replace(state, params=state.params._replace(net=(layer,))), config


def test_ts_inf_gives_every_row_its_own_elite(key):
    config = dataclasses.replace(CONFIG, deterministic=True)
    obs, action = jax.random.normal(key, (12, 2)), jax.random.normal(key, (12, 1))
    rows = make_particle_step_fn(model(config), config, never)
    every = make_step_fn(
        model(config), config, never, mode="ts_inf", particle_member=jnp.arange(12) % 3
    )
    fast = jax.jit(rows)(key, obs, action)
    slow = jax.jit(every)(key, obs, action)
    for a, b in zip(fast[:3], slow[:3]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(fast[0][:3, 0]))) == 3 and fast[3] == {}


def test_noise_has_each_rows_own_variance(key):
    obs, action = jnp.array([[0.3, -0.1]]), jnp.array([[0.5]])
    mean, logvar = worldmodels.apply(model(), CONFIG, obs, action)
    step = make_particle_step_fn(model(), CONFIG, never)
    rows = 30_000
    tile = [jnp.broadcast_to(x, (rows, x.shape[1])) for x in (obs, action)]
    next_obs, reward, terminated, _ = jax.jit(step)(key, *tile)
    outcome = np.concatenate([next_obs - obs, reward[:, None]], axis=1).reshape(-1, 3, 3)
    np.testing.assert_allclose(
        outcome.mean(0), mean[jnp.array([4, 0, 2]), 0], atol=0.04 * float(jnp.exp(logvar / 2).max())
    )
    np.testing.assert_allclose(
        outcome.std(0), jnp.exp(0.5 * logvar[jnp.array([4, 0, 2]), 0]), rtol=0.03
    )
    assert not terminated.any()


@pytest.mark.parametrize("mode,power", [("ts_inf", 2), ("ts1", 1)])
def test_spread_of_sums_over_a_horizon(mode, power, key):
    """Members that disagree by a constant drift: variance H^2 s^2 if kept, H s^2 if redrawn."""
    state, config = drifting([-1.0, 1.0])
    horizon, runs = 16, 400
    reward = lambda obs, action, next_obs: jnp.zeros(obs.shape[0])  # noqa: E731
    step = make_particle_step_fn(state, config, never, reward, mode=mode)

    def roll(key):
        def body(obs, k):
            return step(k, obs, jnp.zeros((4, 1)))[0], None

        return jax.lax.scan(body, jnp.zeros((4, 1)), jax.random.split(key, horizon))[0][:, 0]

    ends = np.asarray(jax.jit(jax.vmap(roll))(jax.random.split(key, runs)))
    np.testing.assert_allclose(np.mean(ends**2), horizon**power, rtol=0.2)
    # Either way every member serves as many rows as the others, at every step.
    np.testing.assert_allclose(ends.mean(1), 0.0, atol=1e-6)
    if mode == "ts1":  # one particle alone draws uniformly
        np.testing.assert_allclose(ends[:, 0].mean(), 0.0, atol=4 * np.sqrt(horizon / runs))


def test_given_reward_and_termination_rules(key):
    state, config = drifting([2.0, 4.0])
    step = make_particle_step_fn(
        state,
        config,
        lambda obs, action, next_obs: next_obs[:, 0] > 3,
        lambda obs, action, next_obs: next_obs[:, 0] + 10 * action[:, 0],
    )
    next_obs, reward, terminated, _ = step(key, jnp.zeros((4, 1)), jnp.ones((4, 1)))
    np.testing.assert_allclose(next_obs[:, 0], [2.0, 4.0, 2.0, 4.0])
    np.testing.assert_allclose(reward, [12.0, 14.0, 12.0, 14.0])
    np.testing.assert_array_equal(terminated, [False, True, False, True])


def test_refuses_what_it_cannot_do(key):
    state, config = drifting([1.0, 2.0])
    with pytest.raises(ValueError, match="reward_fn: expected a function"):
        make_particle_step_fn(state, config, never)
    with pytest.raises(ValueError, match="mode: expected one of"):
        make_particle_step_fn(model(), CONFIG, never, mode="expectation")
    step = make_particle_step_fn(model(), CONFIG, never)
    with pytest.raises(ValueError, match=r"obs: expected a multiple of 3 rows \(elites\), got 4"):
        step(key, jnp.zeros((4, 2)), jnp.zeros((4, 1)))

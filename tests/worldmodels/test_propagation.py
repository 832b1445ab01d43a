import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm

MEAN = jnp.broadcast_to(jnp.array([10.0, 20.0, 30.0, 40.0])[:, None, None], (4, 20000, 2))
ELITES = jnp.array([3, 1])


def test_ts1_draws_only_elites_equally_often(key):
    out = np.asarray(wm.propagate(key, MEAN, None, ELITES))
    np.testing.assert_array_equal(out[:, 0], out[:, 1])
    assert set(np.unique(out)) == {20.0, 40.0}
    # Five standard errors of a fair coin.
    assert abs(np.mean(out[:, 0] == 20) - 0.5) < 5 * 0.5 / np.sqrt(20000)


def test_noise_has_the_chosen_members_variance(key):
    logvar = jnp.log(MEAN / 10.0)
    out = np.asarray(wm.propagate(key, MEAN, logvar, jnp.array([2])))
    np.testing.assert_allclose(out.mean(0), 30, atol=5 * np.sqrt(3 / 20000))
    np.testing.assert_allclose(out.var(0), 3, rtol=5 * np.sqrt(2 / 20000))
    assert abs(np.corrcoef(out.T)[0, 1]) < 5 / np.sqrt(20000)


def test_mixture_variance_is_the_total_variance(key):
    logvar = jnp.log(MEAN / 10.0)
    out = np.asarray(wm.propagate(key, MEAN, logvar, jnp.arange(4)))
    aleatoric, epistemic = wm.total_variance(MEAN, logvar)
    np.testing.assert_allclose(aleatoric[0], 2.5, rtol=1e-5)
    np.testing.assert_allclose(epistemic[0], 125.0, rtol=1e-5)
    np.testing.assert_allclose(out.var(0), 127.5, rtol=0.05)
    np.testing.assert_array_equal(wm.total_variance(MEAN, None)[0], 0)


def test_ts_inf_takes_the_given_positions_among_the_elites(key):
    position = jnp.arange(20000) % 2
    out = wm.propagate(key, MEAN, None, ELITES, "ts_inf", position)
    np.testing.assert_array_equal(out[:4, 0], [40, 20, 40, 20])


def test_expectation_averages_the_elites_without_noise(key):
    out = wm.propagate(key, MEAN, jnp.zeros_like(MEAN), ELITES, "expectation")
    np.testing.assert_array_equal(out, 30.0)


def drift_model(key):
    """Two members that always say +1 and -1, whatever the input."""
    config = wm.EnsembleConfig(
        members=2, elites=2, hidden=(), deterministic=True, predict_reward=False
    )
    state = wm.init(key, config, 1, 1)
    layer = {"kernel": jnp.zeros((2, 2, 1)), "bias": jnp.array([[1.0], [-1.0]])}
    return config, dataclasses.replace(state, params=state.params._replace(net=(layer,)))


@pytest.mark.parametrize("mode, variance", [("ts1", 16.0), ("ts_inf", 256.0)])
def test_variance_of_a_sum_over_16_steps(key, mode, variance):
    config, state = drift_model(key)
    rows = 4096
    member = jax.random.randint(key, (rows,), 0, 2) if mode == "ts_inf" else None
    step = wm.make_step_fn(
        state,
        config,
        lambda o, a, n: jnp.zeros(o.shape[:-1], bool),
        lambda o, a, n: n[..., 0],
        mode=mode,
        particle_member=member,
    )
    out = wm.rollout(key, step, lambda k, o: jnp.zeros((rows, 1)), jnp.zeros((rows, 1)), 16)
    final = np.asarray(out.transition.next_obs[-1, :, 0])
    np.testing.assert_allclose(final.var(), variance, rtol=5 * np.sqrt(2 / rows))
    np.testing.assert_array_equal(out.transition.reward, out.transition.next_obs[..., 0])


@pytest.mark.slow
def test_step_uses_the_elites_and_the_given_rules(key):
    config = wm.EnsembleConfig(members=4, elites=2, hidden=(8,), deterministic=True)
    state = dataclasses.replace(wm.init(key, config, 3, 1), elites=jnp.array([2, 0], jnp.int32))
    obs, action = jax.random.normal(key, (64, 3)), jnp.full((64, 1), 0.5)
    done = lambda o, a, n: n[..., 0] > o[..., 0]  # noqa: E731
    mean, _ = wm.apply(state, config, obs, action)
    step = wm.make_step_fn(state, config, done)
    next_obs, reward, terminated, info = jax.jit(step)(key, obs, action)
    eager = step(key, obs, action)
    np.testing.assert_allclose(next_obs, eager[0], rtol=1e-5, atol=1e-6)

    candidates = np.asarray(mean[jnp.array([2, 0])])  # [2, 64, 4]
    outcome = np.concatenate([np.asarray(next_obs - obs), np.asarray(reward)[:, None]], -1)
    distance = np.abs(candidates - outcome[None]).max(-1)
    assert distance.min(0).max() < 1e-5
    assert set(distance.argmin(0)) == {0, 1}
    np.testing.assert_array_equal(terminated, done(obs, action, next_obs))
    gap = candidates[0] - candidates[1]
    np.testing.assert_allclose(
        info["disagreement"], np.sqrt(np.mean((gap / 2) ** 2, -1)), rtol=1e-4
    )


def test_vmap_over_models_is_a_loop(key):
    config = wm.EnsembleConfig(members=3, elites=2, hidden=(8,))
    keys = jax.random.split(key, 3)
    obs, action = jax.random.normal(key, (5, 2)), jnp.full((5, 1), 0.5)

    def one(k):
        state = wm.init(k, config, 2, 1)
        step = wm.make_step_fn(state, config, lambda o, a, n: n[..., 0] > 0)
        return step(k, obs, action)

    many = jax.jit(jax.vmap(one))(keys)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6),
            many,
            jax.jit(one)(keys[i]),
        )


def test_bad_arguments_are_named(key):
    with pytest.raises(ValueError, match=r"mode: .*got 'ts2'"):
        wm.propagate(key, MEAN, None, ELITES, "ts2")
    with pytest.raises(ValueError, match="particle_member"):
        wm.propagate(key, MEAN, None, ELITES, "ts_inf")
    config, state = drift_model(key)
    with pytest.raises(ValueError, match="reward_fn"):
        wm.make_step_fn(state, config, lambda o, a, n: o[..., 0] > 0)

"""Weights by distance, weighted and mixture likelihoods, training for a number of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab import worldmodels
from jaxlab.types import Transition
from jaxlab.worldmodels import (
    EnsembleConfig,
    distance_weights,
    fit_normalizers,
    fit_steps,
    log_likelihood,
    losses,
    weighted_nll,
)

POINTS = jnp.array([[0.0, 1.0], [0.5, 1.0], [0.0, 2.0], [2.0, 1.0]])
ONE = jnp.ones(2)


def test_golden_weights():
    """Distances 0, 0.5, 1, 2 from one reference point."""
    weights = distance_weights(POINTS, POINTS[:1], ONE, 2.0)
    np.testing.assert_allclose(weights, [2.62893, 0.96713, 0.35579, 0.04815], atol=2e-5)
    np.testing.assert_allclose(jnp.mean(weights), 1, rtol=1e-6)
    scaled = distance_weights(10 * POINTS, 10 * POINTS[:1], 10 * ONE, 2.0)
    np.testing.assert_allclose(scaled, weights, rtol=1e-5)
    nearest = distance_weights(POINTS, jnp.concatenate([POINTS[:1], POINTS[3:]]), ONE, 2.0)
    raw = np.exp([0, -1, -2, 0])
    np.testing.assert_allclose(nearest, raw / raw.mean(), rtol=1e-5)


def test_limits_of_the_weights():
    np.testing.assert_array_equal(distance_weights(POINTS[:3], POINTS[:1], ONE, 0.0), jnp.ones(3))
    far = jnp.array([[1e3, 1.0]])
    # Far away, only differences of distance count, and nothing underflows.
    shifted = distance_weights(POINTS[:2] + far, jnp.array([[0.0, 1.0]]), ONE, 2.0)
    raw = np.exp([0, -1])
    np.testing.assert_allclose(shifted, raw / raw.mean(), rtol=1e-3)
    sharp = distance_weights(jnp.concatenate([POINTS, POINTS[:1]]), POINTS[:1], ONE, 1e4)
    np.testing.assert_allclose(sharp, [2.5, 0, 0, 0, 2.5])  # duplicates share


def test_rows_that_do_not_count():
    valid = jnp.array([True, True, False, True])
    weights = distance_weights(POINTS.at[2].set(jnp.nan), POINTS[:1], ONE, 2.0, valid)
    kept = np.delete(np.asarray(weights), 2)
    expected = distance_weights(jnp.delete(POINTS, 2, axis=0), POINTS[:1], ONE, 2.0)
    np.testing.assert_allclose(kept, expected, rtol=1e-6)
    assert weights[2] == 0


def test_golden_likelihood_and_its_weighting(key):
    mean, logvar, target = (
        jnp.array([[0.2, -1.0]]),
        jnp.array([[-2.0, 1.0]]),
        jnp.array([[0.0, 0.5]]),
    )
    loss, _ = weighted_nll(mean, logvar, target, jnp.ones(1))
    np.testing.assert_allclose(loss, 0.0616455, rtol=1e-5)
    rng = np.random.default_rng(0)
    mean, logvar = jnp.asarray(rng.normal(size=(2, 3, 7, 2)), jnp.float32)
    target = jnp.asarray(rng.normal(size=(7, 2)), jnp.float32)
    weights = distance_weights(target, target[:1], ONE, 0.0)

    def value_and_grad(loss, *extra):
        fn = jax.jit(jax.value_and_grad(lambda m: loss(m, logvar, target, *extra)[0]))
        return fn(mean)

    plain, weighted = value_and_grad(losses.gaussian_nll), value_and_grad(weighted_nll, weights)
    jax.tree.map(np.testing.assert_array_equal, plain, weighted)  # c = 0: bit for bit
    only = jnp.zeros(7).at[3].set(7.0)
    loss, metrics = weighted_nll(mean, logvar, target, only)
    one, _ = losses.gaussian_nll(mean[:, 3:4], logvar[:, 3:4], target[3:4])
    np.testing.assert_allclose(loss, one, rtol=1e-5)
    np.testing.assert_allclose(metrics["effective_rows"], 1)


def test_mixture_likelihood():
    rng = np.random.default_rng(1)
    mean, logvar = rng.normal(size=(2, 4, 6, 3))
    target = rng.normal(size=(6, 3))
    density = scipy.stats.norm(mean, np.exp(logvar / 2)).logpdf(target).sum(axis=-1)
    args = [jnp.asarray(v, jnp.float32) for v in (mean, logvar, target)]
    mixture, average = log_likelihood(*args), log_likelihood(*args, mixture=False)
    expected = scipy.special.logsumexp(density, axis=0) - np.log(4)
    np.testing.assert_allclose(mixture, expected, rtol=1e-4)
    np.testing.assert_allclose(average, density.mean(axis=0), rtol=1e-4)
    assert np.all(mixture > average)  # Jensen
    same = [jnp.broadcast_to(v[:1], v.shape) for v in args[:2]]
    np.testing.assert_allclose(
        log_likelihood(*same, args[2]), log_likelihood(*same, args[2], mixture=False), rtol=1e-5
    )


CONFIG = EnsembleConfig(
    members=2, elites=1, hidden=(16,), learn_bounds=False, predict_reward=False, weight_decay=0.0
)


def linear_data(key, rows=512):
    """s' = s + (0.5 s_0 - a, 0.3) plus noise of deviation 0.2 and 0.05."""
    obs_key, action_key, noise_key = jax.random.split(key, 3)
    obs = jax.random.normal(obs_key, (rows, 2))
    action = jax.random.uniform(action_key, (rows, 1), minval=-1, maxval=1)
    drift = jnp.stack([0.5 * obs[:, 0] - action[:, 0], jnp.full(rows, 0.3)], axis=1)
    noise = jax.random.normal(noise_key, (rows, 2)) * jnp.array([[0.2, 0.05]])
    zeros = jnp.zeros(rows)
    return Transition(obs, action, zeros, zeros > 0, zeros > 0, obs + drift + noise)


def fitted(key, data, steps=20, **options):
    state = worldmodels.init(key, CONFIG, 2, 1)
    state = fit_normalizers(state, data, options.get("count", len(data.reward)), CONFIG)
    return fit_steps(key, state, data, CONFIG, steps, 32, 3e-3, **options)[0]


def equal(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.mark.slow
def test_steps_that_do_not_count_leave_the_model_alone(key):
    data = linear_data(key, 64)
    fit = jax.jit(lambda active: fitted(key, data, active=active))
    untrained = jax.jit(lambda: worldmodels.init(key, CONFIG, 2, 1).params)()
    assert equal(fit(0).params, untrained)
    assert equal(fit(20), fitted_jit(key, data)) and equal(fit(25), fit(20))
    assert not equal(fit(10).params, fit(20).params)
    assert int(fit(10).opt_state.count) == 10


def fitted_jit(key, data, **options):
    return jax.jit(lambda d: fitted(key, d, **options))(data)


@pytest.mark.slow
def test_rows_beyond_the_count_and_of_weight_zero_are_never_seen(key):
    data = linear_data(key, 64)
    poisoned = jax.tree.map(lambda x: x.at[40:].set(jnp.asarray(7).astype(x.dtype)), data)
    assert equal(fitted_jit(key, data, count=40), fitted_jit(key, poisoned, count=40))
    weights = jnp.where(jnp.arange(64) < 40, 1.6, 0.0)
    state = fit_normalizers(worldmodels.init(key, CONFIG, 2, 1), data, 64, CONFIG)

    def weighted(d):
        return fit_steps(key, state, d, CONFIG, 10, 32, 3e-3, weights=weights)[0].params

    assert equal(jax.jit(weighted)(data), jax.jit(weighted)(poisoned))


@pytest.mark.slow
def test_recovers_a_linear_gaussian_system(key):
    model = fitted_jit(key, linear_data(key), steps=1500)
    test = linear_data(jax.random.key(5), 400)
    mean, logvar = worldmodels.apply(model, CONFIG, test.obs, test.action)
    drift = jnp.stack([0.5 * test.obs[:, 0] - test.action[:, 0], jnp.full(400, 0.3)], axis=1)
    error = np.sqrt(np.mean((np.asarray(mean[0]) - drift) ** 2, axis=0))
    assert error[0] < 0.07 and error[1] < 0.02
    np.testing.assert_allclose(np.mean(logvar[0], axis=0), 2 * np.log([0.2, 0.05]), atol=0.25)
    best = scipy.stats.norm(drift, [[0.2, 0.05]]).logpdf(test.next_obs - test.obs).sum(-1).mean()
    got = log_likelihood(mean, logvar, test.next_obs - test.obs).mean()
    assert best - 0.3 < got < best + 0.05


def test_refuses_models_without_a_likelihood_and_with_rewards(key):
    data = linear_data(key, 8)
    for wrong in ({"deterministic": True}, {"predict_reward": True}):
        config = EnsembleConfig(**({"members": 1, "elites": 1, "predict_reward": False} | wrong))
        state = worldmodels.init(key, config, 2, 1)
        with pytest.raises(ValueError, match="config: expected deterministic=False"):
            fit_steps(key, state, data, config, 1, 4, 1e-3)

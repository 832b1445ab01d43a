import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets
from jaxlab.agents import fitted_value
from jaxlab.agents.fitted_value import FittedValueConfig, FittedValueHyperparams

# On a line, action a moves by a and earns minus the distance to the origin before the step.
ACTIONS = jnp.array([[-0.25], [0.0], [0.25]])
OBS = jnp.linspace(-1.0, 1.0, 9)[:, None]
HPARAMS = FittedValueHyperparams(lr=3e-3, gamma=0.5, tau=0.05)


def line(key, obs, action):
    next_obs = jnp.clip(obs + action, -1, 1)
    return next_obs, -jnp.abs(obs[..., 0]), jnp.zeros(next_obs.shape[:-1], bool), {}


@functools.cache
def train(regulariser, steps=1500, **changes):
    config = FittedValueConfig((32,), output_scale=2.0, regulariser=regulariser)
    hparams = dataclasses.replace(HPARAMS, **changes)

    @jax.jit
    def run(scalars):
        def step(state, key):
            return fitted_value.update(key, state, OBS, line, ACTIONS, config, scalars)

        start = fitted_value.init(jax.random.key(1), config, 1)
        state, metrics = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), steps))
        return state, metrics, fitted_value.evaluated(state, config, scalars)

    return config, *run(hparams)


def exact_values():
    """V(x) = -|x| + gamma V(|x| - 1/4): every step leads a place towards the origin."""
    half = [0.0]
    for place in range(1, 5):
        half.append(-0.25 * place + 0.5 * half[-1])
    return np.array([*half[:0:-1], *half])


def test_converges_to_the_values_of_the_exact_backup():
    config, _, metrics, (params, target) = train(None)
    found = fitted_value.value(params, config, OBS)
    np.testing.assert_allclose(found, exact_values(), atol=0.06)
    np.testing.assert_allclose(fitted_value.value(target, config, OBS), found, atol=0.05)
    assert float(metrics["loss"][-1]) < 1e-3


def test_lookahead_is_one_backup_and_stops_at_the_end(key):
    value_fn = lambda s: 10 * s[..., 0]  # noqa: E731

    def ending(key, obs, action):
        next_obs = obs + action
        return next_obs, -jnp.abs(obs[..., 0]), jnp.abs(next_obs[..., 0]) > 1.2, {}

    q = fitted_value.lookahead(key, value_fn, ending, OBS, ACTIONS, 0.9)
    x, a = np.asarray(OBS), np.asarray(ACTIONS)[:, 0]
    following = x + a
    expected = -np.abs(x) + 0.9 * np.where(np.abs(following) > 1.2, 0, 10 * following)
    np.testing.assert_allclose(q, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [("spectral", {"spectral_beta": 1e30}), ("robust", {"robust_coef": 0.0})],
)
def test_a_regulariser_without_weight_is_none_to_the_last_bit(kind, changes):
    _, plain, _, _ = train(None, steps=20)
    _, same, _, _ = train(kind, steps=20, **changes)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(same.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bound_holds_and_keeps_the_value_flat():
    config, state, _, pair = train("spectral", spectral_beta=0.5)
    for params in pair:
        bound = float(nets.lipschitz_upper_bound(params))
        assert bound <= 0.25 * 1.01
    assert float(nets.lipschitz_upper_bound(state.params)) > 0.3
    found = np.asarray(fitted_value.value(pair[0], config, OBS))
    slope = np.abs(np.diff(found)) / 0.25
    assert slope.max() <= 2.0 * 0.25 * 1.01 < np.abs(np.diff(exact_values())).max() / 0.25


@pytest.mark.slow
def test_penalties_flatten():
    def steepest(kind, **changes):
        config, _, metrics, (params, _) = train(kind, **changes)
        found = np.asarray(fitted_value.value(params, config, OBS))
        return np.abs(np.diff(found)).max() / 0.25, metrics

    free, metrics = steepest(None)
    assert "penalty" not in metrics
    held, metrics = steepest("robust", robust_coef=3.0, robust_eps=0.5)
    noise, _ = steepest("noise", robust_coef=3.0, robust_eps=0.5)
    assert held < 0.6 * free and held < noise
    assert float(metrics["penalty"][-1]) > 0


@pytest.mark.slow
def test_targets_are_constants_and_the_target_moves_by_tau(key):
    config = FittedValueConfig((4,))
    state = fitted_value.init(key, config, 1)
    frozen = dataclasses.replace(HPARAMS, lr=0.0, tau=0.25)
    moved = dataclasses.replace(state, target=jax.tree.map(lambda x: x + 1, state.target))
    after, _ = fitted_value.update(key, moved, OBS, line, ACTIONS, config, frozen)
    for old, online, new in zip(
        *(jax.tree.leaves(tree) for tree in (moved.target, state.params, after.target))
    ):
        np.testing.assert_allclose(new, 0.75 * old + 0.25 * online, rtol=1e-6)

    def loss(target):
        other = dataclasses.replace(state, target=target)
        return fitted_value.update(key, other, OBS, line, ACTIONS, config, HPARAMS)[1]["loss"]

    gradient = jax.grad(loss)(state.target)
    assert all(not np.any(np.asarray(x)) for x in jax.tree.leaves(gradient))


def test_sweeps_are_a_vmap(key):
    config = FittedValueConfig((8,), regulariser="robust")

    def one(coef, eps):
        hparams = dataclasses.replace(HPARAMS, robust_coef=coef, robust_eps=eps)
        state = fitted_value.init(key, config, 1)
        return fitted_value.update(key, state, OBS, line, ACTIONS, config, hparams)[1]["penalty"]

    found = jax.jit(jax.vmap(one))(jnp.ones(3), jnp.array([0.0, 0.1, 0.4]))
    assert found[0] < 1e-10 < found[1] < found[2]


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="regulariser: expected one of"):
        FittedValueConfig(regulariser="dropout")
    with pytest.raises(ValueError, match="robust_steps: expected at least 1, got 0"):
        FittedValueConfig(robust_steps=0)

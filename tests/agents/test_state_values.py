"""State values of the critics: which ones, and through what their gradients flow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import sac, state_values
from jaxlab.worldmodels import losses

OBS, ACTION, ROWS = 4, 2, 40
LINEAR = sac.SACConfig(hidden=(), critics=2)
SMOOTH = sac.SACConfig(hidden=(16, 16), critics=2, activation="silu")


def _agent(key, config):
    state = sac.init(key, config, sac.hyperparams(ACTION), OBS, ACTION)
    targets = jax.tree.map(lambda x: 0.5 * x - 0.1, state.target_critics)
    return dataclasses.replace(state, target_critics=targets)


def test_online_critics_come_first_and_then_the_targets(key):
    state = _agent(key, SMOOTH)
    obs = jax.random.normal(key, (OBS,))
    action = sac.act(state, SMOOTH, obs)
    values = state_values.value_fn(state, SMOOTH)(obs)
    expected = [
        *sac.q_values(state.critics, SMOOTH, obs, action),
        *sac.q_values(state.target_critics, SMOOTH, obs, action),
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_gradient_stops_at_the_action_unless_asked(key):
    """Linear Q = w.s + c.a with a = tanh(W s + b): dV/ds is w, or w + W diag(1 - a^2) c."""
    state = _agent(key, LINEAR)
    obs = jax.random.normal(key, (OBS,))
    critic = np.concatenate([state.critics[0]["kernel"], state.target_critics[0]["kernel"]])[..., 0]
    w, c = critic[:, :OBS], critic[:, OBS:]
    stopped = jax.jacobian(state_values.value_fn(state, LINEAR))(obs)
    np.testing.assert_allclose(stopped, w, rtol=1e-6)

    action = np.asarray(sac.act(state, LINEAR, obs))
    slope = np.asarray(state.actor[0]["kernel"])[:, :ACTION] * (1 - action**2)
    through = jax.jacobian(state_values.value_fn(state, LINEAR, through_policy=True))(obs)
    np.testing.assert_allclose(through, w + c @ slope.T, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("through_policy", [False, True])
@pytest.mark.parametrize("clip_quantile", [None, 0.5])
def test_stacked_gradients_equal_the_plain_ones(key, through_policy, clip_quantile):
    state = _agent(key, SMOOTH)
    obs = jax.random.normal(key, (ROWS, OBS))
    mask = jnp.arange(ROWS) < 30
    g, fraction = state_values.value_gradients(
        state,
        SMOOTH,
        obs,
        clip_quantile=clip_quantile,
        mask=mask,
        through_policy=through_policy,
    )
    plain = losses.value_gradients(
        state_values.value_fn(state, SMOOTH, through_policy=through_policy),
        obs,
        clip_quantile=clip_quantile,
        mask=mask,
    )
    assert g.shape == (4, ROWS, OBS)
    np.testing.assert_allclose(g, plain, rtol=1e-4, atol=1e-6)
    # Half of 30 rows lie above their median.
    assert float(fraction) == (0.0 if clip_quantile is None else 0.5)


def test_no_gradient_reaches_the_critics(key):
    state = _agent(key, SMOOTH)
    obs = jax.random.normal(key, (ROWS, OBS))

    def total(critics):
        changed = dataclasses.replace(state, critics=critics)
        return jnp.sum(state_values.value_gradients(changed, SMOOTH, obs)[0] ** 2)

    grads = jax.grad(total)(state.critics)
    assert all(float(jnp.max(jnp.abs(g))) == 0 for g in jax.tree.leaves(grads))


def test_vmap_over_seeds_equals_a_loop(key):
    keys = jax.random.split(key, 3)
    obs = jax.random.normal(key, (ROWS, OBS))

    def gradients(key):
        return state_values.value_gradients(_agent(key, SMOOTH), SMOOTH, obs)

    together = jax.jit(jax.vmap(gradients))(keys)
    for i in range(3):
        alone = jax.jit(gradients)(keys[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6),
            together,
            alone,
        )

"""The weighted Q-learning loss of imagined steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.types import Transition
from jaxlab.values import ValueHead, imagined_q_loss, q_learning_loss


def linear(params, obs):
    return obs @ params


def batch(seed=0, rows=6):
    rng = np.random.default_rng(seed)
    obs, next_obs = rng.normal(size=(2, rows, 3)).astype(np.float32)
    reward, going, weight = rng.uniform(size=(3, rows)).astype(np.float32)
    action = rng.integers(2, size=rows).astype(np.int32)
    return [jnp.asarray(x) for x in (obs, action, reward, going, next_obs, weight)]


@pytest.mark.parametrize("double", [False, True])
def test_loss_and_gradient_in_float64(double):
    obs, action, reward, going, next_obs, weight = batch()
    rng = np.random.default_rng(1)
    online, target = rng.normal(size=(2, 3, 2)).astype(np.float32)
    compute = jax.jit(
        lambda p: imagined_q_loss(
            linear,
            p,
            jnp.asarray(target),
            obs,
            action,
            reward,
            going,
            next_obs,
            weight,
            0.9,
            double,
        )
    )
    loss, metrics = compute(jnp.asarray(online))
    x, y = (np.asarray(v, np.float64) for v in (obs, next_obs))
    rows, chosen = np.arange(6), np.asarray(action)
    q = (x @ online.astype(np.float64))[rows, chosen]
    following = y @ target.astype(np.float64)
    pick = (y @ online.astype(np.float64) if double else following).argmax(axis=1)
    r, c, w = (np.asarray(v, np.float64) for v in (reward, going, weight))
    error = q - (r + 0.9 * c * following[rows, pick])
    np.testing.assert_allclose(loss, np.mean(w * error**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["q"], q.mean(), rtol=1e-5)
    grad = jax.grad(lambda p: compute(p)[0])(jnp.asarray(online))
    expected = np.zeros((3, 2))
    for i in rows:
        expected[:, chosen[i]] += 2 * w[i] * error[i] * x[i] / 6
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-6)


def test_with_real_steps_it_is_q_learning():
    obs, action, reward, _, next_obs, _ = batch(2)
    ended = jnp.array([True, False, False, True, False, False])
    params, target = (
        jnp.asarray(p) for p in np.random.default_rng(3).normal(size=(2, 3, 2)).astype(np.float32)
    )
    loss, _ = imagined_q_loss(
        linear, params, target, obs, action, reward, ~ended, next_obs, jnp.ones(6), 0.9
    )
    real = Transition(obs, action, reward, ended, jnp.zeros(6, bool), next_obs)
    expected, _ = q_learning_loss(ValueHead(), params, target, linear, real, 0.9)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_refuses_weights_of_another_shape():
    obs, action, reward, going, next_obs, weight = batch()
    with pytest.raises(ValueError, match="weight: expected the shape of q"):
        imagined_q_loss(
            linear, jnp.ones((3, 2)), jnp.ones((3, 2)), obs, action, reward, going, next_obs,
            weight[:3], 0.9,
        )  # fmt: skip

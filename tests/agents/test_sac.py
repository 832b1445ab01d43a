"""One SAC update against NumPy in float64, term by term."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import sac, squashed_gaussian
from jaxlab.types import Transition

OBS, ACTION, ROWS = 3, 2, 8
# Without hidden layers actor and critics are linear, and everything has a short closed form.
LINEAR = sac.SACConfig(hidden=(), critics=2)
SMALL = sac.SACConfig(hidden=(16,), critics=3)

_init = jax.jit(sac.init, static_argnums=(1, 3, 4))
_update = jax.jit(sac.update, static_argnums=3)


def _batch(key, rows=ROWS):
    keys = jax.random.split(key, 4)
    return Transition(
        obs=jax.random.normal(keys[0], (rows, OBS)),
        action=jax.random.uniform(keys[1], (rows, ACTION), minval=-1.0),
        reward=jax.random.normal(keys[2], (rows,)),
        terminated=jnp.arange(rows) % 2 == 0,
        truncated=jnp.arange(rows) % 4 == 1,
        next_obs=jax.random.normal(keys[3], (rows, OBS)),
    )


def _numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _linear_q(critics, obs, action):
    (layer,) = _numpy(critics)
    x = np.concatenate([np.asarray(obs, np.float64), np.asarray(action, np.float64)], -1)
    return np.einsum("bi,nio->nb", x, layer["kernel"]) + layer["bias"]


def _distinct_targets(state):
    """Moves the target critics away from the online ones."""
    moved = jax.tree.map(lambda x: x + 0.3, state.target_critics)
    return dataclasses.replace(state, target_critics=moved)


def test_targets_bootstrap_after_truncation_and_not_after_termination(key):
    hparams = sac.hyperparams(ACTION, gamma=0.9, init_alpha=0.3)
    state = _distinct_targets(_init(key, LINEAR, hparams, OBS, ACTION))
    batch = _batch(key)
    noise = jax.random.normal(key, (ROWS, ACTION))
    target = sac.targets(state, batch, noise, LINEAR, hparams)

    (layer,) = _numpy(state.actor)
    out = np.asarray(batch.next_obs, np.float64) @ layer["kernel"] + layer["bias"]
    mean, log_std = out[:, :ACTION], np.clip(out[:, ACTION:], -5, 2)
    eps = np.asarray(noise, np.float64)
    u = mean + np.exp(log_std) * eps
    log_prob = np.sum(
        -0.5 * eps**2 - log_std - 0.5 * np.log(2 * np.pi) + 2 * np.log(np.cosh(u)), axis=-1
    )
    q = _linear_q(state.target_critics, batch.next_obs, np.tanh(u)).min(axis=0)
    alive = np.where(np.asarray(batch.terminated), 0.0, 1.0)
    expected = np.asarray(batch.reward, np.float64) + 0.9 * alive * (q - 0.3 * log_prob)
    np.testing.assert_allclose(target, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(target[batch.terminated], batch.reward[batch.terminated])
    # Row 1 is truncated, row 0 terminated.
    assert abs(float(target[1] - batch.reward[1])) > 1e-3
    again = dataclasses.replace(batch, truncated=~batch.truncated)
    np.testing.assert_array_equal(sac.targets(state, again, noise, LINEAR, hparams), target)


def test_target_clip_bounds_and_reports(key):
    config = dataclasses.replace(LINEAR, target_clip=(-0.1, 0.2))
    hparams = sac.hyperparams(ACTION)
    state = _init(key, config, hparams, OBS, ACTION)
    noise = jnp.zeros((ROWS, ACTION))
    target = sac.targets(state, _batch(key), noise, config, hparams)
    free = sac.targets(state, _batch(key), noise, LINEAR, hparams)
    np.testing.assert_array_equal(target, jnp.clip(free, -0.1, 0.2))
    _, metrics = _update(key, state, _batch(key), config, hparams)
    assert 0 < float(metrics["target_clipped"]) <= 1


def _adam(param, grads, lr):
    """Adam of Kingma and Ba 2015, algorithm 1."""
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        param = param - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return param


def test_critic_and_target_update_equal_numpy(key):
    hparams = sac.hyperparams(ACTION, critic_lr=1e-2, tau=0.25)
    state = _distinct_targets(_init(key, LINEAR, hparams, OBS, ACTION))
    batch = _batch(key)
    # A terminated batch: the targets are the rewards, whatever the noise.
    batch = dataclasses.replace(batch, terminated=jnp.ones(ROWS, bool))
    x = np.concatenate([_numpy(batch.obs), _numpy(batch.action)], -1)
    y = _numpy(batch.reward)
    (first,) = _numpy(state.critics)
    kernel, bias = first["kernel"], first["bias"]
    (target,) = _numpy(state.target_critics)
    kernel_grads, bias_grads = [], []
    losses = []
    for step in range(2):
        error = np.einsum("bi,nio->nb", x, kernel) + bias - y
        losses.append(np.sum(np.mean(error**2, axis=1)))
        kernel_grads.append(np.einsum("nb,bi->ni", 2 * error / ROWS, x)[..., None])
        bias_grads.append(2 * error.mean(axis=1)[:, None])
        kernel = _adam(first["kernel"], kernel_grads, 1e-2)
        bias = _adam(first["bias"], bias_grads, 1e-2)
        target = {
            "kernel": 0.75 * target["kernel"] + 0.25 * kernel,
            "bias": 0.75 * target["bias"] + 0.25 * bias,
        }
        state, metrics = _update(jax.random.fold_in(key, step), state, batch, LINEAR, hparams)
        np.testing.assert_allclose(metrics["critic_loss"], losses[-1], rtol=1e-5)
    np.testing.assert_allclose(state.critics[0]["kernel"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.critics[0]["bias"], bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.target_critics[0]["kernel"], target["kernel"], rtol=1e-4)
    np.testing.assert_allclose(state.target_critics[0]["bias"], target["bias"], rtol=1e-4)


def test_a_critics_gradient_does_not_depend_on_their_number(key):
    hparams = sac.hyperparams(ACTION)
    batch = dataclasses.replace(_batch(key), terminated=jnp.ones(ROWS, bool))
    moments = []
    for critics in (1, 5):
        config = dataclasses.replace(LINEAR, critics=critics)
        state = _init(key, config, hparams, OBS, ACTION)
        state, _ = _update(key, state, batch, config, hparams)
        moments.append(jax.tree.map(lambda x: x[0], state.critic_opt.mu))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *moments)


def test_actor_ascends_the_smallest_critic(key):
    """One actor step from the reparametrised gradient of a linear critic, by hand."""
    hparams = sac.hyperparams(ACTION, actor_lr=1e-3, critic_lr=0.0, init_alpha=0.2)
    state = _init(key, LINEAR, hparams, OBS, ACTION)
    batch = _batch(key)
    new, metrics = _update(key, state, batch, LINEAR, hparams)

    noise = np.asarray(jax.random.normal(key, (2, ROWS, ACTION))[1], np.float64)
    (layer,) = _numpy(state.actor)
    obs = _numpy(batch.obs)
    out = obs @ layer["kernel"] + layer["bias"]
    log_std = np.clip(out[:, ACTION:], -5, 2)
    u = out[:, :ACTION] + np.exp(log_std) * noise
    q = _linear_q(state.critics, batch.obs, np.tanh(u))
    (critic,) = _numpy(state.critics)
    slope = critic["kernel"][q.argmin(axis=0), OBS:, 0]  # dQ/da of each row's smallest critic
    # d/du of alpha log pi - Q; log pi has d/du = 2 tanh(u), and d/d log_std = -1 beside u's part.
    du = 0.2 * 2 * np.tanh(u) - slope / np.cosh(u) ** 2
    inside = (out[:, ACTION:] > -5) & (out[:, ACTION:] < 2)  # beyond its bounds it is a constant
    dlog_std = inside * (du * np.exp(log_std) * noise - 0.2)
    grad = np.concatenate([du, dlog_std], -1) / ROWS
    np.testing.assert_allclose(
        new.actor_opt.mu[0]["kernel"], 0.1 * obs.T @ grad, rtol=1e-4, atol=1e-6
    )
    log_prob = np.sum(
        -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) + 2 * np.log(np.cosh(u)), axis=-1
    )
    np.testing.assert_allclose(
        metrics["actor_loss"], np.mean(0.2 * log_prob - q.min(axis=0)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["entropy"], -np.mean(log_prob), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, new.critics, state.critics)


@pytest.mark.parametrize("target_entropy,direction", [(-50.0, -1), (50.0, 1)])
def test_temperature_moves_towards_the_target_entropy(key, target_entropy, direction):
    hparams = sac.hyperparams(ACTION, alpha_lr=0.01, target_entropy=target_entropy)
    state = _init(key, LINEAR, hparams, OBS, ACTION)
    new, _ = _update(key, state, _batch(key), LINEAR, hparams)
    # Adam's first step has the length of the rate.
    np.testing.assert_allclose(new.log_alpha - state.log_alpha, direction * 0.01, rtol=1e-4)
    fixed = dataclasses.replace(LINEAR, auto_alpha=False)
    new, _ = _update(key, state, _batch(key), fixed, hparams)
    assert float(new.log_alpha) == float(state.log_alpha)


def test_act_is_deterministic_without_a_key_and_sampled_with_one(key):
    state = _init(key, SMALL, sac.hyperparams(ACTION), OBS, ACTION)
    obs = jax.random.normal(key, (4, 5, OBS))
    mean = sac.act(state, SMALL, obs)
    assert mean.shape == (4, 5, ACTION)
    one = sac.act(state, SMALL, obs[0, 0])
    np.testing.assert_allclose(one, mean[0, 0], rtol=1e-5, atol=1e-6)
    drawn = sac.act(state, SMALL, obs, key)
    assert bool(jnp.all(jnp.abs(drawn) <= 1)) and not np.allclose(drawn, mean)
    noise = jax.random.normal(key, drawn.shape)
    zero = squashed_gaussian.sample(jnp.arctanh(mean), jnp.full_like(mean, -30.0), noise)[0]
    np.testing.assert_allclose(zero, mean, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
def test_update_many_is_a_loop_of_updates(key, every):
    single = dataclasses.replace(SMALL, critic_layer_norm=True)
    config = dataclasses.replace(single, policy_every=every)
    hparams = sac.hyperparams(ACTION, critic_lr=1e-2, actor_lr=1e-2)
    start = _init(key, config, hparams, OBS, ACTION)
    batches = jax.vmap(_batch)(jax.random.split(key, 6))
    many, metrics = jax.jit(sac.update_many, static_argnums=3)(key, start, batches, config, hparams)
    state, losses = start, []
    for i, update_key in enumerate(jax.random.split(key, 6)):
        batch = jax.tree.map(lambda x, i=i: x[i], batches)
        new, one = _update(update_key, state, batch, single, hparams)
        losses.append(float(one["critic_loss"]))
        if (i + 1) % every:  # between actor updates only the critics move
            new = dataclasses.replace(
                new,
                actor=state.actor,
                actor_opt=state.actor_opt,
                log_alpha=state.log_alpha,
                alpha_opt=state.alpha_opt,
            )
        state = new
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many, state)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-4)
    assert many.actor_opt.count == 6 // every


def test_vmap_over_seeds_and_rates_equals_a_loop(key):
    keys = jax.random.split(key, 3)
    states, hparams = [], []
    for member_key, rate in zip(keys, (1e-4, 1e-3, 1e-2)):
        hparams.append(sac.hyperparams(ACTION, critic_lr=rate, actor_lr=rate))
        states.append(_init(member_key, LINEAR, hparams[-1], OBS, ACTION))
    batch = _batch(key)
    stack = jax.tree.map(lambda *x: jnp.stack(x), *zip(states, hparams, strict=True))
    together = jax.jit(
        jax.vmap(lambda key, member: sac.update(key, member[0], batch, LINEAR, member[1]))
    )(keys, stack)
    for i in range(3):
        alone = _update(keys[i], states[i], batch, LINEAR, hparams[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            together,
            alone,
        )


@pytest.mark.slow
def test_jit_equals_eager_and_keeps_dtypes(key):
    hparams = sac.hyperparams(ACTION)
    state = _init(key, LINEAR, hparams, OBS, ACTION)
    jitted = _update(key, state, _batch(key), LINEAR, hparams)
    eager = sac.update(key, state, _batch(key), LINEAR, hparams)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), jitted, eager)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), jitted[0]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_bad_configurations_are_refused(key):
    with pytest.raises(ValueError, match="critics: expected at least 1, got 0"):
        sac.SACConfig(critics=0)
    with pytest.raises(ValueError, match="activation: expected one of"):
        sac.SACConfig(activation="gelu")
    with pytest.raises(ValueError, match="log_std_bounds: expected low < high"):
        sac.SACConfig(log_std_bounds=(2.0, -5.0))
    with pytest.raises(ValueError, match="target_clip: expected low < high"):
        sac.SACConfig(target_clip=(10.0, -10.0))
    config = dataclasses.replace(SMALL, policy_every=2)
    hparams = sac.hyperparams(ACTION)
    state = _init(key, config, hparams, OBS, ACTION)
    batches = jax.vmap(_batch)(jax.random.split(key, 3))
    with pytest.raises(ValueError, match=r"batches: expected a multiple of 2 \(policy_every\)"):
        sac.update_many(key, state, batches, config, hparams)

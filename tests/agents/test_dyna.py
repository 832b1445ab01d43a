"""The Dyna loop: data flow, arms, schedules and evaluation on tiny problems."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import dyna
from jaxlab.agents.dyna_config import DynaConfig, hyperparams
from jaxlab.agents.sac import SACConfig
from jaxlab.envs import EnvSpec, observed_env, pendulum
from jaxlab.worldmodels import EnsembleConfig, FitConfig

CONFIG = DynaConfig(
    sac=SACConfig(hidden=(8,)),
    model=EnsembleConfig(members=2, elites=1, hidden=(8,)),
    fit=FitConfig(batch_size=16, max_epochs=2, max_holdout=8),
    batch_size=8,
    utd=2,
    capacity=48,
    initial_steps=40,
    model_train_freq=12,
    rollout_batch=20,
    rollout_schedule=(40, 52, 1, 2),
    retain_blocks=2,
    eval_episodes=2,
)

# The same names in every test: another dict would be another program.
COMMON = {"value_coef": 1.0, "reward_coef": 1.0, "mse_coef": 0.0, "critic_lr": 3e-4, "gamma": 0.99}


@functools.cache
def _compiled(**changes):
    """One arm on the pendulum; hyper-parameters are traced, so that it compiles once."""
    experiment = dyna.make(pendulum(episode_length=15), dataclasses.replace(CONFIG, **changes))
    return jax.jit(experiment.init), jax.jit(experiment.update)


@functools.cache
def _run(hparams=(), **changes):
    """States and metrics of two blocks."""
    # The deterministic models' arms begin alike; the exact one has no model.
    likelihood = changes.get("fit_loss", "nll") == "nll"
    init, _ = _compiled(fit_loss="nll" if likelihood else "mse")
    _, update = _compiled(**changes)
    state = init(jax.random.key(3), COMMON | dict(hparams))
    if changes.get("exact_model"):
        state = dataclasses.replace(state, model=None)
    states, metrics = [state], []
    for _ in range(2):
        state, one = update(state)
        states.append(state)
        metrics.append(one)
    return states, metrics


def _same(a, b):
    return all(
        np.array_equal(jax.random.key_data(x), jax.random.key_data(y))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.slow
def test_real_replay_holds_the_environments_own_transitions():
    states, _ = _run(fit_loss="nll")
    assert [int(s.real.count) for s in states] == [40, 48, 48]
    env = pendulum(episode_length=15)
    data = states[-1].real.data
    # The pendulum never terminates; every 15th step is truncated, and its next_obs is pre-reset.
    assert not bool(jnp.any(data.terminated))
    assert int(jnp.sum(data.truncated)) in (3, 4)
    expected = env.transition_fn(jax.random.key(0), data.obs, data.action)
    np.testing.assert_allclose(data.next_obs, expected, atol=1e-5)
    np.testing.assert_allclose(
        data.reward, env.reward_fn(data.obs, data.action, data.next_obs), atol=1e-5
    )
    # 64 steps went into 48 rows: the oldest 16 are gone, the initial exploration's rows 17-40 stay.
    initial = states[0].real.data
    kept = np.isin(np.asarray(initial.obs[:40, 2]), np.asarray(data.obs[:, 2]))
    assert kept.tolist() == [False] * 16 + [True] * 24


def test_imagined_replay_starts_at_real_states_and_follows_the_schedule():
    states, metrics = _run(fit_loss="nll")
    # Branches have one step in the first block (step 40), two in the second (step 52).
    assert [float(m["branch_length"]) for m in metrics] == [1.0, 2.0]
    assert [int(s.imagined.count) for s in states] == [0, 20, 60]
    first = states[1].imagined.data
    real = np.asarray(states[0].real.data.obs)
    for row in np.asarray(first.obs[:20]):
        assert np.min(np.max(np.abs(real - row), axis=1)) == 0
    assert bool(jnp.all(first.truncated[:20]))
    second = states[2].imagined.data
    np.testing.assert_array_equal(second.obs[40:60], second.next_obs[20:40])


def test_exact_model_imagines_the_environment_to_the_last_bit():
    states, metrics = _run(exact_model=True)
    data = jax.tree.map(lambda x: x[:60], states[-1].imagined.data)
    env = pendulum(episode_length=15)
    expected = jax.jit(env.transition_fn)(jax.random.key(0), data.obs, data.action)
    np.testing.assert_allclose(data.next_obs, expected, atol=1e-6)
    assert states[-1].model is None and "model_loss" not in metrics[0]


@pytest.mark.parametrize(
    "fit_loss", ["nll", "value_gradient", pytest.param("iter_value_aware", marks=pytest.mark.slow)]
)
def test_metrics_and_state_are_finite_and_keep_their_types(fit_loss):
    states, metrics = _run(fit_loss=fit_loss)
    assert len({str(jax.tree.map(lambda x: (x.shape, x.dtype), s)) for s in states}) == 1
    for leaf in jax.tree.leaves(states[-1]):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert bool(jnp.all(jnp.isfinite(leaf)))
    for name, value in metrics[-1].items():
        assert value.shape == () and value.dtype == jnp.float32, name
        assert np.isfinite(value), name
    assert float(metrics[-1]["env_steps"]) == 40 + 2 * 12
    assert 1 <= float(metrics[-1]["effective_dims"]) <= 3
    assert float(metrics[-1]["clip_fraction"]) == pytest.approx(0.05, abs=0.05)


@pytest.mark.slow
def test_value_gradient_arm_with_the_squared_error_alone_is_the_mse_arm():
    only_mse = (("value_coef", 0.0), ("reward_coef", 0.0), ("mse_coef", 1.0))
    weighted, _ = _run(fit_loss="value_gradient", hparams=only_mse)
    plain, _ = _run(fit_loss="mse")
    for a, b in zip(weighted, plain, strict=True):
        assert _same(dataclasses.replace(a, hparams=None), dataclasses.replace(b, hparams=None))


def test_warm_up_adds_the_squared_error_in_the_first_block_only():
    always = (("mse_coef", 1.0),)
    warm, _ = _run(fit_loss="value_gradient")
    regularised, _ = _run(fit_loss="value_gradient", hparams=always)
    assert _same(warm[1].model, regularised[1].model)
    assert not _same(warm[2].model, regularised[2].model)


@pytest.mark.slow
def test_members_under_vmap_equal_members_alone():
    init, update = _compiled(fit_loss="nll")
    keys = jax.random.split(jax.random.key(5), 2)
    hparams = [COMMON | {"critic_lr": 1e-4}, COMMON | {"critic_lr": 1e-2, "gamma": 0.5}]
    alone = [init(key, h) for key, h in zip(keys, hparams)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    states, metrics = jax.jit(jax.vmap(update))(together)
    for i in range(2):
        state, one = update(alone[i])
        for name in ("model_loss", "critic_loss", "reward", "value_error"):
            np.testing.assert_allclose(metrics[name][i], one[name], rtol=1e-2, atol=1e-5)
        np.testing.assert_array_equal(*map(jax.random.key_data, (states.key[i], state.key)))
        np.testing.assert_allclose(states.real.data.obs[i], state.real.data.obs, atol=1e-3)
    assert float(states.hparams.sac.gamma[1]) == 0.5


def _counter(episode_length=10, end=3.0):
    """Counts up by one per step, rewards each step by 1 and ends at `end`; NaN beyond it."""
    spec = EnvSpec("counter", 1, 1, episode_length, None, None)
    return observed_env(
        spec,
        lambda key: jnp.zeros((1,)),
        lambda key, obs, action: jnp.where(obs >= end, jnp.nan, obs + 1),
        lambda obs, action, next_obs: jnp.ones(obs.shape[:-1]) * (next_obs[..., 0] - obs[..., 0]),
        lambda obs, action, next_obs: next_obs[..., 0] >= end,
    )


@pytest.mark.parametrize("episode_length,expected", [(10, 3.0), (2, 2.0)])
def test_evaluation_sums_undiscounted_rewards_until_the_episode_ends(episode_length, expected):
    experiment = dyna.make(_counter(episode_length), CONFIG)
    state = jax.jit(experiment.init)(jax.random.key(0))
    out = jax.jit(experiment.evaluate)(state, jax.random.key(1))
    assert float(out["return"]) == expected
    assert float(out["episode_length"]) == expected
    # 40 initial steps in episodes of 3 (terminated) or 2 (truncated) steps.
    data = state.real.data
    ended = data.terminated if expected == 3 else data.truncated
    assert int(jnp.sum(ended)) == 40 // int(expected)
    assert bool(jnp.all(data.next_obs[:40, 0] == data.obs[:40, 0] + 1))


@pytest.mark.parametrize("step,length", [(0, 1), (20, 1), (85, 8), (150, 15), (400, 15)])
def test_branch_length_schedule(step, length):
    config = dataclasses.replace(CONFIG, rollout_schedule=(20, 150, 1, 15))
    assert int(dyna._branch_length(config, jnp.int32(step))) == length


def test_real_ratio_is_annealed_from_one():
    config = dataclasses.replace(CONFIG, real_ratio_anneal=100)
    hparams = hyperparams({"real_ratio": 0.2}, 1)
    ratios = [float(dyna._real_ratio(config, hparams, jnp.int32(t))) for t in (0, 50, 100, 900)]
    np.testing.assert_allclose(ratios, [1.0, 0.6, 0.2, 0.2], rtol=1e-6)
    assert float(dyna._real_ratio(CONFIG, hparams, jnp.int32(0))) == pytest.approx(0.2)


def test_hyperparameters_are_named_and_traced():
    hparams = hyperparams({"gamma": jnp.float32(0.5), "model_lr": 0.1}, 3)
    assert float(hparams.sac.gamma) == 0.5 and float(hparams.model_lr) == pytest.approx(0.1)
    assert float(hparams.sac.target_entropy) == -3
    assert all(x.dtype == jnp.float32 and x.shape == () for x in jax.tree.leaves(hparams))
    with pytest.raises(ValueError, match=r"hparams: unknown \['critic_rate'\], expected among"):
        hyperparams({"critic_rate": 1e-3}, 1)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"fit_loss": "mle"}, "fit_loss: expected one of"),
        ({"utd": 0}, "utd: expected at least 1, got 0"),
        ({"clip_quantile": 95.0}, r"clip_quantile: expected within \[0, 1\], got 95"),
        ({"initial_steps": 1}, "initial_steps: expected at least 2"),
        ({"rollout_schedule": (5, 5, 1, 1)}, "rollout_schedule: expected"),
        ({"sac": SACConfig(policy_every=3)}, "utd: expected a multiple of policy_every"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_model_without_reward_needs_the_environments():
    blind = pendulum()._replace(reward_fn=None)
    model = dataclasses.replace(CONFIG.model, predict_reward=False)
    with pytest.raises(ValueError, match="predict_reward: expected True"):
        dyna.make(blind, dataclasses.replace(CONFIG, model=model))


@pytest.mark.slow
@pytest.mark.parametrize("fit_loss", ["nll", "mse", "value_gradient"])
def test_learns_to_swing_a_pendulum_up(fit_loss):
    """Untrained policies get about -1300, good ones -150; the likelihood takes longest."""
    config = DynaConfig(
        sac=SACConfig(hidden=(64, 64)),
        model=EnsembleConfig(members=5, elites=3, hidden=(64, 64)),
        fit=FitConfig(batch_size=128, max_epochs=60, patience=10, max_holdout=256),
        batch_size=128,
        utd=10,
        fit_loss=fit_loss,
        capacity=3000,
        rollout_batch=2500,
        eval_episodes=8,
    )
    experiment = dyna.make(pendulum(), config)
    keys = jax.random.split(jax.random.key(1), 2)
    rates = {"actor_lr": 1e-3, "critic_lr": 1e-3, "alpha_lr": 1e-3}
    state = jax.jit(jax.vmap(lambda key: experiment.init(key, rates)))(keys)
    evaluate = jax.jit(jax.vmap(experiment.evaluate))
    before = evaluate(state, keys)["return"]
    update = jax.jit(jax.vmap(experiment.update), donate_argnums=0)
    errors = []
    for _ in range(8):
        state, metrics = update(state)
        errors.append(float(jnp.mean(metrics["model_error"])))
    after = evaluate(state, keys)["return"]
    assert bool(jnp.all(before < -800))
    assert float(jnp.max(after)) > -300
    assert float(jnp.mean(after - before)) > 400
    assert errors[-1] < 0.1 * errors[0]

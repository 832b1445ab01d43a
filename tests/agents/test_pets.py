import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import PETSConfig, interaction, pets
from jaxlab.agents.pets_config import hyperparams
from jaxlab.envs import EnvSpec, auto_reset, observed_env, pendulum
from jaxlab.search import CEMConfig, ICEMConfig, MPPIConfig
from jaxlab.worldmodels import EnsembleConfig, FitConfig

GOAL = 0.5
LENGTH = 10


def line(episode_length=LENGTH, end=jnp.inf):
    """A point on a line: x' = x + a / 4, reward minus the squared distance to the goal."""
    spec = EnvSpec("line", 1, 1, episode_length, None, None)
    return observed_env(
        spec,
        lambda key: jax.random.uniform(key, (1,), minval=-0.6, maxval=-0.4),
        lambda key, obs, action: obs + 0.25 * jnp.clip(action, -1, 1),
        lambda obs, action, next_obs: -((next_obs[..., 0] - GOAL) ** 2),
        lambda obs, action, next_obs: next_obs[..., 0] >= end,
    )


CONFIG = PETSConfig(
    planner=CEMConfig(6, 1, population=24, num_elites=4, iterations=3, bounds="clip"),
    model=EnsembleConfig(members=3, elites=2, hidden=(16,), predict_reward=False),
    fit=FitConfig(batch_size=16, max_epochs=60, patience=60, max_holdout=8),
    particles=2,
    capacity=64,
    initial_steps=30,
    model_train_freq=LENGTH,
    eval_episodes=2,
)
PLANNERS = {
    "cem": CONFIG.planner,
    "icem": ICEMConfig(6, 1, population=24, num_elites=4, iterations=2),
    "mppi": MPPIConfig(6, 1, population=48, iterations=2),
}


@functools.cache
def compiled(**changes):
    experiment = pets.make(line(), dataclasses.replace(CONFIG, **changes))
    return tuple(jax.jit(f) for f in experiment)


@functools.cache
def run(blocks=2, **changes):
    init, update, evaluate = compiled(**changes)
    state = init(jax.random.key(3), {"model_lr": 3e-3})
    states, metrics = [state], []
    for _ in range(blocks):
        state, one = update(state)
        states.append(state)
        metrics.append(one)
    return states, metrics, evaluate(state, jax.random.key(4)) if blocks == 2 else None


def best_return(start=-0.5):
    """Full speed to the goal, then stay."""
    x, total = start, 0.0
    for _ in range(LENGTH):
        x += np.clip(GOAL - x, -0.25, 0.25)
        total -= (x - GOAL) ** 2
    return total


@pytest.mark.slow
def test_learns_to_reach_a_goal():
    states, metrics, result = run()
    # A point that stays where it starts gets -10, the best controller -0.9.
    assert best_return() == pytest.approx(-0.875)
    assert float(result["return"]) > -1.6
    assert float(result["episode_length"]) == LENGTH
    assert float(metrics[-1]["model_error"]) < 1e-3  # a step's square is up to 0.06
    assert [float(m["env_steps"]) for m in metrics] == [40.0, 50.0]
    for name, value in metrics[-1].items():
        assert value.shape == () and value.dtype == jnp.float32 and np.isfinite(value), name
    assert len({str(jax.tree.map(lambda x: (x.shape, x.dtype), s)) for s in states}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("planner", PLANNERS)
def test_every_planner_reaches_the_goal_on_the_exact_model(planner):
    # Enough episodes that the threshold is not a matter of two starts.
    config = dataclasses.replace(
        CONFIG, planner=PLANNERS[planner], exact_model=True, eval_episodes=64
    )
    experiment = pets.make(line(), config)
    state = jax.jit(experiment.init)(
        jax.random.key(0), {"gamma": 30.0} if planner == "mppi" else {}
    )
    assert state.model is None
    result = jax.jit(experiment.evaluate)(state, jax.random.key(1))
    assert -1.4 < float(result["return"]) < -0.5


def test_a_block_on_the_exact_model_fits_nothing():
    states, metrics, _ = run(blocks=1, exact_model=True)
    assert "model_loss" not in metrics[0] and float(metrics[0]["finite_fraction"]) == 1.0
    assert int(states[-1].real.count) == 40


@pytest.mark.slow
def test_replay_holds_the_environments_own_transitions():
    states, _, _ = run()
    assert [int(s.real.count) for s in states] == [30, 40, 50]
    data = jax.tree.map(lambda x: x[:50], states[-1].real.data)
    np.testing.assert_allclose(
        data.next_obs, data.obs + 0.25 * jnp.clip(data.action, -1, 1), atol=1e-6
    )
    np.testing.assert_allclose(data.reward, -((data.next_obs[:, 0] - GOAL) ** 2), atol=1e-6)
    assert int(jnp.sum(data.truncated)) == 5 and not data.terminated.any()
    # Planned actions are no uniform ones: from the start they drive towards the goal.
    assert float(jnp.mean(data.action[40:43])) > 0.7


@pytest.mark.slow
def test_the_warm_start_ends_with_the_episode():
    states, _, _ = run()
    # A block is an episode here, so every block ends with a fresh plan ...
    np.testing.assert_array_equal(states[-1].plan.mean, 0.0)
    # ... and in the middle of an episode it does not.
    states, _, _ = run(blocks=1, model_train_freq=LENGTH - 1, exact_model=True)
    assert np.abs(states[-1].plan.mean[:-1]).max() > 0


@pytest.mark.slow
def test_seeds_and_modes_of_propagation_differ():
    init, _, evaluate = compiled()
    first, second = (init(jax.random.key(k)) for k in (0, 1))
    assert not np.any(first.real.data.action[:30] == second.real.data.action[:30])
    # The untrained members disagree, so it matters who predicts.
    _, _, redrawing = compiled(propagation="ts1")
    key = jax.random.key(2)
    assert float(evaluate(first, key)["return"]) != float(redrawing(first, key)["return"])


@pytest.mark.slow
def test_members_under_vmap_are_members_alone():
    keys = jax.random.split(jax.random.key(5), 2)
    hparams = [{"sigma": 0.3}, {"sigma": 0.9}]
    init, _, evaluate = compiled()
    alone = [init(key, h) for key, h in zip(keys, hparams)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    np.testing.assert_allclose(together.hparams.planner["sigma"], [0.3, 0.9], rtol=1e-6)
    results = jax.jit(jax.vmap(evaluate))(together, keys)
    for i in range(2):
        np.testing.assert_allclose(
            results["return"][i], evaluate(alone[i], keys[i])["return"], rtol=1e-3
        )
    # A block too, without the fit, along which rounding errors would grow.
    _, update, _ = compiled(exact_model=True)
    alone = [dataclasses.replace(state, model=None) for state in alone]
    states, metrics = jax.jit(jax.vmap(update))(dataclasses.replace(together, model=None))
    for i in range(2):
        state, one = update(alone[i])
        np.testing.assert_allclose(metrics["reward"][i], one["reward"], rtol=1e-3)
        np.testing.assert_array_equal(*map(jax.random.key_data, (states.key[i], state.key)))


def test_steps_of_the_environment_are_written_down_as_they_happened(key):
    stepper = auto_reset(line(end=-0.4))
    env_state, obs, seen = jax.jit(lambda k: interaction.explore(k, stepper, 100))(key)
    np.testing.assert_array_equal(env_state.physics, obs)
    assert seen.action.min() < -0.8 and seen.action.max() > 0.8
    ended = np.asarray(seen.terminated | seen.truncated)
    assert np.asarray(seen.terminated).any() and np.asarray(seen.truncated).any()
    np.testing.assert_array_equal(seen.next_obs[:-1][~ended[:-1]], seen.obs[1:][~ended[:-1]])
    assert np.all(seen.obs[1:][ended[:-1]] != seen.next_obs[:-1][ended[:-1]])
    assert np.all(seen.next_obs[np.asarray(seen.terminated)] >= -0.4)
    with pytest.raises(ValueError, match=r"stepper: expected auto_reset\(...\), got the raw line"):
        interaction.explore(key, line(), 3)


def test_evaluation_passes_the_memory_on_and_stops_at_the_end(key):
    env = line(end=GOAL - 0.01)
    push = lambda memory, obs, k: (jnp.array([1.0]), memory + 1)  # noqa: E731
    out = interaction.evaluate_policy(key, env, push, jnp.float32(0.0), 3)
    assert 4.0 <= float(out["episode_length"]) <= 5.0  # four steps from above -0.51, else five
    # A policy that acts on its own memory only: full speed twice, then nothing.
    twice = lambda memory, obs, k: (jnp.where(memory < 2, 1.0, 0.0)[None], memory + 1)  # noqa: E731
    out = interaction.evaluate_policy(key, line(), twice, jnp.float32(0.0), 50)
    start = -0.5  # on average; the variance of the uniform start is 0.2^2 / 12 in every reward
    expected = -((start + 0.25 - GOAL) ** 2) - 9 * (start + 0.5 - GOAL) ** 2 - 10 * 0.04 / 12
    np.testing.assert_allclose(out["return"], expected, atol=0.25)
    assert float(out["episode_length"]) == LENGTH


def test_the_noise_of_a_policy_is_not_that_of_the_environment(key):
    # Both draw a normal number, the environment with the second half of its key.
    env = line()

    def gust(state, action, key):
        _, wind_key = jax.random.split(key)
        state, out = env.step(state, action, key)
        return state, out.replace(reward=(action * jax.random.normal(wind_key, (1,)))[0])

    noise = lambda memory, obs, k: (jax.random.normal(k, (1,)), memory)  # noqa: E731
    out = interaction.evaluate_policy(key, env._replace(step=gust), noise, None, 400)
    # The mean of 400 returns of LENGTH products of independent normals; of squares it is LENGTH.
    np.testing.assert_allclose(out["return"], 0, atol=5 * np.sqrt(LENGTH / 400))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"particles": 3}, "particles: expected a multiple of the 2 elites, got 3"),
        ({"propagation": "mm"}, "propagation: expected one of"),
        ({"initial_steps": 1}, "initial_steps: expected at least 2"),
        ({"capacity": 0}, "capacity: expected at least 1, got 0"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"config\.planner\.action_dim: expected 1, got 2"):
        pets.make(line(), dataclasses.replace(CONFIG, planner=CEMConfig(3, 2)))
    blind = line()._replace(reward_fn=None)
    silent = dataclasses.replace(CONFIG.model, predict_reward=False)
    with pytest.raises(ValueError, match="predict_reward: expected True"):
        pets.make(blind, dataclasses.replace(CONFIG, model=silent))
    with pytest.raises(ValueError, match=r"hparams: unknown \['gamma'\], expected among"):
        hyperparams({"gamma": 1.0}, CONFIG)


@pytest.mark.slow
@pytest.mark.parametrize("propagation", ["ts_inf", "ts1"])
def test_swings_a_pendulum_up(propagation):
    """More than half of the way from random actions, -1226, to the exact dynamics, -152."""
    config = PETSConfig(
        planner=CEMConfig(25, 1, population=128, num_elites=16, iterations=4, bounds="clip"),
        model=EnsembleConfig(members=5, elites=5, hidden=(64, 64), predict_reward=False),
        fit=FitConfig(batch_size=64, max_epochs=60, max_holdout=256),
        propagation=propagation,
        particles=5,
        capacity=2000,
        initial_steps=200,
        model_train_freq=200,
        eval_episodes=4,
    )
    env = pendulum()
    experiment = pets.make(env, config)
    state = jax.jit(experiment.init)(jax.random.key(0), {"sigma": 1.0})
    update, evaluate = jax.jit(experiment.update), jax.jit(experiment.evaluate)
    for _ in range(4):
        state, metrics = update(state)
    half = (env.spec.random_return + env.spec.expert_return) / 2
    assert float(evaluate(state, jax.random.key(1))["return"]) > half
    assert float(metrics["model_error"]) < 0.01

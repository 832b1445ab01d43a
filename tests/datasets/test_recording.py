"""Data sets of every level from one tiny training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import datasets, envs, nets
from jaxlab.datasets.recording import normalized_score
from jaxlab.envs import exact_step_fn

CONFIG = datasets.BehaviourConfig(
    hidden=(8,), batch_size=8, lanes=2, initial_steps=5, block=6, blocks=3, eval_episodes=2
)
LENGTH = 4


def env():
    return envs.make("point_mass", dims=2, episode_length=LENGTH)


@functools.cache
def behaviour():
    return datasets.train(jax.random.key(0), env(), CONFIG)


def with_returns(*returns):
    """The training, as if its evaluations had come out like this (uniform actions: 0)."""
    return dataclasses.replace(
        behaviour(), returns=jnp.asarray(returns, jnp.float32), random_return=jnp.zeros(())
    )


def record(level, returns=(10.0, 50.0, 100.0), rows=30):
    return datasets.record(with_returns(*returns), env(), CONFIG, level, jax.random.key(1), rows)


def check(data):
    """What holds for every data set."""
    rows = jax.tree.map(jnp.asarray, data.transitions)
    following, reward, _, _ = exact_step_fn(env())(jax.random.key(0), rows.obs, rows.action)
    np.testing.assert_allclose(rows.next_obs, following, atol=1e-6)
    np.testing.assert_allclose(rows.reward, reward, atol=1e-6)
    assert data.episode[0] == 0 and set(np.diff(data.episode)) <= {0, 1}
    inside = np.diff(data.episode) == 0
    np.testing.assert_array_equal(rows.obs[1:][inside], rows.next_obs[:-1][inside])
    assert not np.any(rows.truncated[:-1][inside])
    assert np.bincount(data.episode).max() == LENGTH


@pytest.mark.slow
def test_training_keeps_everything_in_order():
    done = behaviour()
    assert done.rows.tolist() == [22, 34, 46]  # 2 lanes x (5 + 6 per block)
    assert done.history.reward.shape == (46,)
    # The rows of a lane follow each other.
    lane = jax.tree.map(lambda x: x[::2], done.history)
    going = ~lane.truncated[:-1]
    np.testing.assert_array_equal(lane.obs[1:][going], lane.next_obs[:-1][going])
    np.testing.assert_allclose(done.history.log_prob[:10], -2 * np.log(2), rtol=1e-6)
    assert np.std(np.asarray(done.history.log_prob[10:])) > 0.1
    last = done.policy(2)
    for a, b in zip(jax.tree.leaves(last.actor), jax.tree.leaves(done.agent.actor), strict=True):
        np.testing.assert_array_equal(a, b)
    first = jax.tree.leaves(done.policy(0).actor)[0]
    assert np.any(np.asarray(first) != np.asarray(jax.tree.leaves(last.actor)[0]))
    assert 0 < float(done.random_return) < LENGTH


@pytest.mark.slow
def test_random_data_are_uniform():
    data = record("random", rows=400)
    check(data)
    assert len(data) == 400 and data.about["level"] == "random" and data.about["score"] == 0
    np.testing.assert_allclose(data.transitions.action.var(), 1 / 3, atol=0.03)
    np.testing.assert_allclose(data.log_prob, -2 * np.log(2), rtol=1e-6)
    alone = datasets.record(None, env(), CONFIG, "random", jax.random.key(1), 400)
    np.testing.assert_array_equal(alone.transitions.obs, data.transitions.obs)
    # Its return is that of uniform actions: 4 steps of a reward of about 0.6.
    assert 1.5 < data.about["return"] < 3
    with pytest.raises(ValueError, match="behaviour: expected a training for 'expert', got None"):
        datasets.record(None, env(), CONFIG, "expert", jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("level, block", [("medium", 1), ("expert", 2)])
def test_levels_act_by_their_policy(level, block):
    data = record(level)
    check(data)
    assert len(data) == 30
    assert data.about["score"] == [10.0, 50.0, 100.0][block]
    assert data.about["training_rows"] == [22, 34, 46][block]
    # The density of its actions is that of the policy.
    agent, rows = behaviour().policy(block), data.transitions
    out = jnp.split(nets.mlp_apply(agent.actor, jnp.asarray(rows.obs), jax.nn.relu), 2, axis=-1)
    u = np.arctanh(np.asarray(rows.action, np.float64))
    std = np.exp(np.clip(np.asarray(out[1], np.float64), -5, 2))
    density = -0.5 * ((u - np.asarray(out[0])) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    expected = (density - np.log1p(-(np.tanh(u) ** 2))).sum(-1)
    # Near the bounds, an action in float32 does not tell what was squashed.
    inside = np.abs(rows.action).max(axis=-1) < 0.99
    assert inside.sum() > 10
    np.testing.assert_allclose(data.log_prob[inside], expected[inside], atol=0.02)


@pytest.mark.slow
def test_replay_is_the_training_up_to_the_medium_policy():
    data = record("medium-replay")
    check(data)
    assert len(data) == 34
    history = behaviour().history
    for lane in (0, 1):
        np.testing.assert_array_equal(
            data.transitions.obs[17 * lane : 17 * (lane + 1)], history.obs[lane:34:2]
        )
    assert data.about["score"] == 50.0


def test_levels_that_were_not_reached_are_refused():
    for level in ("medium", "expert"):
        with pytest.raises(datasets.DatasetError, match="uniform actions 0: nothing was learned"):
            record(level, (-10.0, -9.0, -1.0))
    unlearned = with_returns(40.0, 90.0, 50.0)
    known = env()._replace(
        spec=dataclasses.replace(env().spec, random_return=0.0, expert_return=100.0)
    )
    with pytest.raises(datasets.DatasetError, match="the last policy's score is 50, an expert"):
        datasets.record(unlearned, known, CONFIG, "expert", jax.random.key(0))
    for level in ("medium", "medium-replay"):
        with pytest.raises(datasets.DatasetError, match=r"no evaluation scores 33 \(the best 30"):
            poor = with_returns(20.0, 30.0, 10.0)
            datasets.record(poor, known, CONFIG, level, jax.random.key(0))
    # The first evaluation that is good enough counts.
    medium = datasets.record(unlearned, known, CONFIG, "medium", jax.random.key(0), 8)
    assert medium.about["score"] == 40.0 and medium.about["training_rows"] == 22
    with pytest.raises(ValueError, match=r"level: expected one of .*'best'"):
        record("best")
    with pytest.raises(ValueError, match="rows: expected at least 1, got 0"):
        record("random", rows=0)


def test_scores_are_relative_to_random_and_expert():
    assert normalized_score(-1226.5, -1226.5, -152.3) == 0
    np.testing.assert_allclose(normalized_score(-152.3, -1226.5, -152.3), 100)


def bytes_of(data, path):
    datasets.save(path, data)
    return path.read_bytes()


@pytest.mark.slow
def test_the_same_key_gives_the_same_bytes(tmp_path):
    written = []
    for seed in (3, 3, 4):
        jax.clear_caches()  # everything anew, compilation included
        done = datasets.train(jax.random.key(seed), env(), CONFIG)
        done = dataclasses.replace(
            done, returns=jnp.array([10.0, 50.0, 100.0]), random_return=jnp.zeros(())
        )
        data = datasets.record(done, env(), CONFIG, "medium", jax.random.key(seed), 40)
        check(data)
        written.append(bytes_of(data, tmp_path / "data.safetensors"))
    assert written[0] == written[1] != written[2]


@pytest.mark.slow
def test_a_generated_expert_is_one_and_comes_twice_alike(tmp_path):
    config = datasets.BehaviourConfig(hidden=(32, 32), batch_size=64, block=250, blocks=12)
    options = {"dims": 2, "episode_length": 20}
    written = []
    for level in ("expert", "expert", "medium", "medium-replay"):
        data = datasets.generate("point_mass", level, 5, 2000, config, options)
        written.append(bytes_of(data, tmp_path / "data.safetensors"))
        about = datasets.load(tmp_path / "data.safetensors").about
        assert about["seed"] == 5 and about["options"] == options
        assert about["training"]["blocks"] == 12
        assert about["score"] >= (66 if level == "expert" else 33)
        # What it is said to return, it returns, but for the noise of its actions.
        played = data.transitions.reward.mean() * 20
        assert abs(played - about["return"]) < 5 or level == "medium-replay"
    assert written[0] == written[1] != written[2]


def test_a_configuration_counts():
    with pytest.raises(ValueError, match="lanes: expected at least 1, got 0"):
        datasets.BehaviourConfig(lanes=0)

"""Q-learning from replay, a model or a simulator: what the sources share, and that it learns."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ensemble
from jaxlab.agents import DynaQConfig, dyna_q
from jaxlab.envs import panflute, procmaze, relabel_bits
from jaxlab.worldmodels import soft_rollout

TINY = DynaQConfig("replay", hidden=(8,), batch=4, horizon=2, initial_steps=12, block=6,
                   target_every=4, capacity=20, eval_lanes=3, eval_steps=7)  # fmt: skip
HPARAMS = {"lr": jnp.float32(1e-2), "temperature": jnp.float32(0.5), "model_lr": jnp.float32(1e-2)}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["replay", "model", "simulator"])
def test_a_block_steps_learns_and_copies(key, source):
    experiment = dyna_q.make(panflute(2), replace(TINY, source=source))
    state = jax.jit(experiment.init)(key, HPARAMS)
    assert int(state.replay.count) == 12 and int(state.updates) == 0
    after, metrics = jax.jit(experiment.update)(state)
    assert int(after.replay.count) == 18 and int(after.updates) == 6
    assert all(np.isfinite(float(v)) for v in metrics.values())
    assert ("obs_nll" in metrics) == (source == "model")
    for name in ("q",) if source != "model" else ("q", "model"):
        old, new = (jax.tree.leaves(getattr(s, name).params) for s in (state, after))
        assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(old, new))
    # The last copy was due at update 4, and two updates have followed.
    online, target = (jax.tree.leaves(x)[0] for x in (after.q.params, after.target))
    assert np.any(np.asarray(online) != np.asarray(target))
    score = jax.jit(experiment.evaluate)(after, key)["score"]
    assert 0 <= float(score) <= 1


def test_replay_is_a_rollout_of_one_step_in_a_model_that_looks_up(key):
    env = procmaze(2)
    experiment = dyna_q.make(env, replace(TINY, initial_steps=20))
    rows = experiment.init(key, HPARAMS).replay.data.step

    def look_up(key, index, action):
        del key
        row = jax.tree.map(lambda x: x[index], rows)
        return index, row.reward, 1.0 - row.terminated.astype(jnp.float32)

    index = jnp.arange(20)
    imagined = soft_rollout(key, look_up, lambda k, o: rows.action, index, 1, lambda i: rows.obs[i])
    imagined = jax.tree.map(lambda x: x[0], imagined)
    replayed = dyna_q.replayed_steps(rows)
    for name in ("obs", "action", "reward", "continues", "weight"):
        np.testing.assert_array_equal(getattr(imagined, name), getattr(replayed, name))
    assert np.asarray(rows.terminated).any() and not np.asarray(rows.terminated).all()


def test_an_episode_goes_on_from_what_it_shows(key):
    """The observation acted on is that of the state acted in, also after a reset."""
    env = procmaze(3)
    state, seen = env.reset(key), []
    step = jax.jit(lambda s, a, k: dyna_q.env_transition(env, s, a, k))
    for t in range(60):
        shown = env.observe(state)
        state, transition = step(state, t % 5, jax.random.fold_in(key, t))
        np.testing.assert_array_equal(transition.obs, shown)
        walls = np.asarray(transition.obs).reshape(9, 4)[:, 2]
        # No transition leads from one maze to another.
        np.testing.assert_array_equal(walls, np.asarray(transition.next_obs).reshape(9, 4)[:, 2])
        seen.append((bool(transition.terminated), tuple(walls)))
    assert sum(ended for ended, _ in seen) > 2 and len({maze for _, maze in seen}) > 2


def test_softmax_policy_has_its_temperature(key):
    params = ({"kernel": jnp.zeros((1, 2)), "bias": jnp.array([0.0, 0.3])},)
    draws = dyna_q.softmax_policy(key, params, jnp.zeros((40_000, 1)), jnp.float32(0.2))
    assert np.mean(draws) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=0.01)


def test_a_family_shares_one_program(key):
    env = panflute(2)

    def draw(key, hparams):
        plain = jnp.arange(8, dtype=jnp.int32)
        return jnp.where(hparams["flip"] > 0, 7 - plain, plain)

    family = dyna_q.EnvFamily(draw, lambda codes: relabel_bits(env, codes))
    data = jax.vmap(lambda flip: dyna_q.make(family, TINY).init(key, {**HPARAMS, "flip": flip}))(
        jnp.array([0, 1])
    ).replay.data.step
    np.testing.assert_array_equal(data.obs[0, :12], 1 - data.obs[1, :12])
    np.testing.assert_array_equal(data.reward[0], data.reward[1])


def test_refuses_impossible_settings():
    with pytest.raises(ValueError, match="source: expected one of"):
        replace(TINY, source="dream")
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        replace(TINY, horizon=0)
    for name in ("target_every", "eval_lanes", "eval_steps"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
            replace(TINY, **{name: 0})


@pytest.mark.slow
@pytest.mark.parametrize("source", ["replay", "model", "simulator"])
def test_every_source_learns_to_play(source):
    config = DynaQConfig(source, hidden=(32, 32), block=300)
    # Colder, imagined branches try nothing new, and some seeds stay at 0.25.
    rates = {"lr": [3e-3], "temperature": [0.3], "model_lr": [3e-3]}
    experiment = dyna_q.make(panflute(2), config)
    data = ensemble.run(experiment, steps=4, seeds=8, grid=rates, progress=False)
    assert data["score"].values[..., -1].mean() > 0.55  # uniform play 0.4375, optimal 0.625

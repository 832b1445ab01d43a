import importlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import exact_step_fn
from jaxlab.nets import mlp_init
from jaxlab.stats import combine
from jaxlab.types import Transition

FOLDER = Path(__file__).parents[2] / "experiments"
package = types.ModuleType("vagram_studies")
package.__path__ = [str(FOLDER)]
sys.modules.setdefault("vagram_studies", package)
e1 = importlib.import_module("vagram_studies._vagram_e1")
e2 = importlib.import_module("vagram_studies._vagram_e2")

TINY = e2.Config(
    seeds=3, learning_rates=(3e-3,), distractors=2, transitions=64, validation_transitions=32,
    steps=4, block=2, batch=16, value_steps=5, horizon=3, plans=8, elites=2, iterations=2,
    episode_steps=3, smoke=True,
)  # fmt: skip


def hparams(arm, stream=0):
    return {"arm": jnp.int32(arm), "lr": jnp.float32(3e-3), "stream": jnp.int32(stream)}


def test_the_value_head_is_the_maximum_over_actions(key):
    params = mlp_init(key, (3, 8, 8, 3))
    obs = jax.random.normal(key, (20, 3))
    best, value = (np.asarray(x) for x in (e2.heads(params, obs).best, e2.heads(params, obs).value))
    assert np.all(np.abs(best) < 1)

    def q(action):
        zeros = jnp.zeros(20)
        data = Transition(obs, jnp.asarray(action)[:, None], zeros, zeros > 0, zeros > 0, obs)
        residual = e2.bellman_error(params, params, data, 0.0)  # reward 0, no future: Q itself
        return np.asarray(residual)

    np.testing.assert_allclose(q(best), value, rtol=1e-6)
    for action in np.linspace(-1, 1, 9, dtype=np.float32):
        assert np.all(q(np.full(20, action)) <= value)


def test_fitted_values_solve_a_bellman_equation_known_in_closed_form(key):
    config = e2.Config(
        value_steps=2000, value_hidden=8, value_decay=0.0, discount=0.5, target_rate=0.05,
        value_learning_rate=5e-3, batch=32,
    )  # fmt: skip
    obs = jax.random.normal(key, (64, 3))
    action = jax.random.uniform(key, (64, 1), minval=-1.0, maxval=1.0)
    never = jnp.zeros(64, bool)
    reward = -20 - 10 * (action[:, 0] - 0.3) ** 2
    data = Transition(obs, action, reward, never, never, obs[::-1])
    found = e2.heads(jax.jit(lambda: e2.fit_value(key, data, config))(), obs)
    # The scaled reward is -2 - (a - 0.3)^2 in every state, so the best action is 0.3 throughout
    # and earns -2 / (1 - 0.5).
    # (Medians, as the network is not constant where the states thin out.)
    np.testing.assert_allclose(np.median(found.value), -4.0, atol=0.1)
    np.testing.assert_allclose(np.median(found.best), 0.3, atol=0.05)
    np.testing.assert_allclose(np.median(found.curvature), 1.0, atol=0.15)


def test_the_target_is_a_constant(key):
    params, target = mlp_init(key, (3, 4, 3)), mlp_init(jax.random.fold_in(key, 1), (3, 4, 3))
    obs, zeros = jax.random.normal(key, (5, 3)), jnp.zeros(5)
    data = Transition(obs, zeros[:, None], zeros, zeros > 0, zeros > 0, obs[::-1])
    grad = jax.grad(lambda t: jnp.sum(e2.bellman_error(params, t, data, 0.9) ** 2))(target)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(grad))
    doubled = e2.bellman_error(params, target, data.replace(reward=zeros + 3.0), 0.9)
    np.testing.assert_allclose(
        e2.bellman_error(params, target, data, 0.9) - doubled, 0.3, rtol=1e-4
    )


@pytest.mark.slow
def test_arms_weigh_the_same_data_by_ones_the_network_and_the_known_value(key):
    init = jax.jit(e2.make(TINY, 2, 4).init)
    mse, learned, known = (init(key, hparams(arm)) for arm in range(3))
    np.testing.assert_array_equal(mse.train.obs, known.train.obs)
    np.testing.assert_array_equal(mse.gradients, 1.0)
    np.testing.assert_array_equal(known.gradients[:, 3:], 0.0)
    expected = e1.losses.value_gradients(e1.value, known.train.next_obs)
    np.testing.assert_allclose(known.gradients, expected, rtol=1e-5)
    expected = e1.losses.value_gradients(
        lambda obs: e2.heads(learned.value, obs).value, learned.train.next_obs
    )
    np.testing.assert_allclose(learned.gradients, expected, rtol=1e-4, atol=1e-5)
    assert np.all(np.asarray(learned.gradients) != 0)  # a learned value leans on the distractors
    other = init(key, hparams(0, stream=1))
    assert not np.any(np.asarray(other.train.obs) == np.asarray(mse.train.obs))


@pytest.mark.slow
def test_update_and_evaluation_are_pure_and_finite(key):
    experiment = e2.make(TINY, 2, 4)
    state = jax.jit(experiment.init)(key, hparams(1))
    after, metrics = jax.jit(experiment.update)(state)
    assert float(metrics["validation_value_error"]) > 0
    assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(state.params)
    ))  # fmt: skip
    np.testing.assert_array_equal(after.gradients, state.gradients)
    evaluated = jax.jit(experiment.evaluate)
    first, again = evaluated(after, key), evaluated(after, key)
    assert first == again and all(np.isfinite(float(v)) for v in first.values())
    assert e2.WORST_RETURN_PER_STEP * 3 <= float(first["return"]) < 0


def test_an_episode_starts_at_rest_and_uniform_actions_are_uniform(key):
    env = e1.distracted_pendulum(key, 2)
    config = replace(TINY, episode_steps=1)
    keys = jax.random.split(key, 400)
    returns = jax.jit(jax.vmap(lambda k: e2.swing_up(k, env, None, config)))(keys)
    cost = -(np.asarray(returns, np.float64) + np.pi**2) / 0.004  # squared action
    assert cost.min() > -1e-2 and cost.max() < 1.01
    np.testing.assert_allclose(cost.mean(), 1 / 3, atol=0.06)


def test_planning_with_exact_dynamics_swings_up(key):
    env = e1.distracted_pendulum(key, 0)
    config = e2.Config()
    planned = jax.jit(lambda k: e2.swing_up(k, env, exact_step_fn(env), config))(key)
    assert float(planned) > e2.EXACT_RETURN


def scores(gain, config=None):
    """Scores like a pilot's, with the treatment's gain in return at D set to `gain`."""
    config = config or e2.Config()
    rng, d = np.random.default_rng(0), config.distractors
    table = {
        ("mse", d, ""): -870.0, ("value_gradient", d, ""): -870.0 + gain,
        ("known_value", d, ""): -450.0, ("mse", 0, ""): -368.0, ("value_gradient", 0, ""): -370.0,
        ("mse", 0, "_small"): -380.0, ("value_gradient", 0, "_small"): -400.0,
    }  # fmt: skip
    found = {}
    for (arm, dims, suffix), level in table.items():
        levels = {
            "return": level, "other_block_return": level, "value": 1.0, "constant": -0.5,
            "bellman": 0.6,
        }  # fmt: skip
        for metric, mean in levels.items():
            noise = 0.05 if metric in ("value", "constant", "bellman") else 20.0
            found[arm, dims, metric + suffix] = mean + noise * rng.normal(size=config.seeds)
    for name, level in (("exact", -370.0), ("uniform", -880.0)):
        found[name, 0, "return"] = level + rng.normal(size=config.seeds)
    return found


def statuses(parts):
    return [verdict.status for _, verdict in parts]


def test_verdicts_on_scores_like_the_pilots():
    config = e2.Config()
    parts = e2.judge(config, scores(400), {c.name: c.digest() for c in e2.claims(config)})
    # Without distractors, a small model's control is at the ceiling: nothing could be gained.
    assert statuses(parts) == ["reproduced", "reproduced", "inconclusive"]
    assert [claim.required for claim, _ in parts] == [True, True, False]
    assert combine(parts) == "reproduced"
    assert all(passed for _, verdict in parts[:2] for _, passed, _ in verdict.guards)
    failed = [name for name, passed, _ in parts[2][1].guards if not passed]
    assert failed == ["control_has_room"]
    assert statuses(e2.judge(config, scores(20)))[0] == "not_reproduced"
    assert statuses(e2.judge(replace(config, smoke=True), scores(400))) == ["smoke"] * 3


@pytest.mark.parametrize(
    "arm, dims, metric, level, guard",
    [
        ("exact", 0, "return", -600.0, "planner_works"),
        ("uniform", 0, "return", -400.0, "random_is_worse"),
        ("mse", 15, "value", -0.4, "control_learns"),
        ("value_gradient", 15, "bellman", 0.1, "value_is_learned"),
        ("known_value", 15, "return", -860.0, "known_value_helps"),
        ("mse", 15, "other_block_return", -300.0, "control_against_itself"),
        ("mse", 15, "return", -400.0, "control_has_room"),
    ],
)
def test_each_guard_can_fail(arm, dims, metric, level, guard):
    found = scores(400)
    found[arm, dims, metric] = np.full(20, level)
    _, verdict = e2.judge(e2.Config(), found)[0]
    assert guard in [name for name, passed, _ in verdict.guards if not passed]
    assert verdict.status == "inconclusive"


def test_what_is_claimed_is_what_was_decided_beforehand():
    claims = e2.claims(e2.Config())
    assert [c.threshold for c in claims] == [100.0, -80.0, 100.0]
    assert {c.kind for c in claims} == {"superiority"}
    assert [dict(c.protocol)["hidden"] for c in claims] == [32, 32, 8]
    assert e2.compared(e2.Config()) == {
        claims[0].name: (15, "return"),
        claims[1].name: (0, "return"),
        claims[2].name: (0, "return_small"),
    }
    # No reward is lower than hanging at full speed and torque.
    assert -(np.pi**2 + 0.1 * 8**2 + 0.001 * 2**2) > e2.WORST_RETURN_PER_STEP
    assert claims[0].worst == pytest.approx(-1628.0)
    names = [c.name for c in (*claims, *e1.claims(e1.Config()))]
    assert len(set(names)) == 6


@pytest.mark.slow
def test_a_short_run_ends_in_smoke_verdicts(tmp_path):
    config = replace(TINY, small_hidden=4, hidden=6)
    results, found = e2.run(config, tmp_path, resume=True, progress=False)
    assert {"e2-references", "e2-d2", "e2-d0", "e2-d0-hidden4"} <= set(results)
    assert results["e2-d2"]["return"].dims == ("arm", "seed", "step")
    assert list(results["e2-d2"]["arm"].values) == ["mse", "value_gradient", "known_value"]
    assert all(len(values) == 3 and np.isfinite(values).all() for values in found.values())
    assert statuses(e2.judge(config, found)) == ["smoke"] * 3

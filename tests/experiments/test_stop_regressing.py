"""The comparison of value losses: scores, data, arms, jumps, widths, claims and a short run."""

import importlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ensemble
from jaxlab.envs import garnet
from jaxlab.report import discover, load_program

FOLDER = Path(__file__).parents[2] / "experiments"
package = types.ModuleType("stop_regressing_studies")
package.__path__ = [str(FOLDER)]
sys.modules.setdefault("stop_regressing_studies", package)
arms, claims, offline, plasticity, scaling = (
    importlib.import_module(f"stop_regressing_studies._stop_regressing_{part}")
    for part in ("arms", "claims", "offline", "plasticity", "scaling")
)
TINY = offline.Config(states=7, actions=3, features=4, width=8, batch=8, target_every=4, steps=40)


def hparams(regime=0, stream=0):
    return {"lr": jnp.float32(1e-3), "regime": jnp.int32(regime), "stream": jnp.int32(stream)}


@pytest.mark.parametrize("arm", arms.ARMS)
def test_every_arm_starts_at_the_centre_of_one_range(arm, key):
    head = arms.head(arm, (-4.0, 16.0), 51)
    raw = head.apply(head.init(key, 8, 3), jnp.zeros((2, 8)))
    np.testing.assert_allclose(head.mean(raw), 6.0, rtol=1e-6)
    # A target beyond the range pulls every arm but the plain one towards the end of the range only.
    inside, beyond = (head.loss(raw[:, 0], jnp.full((2,), y))[0] for y in (16.0, 40.0))
    assert (float(inside) == float(beyond)) == (arm not in ("mse", "mse_softmax"))


def test_best_rate_counts_a_diverged_seed_as_worst():
    scores = np.array([[0.2, 0.2], [0.9, np.nan], [0.3, 0.2]])
    assert arms.best_rate(scores, (1.0, 2.0, 3.0), worst=-1.0) == 3.0
    assert arms.best_rate(scores, (1.0, 2.0, 3.0), worst=0.0) == 2.0


def test_behaviour_prefers_one_action_for_its_share(key):
    mdp = garnet(key, 8, 4, 3)
    data = jax.jit(lambda p: offline.collect(key, mdp, 20000, p, jnp.float32(4.0)))(0.7)
    state, action, reward, following, following_action = (np.asarray(x) for x in data)
    for s, a in ((state, action), (following, following_action)):
        np.testing.assert_allclose(np.mean(a == s % 4), 0.7 + 0.3 / 4, atol=0.01)
    np.testing.assert_allclose(np.bincount(state) / 20000, 1 / 8, atol=0.01)
    noise = reward - np.asarray(mdp.reward)[state, action]
    assert np.abs(noise).max() <= 2 and abs(noise.mean()) < 0.04
    np.testing.assert_allclose(noise.std(), 4 / np.sqrt(12), rtol=0.02)
    for s, a in ((3, 3), (5, 0)):
        rows = (state == s) & (action == a)
        share = np.bincount(following[rows], minlength=8) / rows.sum()
        np.testing.assert_allclose(share, mdp.transition[s, a], atol=0.08)


def test_score_is_one_for_the_best_and_zero_for_the_uniform_policy(key):
    init = jax.jit(offline.make(TINY, "mse").init)
    state = init(key, hparams())
    best = np.asarray(state.best, np.float64)
    p, r = (np.asarray(x, np.float64) for x in (state.mdp.transition, state.mdp.reward))
    q = r + 0.95 * p @ best
    np.testing.assert_allclose(q.max(-1), best, rtol=1e-4, atol=1e-5)
    assert float(offline.score(state, jnp.asarray(q, jnp.float32))) == pytest.approx(1, abs=1e-4)
    worst = float(offline.score(state, -jnp.asarray(q, jnp.float32)))
    assert worst < 0
    chain = p.mean(1)
    uniform = np.linalg.solve(np.eye(7) - 0.95 * chain, r.mean(1))
    np.testing.assert_allclose(state.uniform, uniform, rtol=1e-4)
    # Arms share the process, the data and its order; a stream changes the learner alone.
    other = init(key, hparams(stream=1))
    np.testing.assert_array_equal(other.data.reward, state.data.reward)
    changed = other.learner.params["body"][0]["kernel"] != state.learner.params["body"][0]["kernel"]
    assert bool(jnp.all(changed))
    covered = init(key, hparams(regime=1))
    np.testing.assert_array_equal(covered.mdp.reward, state.mdp.reward)
    assert float(covered.gamma) == pytest.approx(0.9) and int(covered.count) == 1500


@pytest.mark.parametrize("sarsa", [False, True])
def test_an_update_learns_from_the_first_rows_alone(sarsa, key):
    experiment = offline.make(TINY, "mse", sarsa)
    state = jax.jit(experiment.init)(key, hparams())
    update = jax.jit(experiment.update)
    after, metrics = update(state)
    hidden = np.arange(1500) >= 250
    poison = jax.tree.map(lambda x: jnp.where(hidden, x[0], x), state.data)
    poison = poison._replace(reward=jnp.where(hidden, jnp.nan, state.data.reward))
    again, _ = update(state.replace(data=poison))
    for got, wanted in zip(jax.tree.leaves(again.learner), jax.tree.leaves(after.learner)):
        np.testing.assert_array_equal(got, wanted)
    assert int(after.learner.step) == 4 and np.isfinite(float(metrics["loss"]))
    # The data's next actions matter to SARSA only.
    other = state.data._replace(next_action=(state.data.next_action + 1) % 3)
    moved, _ = update(update(state.replace(data=other))[0])
    plain, _ = update(after)
    kernels = (s.learner.params["head"]["kernel"] for s in (moved, plain))
    assert bool(jnp.array_equal(*kernels)) != sarsa


def test_targets_jump_by_levels_and_errors_are_those_of_the_batch(key):
    config = plasticity.Config(
        width=8, points=64, batch=512, phase_steps=4, block=2, early_steps=2, inputs=3
    )
    experiment = plasticity.make(config, "mse")
    state = jax.jit(experiment.init)(key, {"lr": jnp.float32(0.0)})
    base = np.asarray(state.base)
    assert np.abs(base).max() <= 1 and base.std() > 0.5
    # No pattern: neighbours in the inputs are not neighbours in the outputs.
    assert abs(np.corrcoef(base[:-1], base[1:])[0, 1]) < 0.4
    update, evaluate = jax.jit(experiment.update), jax.jit(experiment.evaluate)
    rows, errors = [], []
    for _ in range(10):
        state, metrics = update(state)
        rows.append(float(metrics["log_error"]))
        errors.append(float(evaluate(state, key)["error"]))
    # With rate zero the network stays at the centre, 0, up to its small first guess.
    exact = [np.mean((base + level) ** 2) for level in plasticity.LEVELS for _ in range(2)]
    np.testing.assert_allclose(errors, exact, rtol=0.05)
    np.testing.assert_allclose(rows, np.log10(exact), atol=0.1)
    data = {"log_error": type("Values", (), {"values": np.arange(20.0).reshape(2, 10)})}
    np.testing.assert_array_equal(plasticity.early(config, data)[0], [0, -2, -4, -6, -8])
    np.testing.assert_array_equal(plasticity.jumps(config, data), [-5, -15])


def test_six_processes_differ_in_scale_and_code_and_score_exactly(key):
    task = scaling.TASKS["garnets"](1)
    world = jax.jit(task.world)(key)
    top = np.asarray(world.mdp.reward).max((1, 2))
    np.testing.assert_allclose(top, np.logspace(-1, 1, 6), rtol=0.25)
    np.testing.assert_array_equal(world.features[2, :, 12:], np.tile(np.eye(6)[2], (48, 1)))
    q = world.mdp.reward + 0.9 * jnp.einsum("nsat,nt->nsa", world.mdp.transition, world.best)
    np.testing.assert_allclose(task.score(key, world, lambda obs: q), 1.0, atol=1e-3)
    state, action = task.reset(key, world), jnp.arange(6, dtype=jnp.int32) % 4
    following, seen = task.step(key, world, state, action)
    six = np.arange(6)
    np.testing.assert_array_equal(seen.reward, world.mdp.reward[six, state, action])
    assert (np.asarray(world.mdp.transition)[six, state, action, following] > 0).all()
    np.testing.assert_array_equal(seen.next_obs, task.observe(world, following))


def test_control_acts_by_torques_and_scales_rewards(key):
    task = scaling.TASKS["pendulum"](2)
    world = task.world(key)
    state = task.reset(key, world)
    action = jnp.array([0, 1, 2, 3, 4, 0])
    _, seen = task.step(key, world, state, action)
    theta = np.arctan2(seen.obs[:, 1], seen.obs[:, 0])
    torque = 2 * np.linspace(-1, 1, 5)[np.asarray(action)]
    cost = theta**2 + 0.1 * (8 * np.asarray(seen.obs[:, 2])) ** 2 + 0.001 * torque**2
    np.testing.assert_allclose(seen.reward, -0.1 * cost, rtol=1e-4)
    np.testing.assert_array_equal(seen.action, action)


def test_online_learning_keeps_what_it_saw_and_explores_first(key):
    config = scaling.Config(block=5, blocks=4, rows=2, batch=8, widths=(8, 16))
    experiment = scaling.make(config, "garnets", "mse", 8)
    state = jax.jit(experiment.init)(key, {"lr": jnp.float32(1e-3)})
    update = jax.jit(experiment.update)
    for block in range(1, 3):
        state, _ = update(state)
        assert int(state.replay.count) == 30 * block and int(state.learner.step) == 5 * block
    seen = state.replay.data
    np.testing.assert_array_equal(seen.obs[:30, 12:].argmax(-1), np.tile(np.arange(6), 5))
    # The last observation of a stream's step is where its next step begins.
    np.testing.assert_array_equal(seen.next_obs[:54], seen.obs[6:60])
    assert len(np.unique(seen.action[:30])) == 4


def test_slopes_are_per_doubling():
    scores = np.array([[0.1, 0.3, 0.5], [0.5, 0.5, 0.5], [0.0, 0.6, 0.0]])
    np.testing.assert_allclose(scaling.slopes((16, 64, 256), scores), [0.1, 0, 0], atol=1e-12)
    with pytest.raises(ValueError, match="widths: expected at least two"):
        scaling.Config(widths=(8,))
    with pytest.raises(ValueError, match="tasks: expected some of"):
        scaling.Config(tasks=("atari",))


def made_up(effect, n=32, seed=0):
    """Scores with a known effect of HL-Gauss in the primary regime and nowhere else."""
    rng = np.random.default_rng(seed)
    scores = {}
    for regime, base in ((offline.PRIMARY, 0.3), (offline.COVERED, 0.9), (offline.NOISY, 0.5)):
        for arm in arms.ARMS:
            gain = effect if arm == "hl_gauss" and regime == offline.PRIMARY else 0.0
            scores[regime, arm, "score"] = base + gain + 0.01 * rng.standard_normal(n)
            scores[regime, arm, "overestimation"] = 1.0 + 0.01 * rng.standard_normal(n)
    for arm in ("mse", "hl_gauss"):
        scores[offline.SARSA, arm, "score"] = 0.3 + 0.01 * rng.standard_normal(16)
    scores[offline.PRIMARY, "mse", "other_score"] = 0.3 + 0.01 * rng.standard_normal(n)
    return scores


@pytest.mark.parametrize(("effect", "expected"), [(0.2, "reproduced"), (0.0, "not_reproduced")])
def test_verdicts_follow_the_scores(effect, expected):
    config, scores = offline.Config(), made_up(effect)
    pairs = claims.offline_pairs(scores)
    status = {}
    for claim in claims.of_offline(config):
        outcomes = claims.check_offline(claim, pairs[claim.name], scores)
        seeds = arms.study_seeds(len(pairs[claim.name][0]), False)
        registered = {claim.name: claim.digest()}
        _, verdict = claims.judge(claim, pairs[claim.name], seeds, outcomes, False, registered)
        status[claim.name] = verdict.status
        assert not any("guard" in note for note in verdict.notes)
    assert status["offline score"] == expected
    assert status["full coverage"] == "reproduced"
    assert status["score under noise"] == "not_reproduced"
    assert (status["gain without a maximum"] == "reproduced") == (effect > 0)
    assert (status["against two-hot"] == "reproduced") == (effect > 0)


def test_a_control_that_cannot_learn_decides_nothing():
    scores = made_up(0.2)
    scores[offline.COVERED, "mse", "score"] -= 0.3
    claim = claims.of_offline(offline.Config())[0]
    pair = claims.offline_pairs(scores)[claim.name]
    outcomes = claims.check_offline(claim, pair, scores)
    assert not outcomes["learner_works"][0]
    _, verdict = claims.judge(claim, pair, arms.study_seeds(32, False), outcomes, False, {})
    assert verdict.status == "inconclusive"


def test_claims_are_the_papers_and_need_their_seeds():
    program = load_program(discover()["stop_regressing"])
    for preset in ("small", "paper"):
        found = program.claims(program.presets[preset])
        assert [c.name for c in found if c.required] == ["offline score"]
        assert all(c.n_seeds >= 16 for c in found) and len({c.name for c in found}) == len(found)
    primary = program.claims(program.presets["small"])[0]
    assert (primary.threshold, primary.n_seeds) == (0.05, 32)


@pytest.mark.slow
def test_seeds_together_are_the_seeds_alone():
    run = lambda seeds: ensemble.run(  # noqa: E731
        offline.make(replace(TINY, num_bins=11), "hl_gauss"),
        steps=2,
        seeds=seeds,
        grid={"lr": [1e-3], "regime": [0], "stream": [0]},
        progress=False,
    )
    together, alone = run([50, 51, 52]), run([51])
    np.testing.assert_allclose(
        together["loss"].values[..., 1, :], alone["loss"].values[..., 0, :], rtol=1e-5
    )


@pytest.mark.slow
def test_a_short_run_gives_no_verdict_but_everything_else(tmp_path):
    program = load_program(discover()["stop_regressing"])
    config = program.presets["smoke"]
    outcome = program.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    assert [claim for claim, _ in outcome.parts] == list(program.claims(config))
    assert {claim.name for claim, _ in outcome.parts} == set(outcome.paired)
    scores = outcome.datasets["offline-low-coverage"]["score"]
    assert scores.sizes["arm"] == 6 and np.isfinite(scores.values).all()
    assert len(outcome.curves) == 10 and len(outcome.notes) == 3


@pytest.mark.slow
def test_full_coverage_is_learned_by_both():
    config = offline.Config(width=64, steps=1000)
    for arm in ("mse", "hl_gauss"):
        data = ensemble.run(
            offline.make(config, arm),
            steps=20,
            seeds=range(50, 54),
            grid={"lr": [1e-3], "regime": [1], "stream": [0]},
            record_every=20,
            progress=False,
        )
        assert data["score"].values.mean() > 0.8

"""Flat values against ensembles: dynamics, models, slopes, costs, claims and a short run."""

import importlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.report import discover, load_program

FOLDER = Path(__file__).parents[2] / "experiments"
package = types.ModuleType("lipschitz_value_studies")
package.__path__ = [str(FOLDER)]
sys.modules.setdefault("lipschitz_value_studies", package)
claims, cost, fitted, loop = (
    importlib.import_module(f"lipschitz_value_studies._lipschitz_value_{part}")
    for part in ("claims", "cost", "fitted", "loop")
)


def hparams(transitions=40, stream=0):
    return {"transitions": jnp.int32(transitions), "stream": jnp.int32(stream)}


def test_transitions_cover_states_and_torques_and_obey_the_pendulum(key):
    data = fitted.uniform_transitions(key, 4000)
    np.testing.assert_allclose(data.obs[:, 0] ** 2 + data.obs[:, 1] ** 2, 1, rtol=1e-5)
    angle = np.arctan2(data.obs[:, 1], data.obs[:, 0])
    for column, high in ((angle, np.pi), (data.obs[:, 2], 1), (data.action[:, 0], 1)):
        np.testing.assert_allclose(np.std(column), high / np.sqrt(3), rtol=0.04)
    speed, torque = 8 * np.asarray(data.obs[:, 2], np.float64), 2 * np.asarray(data.action[:, 0])
    following = np.clip(speed + 0.05 * (15 * np.sin(angle) + 3 * torque), -8, 8)
    np.testing.assert_allclose(data.next_obs[:, 2], following / 8, atol=1e-5)


def test_the_best_of_five_torques_by_a_known_value_keeps_the_pendulum_moving():
    # Value of energy: lifting pays, so that the greedy policy swings up within the episode.
    energy = lambda s: 100 * (s[..., 0] + (8 * s[..., 2]) ** 2 / 30)  # noqa: E731
    idle = fitted.swing_up(lambda s: jnp.zeros(s.shape[:-1]), 0.97, 100, 8)
    pumped = fitted.swing_up(energy, 0.97, 100, 8)
    assert float(pumped) > float(idle) + 100
    # Where speed is a horror, it stays where it starts, for a torque can hold it there.
    still = fitted.swing_up(lambda s: -1e4 * jnp.abs(s[..., 2]), 0.97, 20, 1)
    np.testing.assert_allclose(still, -20 * (np.pi - 0.3) ** 2, rtol=0.02)


@pytest.mark.slow
def test_arms_share_data_and_models_and_streams_change_the_learner(key):
    init = {
        name: jax.jit(fitted.make(fitted.SMOKE, name).init)
        for name in ("single", "single + robust")
    }
    single, robust = (init[name](key, hparams()) for name in init)
    for a, b in zip(jax.tree.leaves(single.model), jax.tree.leaves(robust.model), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(single.test.obs, robust.test.obs)
    kernel = lambda state: np.asarray(state.learner.params[0]["kernel"])  # noqa: E731
    np.testing.assert_array_equal(kernel(single), kernel(robust))
    other = init["single"](key, hparams(stream=1))
    np.testing.assert_array_equal(other.model.params.net[0]["kernel"][0, 0, 0],
                                  single.model.params.net[0]["kernel"][0, 0, 0])  # fmt: skip
    assert not np.any(kernel(other) == kernel(single))
    fewer = init["single"](key, hparams(transitions=20))
    assert not np.array_equal(fewer.model.input_normalizer.mean, single.model.input_normalizer.mean)
    np.testing.assert_array_equal(fewer.test.obs, single.test.obs)


@pytest.mark.slow
def test_exact_dynamics_have_no_value_aware_error_and_slopes_are_in_units_of_the_data(key):
    experiment = fitted.make(fitted.SMOKE, "exact")
    state = jax.jit(experiment.init)(key, hparams())
    state, metrics = jax.jit(experiment.update)(state)
    assert np.isfinite(float(metrics["loss"])) and "penalty" not in metrics
    evaluate = jax.jit(experiment.evaluate)
    found = evaluate(state, key)
    assert float(found["value_aware_error"]) < 1e-4 and float(found["model_mse"]) < 1e-10
    assert 0 < float(found["lipschitz_mean"]) <= float(found["lipschitz_p95"])
    assert float(found["pairwise"]) > 0
    assert fitted.WORST_REWARD * 10 < float(found["return"]) < 0
    doubled = evaluate(state.replace(scale=2 * state.scale), key)
    np.testing.assert_allclose(doubled["lipschitz_mean"], 2 * found["lipschitz_mean"], rtol=1e-4)


def test_models_are_those_of_the_arms():
    config = fitted.Config()
    for name, members, elites in (("single", 1, 1), ("ensemble", 7, 5)):
        model = config.model(fitted.ARMS[name])
        assert (model.members, model.elites, model.deterministic) == (members, elites, False)
    assert config.model(fitted.ARMS["deterministic ensemble"]).deterministic
    assert "exact + robust" in config.arms and "ensemble + robust" in config.arms


@pytest.mark.slow
def test_a_round_does_what_it_says():
    config = cost.Config(repeats=3, model_hidden=(8,), agent_hidden=(8,), batch=16, steps=2)
    seconds = cost.measure(config)
    assert set(seconds) == {"single + robust", "ensemble"}
    assert all(s.shape == (3,) and (s > 0).all() for s in seconds.values())


def made_up(gain=0.0, n=20, seed=0):
    """Scores of fitted value iteration in which the regularised single model gains `gain`."""
    rng = np.random.default_rng(seed)
    scores = {("uniform", 200, "return"): -1200 + rng.standard_normal(n)}
    slope = {"single": 14.0, "ensemble": 12.0, "single + robust": 6.0}
    for arm in slope:
        for count in (200, 60):
            noise = rng.standard_normal(n)
            error = {"single + robust": 0.05}.get(arm, 0.2) * (200 / count)
            scores[arm, count, "return"] = -500 + 5 * noise
            scores[arm, count, "lipschitz_mean"] = slope[arm] * np.exp(0.01 * noise)
            scores[arm, count, "value_aware_error"] = error * np.exp(0.01 * noise)
            scores[arm, count, "model_mse"] = np.full(n, 1e-3)
    scores["single + robust", 200, "return"] += gain
    spread = 5 * rng.standard_normal(n)
    scores["ensemble", 200, "other_return"] = (
        scores["ensemble", 200, "return"] + spread - spread.mean()
    )
    return scores


def statuses(scores):
    config, found = fitted.Config(), {}
    pairs = claims.fitted_pairs(config, scores)
    for claim in claims.of_fitted(config):
        outcomes = claims.check_fitted(config, claim, pairs[claim.name], scores)
        assert set(outcomes) == {guard.name for guard in claim.guards}
        seeds, registered = config.study_seeds(), {claim.name: claim.digest()}
        _, verdict = claims.judge(claim, pairs[claim.name], seeds, outcomes, False, registered)
        found[claim.name] = verdict.status
    return found


def test_verdicts_follow_the_scores():
    equal, better, worse = (statuses(made_up(gain)) for gain in (0.0, 100.0, -100.0))
    names = ("return, not inferior", "return, superior")
    assert [equal[name] for name in names] == ["reproduced", "not_reproduced"]
    assert [better[name] for name in names] == ["reproduced", "reproduced"]
    assert [worse[name] for name in names] == ["not_reproduced", "not_reproduced"]
    for name in ("value-aware error", "ensembles flatten the value", "the penalty flattens more"):
        assert equal[name] == "reproduced"
    steep = made_up()
    steep["ensemble", 60, "lipschitz_mean"] = steep["single", 60, "lipschitz_mean"]
    assert statuses(steep)["ensembles flatten the value"] == "not_reproduced"


def test_guards_withhold_a_verdict():
    other_model = made_up(100.0)
    other_model["single + robust", 200, "model_mse"] = np.full(20, 2e-3)
    assert statuses(other_model)["return, superior"] == "inconclusive"
    unlearned = made_up(100.0)
    unlearned["uniform", 200, "return"] += 500
    assert statuses(unlearned)["return, not inferior"] == "inconclusive"
    drifting = made_up(100.0)
    drifting["ensemble", 200, "other_return"] += 30
    assert statuses(drifting)["return, superior"] == "inconclusive"
    no_data = made_up(100.0)
    no_data["single", 60, "value_aware_error"] = no_data["single", 200, "value_aware_error"]
    assert statuses(no_data)["value-aware error"] == "inconclusive"


def test_claims_are_the_papers_and_need_their_seeds():
    program = load_program(discover()["lipschitz_value"])
    assert program.claims(program.presets["paper"])[-1].name == "loop return, brax/hopper"
    found = program.claims(program.presets["small"])
    assert len({c.name for c in found}) == len(found) and all(c.n_seeds >= 16 for c in found)
    assert {c.name for c in found if c.required} == {
        "return, not inferior",
        "value-aware error",
        "ensembles flatten the value",
        "the penalty flattens more",
    }
    speed = {c.name: c for c in found}["cost"]
    assert speed.threshold == pytest.approx(np.log(1.2), abs=1e-4)


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="arms: expected some of"):
        fitted.Config(arms=("two",))
    with pytest.raises(ValueError, match="transitions: expected many and few"):
        fitted.Config(transitions=(60, 200))
    with pytest.raises(ValueError, match="arms: expected some of"):
        replace(loop.Config(), arms=("two",))
    with pytest.raises(ValueError, match="ranges: expected one per environment"):
        loop.Config(envs=("pendulum", "brax/hopper"))


@pytest.mark.slow
def test_a_short_run_gives_no_verdict_but_everything_else(tmp_path):
    program = load_program(discover()["lipschitz_value"])
    config = program.presets["smoke"]
    outcome = program.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    assert [claim for claim, _ in outcome.parts] == list(program.claims(config))
    assert {claim.name for claim, _ in outcome.parts} == set(outcome.paired)
    data = outcome.datasets["fitted"]
    assert data.sizes["arm"] == 9
    assert np.isfinite(data["return"].sel(transitions=40)).all()
    few = np.isfinite(data["return"].sel(transitions=20)).all(dim=("seed", "step"))
    assert int(few.sum()) == 5  # not the exact dynamics, nor two of the ensembles
    assert len(outcome.curves) == 5 and len(outcome.notes) == 3

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
from jaxlab.report import discover, load_program
from jaxlab.stats import combine

FOLDER = Path(__file__).parents[2] / "experiments"
package = types.ModuleType("vagram_studies")
package.__path__ = [str(FOLDER)]
sys.modules.setdefault("vagram_studies", package)
e1 = importlib.import_module("vagram_studies._vagram_e1")

TINY = e1.Config(
    seeds=3, learning_rates=(3e-3,), transitions=64, validation_transitions=32,
    test_transitions=32, steps=6, block=3, rows=2, batch=16, distractors=3, smoke=True,
)  # fmt: skip


def hparams(arm, lr=3e-3, stream=0):
    return {"arm": jnp.int32(arm), "lr": jnp.float32(lr), "stream": jnp.int32(stream)}


def test_transitions_follow_the_pendulum_and_leave_it_alone(key):
    env = e1.distracted_pendulum(key, 4)
    data = jax.tree.map(np.asarray, e1.uniform_transitions(key, env, 500))
    theta, speed = np.arctan2(data.obs[:, 1], data.obs[:, 0]), 8 * data.obs[:, 2]
    torque = 2 * data.action[:, 0]
    new_speed = np.clip(speed + 0.05 * (15 * np.sin(theta) + 3 * torque), -8, 8)
    new_theta = theta + 0.05 * new_speed
    expected = np.stack([np.cos(new_theta), np.sin(new_theta), new_speed / 8], -1)
    np.testing.assert_allclose(data.next_obs[:, :3], expected, atol=2e-6)
    np.testing.assert_allclose(
        data.reward, -(theta**2 + 0.1 * speed**2 + 0.001 * torque**2), rtol=1e-5
    )
    for column, limit in ((theta, np.pi), (speed, 8), (torque, 2), (data.obs[:, 3:], 2)):
        assert np.abs(column).max() <= limit * (1 + 1e-6)
        np.testing.assert_allclose(np.std(column), limit / np.sqrt(3), rtol=0.1)  # uniform
    assert np.abs(data.next_obs[:, 3:]).max() <= 2
    # d' = 2 sin(A d): arcsin recovers A on the rows whose arguments do not wrap.
    with jax.numpy_rank_promotion("raise"):
        small = e1.exact_step_fn(env)(
            key, jnp.concatenate([jnp.tile(jnp.array([1.0, 0, 0]), (4, 1)), 0.05 * jnp.eye(4)], 1),
            jnp.zeros((4, 1)),
        )[0]  # fmt: skip
    matrix = np.arcsin(np.asarray(small)[:, 3:] / 2).T / 0.05
    argument = data.obs[:, 3:] @ matrix.T
    np.testing.assert_allclose(data.next_obs[:, 3:], 2 * np.sin(argument), atol=2e-4)


def test_weights_are_the_gradients_of_the_value_at_the_real_next_state(key):
    state = e1.make(TINY, 3).init(key, hparams(1))
    o = np.asarray(state.train.next_obs, np.float64)
    exact = np.zeros_like(o)
    exact[:, 0], exact[:, 1], exact[:, 2] = 10, -6 * o[:, 2], -16 * o[:, 2] - 6 * o[:, 1]
    norm = np.linalg.norm(exact, axis=-1)
    exact *= np.minimum(1, np.quantile(norm, 0.95) / norm)[:, None]
    np.testing.assert_allclose(state.gradients, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.gradients[:, 3:], 0)


@pytest.mark.parametrize("arm", range(4))
def test_the_arm_picks_its_loss(key, arm):
    config = replace(TINY, steps=2, block=1)
    experiment = e1.make(config, 3)
    state = experiment.init(key, hparams(arm))
    _, metrics = jax.jit(experiment.update)(state)
    sub = jax.random.split(state.key)[1]
    rows = (jax.random.uniform(sub, (1, config.batch)) * config.transitions).astype(int)[0]
    sample = jax.tree.map(lambda x: x[rows], state.train)
    error = np.asarray(e1.predict(state.params, sample.obs, sample.action) - sample.next_obs)
    weighted = np.asarray(state.gradients[rows]) * error
    values = [np.asarray(jax.vmap(e1.value)(x)) for x in (sample.next_obs + error, sample.next_obs)]
    expected = (
        (error**2).sum(-1).mean(),
        (weighted**2).sum(-1).mean(),
        (weighted.sum(-1) ** 2).mean(),
        ((values[0] - values[1]) ** 2).mean(),
    )
    np.testing.assert_allclose(metrics["loss"], expected[arm], rtol=1e-4)


def test_value_gradients_never_train_what_predicts_distractors(key):
    experiment = e1.make(TINY, 3)
    start = experiment.init(key, hparams(0))
    last = np.asarray(start.params[-1]["kernel"])
    after = {}
    for arm in range(4):
        state = experiment.init(key, hparams(arm))
        np.testing.assert_array_equal(state.params[0]["kernel"], start.params[0]["kernel"])
        np.testing.assert_array_equal(state.train.obs, start.train.obs)
        state, _ = jax.jit(experiment.update)(state)
        after[arm] = np.asarray(state.params[-1]["kernel"])
        assert np.all(after[arm][:, :3] != last[:, :3])
    for arm in (1, 2, 3):
        np.testing.assert_array_equal(after[arm][:, 3:], last[:, 3:])
    assert np.all(after[0][:, 3:] != last[:, 3:])


def test_streams_share_nothing_and_the_rate_is_traced(key):
    experiment = e1.make(TINY, 3)
    first, second = (experiment.init(key, hparams(0, stream=s)) for s in (0, 1))
    for a, b in zip(jax.tree.leaves(first.train), jax.tree.leaves(second.train)):
        if a.dtype == jnp.float32:
            assert not np.any(np.asarray(a) == np.asarray(b))
    still, _ = experiment.update(experiment.init(key, hparams(0, lr=0.0)))
    np.testing.assert_array_equal(still.params[0]["kernel"], first.params[0]["kernel"])


def test_sets_are_disjoint_and_evaluation_matches_numpy(key):
    experiment = e1.make(TINY, 3)
    state = experiment.init(key, hparams(0))
    sets = [np.asarray(d.obs) for d in (state.train, state.validation, state.test)]
    assert [len(s) for s in sets] == [64, 32, 32]
    assert len(np.unique(np.concatenate(sets), axis=0)) == 128
    metrics = experiment.evaluate(state, key)
    predicted = np.asarray(e1.predict(state.params, state.test.obs, state.test.action))
    real = np.asarray(state.test.next_obs)

    def v(o):
        return 10 * o[..., 0] - 8 * o[..., 2] ** 2 - 6 * o[..., 1] * o[..., 2]

    def v2(o):
        return 10 * o[..., 1] + 4 * o[..., 2] - 5 * o[..., 0] ** 2

    def rms(x):
        return np.sqrt((x**2).mean())

    mean = np.asarray(state.train.next_obs).mean(0)
    np.testing.assert_allclose(metrics["value_error"], rms(v(predicted) - v(real)), rtol=1e-4)
    np.testing.assert_allclose(
        metrics["other_value_error"], rms(v2(predicted) - v2(real)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["constant_value_error"], rms(v(mean) - v(real)), rtol=1e-4)


class Toy(types.SimpleNamespace):
    """Sizes that `tune_and_run` reads."""


def toy_experiment():
    """Error |lr - best of the arm|, non-finite for arm 1 at its best rate."""

    def init(key, hparams):
        return {"noise": jax.random.uniform(key), **hparams}

    def update(state):
        best = jnp.where(state["arm"] == 0, 1e-3, 1e-2)
        error = 1e-4 + jnp.abs(state["lr"] - best)
        dead = (state["arm"] == 1) & (state["lr"] > 5e-3)
        noise = jnp.where(dead, jnp.nan, state["noise"])
        return {**state, "noise": noise}, {"error": error, "seen": state["noise"]}

    return ensemble.Experiment(init, update)


def test_tuning_takes_the_best_rate_and_counts_divergence_as_worst(tmp_path):
    config = Toy(
        steps=2, block=1, learning_rates=(1e-3, 3e-3, 1e-2), tuning_seeds=2, seeds=3, smoke=False
    )
    data, again = e1.tune_and_run(
        config, toy_experiment(), tmp_path / "toy", ("a", "b"), {"a": "error", "b": "error"},
        ("b",), resume=True, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(data["lr"], [1e-3, 3e-3], rtol=1e-6)
    assert list(data["arm"].values) == ["a", "b"] and list(again["arm"].values) == ["b"]
    assert list(data["seed"].values) == [1000, 1001, 1002]
    seen = data["seen"].values[..., -1]
    np.testing.assert_array_equal(seen[0], seen[1])  # paired by seed
    tuned = ensemble.load(tmp_path / "toy-tuning")["seen"]
    assert not set(np.ravel(tuned)) & set(np.ravel(seen))  # tuning saw other seeds


def scores(shift, config=None, noise=0.02):
    """Scores like a pilot's, with the treatment's gain over squared error at D set to `shift`."""
    config = config or e1.Config()
    rng, d, found = np.random.default_rng(0), (config or e1.Config()).distractors, {}
    table = {
        ("mse", d): (-0.37, -0.26), ("value_gradient", d): (-0.37 + shift, 0.9),
        ("taylor", d): (0.5, -0.6), ("iter_value_aware", d): (0.7, -0.55),
        ("mse", 0): (0.8, 1.3), ("value_gradient", 0): (0.8, 1.0),
        ("taylor", 0): (0.45, -0.6), ("iter_value_aware", 0): (0.8, -0.5),
    }  # fmt: skip
    for (arm, dims), (value, other) in table.items():
        levels = {
            "value": value, "other_value": other, "early": value - 0.4, "constant": -0.94,
            "other_block_value": value, "other_block_other_value": other,
        }  # fmt: skip
        for metric, level in levels.items():
            found[arm, dims, metric] = level + noise * rng.normal(size=config.seeds)
    return found


def statuses(parts):
    return [verdict.status for _, verdict in parts]


def test_verdicts_on_scores_like_the_pilots():
    config = e1.Config()
    parts = e1.judge(config, scores(1.1), {c.name: c.digest() for c in e1.claims(config)})
    assert statuses(parts) == ["reproduced"] * 3
    assert all(passed for _, verdict in parts for _, passed, _ in verdict.guards)
    assert combine(parts) == "reproduced"
    np.testing.assert_allclose(parts[0][1].estimate, 1.1, atol=0.02)
    parts = e1.judge(config, scores(0.2))
    assert statuses(parts)[0] == "not_reproduced" and combine(parts) == "not_reproduced"
    assert statuses(e1.judge(replace(config, smoke=True), scores(1.1))) == ["smoke"] * 3


def test_failed_guards_leave_the_verdict_open():
    found = scores(1.1)
    found["mse", 10, "constant"] = found["mse", 10, "value"] - 0.1  # the control learned nothing
    found["value_gradient", 0, "early"] = found["value_gradient", 0, "value"]
    (first, without, other) = e1.judge(e1.Config(), found)
    assert first[1].status == "inconclusive" and "control_learns" in str(first[1].notes)
    assert without[1].status == "inconclusive" and "training_helps" in str(without[1].notes)
    assert other[1].status == "reproduced"
    found = scores(1.1)
    found["taylor", 0, "value"] = found["mse", 0, "value"]
    assert statuses(e1.judge(e1.Config(), found))[1] == "inconclusive"
    found = scores(1.1)
    found["mse", 10, "other_block_value"] = found["mse", 10, "value"] + 0.9
    assert statuses(e1.judge(e1.Config(), found))[0] == "inconclusive"


def test_diverged_seeds_count_as_worst():
    found = scores(1.1)
    found["value_gradient", 10, "value"][:1] = np.nan
    _, verdict = e1.judge(e1.Config(), found)[0]
    assert verdict.failures == (1, 0)
    np.testing.assert_allclose(verdict.estimate, 1.1 - (2 - 0.37 + 1.1) / 20, atol=0.03)
    found["value_gradient", 10, "value"][:5] = np.nan
    _, verdict = e1.judge(e1.Config(), found)[0]
    assert verdict.status == "inconclusive" and "finite" in str(verdict.notes)


def test_what_is_claimed_is_what_was_decided_beforehand():
    first, without, other = e1.claims(e1.Config())
    assert [c.threshold for c in (first, without, other)] == [0.5, 0.15, 0.5]
    assert [c.kind for c in (first, without, other)] == [
        "superiority",
        "equivalence",
        "superiority",
    ]
    assert [c.control for c in (first, without, other)] == ["mse", "mse", "iter_value_aware"]
    assert {c.n_seeds for c in (first, without, other)} == {20}
    assert all(c.required and dict(c.protocol)["tuning seeds"] == "0-3" for c in (first, without))
    assert {c.n_seeds for c in e1.claims(e1.Config(seeds=4))} == {16}
    assert e1.compared(e1.Config())[other.name] == (10, "other_value")
    assert set(e1.study_seeds(e1.Config())) == set(range(1000, 1020))
    assert not set(e1.study_seeds(e1.SMOKE)) & set(range(1000, 3000))
    with pytest.raises(ValueError, match="steps: expected a multiple of 1000, got 4100"):
        e1.Config(steps=4100)


@pytest.mark.slow
def test_a_short_run_ends_in_smoke_verdicts(tmp_path):
    results, found = e1.run(TINY, tmp_path, resume=True, progress=False)
    assert set(results) == {"e1-d0", "e1-d0-other-block", "e1-d3", "e1-d3-other-block"}
    assert results["e1-d3"]["value_error"].dims == ("arm", "seed", "step")
    assert all(len(values) == 3 and np.isfinite(values).all() for values in found.values())
    assert statuses(e1.judge(TINY, found)) == ["smoke"] * 3


@pytest.mark.parametrize(
    ("name", "study"),
    [
        ("vagram", "e1"),
        ("vagram", "e2"),
        ("edge_of_reach", "e1"),
        ("edge_of_reach", "e2"),
        ("model_generalization", "theory"),
        ("model_generalization", "panflute"),
        ("objective_mismatch", "attack"),
    ],
)
def test_seeds_of_one_study_are_not_ignored(name, study):
    program = load_program(discover()[name])
    config = replace(program.presets["small"], seeds=18)
    own = replace(config, **{study: replace(getattr(config, study), seeds=17)})
    before, after = ({c.name: c.n_seeds for c in program.claims(c)} for c in (config, own))
    changed = {(before[n], after[n]) for n in before if before[n] != after[n]}
    assert changed == {(18, 17)} and 18 in after.values()


def test_a_diverged_seed_of_the_loop_scores_no_better_than_uniform_actions():
    program = load_program(discover()["vagram"])
    for preset, worst in (("smoke", -1200.0), ("small", 0.0), ("paper", 0.0)):
        claims = {claim.name: claim for claim in program.claims(program.presets[preset])}
        assert claims["loop return with distractors"].worst == worst

"""Young et al. 2023: exact counts, the sources' equal terms, guards and claims."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.report import discover, load_program
from jaxlab.stats import combine


@pytest.fixture(scope="module")
def program():
    return load_program(discover()["model_generalization"])


@pytest.fixture(scope="module")
def module(program):
    return sys.modules[program.run.__module__]


@pytest.fixture(scope="module")
def theory(module):
    return module.counting


@pytest.fixture(scope="module")
def factorial(module):
    return module.factorial


def test_classes_are_what_they_are_called(theory):
    for name, count, states in (
        ("tabular", 65_536, 4),
        ("two bits", 256, 4),
        ("three bits", 4096, 8),
    ):
        models = theory.model_class(name)
        assert models.shape == (count, states, 2) and len(np.unique(models, axis=0)) == count
        assert models.min() == 0 and models.max() == states - 1
    chain = theory.model_class("three bits")
    state = np.arange(8)
    middle = chain >> 1 & 1  # follows bits 0 and 1, neither bit 2 nor the action
    np.testing.assert_array_equal(middle[:, :4], middle[:, 4:])
    np.testing.assert_array_equal(middle[..., 0], middle[..., 1])
    first = chain & 1  # follows itself and the action
    for bit in (0, 1):
        rows = first[:, state & 1 == bit]
        np.testing.assert_array_equal(rows, np.broadcast_to(rows[:, :1], rows.shape))


def test_data_sets_are_distinct(theory):
    rng = np.random.default_rng(0)
    assert len(theory.data_sets(8, 2, 99, rng)) == 28
    sets = theory.data_sets(16, 5, 50, rng)
    assert sets.shape == (50, 5) and len(np.unique(sets, axis=0)) == 50
    assert all(len(set(row)) == 5 for row in sets.tolist())


def test_all_data_leave_one_value_function_and_inclusion_holds(theory):
    models = theory.model_class("two bits")
    reward = np.array([[0, 0], [0, 0], [0, 0], [1, 1]])
    sets = np.array([[0] * 8, list(range(8)), [3, 5, 5, 5, 5, 5, 5, 5]])
    counts = theory.count_value_functions(models, 101, reward, sets)
    assert counts[1].tolist() == [1, 1, 0]
    assert (counts[:, 0] <= counts[:, 1]).all() and (counts[:, 2] == 0).all()
    other = theory.count_value_functions(models, 101, reward, np.array([[3, 5]]))
    np.testing.assert_array_equal(other[0], counts[2])  # repetitions say nothing new


def test_denominators_make_values_integers(theory):
    assert theory.denominator(4) == 16 * 105
    models = theory.model_class("three bits")[::97]
    reward = np.random.default_rng(1).integers(16, size=(8, 2))
    value = np.zeros((len(models), 8))
    for _ in range(80):
        q = reward + 0.5 * np.take_along_axis(value, models.reshape(len(models), -1), 1).reshape(
            models.shape
        )
        value = q.max(axis=-1)
    scaled = q * theory.denominator(8)
    assert np.abs(scaled - scaled.round()).max() < 1e-3


@pytest.mark.slow
def test_a_small_count_confirms_the_theorem(theory):
    config = replace(theory.SMOKE, seeds=2, data_sets=8)
    data, statistics = theory.run(config)
    assert statistics[theory.INCLUSION].tolist() == [0, 0]
    assert (data["model_based"] <= data["model_free"]).all()
    assert (data["strict"].sel(model_class="tabular") == 0).all()
    assert (data["strict"].sel(rewards="goal", model_class="three bits") > 0).any()
    verdicts = [v.status for _, v in theory.judge(config, statistics, {})]
    assert verdicts == ["smoke"] * 3


def test_counts_decide_the_claims(theory):
    config = theory.Config()
    names = [c.name for c in theory.claims(config)]
    good = {names[0]: np.zeros(20), names[1]: np.full(20, 0.8), names[2]: np.full(20, 0.2)}
    statuses = [v.status for _, v in theory.judge(config, good, {})]
    assert statuses == ["reproduced", "reproduced", "not_reproduced"]
    assert combine(theory.judge(config, good, {})) == "reproduced"  # dense rewards are not required
    bad = {**good, names[0]: np.full(20, 1.0)}
    assert theory.judge(config, bad, {})[0][1].status == "not_reproduced"


def test_conditions_and_streams_differ_where_they_should(factorial):
    config = replace(factorial.SMOKE, initial_steps=20, block=2)
    experiment = factorial.make(config, "perfect")

    def init(scrambled, stream):
        hparams = {"lr": jnp.float32(0.01), "temperature": jnp.float32(0.1),
                   "scrambled": jnp.int32(scrambled), "stream": jnp.int32(stream)}  # fmt: skip
        return jitted(jax.random.key(0), hparams)

    jitted = jax.jit(experiment.init)
    plain, scrambled, other = init(0, 0), init(1, 0), init(0, 1)
    np.testing.assert_array_equal(plain.env_arrays, np.arange(1024))
    assert sorted(np.asarray(scrambled.env_arrays)) == list(range(1024))
    rows, shown = plain.replay.data, scrambled.replay.data
    np.testing.assert_array_equal(rows.state, shown.state)  # paired: the same true states
    np.testing.assert_array_equal(rows.step.reward, shown.step.reward)
    assert np.any(np.asarray(rows.step.obs) != np.asarray(shown.step.obs))
    assert np.any(np.asarray(rows.state) != np.asarray(other.replay.data.state))
    for a, b in zip(jax.tree.leaves(plain.q.params), jax.tree.leaves(scrambled.q.params)):
        np.testing.assert_array_equal(a, b)


def scores(factorial, **levels):
    """Scores like a pilot's: [20, 10] per arm and condition."""
    rng = np.random.default_rng(0)
    table = {
        ("replay", "factored"): 0.45, ("replay", "scrambled"): 0.4, ("learned", "factored"): 0.8,
        ("learned", "scrambled"): 0.0, ("perfect", "factored"): 0.8, ("perfect", "scrambled"): 0.5,
        ("replay", factorial.OTHER_STREAM): 0.45,
    }  # fmt: skip
    table |= {tuple(key.split("__")): v for key, v in levels.items()}
    ramp = np.linspace(-0.3, 0.3, 10)[None]
    return {k: m + ramp + 0.05 * rng.normal(size=(20, 10)) for k, m in table.items()}


def test_verdicts_on_scores_like_the_pilots(factorial):
    config = factorial.Config()
    claims = factorial.claims(config)
    assert [c.threshold for c in claims] == [0.10, 0.20] and all(c.required for c in claims)
    registered = {c.name: c.digest() for c in claims}
    parts = factorial.judge(config, scores(factorial), registered)
    assert [v.status for _, v in parts] == ["reproduced", "reproduced"]
    assert all(ok for _, v in parts for _, ok, _ in v.guards)
    assert parts[0][1].estimate == pytest.approx(0.35, abs=0.02)
    assert parts[1][1].estimate == pytest.approx(0.75, abs=0.03)
    same = factorial.judge(config, scores(factorial, learned__factored=0.46), registered)
    assert same[0][1].status == "not_reproduced"


@pytest.mark.parametrize(
    "change, guard",
    [
        ({"replay__factored": 0.05}, "control_learns"),
        ({"replay__factored": 1.0}, "control_has_room"),
        ({"perfect__scrambled": -0.2}, "perfect_model_is_best"),
        ({"replay__factored, other stream": 0.7}, "control_against_itself"),
    ],
)
def test_each_guard_can_fail(factorial, change, guard):
    _, verdict = factorial.judge(factorial.Config(), scores(factorial, **change), {})[0]
    assert guard in [name for name, ok, _ in verdict.guards if not ok]
    assert verdict.status == "inconclusive"


def test_a_diverged_replay_does_not_speak_for_the_model(factorial):
    config, found = factorial.Config(), scores(factorial)
    found["replay", "scrambled"][:3] = np.nan
    gain, control = factorial.compared(config, found)[factorial.claims(config)[1].name]
    assert np.isfinite(gain).all() and np.isfinite(control).all()
    bottom = factorial.worst(config)
    learned = found["learned", "scrambled"].mean(axis=1)
    np.testing.assert_allclose(control[:3], learned[:3] - bottom)
    assert bottom == pytest.approx(-0.06616 / (0.296875 - 0.06616), abs=1e-3)


def test_presets(program, module):
    assert set(program.presets) == {"smoke", "small", "paper"}
    small = program.claims(program.presets["small"])
    assert [c.required for c in small] == [True, True, False, True, True]
    assert all(c.n_seeds == 20 for c in small)
    paper = program.claims(program.presets["paper"])
    assert len({c.name for c in paper}) == len(paper) == 7
    assert module.factorial.make_env(module.BUTTONGRID).obs_dim == 27


@pytest.mark.slow
def test_a_short_run_ends_in_smoke_verdicts(module, tmp_path):
    outcome = module.run(module.PRESETS["smoke"], directory=tmp_path, resume=True, progress=False)
    assert [v.status for _, v in outcome.parts] == ["smoke"] * 5
    assert outcome.datasets["panflute"]["score"].dims == ("arm", "condition", "seed", "step")
    assert all(np.isfinite(a).all() for pair in outcome.paired.values() for a in pair)
    assert len(outcome.curves) == 3

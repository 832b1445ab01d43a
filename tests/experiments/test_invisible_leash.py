"""The leash: what the tables do by theory, exact probabilities of programs, a short run."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain
from jaxlab.posttrain import pretraining
from jaxlab.report import discover, load_program
from jaxlab.stats import Claim

invisible_leash = sys.modules[load_program(discover()["invisible_leash"]).run.__module__]
tables, lm = (
    sys.modules[f"{invisible_leash.__package__}._invisible_leash_{part}"]
    for part in ("exact", "lm")
)
SIZES = tables.Config(prompts=6, completions=10, steps=50, most_correct=4)


@pytest.fixture(scope="module")
def experiment():
    return tables.make(SIZES)


@pytest.fixture(scope="module")
def trained(experiment):
    """Each arm after all steps, from the same start."""

    def run(arm):
        state = experiment.init(jax.random.key(1), {"arm": arm})
        return jax.lax.scan(lambda s, _: experiment.update(s), state, None, length=SIZES.steps)[0]

    return jax.jit(jax.vmap(run))(jnp.arange(3))


def test_tables_are_as_described(experiment):
    state = jax.jit(experiment.init)(jax.random.key(1), {"arm": 0})
    count = state.correct.sum(1)
    assert count.min() >= 1 and count.max() <= 4
    assert float(state.base.std()) == pytest.approx(2.0, abs=0.5)
    np.testing.assert_array_equal(state.base, state.logits)


def test_the_likelier_right_completion_gains_on_the_other(experiment):
    """One exact step: d log(p_a / p_b) = lr (p_a - p_b) (1 - J), for every right pair."""
    state = jax.jit(experiment.init)(jax.random.key(1), {"arm": 1})
    after, _ = jax.jit(experiment.update)(state)
    p = np.asarray(jax.nn.softmax(state.logits, axis=1), np.float64)
    correct = np.asarray(state.correct)
    rate = np.asarray(after.logits - state.logits, np.float64) / SIZES.lr
    gain = (p * correct).sum(1, keepdims=True)
    np.testing.assert_allclose(rate, p * (correct - gain), atol=1e-6)


def test_groups_estimate_that_step_up_to_their_scale(experiment):
    """The mean step of GRPO points the way of the exact one for each prompt."""
    state = jax.jit(experiment.init)(jax.random.key(1), {"arm": 0})
    keys = jax.random.split(jax.random.key(2), 4000)
    step = jax.jit(jax.vmap(lambda k: experiment.update(state.replace(key=k))[0].logits))
    mean = np.asarray((step(keys) - state.logits[None]).mean(0), np.float64)
    p = np.asarray(jax.nn.softmax(state.logits, axis=1), np.float64)
    correct = np.asarray(state.correct)
    exact = p * (correct - (p * correct).sum(1, keepdims=True))
    cosine = (mean * exact).sum(1) / np.linalg.norm(mean, axis=1) / np.linalg.norm(exact, axis=1)
    assert (cosine > 0.95).all()


def test_the_tilt_keeps_ratios_and_no_arm_loses_a_problem(experiment, trained):
    base, tilt = (jax.nn.log_softmax(x, axis=-1)[2] for x in (trained.base, trained.logits))
    moved = np.asarray(tilt - base)
    correct = np.asarray(trained.correct[2])
    for row, right in zip(moved, correct):
        assert np.ptp(row[right]) < 1e-4 and np.ptp(row[~right]) < 1e-4
    rewards = trained.correct[2].astype(jnp.float32)
    want = posttrain.tilt(jnp.exp(base), rewards, SIZES.tilt_rate * SIZES.steps)
    np.testing.assert_allclose(jnp.exp(tilt), want, rtol=1e-3)
    told = jax.jit(jax.vmap(lambda s: experiment.evaluate(s, jax.random.key(0))))(trained)
    np.testing.assert_array_equal(told["problem_shrunk"], 0)
    assert (told["trained_pass_at_1"] > told["base_pass_at_1"]).all()
    assert told["completion_net_change"][2] >= told["completion_net_change"][1]


def test_measures_of_no_change_and_of_a_collapse():
    base = jnp.asarray([[0.3, 0.2, 0.1, 0.4]])
    correct = jnp.asarray([[True, True, True, False]])
    same = tables.measures(base, base, correct, 4, 0.05)
    assert float(same["completion_retention"]) == 1 and float(same["completion_net_change"]) == 0
    p = np.asarray([0.3, 0.2, 0.1]) / 0.6
    assert float(same["base_answer_entropy"]) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
    assert float(same["base_pass_at_k"]) == pytest.approx(1 - 0.4**4, rel=1e-5)
    one = jnp.asarray([[1.0, 0.0, 0.0, 0.0]])
    collapsed = tables.measures(base, one, correct, 4, 0.05)
    assert float(collapsed["completion_net_change"]) == pytest.approx(-2 / 3)
    assert float(collapsed["trained_answer_entropy"]) == 0
    assert float(collapsed["problem_net_change"]) == 0


@pytest.mark.slow
def test_programs_have_exact_probabilities():
    """Those of the listed programs, against sampling whole completions."""
    sizes = lm.Config(n_embd=16, ranks=(4, 4, 4, 4), problems=2)
    task, model = pretraining.task_of(sizes.recipe), pretraining.model_of(sizes.recipe)
    params = jax.jit(model.init)(jax.random.key(0))
    # Blocks start at zero and say nothing: what is sampled depends on the head alone.
    params["head"] = params["head"].at[:].multiply(4.0)
    prompts, programs, wins = jax.jit(lambda: lm.listed(task, 2))()
    assert programs.shape == (2, 192, 6) and (programs >= 0).all() and wins.any(axis=1).all()
    p = np.asarray(jax.jit(lambda x: lm.program_probabilities(model, x, prompts, programs))(params))
    assert (p > 0).all() and (p.sum(1) < 1).all()
    logits = posttrain.completion_logits(model, params, prompts[:1], programs[0, :3])
    each = np.exp(np.asarray(posttrain.token_log_probs(logits, programs[0, :3])).sum(1))
    np.testing.assert_allclose(p[0, :3], each, rtol=1e-4)


def test_claims_are_well_formed():
    for preset, config in invisible_leash.PRESETS.items():
        told = invisible_leash.claims(config)
        assert all(isinstance(claim, Claim) for claim in told)
        assert sum(claim.required for claim in told) == 3
        assert len({claim.digest() for claim in told}) == len(told)
        assert config.preset == preset
    with pytest.raises(ValueError, match="steps: expected a multiple of 20"):
        lm.Config(steps=30)


@pytest.mark.slow
def test_a_short_run_judges_nothing_and_shows_everything(tmp_path):
    config = invisible_leash.PRESETS["smoke"]
    outcome = invisible_leash.run(config, directory=tmp_path, resume=True, progress=False)
    assert [verdict.status for _, verdict in outcome.parts] == ["smoke"] * 7
    assert set(outcome.datasets) == {"language model", "tables"}
    data = outcome.datasets["language model"]
    assert data.sizes["arm"] == 4 and data.sizes["seed"] == 2
    for arm in data["arm"].values:  # every arm starts from the same base
        first = data["base_pass_at_1"].sel(arm="grpo").values
        np.testing.assert_allclose(data["base_pass_at_1"].sel(arm=arm).values, first, rtol=1e-5)
    assert len(outcome.notes) == 4

"""Learngene: padded models, starts of every arm, what distillation and costs are, verdicts."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import growth
from jaxlab.report import discover, load_program

learngene = sys.modules[load_program(discover()["learngene"]).run.__module__]
runs = sys.modules[f"{learngene.__package__}._learngene_runs"]
verdicts = sys.modules[f"{learngene.__package__}._learngene_claims"]
gm = sys.modules[f"{learngene.__package__}._growth_models"]
SMALL, TINY = learngene.PRESETS["small"], learngene.PRESETS["smoke"].study
STUDY = replace(TINY, aux_depth=4, depths=(2, 4, 6))
KNOWN = {"token_entropy": 2.7, "cost_ratio": 0.45, "teacher_ratio": 0.5}
TOKENS = jnp.arange(2 * 32).reshape(2, 32) % 80


def noisy(seed, like):
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure, [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    )


@pytest.fixture(scope="module")
def ancestors():
    """Untrained ones, with a slope."""

    def made(key):
        state = runs.make_ancestors(STUDY).init(key, {})
        aux = state.aux.params
        slope = noisy(1, aux["slope"])
        return replace(state, aux=replace(state.aux, params={**aux, "slope": slope}))

    return jax.jit(made)(jax.random.key(0))


def starts(ancestors, depth, study=STUDY):
    made = runs.descendants(jax.random.key(5), ancestors, jnp.int32(depth), study)
    return {arm: make() for arm, make in made.items()}


def first(tree, count):
    return jax.tree.map(lambda x: x[:count], tree)


def close(a, b, **limits):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **limits), a, b)


def test_no_seed_of_tuning_is_one_of_the_evaluation(monkeypatch, tmp_path):
    seeds = {}

    def ancestors(config, given, name, *args, **options):
        seeds[name] = set(given)
        return None, {}

    def train(config, ancestors, rows, seed, name, *args, **options):
        seeds[name] = {seed}
        return {"loss": np.ones((len(rows), 1, 1)), "zero_shot": np.ones((len(rows), 1, 1))}

    def judge(*args):
        raise StopIteration

    for function in (ancestors, train):
        monkeypatch.setattr(learngene, f"_{function.__name__}", function)
    monkeypatch.setattr(learngene, "judge", judge)
    monkeypatch.setattr(learngene, "facts", lambda config: {})
    with pytest.raises(StopIteration):
        learngene.run(SMALL, directory=tmp_path, resume=False, progress=False)
    assert seeds["descendants"] <= seeds["ancestors"]
    assert seeds["tuning"] <= seeds["tuning-ancestors"]
    assert not seeds["tuning-ancestors"] & seeds["ancestors"]


@pytest.mark.slow
def test_a_padded_model_is_the_model_of_its_depth(ancestors):
    model, depth = STUDY.model, 2
    for params in starts(ancestors, depth).values():
        padded = runs.silence(params, jnp.arange(STUDY.room) < depth, model.writes)
        short = {**params, "blocks": first(params["blocks"], depth)}
        close(model.apply(padded, TOKENS), model.apply(short, TOKENS), atol=1e-5)
    # What is silenced learns nothing.
    lines = gm.Lines(TOKENS, jnp.ones(TOKENS.shape))
    slope = jax.grad(
        lambda p: gm.line_loss(
            model, runs.silence(p, jnp.arange(STUDY.room) < depth, model.writes), lines
        )
    )(params)["blocks"]
    assert all(not x[depth:].any() for x in jax.tree.leaves(slope))
    assert all(x[:depth].any() for x in (slope["qkv"], slope["down"]))


@pytest.mark.slow
def test_arms_start_as_they_say(ancestors):
    model, depth = STUDY.model, 4
    made = starts(ancestors, depth)
    gene, stem = runs.split_gene(jax.tree.map(lambda x: x[0], ancestors.aux.params))
    aux = {**stem, "blocks": growth.le_expand(gene, STUDY.aux_depth)}
    at_aux = {**made[runs.GENE], "blocks": first(made[runs.GENE]["blocks"], depth)}
    close(model.apply(at_aux, TOKENS), model.apply(aux, TOKENS), atol=1e-5)
    base = ancestors.aux.params["base"]["up"][1]
    for layer in made[runs.CONSTANT]["blocks"]["up"]:
        np.testing.assert_array_equal(layer, base)
    small = ancestors.small.params["blocks"]["up"]
    np.testing.assert_array_equal(made[runs.STACK]["blocks"]["up"][:4], jnp.tile(small, (2, 1, 1)))
    fitted, _ = growth.le_fit(ancestors.teacher.params["blocks"])
    expected = growth.le_expand(fitted, depth)
    close(first(made[runs.FITTED]["blocks"], depth), expected, atol=1e-6)
    order = lambda arm: np.asarray(made[arm]["blocks"]["up"][:, 0, 0])  # noqa: E731
    assert sorted(order(runs.PERMUTED)[:depth]) == sorted(order(runs.GENE)[:depth])
    np.testing.assert_array_equal(order(runs.PERMUTED)[depth:], order(runs.GENE)[depth:])
    shuffled = [
        np.asarray(
            runs.descendants(jax.random.key(i), ancestors, jnp.int32(depth), STUDY)[
                runs.PERMUTED
            ]()["blocks"]["up"][:depth, 0, 0]
        )
        for i in range(4)
    ]
    assert any((x != order(runs.GENE)[:depth]).any() for x in shuffled)
    # A model from scratch is drawn for its own depth.
    spread = {d: starts(ancestors, d)[runs.SCRATCH]["blocks"]["down"].std() for d in (2, 4)}
    assert float(spread[2] / spread[4]) == pytest.approx(np.sqrt(2), rel=1e-5)
    assert not np.array_equal(made[runs.AGAIN]["emb"], made[runs.SCRATCH]["emb"])


def test_distillation_is_the_divergence_where_the_solver_writes():
    draw = lambda i: jax.random.normal(jax.random.key(i), (2, 31, 5))  # noqa: E731
    mask = (jnp.arange(32)[None] > jnp.array([[10], [20]])).astype(jnp.float32)
    lines = gm.Lines(TOKENS, mask)
    kept = np.asarray(mask[:, 1:]) > 0
    expected = growth.kd_loss(draw(0)[kept], draw(1)[kept])
    assert float(runs.distillation(draw(0), draw(1), lines)) == pytest.approx(float(expected), 1e-5)
    assert float(runs.distillation(draw(0), draw(0) + 3.0, lines)) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_costs_are_counted_and_equal_where_they_should_be():
    study = SMALL.study
    flops, total = runs.flops_of(study), runs.total_costs(study)
    assert total[runs.LONG] == 5 * study.short * sum(flops[str(d)] for d in study.depths)
    assert total[runs.GENE] < 0.5 * total[runs.LONG]
    # Every layer costs the same, and the teacher's reading a third of its training.
    layer = (flops["10"] - flops["2"]) / 8
    assert flops["6"] == pytest.approx(flops["2"] + 4 * layer)
    read = flops["aux"] - (flops["2"] + 6 * layer)
    assert read == pytest.approx(flops["teacher"] / 3, rel=0.02)
    stacked = runs.small_steps(study) * flops["small"]
    assert stacked == pytest.approx(study.aux_steps * flops["aux"], rel=0.01)


def made_up(study, **ends):
    """Results in which each arm ends at a given loss, 1 if it is not named."""
    rng = np.random.default_rng(0)
    facts = {
        "teacher": 0.5, "small": 1.0, "linear": 0.3, "quadratic": 0.4, "component": 0.9,
        "null": 0.1, "null_95": 0.2,
    }  # fmt: skip
    results = {
        name: np.full(16, value) + 0.002 * rng.normal(size=16) for name, value in facts.items()
    }
    defaults = {"gene": 0.7, "scratch": 1.3, "again": 1.35, "long": 0.75} | ends
    names = dict(zip(("scratch", "long", "again", "gene", "constant"), runs.ARMS))
    for arm in runs.ARMS:
        short = {full: key for key, full in names.items()}.get(arm)
        for depth in study.depths:
            for what in ("loss", "zero_shot"):
                end = defaults.get(short, 1.0)
                results[f"{what}/{arm}/{depth}"] = end + 0.005 * rng.normal(size=16)
    return results


def judged(results, **known):
    seeds = tuple(range(1000, 1016))
    outcome = verdicts.judge(SMALL, results, KNOWN | known, seeds, {})
    return {claim.name: verdict.status for claim, verdict in outcome.parts}


def test_verdicts_follow_the_results():
    study = SMALL.study
    good = judged(made_up(study))
    assert good.pop("observation: layers on a line") == "not_reproduced"
    assert set(good.values()) == {"reproduced"}
    dear = judged(made_up(study), cost_ratio=0.55)
    assert dear["as good as five times as long"] == "not_reproduced"
    assert dear["at most depths"] == "reproduced"
    behind = judged(made_up(study, gene=0.85))
    assert behind["as good as five times as long"] == "not_reproduced"
    assert behind["at most depths"] == "not_reproduced"
    assert judged(made_up(study, gene=1.05))["the slope matters"] == "not_reproduced"
    # Deeper models than the auxiliary one count for themselves.
    beyond = made_up(study)
    beyond[f"loss/{runs.GENE}/10"] += 0.2
    found = judged(beyond)
    assert found["beyond the auxiliary depth, 10 layers"] == "not_reproduced"
    assert found["at most depths"] == "reproduced"


def test_guards_speak():
    results = made_up(SMALL.study)
    names = {guard.name for claim in learngene.claims(SMALL) for guard in claim.guards}
    assert all(outcome[0] for outcome in verdicts.check(SMALL, results, KNOWN).values())
    results["teacher"] += 2
    for depth in SMALL.study.depths:
        results[f"loss/{runs.LONG}/{depth}"] = results[f"loss/{runs.SCRATCH}/{depth}"] + 0.01
        results[f"loss/{runs.AGAIN}/{depth}"] -= 0.2
    results[f"loss/{runs.GENE}/4"][:3] = np.nan
    found = verdicts.check(SMALL, results, KNOWN | {"cost_ratio": 0.5})
    assert {name for name, outcome in found.items() if not outcome[0]} == names
    with pytest.raises(ValueError, match=r"depths: expected multiples of 2, got \(3,\)"):
        runs.Config(depths=(3,))
    with pytest.raises(ValueError, match="batch: expected a multiple of 2, got 3"):
        runs.Config(batch=3)
    # A model of 8 layers would be cut to 6, and its rate be that of another model.
    shallow = replace(SMALL.study, depths=(2, 4, 6))
    with pytest.raises(ValueError, match="tuning_depths: expected at most 6"):
        replace(SMALL, study=shallow)
    assert replace(SMALL, study=shallow, tuning_depths=(2, 6)).study.room == 6


@pytest.mark.slow
def test_a_short_run_goes_through_every_phase_and_is_no_verdict(tmp_path):
    config = learngene.PRESETS["smoke"]
    outcome = learngene.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    data = outcome.datasets["learngene"]
    assert all(np.isfinite(data[name]).all() for name in data.data_vars)
    # Training changes a model, and five times as much of it changes it more.
    scratch, longer = (data[f"loss; {arm}; 4"] for arm in (runs.SCRATCH, runs.LONG))
    assert (longer < scratch).all() and (scratch < data[f"zero_shot; {runs.SCRATCH}; 4"]).all()

"""Evolutionary merging: genomes of every arm, the score of pairs, verdicts, a short run."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab import merging
from jaxlab.report import discover, load_program

program = load_program(discover()["evolutionary_merging"])
experiment = sys.modules[program.run.__module__]
es = sys.modules[f"{experiment.__package__}._evolutionary_search"]
ew = sys.modules[f"{experiment.__package__}._evolutionary_world"]
tv = sys.modules[f"{experiment.__package__}._task_vectors"]
SMALL, SMOKE = experiment.PRESETS["small"], experiment.PRESETS["smoke"]


@pytest.fixture(scope="module")
def world():
    """Untrained, but its models differ."""
    world = SMOKE.world.world
    keys = jax.random.split(jax.random.key(0), 4)
    base, *rest = (tv.encoder_init(k, world) for k in keys)
    return ew.World(keys[0], base, merging.stack_models(rest[:2]), rest[2])


def build(arm, world, point):
    search = es.make_search(arm, SMOKE.world, SMOKE.search)
    return search.build(world, jnp.asarray(point, jnp.float32), jax.random.key(1))


def close(a, b, **limits):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **limits), a, b)


def test_groups_cover_every_leaf():
    names = ["in", "up0", "down0", "up1", "down1"]
    found = {}
    for kind in ("one", "layers", "parts"):
        count, group_of = es.groups(kind, 2)
        found[kind] = [group_of(name) for name in names]
        assert set(found[kind]) == set(range(count))
    assert found == {"one": [0] * 5, "layers": [0, 1, 1, 2, 2], "parts": [0, 1, 2, 3, 4]}


@pytest.mark.slow
@pytest.mark.parametrize("arm,count", [(es.ONE, 1), (es.LAYERS, 3), (es.PARTS, 5)])
def test_genomes_that_name_a_source_are_that_source(world, arm, count):
    weight = np.tile([0.0, 1.0], count)
    found = build(arm, world, np.concatenate([weight, np.ones(2 * count)]))
    close(found, jax.tree.map(lambda x: x[1], world.sources), atol=1e-5)


@pytest.mark.slow
def test_hand_recipes_are_the_library_s(world):
    base, sources = world.base, world.sources
    half = jax.tree.map(lambda b, x: b + 0.5 * jnp.sum(x - b[None], axis=0), base, sources)
    close(build(es.ARITHMETIC, world, [0.5]), half, atol=1e-5)
    elected = merging.merge(
        merging.ties, base, sources, {"weight": 0.7, "density": 0.3, "normalize": False}
    )
    close(build(es.TIES, world, [0.7, 0.3]), elected, atol=1e-6)
    for arm in es.HAND:
        grid = es.hand_grid(arm, SMALL.search.evaluations)
        assert len(np.unique(grid, axis=0)) == SMALL.search.evaluations
        assert grid.min() > 0 and grid[:, 0].max() == 1.5


@pytest.mark.slow
def test_paths_start_at_the_first_source(world):
    search = es.make_search(es.ROUTED, SMOKE.world, SMOKE.search)
    start = search.start.mean
    tasks, (inputs, _) = ew.draw(world.key, SMOKE.world, "search")
    source = [jax.tree.map(lambda x: x[i], world.sources) for i in range(2)]
    found = tv.logits(build(es.ROUTED, world, start), tasks.heads, inputs)
    np.testing.assert_allclose(found, tv.logits(source[0], tasks.heads, inputs), atol=1e-5)
    # The blocks of the second source behind the first's input.
    second = jnp.where(jnp.isin(jnp.arange(len(start)), jnp.array([2, 3])), 1.0, -1.0)
    point = jnp.concatenate([second[:8], start[8:]])
    mixed = tv.logits({**source[1], "in": source[0]["in"]}, tasks.heads, inputs)
    found = tv.logits(build(es.ROUTED, world, point), tasks.heads, inputs)
    np.testing.assert_allclose(found, mixed, atol=1e-5)


@pytest.mark.slow
def test_a_pair_counts_if_both_are_right(world):
    tasks, (inputs, _) = ew.draw(world.key, SMOKE.world, "test")
    right = jnp.argmax(tv.logits(world.base, tasks.heads, inputs), axis=-1)
    other = (right + 1) % 8
    count = jnp.arange(right.shape[1])
    told = jnp.stack([jnp.where(count < 24, right[0], other[0]),
                      jnp.where(count % 4 == 0, right[1], other[1])])  # fmt: skip
    assert float(ew.score(world.base, tasks, (inputs, told))) == 6 / 32
    # Examples to search by and to judge by differ, and so do they from those to train on.
    parts = [ew.draw(world.key, SMOKE.world, part)[1][0][:, :32] for part in ew.STREAMS]
    assert all(not jnp.isclose(a, b).all() for a, b in itertools.pairwise(parts))
    again, _ = ew.draw(world.key, SMOKE.world, "search")
    close(again, tasks)


def made_up(**levels):
    """Scores that end at given levels; 0.5 for arms that are not named."""
    rng = np.random.default_rng(0)
    levels = {"layers": 0.55, "again": 0.55, "both": 0.57, "parts": 0.56, "routed": 0.4,
              "one": 0.53} | levels  # fmt: skip
    names = {"layers": es.LAYERS, "again": es.AGAIN, "both": es.BOTH, "parts": es.PARTS,
             "routed": es.ROUTED, "one": es.ONE}  # fmt: skip
    level = {names[key]: value for key, value in levels.items() if key in names}
    facts = {"own": 0.75, "source 1": 0.3, "source 2": 0.3, experiment.UPPER: 0.6} | {
        key: value for key, value in levels.items() if key not in names
    }
    scores = {name: value + 0.005 * rng.normal(size=32) for name, value in facts.items()}
    for arm in es.ARMS:
        for what in ("search", "test"):
            noise = 0.005 * rng.normal(size=(32, 1))
            scores[f"{what}/{arm}"] = np.linspace(-0.1, 0, 8)[None] + level.get(arm, 0.5) + noise
    return scores


def judged(scores):
    outcome = experiment.judge(SMALL, scores, tuple(range(1000, 1032)), {})
    return {claim.name: verdict.status for claim, verdict in outcome.parts}


def test_verdicts_follow_the_scores():
    assert set(judged(made_up()).values()) == {"reproduced"}
    worse = judged(made_up(layers=0.45, again=0.45))
    assert worse["against recipes by hand"] == "not_reproduced"
    assert worse["against the sources"] == "reproduced"
    assert judged(made_up(routed=0.25))["path, against the sources"] == "not_reproduced"
    # The recipe by hand is chosen by the examples that are searched by, in each world.
    scores = made_up()
    scores[f"search/{es.TIES}"][:8] += 0.2
    scores[f"test/{es.TIES}"][:8] = 0.1
    best = experiment.final(scores, experiment.BEST_HAND)
    assert (best[:8] == 0.1).all() and (best[8:] > 0.4).all()
    sources = experiment.final(scores, experiment.BEST_SOURCE)
    np.testing.assert_array_equal(sources, np.maximum(scores["source 1"], scores["source 2"]))


def test_curves_compare_like_with_like():
    scores = made_up()
    scores[f"test/{es.ONE}"][:4] -= 0.4
    for arm in es.HAND:
        scores[f"test/{arm}"] = scores[f"test/{es.ONE}"]
    _, test = experiment.judge(SMALL, scores, tuple(range(1000, 1032)), {}).curves
    drawn = scipy.stats.trim_mean(test.scores[es.ONE][:, -1], 0.25)  # as curves are
    assert test.lines[experiment.BEST_HAND] == pytest.approx(drawn, rel=1e-6)
    # What has 640 more tries behind it says so.
    assert f"{es.BOTH} (640 more)" in test.scores and es.BOTH not in test.scores


def test_guards_speak():
    scores = made_up()
    assert all(outcome[0] for outcome in experiment.check(SMALL, scores).values())
    assert experiment.claims(SMALL)[0].required and experiment.claims(SMALL)[1].required
    bad = made_up(own=0.5, again=0.5) | {experiment.UPPER: np.linspace(0.2, 0.4, 32)}
    bad[f"test/{es.PARTS}"][:4, -1] = np.nan
    failed = {name for name, outcome in experiment.check(SMALL, bad).items() if not outcome[0]}
    assert failed == {guard.name for guard in experiment.claims(SMALL)[0].guards}
    with pytest.raises(ValueError, match="generations: expected a multiple of 8, got 20"):
        es.Config(generations=20)
    with pytest.raises(ValueError, match="population: expected at least 4, got 2"):
        es.Config(population=2, generations=32)


@pytest.mark.slow
def test_a_short_run_goes_through_every_arm_and_is_no_verdict(tmp_path):
    outcome = experiment.run(SMOKE, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    data = outcome.datasets["evolutionary_merging"]
    for arm in es.ARMS:
        assert (np.diff(data[f"search; {arm}"], axis=1) >= 0).all()
        assert ((data[f"test; {arm}"] >= 0) & (data[f"test; {arm}"] <= 1)).all()
    (land,) = outcome.landscapes
    assert land.heights.shape == (2, 3, 3) and np.isfinite(land.heights).all()
    # Without any weight the merge is the base.
    np.testing.assert_allclose(land.heights[:, 0, 0], data["base"], atol=1e-6)

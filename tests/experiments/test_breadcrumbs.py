"""The breadcrumbs experiment: its arms, its world, its verdicts, and a short run."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging
from jaxlab.report import discover, load_program

COUNTS = (2, 4)


@pytest.fixture(scope="module")
def experiment():
    program = load_program(discover()["breadcrumbs"])
    return sys.modules[program.run.__module__]


@pytest.fixture(scope="module")
def arms(experiment):
    return sys.modules[f"{experiment.__package__}._breadcrumbs_arms"]


@pytest.fixture(scope="module")
def world(experiment):
    return sys.modules[f"{experiment.__package__}._task_vectors"]


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)  # noqa: E731
    return {"in": draw(6, 10), "up0": draw(10, 7)}


def test_every_arm_has_the_same_number_of_trials(arms):
    trials = jnp.arange(arms.SETTINGS * arms.SCALES)
    plain = np.asarray(jax.vmap(lambda t: arms.alpha(arms.ARITHMETIC, t))(trials))
    assert len(set(plain.tolist())) == len(trials)
    np.testing.assert_allclose([plain.min(), plain.max()], [0.05, 1.0], rtol=1e-5)
    masked = np.asarray(jax.vmap(lambda t: arms.alpha(arms.BREADCRUMBS, t))(trials))
    assert len(set(masked.tolist())) == arms.SCALES
    np.testing.assert_array_equal(masked[: arms.SCALES], masked[-arms.SCALES :])
    assert len({tuple(band) for band in arms.BANDS.tolist()}) == arms.SETTINGS


@pytest.mark.slow
def test_arms_merge_as_the_library_does(arms, vectors):
    setting, key = jnp.int32(7), jax.random.key(0)
    keep, drop = (float(x) for x in arms.BANDS[7])
    share, top = float(arms.KEEPS[7]), float(arms.DROPS[7])
    expected = {
        arms.ARITHMETIC: lambda x: merging.task_arithmetic(x[0] * 0, x, weight=1.0),
        arms.BREADCRUMBS: lambda x: merging.breadcrumbs(
            x[0] * 0, x, weight=1.0, keep=keep, drop_top=drop
        ),
        "breadcrumbs of rows": lambda x: merging.breadcrumbs(
            x[0] * 0, x, weight=1.0, keep=keep, drop_top=drop, axis=-1
        ),
        "without the largest": lambda x: merging.breadcrumbs(
            x[0] * 0, x, weight=1.0, keep=1 - top, drop_top=top
        ),
        "the largest only": lambda x: merging.breadcrumbs(
            x[0] * 0, x, weight=1.0, keep=share, drop_top=0.0
        ),
        "TIES": lambda x: merging.ties(x[0] * 0, x, weight=1.0, density=share, normalize=False),
    }
    for arm, merge in expected.items():
        both = jax.jit(
            lambda x: (
                arms.directions(key, arm, x, COUNTS)(setting),
                [jax.tree.map(lambda y: merge(y[:n]), x) for n in COUNTS],
            )
        )
        found, wanted = both(vectors)
        for name in vectors:
            for row in range(len(COUNTS)):
                np.testing.assert_allclose(
                    found[name][row], wanted[row][name], rtol=1e-4, atol=1e-5
                )


def test_random_masks_are_shared_and_rescaled(arms, vectors):
    key, setting = jax.random.key(0), jnp.int32(7)
    plain, rescaled = (
        arms.directions(key, arm, vectors, COUNTS)(setting) for arm in ("random mask", "DARE")
    )
    share = arms.KEEPS[7]
    for name in vectors:
        np.testing.assert_allclose(plain[name], rescaled[name] * share, rtol=1e-5)
    kept = arms.directions(key, "random mask", jax.tree.map(lambda x: x * 0 + 1, vectors), COUNTS)
    total = kept(setting)["in"][1]
    assert abs(total.mean() / 4 - share) < 5 * np.sqrt(share * (1 - share) / 240)


def test_controls_take_steps_of_the_same_length(arms, vectors):
    one = jax.tree.map(lambda x: x[0], vectors)
    other = jax.tree.map(lambda x: 3 * x[1] ** 2, vectors)
    per_leaf, whole = arms.matched_per_leaf(one, other), arms.matched_globally(one, other)
    size = lambda tree: np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tree)))  # noqa: E731
    for name in one:
        np.testing.assert_allclose(size(per_leaf[name]), size(other[name]), rtol=1e-5)
        np.testing.assert_allclose(
            whole[name] / size(whole), one[name] / size(one), rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(size(whole), size(other), rtol=1e-5)


@pytest.mark.slow
def test_the_world_is_learnable_and_its_noise_is_noise(world):
    sizes = world.World(tasks=3, width=24, hidden=24, examples=256, finetune_rate=3e-3)
    tasks = world.make_tasks(jax.random.key(0), sizes)
    inputs, labels = world.examples(jax.random.key(1), tasks, 256)
    assert inputs.shape == (3, 256, 32) and set(np.unique(labels)) <= set(range(8))
    # Inputs of a task lie near its own subspace of 8 dimensions.
    values = np.linalg.svd(np.asarray(inputs[0]), compute_uv=False)
    assert values[8] < 0.3 * values[7]
    params = world.encoder_init(jax.random.key(2), sizes)
    features = world.encode(params, inputs[0])
    np.testing.assert_allclose(jnp.mean(features**2, axis=-1), 1, rtol=1e-3)
    before = world.losses(params, tasks.heads, (inputs, labels))
    fits = jax.tree.map(lambda x: jnp.stack([x] * 3), world.fit_init(params))
    fits, _ = jax.jit(
        lambda f: world.finetune(jax.random.key(3), f, tasks, (inputs, labels), sizes, 60)
    )(fits)
    own = [
        world.losses(
            jax.tree.map(lambda x: x[t], fits.params),
            tasks.heads[t][None],
            (inputs[t][None], labels[t][None]),
        )[0]
        for t in range(3)
    ]
    assert (np.asarray(own) < np.asarray(before) - 0.5).all()
    # Each copy saw its own task only: the others have become worse for it than its own.
    first = jax.tree.map(lambda x: x[0], fits.params)
    accuracy = world.accuracy(first, tasks.heads, (inputs, labels))
    assert accuracy[0] > max(accuracy[1], accuracy[2]) + 0.1
    quiet = world.World(tasks=3, width=24, hidden=24, label_noise=0.0)
    loud = world.World(tasks=3, width=24, hidden=24, label_noise=1.0)
    trained = [
        world.pretrain(jax.random.key(4), world.fit_init(params), tasks, (inputs, labels), w, 60)[
            0
        ].params
        for w in (quiet, loud)
    ]
    good, bad = (world.accuracy(p, tasks.heads, (inputs, labels)).mean() for p in trained)
    assert good > 0.4 and bad < 0.25


def made_up(experiment, config, **effects):
    """Scores in which breadcrumbs has given effects over both controls."""
    rng = np.random.default_rng(0)
    trials = sys.modules[f"{experiment.__package__}._breadcrumbs_trials"]
    scores = {name: np.full(16, 0.9) for name in trials.result_names(config)}
    scores = {k: v + 0.002 * rng.normal(size=16) for k, v in scores.items()}
    scores["base"], scores["base_accuracy"] = np.full(16, 0.7), np.full(16, 0.5)
    for name, effect in effects.items():
        kind, arm, n = {
            "tuned": ("tuned", "breadcrumbs", 8),
            "tuned_all": ("tuned", "breadcrumbs", 16),
            "frozen": ("frozen", "breadcrumbs", 16),
            "start": ("frozen", "breadcrumbs", 4),
            "control": ("frozen", experiment.PER_LEAF, 16),
        }[name]
        scores[f"{kind}/{arm}/{n}"] = scores[f"{kind}/{arm}/{n}"] + effect
    return scores


def test_the_claim_needs_more_than_a_shorter_step(experiment):
    config = experiment.PRESETS["small"]
    claims = {claim.name: claim for claim in experiment.claims(config)}
    assert claims["transfer, equal norms"].required and claims["tuned on 8 tasks"].required
    judged = lambda **effects: {  # noqa: E731
        claim.name: verdict.status
        for claim, verdict in experiment.judge(
            config, made_up(experiment, config, **effects), tuple(range(1000, 1016)), {}
        ).parts
    }
    everything = judged(tuned=0.03, tuned_all=0.03, frozen=0.05)
    assert set(everything.values()) == {"reproduced"}
    shorter = judged(tuned=0.03, tuned_all=0.03, frozen=0.05, control=0.05)
    assert shorter["transfer"] == "reproduced"
    assert shorter["transfer, equal norms"] == "not_reproduced"
    assert judged()["tuned on 16 tasks"] == "not_reproduced"
    # What counts is what is lost on the way: better from the start is no transfer.
    assert judged(frozen=0.05, start=0.05)["transfer"] == "not_reproduced"


def test_guards_speak(experiment):
    config = experiment.PRESETS["small"]
    scores = made_up(experiment, config)
    assert all(outcome[0] for outcome in experiment.check(config, scores).values())
    scores["fine_tuned_accuracy"] = scores["base_accuracy"] + 0.05
    scores["base"] = np.full(16, 0.88)
    scores["frozen/breadcrumbs/4"] = scores["frozen/task arithmetic/4"] - 0.03
    scores["tuned/task arithmetic, other data/16"] += 0.05
    scores["tuned/breadcrumbs/16"][:3] = np.nan
    failed = {name for name, outcome in experiment.check(config, scores).items() if not outcome[0]}
    assert failed == {
        "fine_tuning_helps",
        "merging_helps",
        "starts_level",
        "control_against_itself",
        "finite",
    }
    with pytest.raises(ValueError, match="counts: expected two or more, rising"):
        experiment.Config(preset="small", counts=(8, 4))
    with pytest.raises(ValueError, match="finetune_steps: expected a multiple of 4, got 10"):
        experiment.Config(preset="small", finetune_steps=10)


@pytest.mark.slow
def test_a_short_run_goes_through_every_phase_and_is_no_verdict(experiment, tmp_path):
    config = experiment.PRESETS["smoke"]
    outcome = experiment.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    data = outcome.datasets["breadcrumbs"]
    assert 0 < float(data["tuned; task arithmetic; 2"].mean()) < 5
    assert float(data["relative_norm"].min()) > 0
    again = experiment.run(config, directory=tmp_path, resume=True, progress=False)
    assert again.datasets["breadcrumbs"].equals(data)

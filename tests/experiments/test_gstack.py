"""Growth at equal FLOPs: what a budget holds, how targets are made, verdicts, a short run."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.report import discover, load_program
from jaxlab.tasks import chain, kvsum

gstack = sys.modules[load_program(discover()["gstack"]).run.__module__]
runs = sys.modules[f"{gstack.__package__}._gstack_runs"]
gm = sys.modules[f"{gstack.__package__}._growth_models"]
SMALL = gstack.PRESETS["small"]
TINY = gstack.PRESETS["smoke"].studies[0]
FOUR = replace(SMALL, studies=SMALL.studies[:1], starts=(2, 4, 6, 8))
KNOWN = {"token_entropy": 2.5, "cost_ratio": 0.99}


@pytest.fixture(scope="module")
def lines():
    return jax.jit(lambda key: gm.sample_lines(key, 8, "train"))(jax.random.key(0))


@pytest.mark.slow
def test_lines_are_problems_with_their_solutions(lines):
    tokens, mask = np.asarray(lines.tokens), np.asarray(lines.mask)
    assert tokens.shape == (8, gm.LENGTH) and set(np.unique(mask)) == {0.0, 1.0}
    first, second = gm.SOURCES
    for row, config, module in ((0, first, chain), (4, second, kvsum)):
        task = module.make(config)
        whole = task.prompt_length + task.solution_length
        assert not mask[row, : task.prompt_length].any() and not mask[row, whole:].any()
        assert tokens[row, whole - 1] == task.stop and not tokens[row, whole:].any()
    # Every token of a chain is the solver's; of running sums only the sums are, and no query.
    assert mask[0].sum() == chain.make(first).solution_length
    assert mask[4].sum() == second.turns or mask[4].sum() == second.turns + 1


@pytest.mark.slow
@pytest.mark.parametrize("study", SMALL.studies, ids=lambda s: s.kind)
def test_all_runs_cost_the_same(study):
    scratch = runs.spent(study, runs.SCRATCH, 0)
    for arm in study.arms[len(runs.CONTROLS) :]:
        for start in SMALL.starts:
            assert runs.spent(study, arm, start) == pytest.approx(scratch, rel=0.02)
    found = runs.costs(study)
    # Layers cost the same each; what is outside of them is the small rest.
    share = found.flops["small"] / found.flops["large"]
    assert 1 / study.factor < share < 1.2 / study.factor


@pytest.mark.slow
def test_a_step_costs_its_matrix_products():
    """Forward and twice that backward, by hand, for the transformer."""
    study = replace(TINY, depth=2, factor=1)
    width, depth, vocabulary, read = study.width, 2, 80, gm.LENGTH - 1
    per_token = depth * (2 * width * (3 * width + width + 4 * width) + 4 * width * read)
    per_token += 2 * width * vocabulary
    forward = study.batch * read * per_token
    assert runs.costs(study).flops["large"] == pytest.approx(3 * forward, rel=0.02)


@pytest.mark.slow
def test_targets_are_made_of_the_small_model(lines):
    models = runs.models_of(TINY)
    wide, narrow = models["large"][0], models["narrow"][0]
    fresh = wide.init(jax.random.key(0), TINY.depth)
    small = wide.init(jax.random.key(1), 2)
    before = wide.apply(small, lines.tokens)
    made = {arm: runs.deepen(small, fresh, TINY, arm) for arm in runs.DEPTH if arm != runs.LEARNED}
    ups = {arm: params["blocks"]["up"] for arm, params in made.items()}
    for arm, order in ((runs.STACK, [0, 1, 0, 1]), (runs.INTERLEAVED, [0, 0, 1, 1])):
        np.testing.assert_array_equal(ups[arm], small["blocks"]["up"][np.array(order)])
    np.testing.assert_allclose(wide.apply(made[runs.ZERO], lines.tokens), before, atol=1e-5)
    np.testing.assert_array_equal(ups[runs.RANDOM][2:], fresh["blocks"]["up"][2:])
    assert np.abs(wide.apply(made[runs.RANDOM], lines.tokens) - before).max() > 1e-2
    # Copied units keep the function but for the noise that lets them part.
    half = narrow.init(jax.random.key(2), TINY.depth)
    was = narrow.apply(half, lines.tokens)
    copied, padded = (runs.widen(jax.random.key(3), half, TINY, arm) for arm in runs.WIDTH)
    now = wide.apply(copied, lines.tokens)
    assert np.abs(now - was).max() < 0.1 * np.abs(was).max()
    assert jax.tree.map(jnp.shape, copied) == jax.tree.map(jnp.shape, fresh)
    np.testing.assert_array_equal(padded["emb"][:, :8], half["emb"])
    assert not padded["emb"][:, 8:].any()


@pytest.mark.slow
def test_runs_share_what_they_should_and_grow_when_they_should():
    experiment = runs.make(TINY)
    init, update = jax.jit(experiment.init), jax.jit(experiment.update)

    def begun(arm, start, slices):
        numbers = {"arm": runs.ARMS.index(arm), "start": start, "rate": 1e-2}
        state = init(jax.random.key(0), jax.tree.map(jnp.asarray, numbers))
        for _ in range(slices):
            state, _ = update(state)
        return state

    def params(state, name):
        return np.concatenate([x.ravel() for x in jax.tree.leaves(state.fits[name].params)])

    before = begun(runs.STACK, 1, 1)
    np.testing.assert_array_equal(params(before, "small"), params(begun(runs.ZERO, 2, 1), "small"))
    np.testing.assert_array_equal(params(before, "large"), params(begun(runs.STACK, 1, 0), "large"))
    assert not np.array_equal(params(before, "small"), params(begun(runs.STACK, 1, 0), "small"))
    # Grown, trained on and with moments that count its own steps only.
    after = begun(runs.STACK, 1, 2)
    assert int(after.fits["large"].moments.updates) == runs.costs(TINY).steps["large"]
    # Half of the budget: afterwards nothing moves.
    half, longer = (begun(runs.HALF, 0, n) for n in (2, 3))
    np.testing.assert_array_equal(params(half, "large"), params(longer, "large"))
    # The learned operator starts as a stack and spends one slice on learning.
    learned = begun(runs.LEARNED, 1, 2)
    assert int(learned.fits["large"].moments.updates) == 0
    assert np.isfinite(params(learned, "large")).all()
    other = begun(runs.AGAIN, 0, 0)
    assert not np.array_equal(params(other, "large"), params(begun(runs.SCRATCH, 0, 0), "large"))


def name_of(arm, start=0):
    return gstack.name_of(FOUR.studies[0], arm, start)


def made_up(stack=-0.1):
    """Losses of 1 at the end, but for "stack" and half the budget."""
    rng = np.random.default_rng(0)
    losses = {}
    for start in FOUR.starts:
        for arm in runs.ARMS:
            end = 1.0 + {runs.HALF: 0.2, runs.AGAIN: 0.05, runs.STACK: stack}.get(arm, 0.0)
            fall = np.linspace(1, 0, 10)[None] + end
            losses[name_of(arm, start)] = fall + 0.01 * rng.normal(size=(16, 1))
    return losses


def judged(losses):
    outcome = gstack.judge(FOUR, losses, KNOWN, tuple(range(1000, 1016)), {})
    return {claim.name: verdict.status for claim, verdict in outcome.parts}


def test_random_layers_fade_in():
    config = replace(TINY, fade=2)
    given = [float(runs.strength(config, 5, jnp.int32(n), jnp.int32(i))) for n, i in (
        (0, 0), (0, 3), (1, 0), (2, 0), (7, 4)
    )]  # fmt: skip
    np.testing.assert_allclose(given, [0, 0.3, 0.5, 1, 1], rtol=1e-6)


@pytest.mark.slow
def test_fading_begins_with_the_growth(monkeypatch):
    def at_growth_alone(config, steps, slices, step):
        return jnp.where(slices == 0, 1.0, jnp.nan)

    monkeypatch.setattr(runs, "strength", at_growth_alone)
    experiment = runs.make(TINY)
    arm = runs.ARMS.index(runs.RANDOM)
    numbers = jax.tree.map(jnp.asarray, {"arm": arm, "start": 1, "rate": 1e-3})
    state = experiment.init(jax.random.key(0), numbers)
    update = jax.jit(lambda s: experiment.update(s)[0])
    finite = []
    for _ in range(3):
        state = update(state)
        leaves = jax.tree.leaves(state.fits["large"].params)
        finite.append(all(bool(jnp.isfinite(x).all()) for x in leaves))
    assert finite == [True, True, False]


def test_verdicts_follow_the_losses():
    better = judged(made_up())
    assert {better.pop(name) for name in list(better) if "speed-up" in name} == {"inconclusive"}
    assert set(better.values()) == {"reproduced"}
    assert set(judged(made_up(stack=0.1)).values()) == {"not_reproduced"}
    # One comparison may be lost, not two.
    losses = made_up()
    losses[name_of(runs.ZERO, 4)] -= 0.2
    assert judged(losses)["best operator"] == "reproduced"
    losses[name_of(runs.INTERLEAVED, 6)] -= 0.2
    assert judged(losses)["best operator"] == "not_reproduced"
    assert judged(losses)["transformer: stack against scratch"] == "reproduced"


def test_speed_ups_are_those_of_the_curves():
    losses = made_up()
    scratch = losses[name_of(runs.SCRATCH)]
    flat = np.repeat(scratch[:, -1:], 5, axis=1)
    losses[name_of(runs.STACK, 2)] = np.concatenate([scratch[:, 5:], flat], axis=1)
    np.testing.assert_allclose(gstack.speed_ups(losses, FOUR.studies[0], 2), 1.0, rtol=1e-5)
    losses[name_of(runs.STACK, 2)] = scratch + 0.1
    assert (gstack.speed_ups(losses, FOUR.studies[0], 2) == -1).all()


def test_guards_speak():
    losses = made_up()
    assert all(outcome[0] for outcome in gstack.check(FOUR, losses, KNOWN).values())
    losses[name_of(runs.HALF)] = losses[name_of(runs.SCRATCH)] - 0.01
    losses[name_of(runs.AGAIN)] -= 0.2
    losses[name_of(runs.SCRATCH)] += 2
    losses[name_of(runs.STACK, 2)][:3] = np.nan
    known = KNOWN | {"cost_ratio": 1.06}
    failed = {name for name, (good, _) in gstack.check(FOUR, losses, known).items() if not good}
    assert failed == {guard.name for guard in gstack.claims(FOUR)[0].guards}
    with pytest.raises(ValueError, match="depth: expected a multiple of 3, got 8"):
        runs.Config(factor=3)
    with pytest.raises(ValueError, match="batch: expected a multiple of 2, got 3"):
        runs.Config(batch=3)  # lines come in equal parts of two sources
    for starts in ((2, 20), (0, 2)):
        with pytest.raises(ValueError, match="starts: expected slices from 1 to 19, got"):
            replace(SMALL, starts=starts)
    with pytest.raises(ValueError, match="factors: expected at least one"):
        replace(SMALL, factors=())


@pytest.mark.slow
def test_a_short_run_goes_through_every_phase_and_is_no_verdict(tmp_path):
    config = gstack.PRESETS["smoke"]
    outcome = gstack.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    data = outcome.datasets["gstack"]
    assert all(np.isfinite(data[name]).all() for name in data.data_vars)

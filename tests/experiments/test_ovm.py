"""OVM: the walk and its exact guides, what the networks are taught, a short run."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.report import discover, load_program
from jaxlab.search import value_guided_beam
from jaxlab.tasks import countdown, countdown_exact

ovm = sys.modules[load_program(discover()["ovm"]).run.__module__]
game, learned = (sys.modules[f"{ovm.__package__}._ovm_{part}"] for part in ("game", "learned"))
TINY = ovm.PRESETS["smoke"].study


@pytest.fixture(scope="module")
def walks():
    """Many walks of one game, with the state behind every step."""
    problem, _ = countdown.sample(jax.random.key(3), game.GAME)

    def one(key):
        def step(walk, place):
            walk = game.take_step(jax.random.fold_in(key, place), walk, place)
            return walk, walk

        return jax.lax.scan(step, game.start(problem), jnp.arange(game.STEPS))[1]

    keys = jax.random.split(jax.random.key(0), 20_000)
    return problem, jax.jit(jax.vmap(one))(keys)


@pytest.mark.slow
def test_the_exact_value_is_the_frequency_of_success(walks):
    """After every first step that happens often, and before any."""
    problem, walk = walks
    right = np.asarray(
        jax.jit(jax.vmap(lambda w: game.solved(jax.tree.map(lambda x: x[-1], w))))(walk)
    )
    whole = float(countdown_exact.value(problem.numbers, problem.target, 99, game.leaky))
    assert abs(right.mean() - whole) < 4 * np.sqrt(whole * (1 - whole) / len(right))
    first = jax.tree.map(lambda x: x[:, 0], walk)
    value = np.asarray(
        jax.jit(jax.vmap(lambda w: game.exact_guide("value", w, jnp.int32(1))))(first)
    )
    actions = np.asarray(first.path[:, 0])
    for action in np.unique(actions):
        rows = actions == action
        p = value[rows][0]
        np.testing.assert_array_equal(value[rows], p)
        spread = np.sqrt(max(p * (1 - p), 1e-3) / rows.sum())
        assert abs(right[rows].mean() - p) < 5 * spread
    assert not right[np.asarray(walk.broken[:, -1])].any()


def test_guides_are_ordered_and_agree_at_the_end(walks):
    _, walk = walks
    some = jax.tree.map(lambda x: x[:500], walk)

    @jax.jit
    @jax.vmap
    def judged(w):
        def at(name, taken):
            prefix = jax.tree.map(lambda x: x[taken - 1], w)
            return game.exact_guide(name, prefix, jnp.int32(taken))

        return jnp.asarray([[at(n, t) for t in (1, 2, 3)] for n in game.GUIDES])

    score = np.asarray(judged(some))
    prm, progress, value = score[:, 0], score[:, 1], score[:, 2]
    assert (value <= progress + 1e-6).all() and (progress <= prm).all()
    np.testing.assert_array_equal(progress > 0, value > 0)
    np.testing.assert_array_equal(score[:, 0, 2], score[:, 1, 2])
    np.testing.assert_allclose(score[:, 2, 2], score[:, 1, 2])
    np.testing.assert_array_equal(prm[:, :2], ~np.asarray(some.broken)[:, :2])


@pytest.mark.slow
def test_perfect_guides_solve_what_was_measured_before():
    """Shares of 400 games at 20 candidates: 4 beams by value, by progress, by rules; reranking."""
    games = learned.sample_games(jax.random.key(5), 400, "test")
    keys = jax.random.split(jax.random.key(1), 400)

    def share(name, beams):
        functions = game.functions(lambda w, t: game.exact_guide(name, w, t))

        def one(key, problem):
            found = value_guided_beam(key, game.start(problem), functions, 20, beams, game.STEPS)
            return jax.vmap(game.solved)(found.states)[found.best]

        return float(jax.jit(jax.vmap(one))(keys, games).mean())

    assert share("value", 4) == pytest.approx(0.92, abs=0.06)
    assert share("prm-o", 4) == pytest.approx(0.91, abs=0.06)
    assert share("prm", 4) == pytest.approx(0.29, abs=0.08)
    assert share("value", 20) == pytest.approx(0.52, abs=0.08)
    assert share("value", 1) > 0.93


@pytest.mark.slow
def test_what_the_networks_are_taught():
    games = learned.sample_games(jax.random.key(2), 4, "train")
    examples = jax.jit(lambda k: learned.sample_examples(k, games, 8))(jax.random.key(1))
    label, taken = np.asarray(examples.label), np.asarray(examples.taken)
    assert label.shape == (4 * 8 * 3, 3) and taken.tolist() == [1, 2, 3] * 32
    outcome = label[:, 0].reshape(-1, 3)
    assert (outcome == outcome[:, :1]).all()  # the outcome is that of the whole walk
    at_end = taken == 3
    np.testing.assert_array_equal(label[at_end, 0], label[at_end, 1])
    assert (label[:, 2] <= label[:, 1]).all()
    assert (label[:, 0] <= label[:, 2]).all()  # what ends well was within reach all along


def test_a_network_sees_numbers_but_not_their_order():
    params = learned.init_network(jax.random.key(0), TINY)
    walk = game.Walk(
        jnp.asarray([3, 24, 8, -1]), jnp.int32(24), jnp.asarray(False), jnp.asarray([5, -1, -1])
    )
    judge = jax.jit(learned.judge)
    turned = walk._replace(numbers=jnp.asarray([8, 3, 24, -1]))
    assert float(judge(params, walk, jnp.int32(1))) == float(judge(params, turned, jnp.int32(1)))
    for other in (
        walk._replace(target=jnp.int32(23)), walk._replace(broken=jnp.asarray(True)),
        walk._replace(numbers=jnp.asarray([3, 24, 9, -1])),
    ):  # fmt: skip
        assert float(judge(params, other, jnp.int32(1))) != float(judge(params, walk, jnp.int32(1)))
    assert float(judge(params, walk, jnp.int32(2))) != float(judge(params, walk, jnp.int32(1)))


def test_claims_are_well_formed():
    for preset, config in ovm.PRESETS.items():
        told = ovm.claims(config)
        assert [claim.required for claim in told] == [True, True, False, False, False]
        assert config.preset == preset
    with pytest.raises(ValueError, match="steps: expected a multiple"):
        replace(TINY, steps=7)


@pytest.mark.slow
def test_a_short_run_judges_nothing_and_shows_everything(tmp_path):
    outcome = ovm.run(ovm.PRESETS["smoke"], directory=tmp_path, resume=True, progress=False)
    assert [verdict.status for _, verdict in outcome.parts] == ["smoke"] * 5
    data = outcome.datasets["ovm"]
    for name in data.data_vars:
        if str(name).startswith(("solved", "auc", "sampler")):
            assert ((data[name] >= 0) & (data[name] <= 1)).all(), name
    assert (data["loss"].values[:, -1] < data["loss"].values[:, 0]).all()

"""The amortised-front experiment: its grid, its fronts, its verdicts, and a short run."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import pareto
from jaxlab.report import discover, load_program


@pytest.fixture(scope="module")
def experiment():
    program = load_program(discover()["map_pareto"])
    return sys.modules[program.run.__module__]


@pytest.fixture(scope="module")
def world(experiment):
    return sys.modules[f"{experiment.__package__}._map_pareto_world"]


def test_budgets_and_grids(experiment, world):
    config = experiment.PRESETS["small"]
    assert [world.budget(n) for n in (2, 3, 4)] == [12, 20, 30]
    assert world.oracle_grid(config, 2).shape == (225, 2)
    grid = world.oracle_grid(config, 3)
    assert grid.shape == (729, 3) and len({tuple(row) for row in grid.tolist()}) == 729
    assert world.oracle_grid(config, 4) is None
    names = world.result_names(config)
    assert "volume/oracle/3" in names and "volume/oracle/4" not in names
    assert len(set(names)) == len(names)
    for wrong, words in (
        ({"nested": 3}, "sizes: expected at most nested=3"),
        ({"sizes": ()}, "sizes: expected at least one"),
        ({"population": 13, "front": 6}, "population: expected an even number"),
        ({"population": 50}, "front: expected at most population=50, got 100"),
        ({"oracle": (0,)}, "oracle: expected at least 2 points each"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(config, **wrong)


def test_radii_of_a_front(world):
    values = jnp.asarray([[1.0, 0.0], [0.6, 0.8], [9.0, 9.0], [0.0, 1.0]])
    valid = jnp.asarray([True, True, False, True])
    angles = jnp.asarray([0.0, np.arctan2(0.8, 0.6), np.pi / 2, np.pi / 4])
    found = world.front_radii(values, valid, angles)
    # On the diagonal the middle point is as good as (0.6, 0.6).
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0, 0.6 * np.sqrt(2)], rtol=1e-5)
    worse = world.front_radii(-values, valid, angles)
    assert not worse.any()


def test_distances_to_a_front_of_fewer_points_than_there_is_room_for(world):
    goal = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 0.0]]  # two in front, one behind, one filled
    other = [[1.0, 0.0], [9.0, 9.0], [0.0, 0.0], [0.0, 0.0]]
    valid = jnp.asarray([[True, True, True, False], [True, False, False, False]])
    found = jax.jit(world.front_distances, static_argnums=2)(jnp.asarray([goal, other]), valid, 0)
    np.testing.assert_allclose(found, [0, np.sqrt(2) / 2])


@pytest.mark.slow
def test_arms_in_a_quadratic_world(experiment, world):
    """Where metrics are quadratic the surrogate's front is exact, and direct search is not."""
    config = replace(experiment.PRESETS["small"], population=40, generations=40, front=40)
    optima = jnp.asarray([[0.8, 0.3], [0.2, 0.7]])
    fit = lambda c: jax.nn.sigmoid(1 - 4 * jnp.sum((c[None] - optima) ** 2, axis=1))  # noqa: E731
    loss = lambda c: jax.nn.softplus(jnp.sum((c[None] - optima) ** 2, axis=1))  # noqa: E731
    fronts, extra = jax.jit(lambda key: world.search_fronts(config, 2, key, fit, loss))(
        jax.random.key(0)
    )
    assert set(fronts) == set(world.ARMS)
    assert extra["fit/loss/2"] > 0.999 and extra["fit/accuracy/2"] > 0.999
    assert extra["trusted/2"] == 1
    line = jnp.linspace(0, 1, 200)[:, None]
    best = jax.vmap(fit)((1 - line) * optima[0][None] + line * optima[1][None])
    volume = lambda arm: pareto.hypervolume(  # noqa: E731
        jax.vmap(fit)(fronts[arm][0]), jnp.zeros(2), fronts[arm][1]
    )
    exact = pareto.hypervolume(best, jnp.zeros(2))
    for arm in (world.MAP, world.LOSS, world.WIDE):
        assert volume(arm) > 0.985 * exact
    assert volume(world.DIRECT) < 0.97 * exact
    assert volume(world.FEWER) <= volume(world.DIRECT) <= volume(world.MORE)
    for arm, count in ((world.MAP, 40), (world.DIRECT, 12), (world.MORE, 52), (world.FEWER, 4)):
        assert fronts[arm][0].shape == (count, 2)


def made_up(experiment, world, config, gain=0.0, fit=0.95):
    rng = np.random.default_rng(0)
    noise = lambda: 0.002 * rng.normal(size=16)  # noqa: E731
    scores = {name: 0.6 + noise() for name in world.result_names(config)}
    for n in config.sizes:
        scores[f"volume/{world.MAP}/{n}"] += gain
        scores[f"volume/{world.ORACLE}/{n}"] = 0.65 + noise()
        scores[f"volume/{world.FEWER}/{n}"] -= 0.1
        scores[f"fit/loss/{n}"] = fit + noise()
    del scores[f"volume/{world.ORACLE}/{config.sizes[-1]}"]
    return scores | {"base_accuracy": np.full(16, 0.4)}


def test_verdicts(experiment, world):
    config = experiment.PRESETS["small"]
    required = {claim.name for claim in experiment.claims(config) if claim.required}
    assert required == {
        "fit of 2 tasks",
        "fit of 3 tasks",
        "fit of 4 tasks",
        "front of 2 tasks",
        "front of 3 tasks",
        "gain of 3 tasks",
        "gain of 4 tasks",
    }

    def judged(**effects):
        scores = made_up(experiment, world, config, **effects)
        parts = experiment.judge(config, scores, tuple(range(1000, 1016)), {}).parts
        return {claim.name: verdict.status for claim, verdict in parts}

    good = judged(gain=0.05)
    assert {good[name] for name in required} == {"reproduced"}
    assert good["nested, 8 tasks"] == "not_reproduced"
    bad = judged(fit=0.8)
    assert {bad[name] for name in required} == {"not_reproduced"}


def test_guards_speak(experiment, world):
    config = experiment.PRESETS["small"]
    scores = made_up(experiment, world, config)
    claim = next(c for c in experiment.claims(config) if c.name == "gain of 3 tasks")
    assert {guard.name for guard in claim.guards} == set(experiment.check(config, claim, scores))
    assert all(outcome[0] for outcome in experiment.check(config, claim, scores).values())
    scores["base_accuracy"] = scores["fine_tuned_accuracy"] - 0.05
    scores[f"volume/{world.FEWER}/3"] = scores[f"volume/{world.DIRECT}/3"] + 0.1
    scores[f"volume/{world.AGAIN}/3"] += 0.05
    scores[f"volume/{world.ORACLE}/3"] = scores[f"volume/{world.DIRECT}/3"] + 1e-4
    scores[f"volume/{world.MAP}/3"][:3] = np.nan
    assert not any(outcome[0] for outcome in experiment.check(config, claim, scores).values())


@pytest.mark.slow
def test_a_short_run_goes_through_every_phase_and_is_no_verdict(experiment, tmp_path):
    config = experiment.PRESETS["smoke"]
    outcome = experiment.run(config, directory=tmp_path, resume=True, progress=False)
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    data = outcome.datasets["map_pareto"]
    assert float(data["nested; evaluations"].min()) >= 3 + 2 * 40
    (fronts,) = outcome.fronts
    assert fronts.radii["MAP"].shape == (2, 9)

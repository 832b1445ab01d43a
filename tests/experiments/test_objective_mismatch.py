"""Lambert et al. 2020: the analytic mismatch, data, fleets, attack, statistics and guards."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import exact_step_fn
from jaxlab.report import discover, load_program
from jaxlab.stats import combine


@pytest.fixture(scope="module")
def program():
    return load_program(discover()["objective_mismatch"])


@pytest.fixture(scope="module")
def module(program):
    return sys.modules[program.run.__module__]


@pytest.fixture(scope="module")
def models(module):
    return module.models


@pytest.fixture(scope="module")
def correlating(module):
    return module.correlating


@pytest.fixture(scope="module")
def attacking(module):
    return module.attacking


@pytest.fixture(scope="module")
def weighing(module):
    return module.weighing


def test_the_better_model_can_be_the_worse_one_to_plan_with():
    """s' = s + u, |u| <= 1, reward -s'^2, greedy for one step, 20 steps from -3."""

    def model_a(s, u):  # biased by 0.5 towards 0 wherever |s| > 1
        return s + u - 0.5 * np.sign(s) * (np.abs(s) > 1)

    def model_b(s, u):  # exact, but for the sign of u near the start
        return s + np.where(np.abs(s + 3) < 0.1, -u, u)

    def planned_return(model):
        s, total = -3.0, 0.0
        for _ in range(20):
            actions = np.linspace(-1, 1, 201)
            s = s + actions[np.argmin(model(s, actions) ** 2)]
            total -= s**2
        return total

    rng = np.random.default_rng(0)
    s, u = rng.uniform(-4, 4, 400_000), rng.uniform(-1, 1, 400_000)
    errors = [np.mean((m(s, u) - s - u) ** 2) for m in (model_a, model_b)]
    np.testing.assert_allclose(errors, [0.25 * 6 / 8, 4 / 3 * 0.2 / 8], rtol=0.02)
    assert planned_return(lambda s, u: s + u) == pytest.approx(-5, abs=1e-6)
    assert planned_return(model_a) == pytest.approx(-5, abs=1e-6)
    assert planned_return(model_b) == pytest.approx(-250, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["pendulum", "cartpole"])
def test_data_are_the_environments_own_steps(models, world):
    control = models.Control(world=world, steps=12, horizon=4, plans=8, elites=2, iterations=1)
    key = jax.random.key(0)
    exact = jax.jit(exact_step_fn(models.make_env(control)))
    totals, expert = jax.jit(lambda k: models.expert_data(k, control, 2))(key)
    random = jax.jit(lambda k: models.random_data(k, control, 3))(key)
    uniform = jax.jit(lambda k: models.uniform_data(k, control, 500))(key)
    for data in (expert, random, uniform):
        next_obs, reward, _, _ = exact(key, data.obs, data.action)
        np.testing.assert_allclose(data.next_obs, next_obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(data.reward, reward, rtol=1e-5, atol=1e-6)
    for data, episodes in ((expert, 2), (random, 3)):
        runs = jax.tree.map(lambda x, n=episodes: x.reshape(n, 12, *x.shape[1:]), data)
        rest = np.broadcast_to(models.at_rest(control), runs.obs[:, 0].shape)
        np.testing.assert_array_equal(runs.obs[:, 0], rest)
        np.testing.assert_allclose(runs.next_obs[:, :-1], runs.obs[:, 1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(totals, np.asarray(expert.reward).reshape(2, 12).sum(1), rtol=1e-5)
    assert len(np.unique(np.asarray(random.action))) == 36
    spread = np.asarray(uniform.obs / models.units(control)[None, :-1])
    assert np.abs(spread).max() < 1.01 and (np.abs(spread).max(axis=0) > 0.95).all()
    hanging = {"pendulum": [-1, 0, 0], "cartpole": [0, 0, -1, 0, 0]}[world]
    np.testing.assert_allclose(models.at_rest(control), hanging, atol=1e-6)


def test_planners_by_name(models):
    for name in ("cem", "icem", "mppi"):
        control = models.Control(planner=name, horizon=4, plans=8, elites=2, iterations=1)
        assert models.planner_of(control).init().mean.shape == (4, 1)
        assert models.planner_text(control).startswith(f"{name}, horizon 4, 8 plans")


@pytest.mark.slow
def test_a_fleets_models_keep_to_their_data_and_steps(models):
    control = models.Control(steps=10)
    training = models.Training(hidden=(4,), steps=20, block=10, batch=8)
    key = jax.random.key(1)
    data = jax.vmap(lambda k: models.uniform_data(k, control, 30))(jax.random.split(key, 2))

    def trained(data):
        fleet = models.make_fleet(key, training, data, jnp.array([0, 1, 1]), jnp.array([5, 20, 12]))
        for _ in range(2):
            fleet, _ = models.train(key, fleet, training)
        return fleet

    fleet = jax.jit(trained)(data)
    np.testing.assert_array_equal(fleet.models.opt_state.count, [5, 20, 12])
    other = jax.jit(trained)(jax.tree.map(lambda x: x.at[1].set(x[0]), data))

    def same(i):
        rows = [jax.tree.map(lambda x: np.asarray(x[i]), f.models.params) for f in (fleet, other)]
        return all(map(np.array_equal, *(jax.tree.leaves(r) for r in rows)))

    assert [same(0), same(1), same(2)] == [True, False, False]
    assert int(fleet.done) == 20


@pytest.mark.slow
def test_the_last_layer_is_a_vector(models, attacking):
    training = models.Training(hidden=(4,))
    control = models.Control()
    data = jax.tree.map(lambda x: x[None], models.uniform_data(jax.random.key(0), control, 20))
    zero = jnp.zeros(1, jnp.int32)
    fleet = models.make_fleet(jax.random.key(1), training, data, zero, zero)
    model = jax.tree.map(lambda x: x[0], fleet.models)
    vector = attacking.get_last_layer(model)
    assert vector.shape == (4 * 6 + 6,)
    same = attacking.with_last_layer(model, vector)
    assert jax.tree.structure(same) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, same, model)
    changed = attacking.with_last_layer(model, vector + 1)
    for layer, (old, new) in enumerate(zip(model.params.net, changed.params.net)):
        moved = 1.0 if layer == 1 else 0.0
        jax.tree.map(
            lambda a, b, m=moved: np.testing.assert_allclose(b - a, m, atol=1e-6), old, new
        )


def test_coordinates_of_unit_curvature(attacking):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5)) * np.array([3.0, 1.0, 1.0, 0.5, 0.0])
    curvature = jnp.asarray(root.T @ root, jnp.float32)  # of rank 4
    basis = np.asarray(attacking.unit_curvature(curvature, 1e-3), np.float64)
    unit = basis.T @ (root.T @ root) @ basis
    expected = np.eye(5)
    expected[0, 0] = 0  # the flat direction
    np.testing.assert_allclose(unit, expected, atol=1e-3)
    longest = np.linalg.norm(basis[:, 0]) / np.linalg.norm(basis[:, -1])
    assert longest == pytest.approx(1e3**0.5, rel=1e-3)


def test_numbers_of_steps(correlating):
    steps = correlating.training_steps(correlating.Config())
    assert steps[0] == 50 and steps[-1] == 1500 and len(steps) == 16
    np.testing.assert_allclose(steps[1:] / steps[:-1], 30 ** (1 / 15), rtol=0.02)


def correlation_scores(seed=0, n=20, m=16):
    """Like a pilot's: kinds grid, random, expert; the more steps the better, but for random."""
    rng = np.random.default_rng(seed)
    rise = np.linspace(0, 1, m)

    def noise(scale, *shape):
        return scale * rng.normal(size=(*shape, n, m))

    returns = np.stack([-575 + 220 * rise, -700 + 0 * rise, -800 + 425 * rise])[:, None]
    likely = np.array([[3.0, 3.0, 3.0], [-1e3, 12.0, -1e3], [-1e3, 0.0, 8.0]])[..., None, None]
    slope = np.array([[3.0, 3.0, 3.0], [-9e2, 2.0, -9e2], [-5e2, 1.0, 3.0]])[..., None, None] * rise
    return {
        "return": returns + noise(5.0, 3),
        "ll": likely + slope + noise(0.1, 3, 3),
        "exact": -369 + rng.normal(size=n),
    }


def judged(study, scores, config=None):
    config = config or study.Config()
    registered = {c.name: c.digest() for c in study.claims(config)}
    return study.judge(config, scores, registered)


def test_correlation_verdicts_on_scores_like_the_pilots(correlating):
    parts = judged(correlating, correlation_scores())
    assert [v.status for _, v in parts] == ["reproduced"] * 4
    assert [c.threshold for c, _ in parts] == [100.0, 0.0, 0.5, 0.3]
    assert all(ok for _, v in parts for _, ok, _ in v.guards)
    assert combine(parts) == "reproduced"
    assert parts[0][1].estimate == pytest.approx(700 - 465, abs=5)
    assert parts[1][1].estimate == pytest.approx(14 - 4.5, abs=0.5)
    assert parts[3][1].estimate < -0.9
    (note,) = correlating.notes(correlation_scores())
    assert "100%" in note and "Wilson" in note


@pytest.mark.parametrize(
    "change, guard, claim",
    [
        (lambda s: s["exact"].__isub__(400), "planner_works", 0),
        (lambda s: s["ll"][0, 0].__imul__(-1), "likelihood_is_useful", 3),
        (lambda s: s["return"][2].__isub__(300), "good_experts", 2),
        (lambda s: s["ll"][1, 1, :4].fill(np.nan), "finite", 1),
    ],
)
def test_each_guard_of_the_correlations_can_fail(correlating, change, guard, claim):
    scores = correlation_scores()
    change(scores)
    _, verdict = judged(correlating, scores)[claim]
    assert guard in [name for name, ok, _ in verdict.guards if not ok]
    assert verdict.status != "reproduced"


def test_statistics_pick_what_they_say(correlating):
    scores = correlation_scores(n=2, m=3)
    scores["ll"][1, 1] = [[1, 3, 2], [5, 4, 3]]
    scores["return"][1] = [[-1, -2, -3], [-4, -5, -6]]
    scores["ll"][0, 1] = [[7, 9, 8], [1, 0, 2]]
    scores["return"][2] = [[-370, -380, -500], [-500, -371, -372]]
    scores["exact"] = np.array([-369.0, -369.0])
    scores["ll"][0, 0] = [[0, 1, 2], [0, 1, 2]]
    scores["ll"][2, 0] = [[-1, 5, -1], [-1, -1, 5]]
    found = correlating.statistics(scores)
    assert found[correlating.LOCAL_RETURN][1].tolist() == [-2, -4]
    assert found[correlating.LOCAL_LIKELIHOOD][0].tolist() == [3, 5]
    assert found[correlating.LOCAL_LIKELIHOOD][1].tolist() == [8, 1]
    assert found[correlating.NEEDLESS][0].tolist() == [0.5, 0.5]


def attack_scores(attack=0.6, random=0.02, drop=0.04, fresh=0.05, before=0.9):
    rng = np.random.default_rng(0)
    names = {"attack": attack, "random": random, "drop": drop, "fresh_drop": fresh}
    scores = {name: level + 0.01 * rng.normal(size=20) for name, level in names.items()}
    return scores | {"before": np.full(20, before), "drop": np.full(20, drop)}


def test_attack_verdicts(attacking):
    ((claim, verdict),) = judged(attacking, attack_scores())
    assert verdict.status == "reproduced" and claim.threshold == 0.3
    assert attacking.Config().slacks[attacking.Config().searched] == 0.05
    assert judged(attacking, attack_scores(attack=0.2))[0][1].status == "not_reproduced"
    assert judged(attacking, attack_scores(drop=0.06))[0][1].status == "invalid"
    for change, guard in (
        ({"before": 0.3}, "model_is_good"),
        ({"fresh": 0.3}, "constraint_generalises"),
    ):
        _, verdict = judged(attacking, attack_scores(**change))[0]
        assert [name for name, ok, _ in verdict.guards if not ok] == [guard]
        assert verdict.status == "inconclusive"
    assert attacking.claims(replace(attacking.Config(), claimed=False)) == ()


def weighting_scores(config, gain=0.2, exact=1.0, slope=0.3, level=0.4):
    rng = np.random.default_rng(0)
    rise = slope * np.linspace(0, 1, len(config.counts))
    rows = level + rise + 0.02 * rng.normal(size=(20, len(config.strengths), len(config.counts)))
    rows[:, 1:] += gain
    return {"return": rows, "exact": np.full(20, exact), "chosen": np.asarray(1)}


def test_reweighting_verdicts(weighing):
    config = weighing.Config()
    ((claim, verdict),) = judged(weighing, weighting_scores(config), config)
    assert verdict.status == "reproduced" and claim.threshold == 0.1 and claim.required
    assert verdict.estimate == pytest.approx(0.2, abs=0.02)
    none = judged(weighing, weighting_scores(config, gain=0.0), config)[0][1]
    assert none.status == "not_reproduced"
    for change, guard in (
        ({"exact": 0.5}, "planner_works"),
        ({"slope": 0.0}, "data_help"),
        ({"level": 0.95}, "control_has_room"),
    ):
        verdict = judged(weighing, weighting_scores(config, **change), config)[0][1]
        assert [name for name, ok, _ in verdict.guards if not ok] == [guard]
    assert not weighing.claims(weighing.PENDULUM)[0].required


def test_the_area_is_over_the_logarithm(weighing):
    config = replace(weighing.Config(), counts=(1, 10, 1000))
    assert weighing.area(config, np.array([1.0, 1.0, 1.0])) == pytest.approx(1)
    assert weighing.area(config, np.array([0.0, 1.0, 1.0])) == pytest.approx(2.5 / 3)
    with pytest.raises(ValueError, match="strengths: expected 0 as the first one"):
        replace(config, strengths=(1.0,))


def test_presets(program):
    claims = {name: program.claims(config) for name, config in program.presets.items()}
    assert [len(claims[name]) for name in ("smoke", "small", "paper")] == [7, 7, 8]
    assert [c.required for c in claims["small"]] == [True] * 6 + [False]
    assert all(len({c.name for c in each}) == len(each) for each in claims.values())


@pytest.mark.slow
def test_a_short_run_ends_in_smoke_verdicts(module, tmp_path):
    outcome = module.run(module.PRESETS["smoke"], directory=tmp_path, resume=True, progress=False)
    assert [v.status for _, v in outcome.parts] == ["smoke"] * 7
    table = outcome.datasets["correlation"]
    assert table["log_likelihood"].dims == ("trained_on", "held_out", "seed", "model")
    attack = outcome.datasets["attack-pendulum"]
    assert (attack["drop_0.05"] <= 0.051).all() and (attack["drop_0.001"] <= 2e-3).all()
    assert len(outcome.curves) == 4 and len(outcome.paired) == 5

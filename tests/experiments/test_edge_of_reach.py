"""The edge-of-reach experiment: known tables, arms that are what they say, a run that judges."""

import importlib
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.report import discover, load_program

FOLDER = Path(__file__).parents[2] / "experiments"
package = types.ModuleType("edge_of_reach_studies")
package.__path__ = [str(FOLDER)]
sys.modules.setdefault("edge_of_reach_studies", package)
e1 = importlib.import_module("edge_of_reach_studies._edge_of_reach_e1")
e2 = importlib.import_module("edge_of_reach_studies._edge_of_reach_e2")

TABLES = e1.Config(seeds=3, voids=(), sweeps=100, smoke=True)
TINY = e2.Config(
    seeds=2, dims=2, episode_length=4, critics=3, hidden=(8,), batch=8, rows=12, retain_epochs=2,
    updates=2, epochs=4, mopo_epochs=2, patch_steps=3, evaluate_every=2, eval_episodes=2,
    others=(), smoke=True,
)  # fmt: skip


def test_the_lattice_has_an_edge_of_one_ring():
    tables = e1.world(TABLES)
    assert tables.following.shape == (625, 9) and int(tables.start.sum()) == 25
    # k = 2 from |s| <= 2: rows start within 3, branches only end at 4.
    assert int(tables.updated[0].sum()) == 7**2 and int(tables.edge[0].sum()) == 9**2 - 7**2
    assert bool(jnp.all(tables.updated[1])) and not bool(jnp.any(tables.edge[1]))
    # The goal earns 1 for ever; the far corner has 15 steps to go.
    np.testing.assert_allclose(tables.value[15 * 25 + 15], 10.0, rtol=1e-5)
    np.testing.assert_allclose(tables.value.max(), 10.0, rtol=1e-5)
    away = np.array([np.exp(-2 * d**2 / 4.5) for d in range(14, -1, -1)])
    expected = np.sum(0.9 ** np.arange(15) * away) + 0.9**15 * 10
    np.testing.assert_allclose(tables.value[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_tables_fail_and_are_cured_as_the_paper_says(tmp_path):
    results, scores = e1.run(TABLES, tmp_path, True, False)
    best = scores["full_horizon", "return"]
    np.testing.assert_allclose(best, 28.31, atol=0.01)
    for arm in ("oracle_patch", "ravl", "base@1"):
        np.testing.assert_allclose(scores[arm, "return"], best, atol=0.01)
        np.testing.assert_allclose(scores[arm, "overestimation"], 0, atol=1e-3)
    assert scores["base", "return"].mean() < 14 and scores["single", "return"].mean() < 12
    assert scores["base", "overestimation"].min() > 1
    # Critics agree exactly where they are updated; at the edge they keep what they were drawn with.
    assert scores["ravl", "std_inside"].max() < 1e-6
    np.testing.assert_allclose(scores["ravl", "std_edge"], 9.25, atol=0.3)
    for claim in e1.claims(TABLES):
        outcomes = e1.check(TABLES, claim, scores, results)
        assert set(outcomes) == {guard.name for guard in claim.guards}
        for name, (passed, detail) in outcomes.items():
            assert passed or name == "base_against_itself", (claim.name, name, detail)
    voids, curves = e1.void_curves(TABLES, results["e1"])
    assert voids.tolist() == [1.0, 10.0] and set(curves) == {
        "base", "oracle_patch", "ravl", "full_horizon",
    }  # fmt: skip
    np.testing.assert_array_equal(curves["base"][:, 1], scores["base", "return"])


def test_closed_form_returns_are_those_of_episodes(key):
    from jaxlab.envs import episode_returns, make

    env, config = make("point_mass"), e2.Config()
    still = episode_returns(key, env, lambda _, obs: jnp.zeros(8), 2000)
    np.testing.assert_allclose(still.mean(), e2.idle_return(config), atol=0.15)
    np.testing.assert_allclose(env.spec.expert_return, e2.best_return(config), atol=0.01)
    assert e2.best_return(config) > e2.idle_return(config) + 10


def test_arms_differ_in_what_they_claim_to():
    def state(arm):
        experiment = e2.make(TINY, arm)
        hparams = {"penalty_coef": jnp.float32(0)}
        return jax.eval_shape(experiment.init, jax.random.key(0), hparams)

    base, patch, ravl, full = (state(arm) for arm in (e2.BASE, e2.PATCH, e2.RAVL, e2.FULL))
    assert jax.tree.leaves(base.agent.critics)[0].shape[0] == 2
    assert jax.tree.leaves(ravl.agent.critics)[0].shape[0] == 3
    assert base.imagined.data.value is None and patch.imagined.data.value is not None
    # The same number of rows, in branches of 1 and of 4 steps.
    for other in (base, patch, ravl, full):
        assert other.imagined.data.reward.shape == (24,)
    assert e2.make(TINY, e2.MOPO) is not None
    with pytest.raises(ValueError, match="epochs: expected a multiple of 2"):
        replace(TINY, epochs=5)
    with pytest.raises(ValueError, match="others: expected optimal_patch or diverse"):
        replace(TINY, others=("morel",))


def test_claims_are_judged_by_their_own_rules():
    config = e2.Config()
    n = config.seeds
    spread = np.linspace(-0.5, 0.5, n)
    scores = {
        (e2.BASE, "return"): 3 + spread,
        (e2.PATCH, "return"): 28 + spread,
        (e2.RAVL, "return"): 29 + spread,
        (e2.FULL, "return"): 12 + spread[::-1],
        (e2.BASE, "ratio"): 8 + spread,
        (e2.RAVL, "ratio"): 1.1 + 0.1 * spread,
        (e2.MOPO, "difference"): np.zeros(n),
    }
    from jaxlab.stats import Evidence, decide, evaluation_seeds

    def status(claim):
        guards = e2.check(config, claim, scores, {})
        assert set(guards) == {guard.name for guard in claim.guards}
        evidence = Evidence(*e2.evidence(claim, scores), evaluation_seeds(n), guards)
        return decide(claim, evidence).status

    claims = {claim.name.removeprefix("networks: "): claim for claim in e2.claims(config)}
    expected = dict.fromkeys(claims, "reproduced") | {"full horizon": "not_reproduced"}
    assert {name: status(claim) for name, claim in claims.items()} == expected
    scores[e2.MOPO, "difference"] = np.zeros(n) + np.eye(n)[0] * 1e-9
    assert status(claims["MOPO"]) == "inconclusive"  # one seed with one bit
    scores[e2.BASE, "ratio"] = 1.5 + 0.1 * spread
    assert status(claims["values of the base"]) == "not_reproduced"
    scores[e2.RAVL, "return"] = 15 + spread  # 12 more than the base, but standing still is better
    assert status(claims["RAVL"]) == "not_reproduced"


def test_differences_are_seen_in_every_metric():
    import xarray

    def table(values):
        return xarray.Dataset({"a": (("seed", "step"), values), "died_at": ("seed", [-1, -1])})

    long = table(np.array([[1.0, 2.0, 3.0], [np.nan, 5.0, 6.0]]))
    assert e2._difference(table(np.array([[1.0, 2.0], [np.nan, 5.0]])), long).tolist() == [0, 0]
    assert e2._difference(table(np.array([[1.0, 2.5], [np.nan, 5.0]])), long).tolist() == [0.5, 0]
    assert np.isnan(e2._difference(table(np.array([[1.0, 2.0], [4.0, 5.0]])), long)[1])


@pytest.mark.slow
def test_a_smoke_run_ends_in_no_verdict(tmp_path):
    program = load_program(discover()["edge_of_reach"])
    config = program.presets["smoke"]
    config = replace(config, e1=replace(config.e1, seeds=2), e2=replace(TINY, others=("diverse",)))
    outcome = program.run(config, directory=tmp_path, resume=True, progress=False)
    assert [claim.name for claim, _ in outcome.parts] == [
        claim.name for claim in program.claims(config)
    ]
    assert {verdict.status for _, verdict in outcome.parts} == {"smoke"}
    difference = outcome.datasets["e2-mopo"]
    assert difference.sizes["step"] == 1
    by_name = {claim.name: verdict for claim, verdict in outcome.parts}
    assert by_name["networks: MOPO"].estimate == 0.0
    assert all(
        np.isfinite(scores).all() for curve in outcome.curves for scores in curve.scores.values()
    )

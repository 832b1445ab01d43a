"""What a run computes: the same as a loop written by hand, in every layout."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxlab import ensemble, nets, stats
from jaxlab.ensemble.experiment import inspect
from jaxlab.ensemble.groups import Placement
from jaxlab.ensemble.members import check_key, make_members
from jaxlab.ensemble.program import finite

RUN = {"steps": 40, "record_every": 5, "seeds": 3, "progress": False}


def by_hand(experiment, seed, hparams, steps, every):
    key = jax.random.fold_in(jax.random.key(0), seed)
    state, rows = experiment.init(key, hparams), []
    update = jax.jit(experiment.update)
    for step in range(1, steps + 1):
        state, metrics = update(state)
        if step % every == 0:
            evaluation = jax.random.fold_in(jax.random.fold_in(key, 0x6576616C), jnp.int32(step))
            rows.append({**metrics, **experiment.evaluate(state, evaluation)})
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_run_equals_a_loop_by_hand(regression, mode):
    data = ensemble.run(regression(), grid={"lr": [1e-2, 3e-3]}, mode=mode, **RUN)
    assert dict(data.sizes) == {"lr": 2, "seed": 3, "step": 8}
    assert data.step.values.tolist() == list(range(5, 41, 5))
    for lr in (1e-2, 3e-3):
        for seed in range(3):
            expected = by_hand(regression(), seed, {"lr": jnp.float32(lr)}, 40, 5)
            member = data.sel(lr=np.float32(lr), seed=seed)
            np.testing.assert_array_equal(member.bits, expected["bits"])
            np.testing.assert_allclose(member.loss, expected["loss"], rtol=1e-4)
            np.testing.assert_allclose(member.test, expected["test"], rtol=1e-4)


def test_equal_seeds_are_paired_across_hyper_parameters(regression):
    data = ensemble.run(regression(), grid={"lr": [1e-2, 3e-3]}, **RUN)
    assert (data.bits[0] == data.bits[1]).all()
    assert not (data.bits[0, 0] == data.bits[0, 1]).any()


def test_points_are_rows_of_values(regression):
    points = {"lr": jnp.array([1e-2, 3e-3]), "poison": jnp.array([-1, -1])}
    rows = ensemble.run(regression(), points=points, **RUN)
    grid = ensemble.run(regression(), grid={"lr": [1e-2, 3e-3]}, **RUN)
    assert rows.loss.dims == ("point", "seed", "step")
    np.testing.assert_array_equal(rows.lr, grid.lr)
    np.testing.assert_allclose(rows.loss, grid.loss, rtol=1e-5)


@pytest.mark.slow
def test_sweep_compiles_per_point_and_stacks(regression):
    make = lambda width, arm: regression(width)  # noqa: E731
    static = {"width": [16, 8], "arm": ["b", "a"]}
    data = ensemble.sweep(make, static=static, grid={"lr": [1e-2]}, **RUN)
    assert data.loss.dims == ("width", "arm", "lr", "seed", "step")
    assert data.width.values.tolist() == [16, 8] and data.arm.values.tolist() == ["b", "a"]
    alone = ensemble.run(regression(8), grid={"lr": [1e-2]}, **RUN)
    np.testing.assert_array_equal(data.loss.sel(width=8, arm="a"), alone.loss)
    assert (data.loss.sel(width=16) != data.loss.sel(width=8)).any()


def test_chunks_change_nothing(regression, monkeypatch):
    whole = ensemble.run(regression(), **RUN)
    monkeypatch.setattr("jaxlab.ensemble.engine.VISIT_SECONDS", 0.0)  # one row a visit
    xs = ensemble.run(regression(), **RUN)
    assert whole.identical(xs)


def test_window_length_changes_no_state(regression):
    fine = ensemble.run(regression(), **{**RUN, "record_every": 1})
    coarse = ensemble.run(regression(), **RUN)
    assert fine.sel(step=coarse.step).drop_attrs().identical(coarse.drop_attrs())


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_microbatches(regression, mode):
    options = {**RUN, "seeds": 8, "mode": mode}
    whole = ensemble.run(regression(), **options)
    parts = ensemble.run(regression(), microbatch=3, **options)
    np.testing.assert_array_equal(whole.bits, parts.bits)
    if mode == "exact":
        assert whole.identical(parts)
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-4)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_dead_member_harms_nobody_and_is_named(regression, mode, capsys):
    options = {**RUN, "record_every": 1, "mode": mode, "progress": True, "label": "toy"}
    healthy = ensemble.run(regression(), grid={"poison": [-1, -2]}, **options)
    data = ensemble.run(regression(), grid={"poison": [-1, 17]}, **options)
    assert data.died_at.values.tolist() == [[-1, -1, -1], [17, 17, 17]]
    for name in ("loss", "test", "bits"):
        np.testing.assert_array_equal(data[name][0], healthy[name][0])
        np.testing.assert_array_equal(data[name][1, :, :16], healthy[name][1, :, :16])
        assert np.isnan(data[name][1, :, 16:]).all()
    said = capsys.readouterr().err
    assert "toy: 3 of 6 members went non-finite: poison=17, seed=0 died at step 17" in said


def test_one_dead_among_many_is_frozen_where_it_was(tmp_path):
    experiment = ensemble.Experiment(
        lambda key, h: {"x": jnp.float32(0), "bad": h["bad"]},
        lambda s: ({**s, "x": jnp.where(s["x"] == s["bad"], jnp.inf, s["x"] + 1)}, {"x": s["x"]}),
    )
    options = {"grid": {"bad": [9.0, 2.0]}, "checkpoint": tmp_path, "progress": False}
    data = ensemble.run(experiment, steps=5, seeds=1, **options)
    np.testing.assert_array_equal(data.x[:, 0], [[0, 1, 2, 3, 4], [0, 1, np.nan, np.nan, np.nan]])
    last = ensemble.states(tmp_path, experiment, {"bad": 0.0})
    assert last["x"].tolist() == [5, 2]  # of the dead, the last state that was finite
    assert data.died_at.values.tolist() == [[-1], [3]]


def test_a_dead_member_counts_as_worst_in_a_claim():
    experiment = ensemble.Experiment(
        lambda key, h: {"x": jnp.float32(1), "dies": h["dies"]},
        lambda s: ({**s, "x": jnp.where(s["dies"] > 0, jnp.nan, s["x"])}, {"score": s["x"]}),
    )
    claim = stats.Claim("c", "s", "m", "a", "b", threshold=0.5, worst=-9.0, n_seeds=2)
    points = {"dies": jnp.array([0, 1])}
    data = ensemble.run(experiment, steps=2, seeds=2, points=points, progress=False)
    alive, dead = data.score.isel(step=-1).values
    healthy = stats.decide(claim, stats.Evidence(alive + 1, alive, (0, 1)))
    verdict = stats.decide(claim, stats.Evidence(alive, np.where([1, 0], dead, alive), (0, 1)))
    assert (healthy.estimate, healthy.failures) == (1.0, (0, 0))
    assert verdict.estimate == ((1 - -9) + 0) / 2 and verdict.failures == (0, 1)


def test_a_leaf_without_elements_lies_where_its_member_does():
    experiment = ensemble.Experiment(
        lambda key, h: {"x": jax.random.normal(key), "e": jnp.zeros((0,))},
        lambda s: ({**s, "x": s["x"] + 1}, {"x": s["x"]}),
    )
    data = ensemble.run(experiment, steps=2, seeds=2, record_every=1, progress=False)
    assert (data.died_at == -1).all() and data.x.shape == (2, 2)


@pytest.mark.parametrize(
    "dtype", [jnp.float8_e4m3fn, jnp.float8_e4m3b11fnuz, jnp.float8_e5m2, jnp.bfloat16]
)
def test_numbers_without_an_infinity_can_be_finite(dtype):
    assert finite({"x": jnp.ones(3, dtype)})
    assert not finite({"x": jnp.array([1, jnp.nan, 1], dtype)})


def test_integer_metrics_become_real_so_that_the_dead_read_nan():
    experiment = ensemble.Experiment(
        lambda key, h: {"n": jnp.int32(0)}, lambda s: ({"n": s["n"] + 1}, {"n": s["n"]})
    )
    data = ensemble.run(experiment, steps=3, seeds=1, progress=False)
    assert data.n.dtype == np.float32 and data.n.values.tolist() == [[0, 1, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_slices_merge_into_the_single_run(regression, mode, tmp_path):
    options = {**RUN, "seeds": 4, "mode": mode, "grid": {"lr": [1e-2, 3e-3]}}
    single = ensemble.run(regression(), **options)
    parts = [
        ensemble.run(regression(), shard=(i, 3), checkpoint=tmp_path, **options) for i in (2, 0, 1)
    ]
    merged = ensemble.merge(parts, seeds=4, grid={"lr": [1e-2, 3e-3]})
    np.testing.assert_array_equal(merged.bits, single.bits)
    if mode == "exact":
        assert merged.identical(single)
    with pytest.raises(ValueError, match=r"missing \[0, 1, 2\]"):
        ensemble.merge(parts[:1] + parts[2:], seeds=4, grid={"lr": [1e-2, 3e-3]})


def compiled_text(experiment, mesh, mode="fast"):
    members = make_members(8, None, None)
    base = check_key(None)
    signature = inspect(experiment, jax.eval_shape(lambda: base), {})
    placement = Placement(
        experiment, signature, members, np.arange(8), base, mode, mesh, 16, "auto"
    )
    placement.start(None, True)
    return placement._compiled[0].as_text()


COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")


def test_the_members_program_has_no_collective(regression, cpu_devices):
    mesh = Mesh(np.array(cpu_devices), ("members",), axis_types=(AxisType.Auto,))
    text = compiled_text(regression(), mesh)
    assert "while" in text  # it is the program of the loop that was read
    assert not [c for c in COLLECTIVES if c in text]


def test_a_collective_between_members_would_be_seen(cpu_devices):
    mesh = Mesh(np.array(cpu_devices), ("members",), axis_types=(AxisType.Auto,))
    leak = ensemble.Experiment(
        lambda key, h: {"x": jnp.ones(4)},
        lambda s: ({"x": s["x"] + jax.lax.psum(s["x"], "members")}, {}),
    )
    text = jax.jit(
        jax.shard_map(
            lambda x: leak.update({"x": x})[0]["x"],
            mesh=mesh,
            in_specs=jax.sharding.PartitionSpec("members"),
            out_specs=jax.sharding.PartitionSpec("members"),
            check_vma=False,
        )
    ).lower(jnp.ones(16)).compile().as_text()  # fmt: skip
    assert [c for c in COLLECTIVES if c in text]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_a_second_mesh_axis_is_legal(regression, cpu_devices, shape):
    devices = np.array(cpu_devices).reshape(shape)
    mesh = Mesh(devices, ("members", "data"), axis_types=(AxisType.Auto, AxisType.Auto))
    data = ensemble.run(regression(), mesh=mesh, **RUN)
    alone = ensemble.run(regression(), **RUN)
    np.testing.assert_array_equal(data.bits, alone.bits)
    np.testing.assert_allclose(data.loss, alone.loss, rtol=1e-4)
    with pytest.raises(ValueError, match="exact mode runs a member on one device"):
        ensemble.run(regression(), mesh=mesh, mode="exact", **RUN)
    with pytest.raises(ValueError, match='axis "members"'):
        ensemble.run(regression(), mesh=Mesh(devices, ("a", "b")), **RUN)


def test_explicit_axes_of_a_mesh_ask_nothing_of_an_experiment(regression, cpu_devices):
    mesh = jax.make_mesh((2,), ("members",), devices=cpu_devices[:2])
    assert mesh.axis_types == (AxisType.Explicit,)
    assert ensemble.run(regression(), mesh=mesh, **RUN).identical(
        ensemble.run(regression(), mesh=Mesh(np.array(cpu_devices[:2]), ("members",)), **RUN)
    )


def test_a_state_spread_over_a_second_axis_stays_spread(cpu_devices, tmp_path):
    """What an update spreads is not gathered between calls, and resumes as it lay."""

    def init(key, hparams):
        return {"w": jax.random.normal(key, (64, 32))}

    def update(state):
        w = nets.constrain_fsdp(state["w"] * 0.5 + 1.0)
        return {"w": w}, {"sum": w.sum()}

    placements, advance = [], Placement.advance

    def watched(self, rows, every):
        table = advance(self, rows, every)
        placements.append({x.state["w"].sharding.shard_shape((2, 64, 32)) for x in self._groups})
        return table

    experiment = ensemble.Experiment(init, update)
    options = {"seeds": 2, "progress": False}
    mesh = Mesh(
        np.array(cpu_devices[:2]).reshape(1, 2),
        ("members", "data"),
        axis_types=(AxisType.Auto,) * 2,
    )
    alone = ensemble.run(experiment, steps=6, **options)
    with mock.patch.object(Placement, "advance", watched):
        first = ensemble.run(experiment, steps=3, mesh=mesh, checkpoint=tmp_path, **options)
        whole = ensemble.run(experiment, steps=6, mesh=mesh, checkpoint=tmp_path, **options)
    assert all(shapes == {(2, 32, 32)} for shapes in placements) and len(placements) > 2
    np.testing.assert_allclose(first["sum"], alone["sum"][..., :3], rtol=1e-5)
    np.testing.assert_allclose(whole["sum"], alone["sum"], rtol=1e-5)


def test_out_of_memory_halves_the_microbatch(regression, monkeypatch, capsys):
    advance, refused = Placement.advance, []

    def full(self, rows, every):
        if self.size > 2:
            refused.append(self.size)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return advance(self, rows, every)

    monkeypatch.setattr(Placement, "advance", full)
    data = ensemble.run(regression(), **{**RUN, "seeds": 8, "mode": "exact", "progress": True})
    monkeypatch.setattr(Placement, "advance", advance)
    assert len(refused) >= 1 and "out of memory: going on with microbatches of" in (
        capsys.readouterr().err
    )
    assert data.identical(ensemble.run(regression(), **{**RUN, "seeds": 8, "mode": "exact"}))


@pytest.mark.slow
def test_auto_microbatch_fits_the_memory(regression, monkeypatch):
    experiment = regression(64)
    base = check_key(None)
    signature = inspect(experiment, jax.eval_shape(lambda: base), {})
    members = make_members(32, None, None)

    def size_within(limit):
        monkeypatch.setattr("jaxlab.ensemble.groups._memory_limit", lambda device: limit)
        placement = Placement(
            experiment, signature, members, np.arange(32), base, "fast", None, 16, "auto"
        )
        placement.start(None, True)
        return placement.size

    whole = size_within(2**40)
    lanes = len(jax.local_devices())
    assert whole == -(-32 // lanes)
    assert size_within(0) == 1


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize(
    ("operation", "devices"),
    [(jnp.tanh, 2), (lambda x: jnp.linalg.qr(x)[0], 1), (lambda x: jnp.fft.rfft(x).real, 1)],
    ids=["tanh", "qr", "fft"],
)
def test_programs_that_cpu_devices_cannot_run_side_by_side(operation, devices, mode, capsys):
    def update(state):
        made = operation(state)
        return state, {"mean": jnp.mean(made)}

    experiment = ensemble.Experiment(lambda key, _: jax.random.normal(key, (32, 24, 24)), update)
    data = ensemble.run(experiment, steps=5, seeds=4, mode=mode)
    assert f"on {devices} cpu device" in capsys.readouterr().err
    assert np.isfinite(data["mean"]).all()

"""Kill, resume, damage: a run goes on exactly or says why not."""

import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import xarray

from jaxlab import ensemble
from jaxlab.ensemble import CheckpointError, storage

RUN = {"steps": 60, "record_every": 5, "seeds": 3, "progress": False, "mode": "fast"}


@pytest.fixture
def one_row_visits(monkeypatch):
    monkeypatch.setattr("jaxlab.ensemble.engine.VISIT_SECONDS", 0.0)


def interrupted(experiment, directory, steps, **options):
    """The same run, but stopped after `steps`."""
    return ensemble.run(
        experiment,
        checkpoint=directory,
        checkpoint_seconds=0.0,
        **{**RUN, **options, "steps": steps},
    )


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_resume_is_bitwise(regression, tmp_path, mode, one_row_visits):
    whole = ensemble.run(regression(), **{**RUN, "mode": mode})
    first = interrupted(regression(), tmp_path, 25, mode=mode)
    assert first.identical(whole.isel(step=slice(0, 5)))
    second = interrupted(regression(), tmp_path, 60, mode=mode)
    assert second.identical(whole)
    again = interrupted(regression(), tmp_path, 60, mode=mode)  # nothing left to compute
    assert again.identical(whole)


def test_a_dead_member_stays_dead_after_resume(regression, tmp_path):
    options = {"grid": {"poison": [-1, 7]}}
    whole = ensemble.run(regression(), **{**RUN, **options})
    interrupted(regression(), tmp_path, 30, **options)
    assert interrupted(regression(), tmp_path, 60, **options).identical(whole)


def test_streamed_rows_can_be_read_while_the_run_is_not_done(regression, tmp_path):
    data = interrupted(regression(), tmp_path, 25)
    rows = ensemble.load(tmp_path)
    np.testing.assert_array_equal(rows["loss"], data.loss.values)


def test_final_states_come_back_and_only_for_their_experiment(regression, tmp_path):
    interrupted(regression(), tmp_path, 5)
    experiment = regression()
    states = ensemble.states(tmp_path, experiment, {})
    for member in range(3):
        state = experiment.init(jax.random.fold_in(jax.random.key(0), member), {})
        for _ in range(5):
            state, _ = experiment.update(state)
        jax.tree.map(
            lambda all_, one, i=member: np.testing.assert_allclose(
                _data(all_[i]), _data(one), rtol=1e-5, atol=1e-6
            ),
            states,
            state,
        )
    wider = ensemble.Experiment(lambda key, hparams: {"x": jax.numpy.zeros(7)}, None)
    with pytest.raises(CheckpointError, match="another experiment"):
        ensemble.states(tmp_path, wider)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        ensemble.states(tmp_path / "nothing", experiment)


def _data(x):
    return jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def test_resume_false_starts_over(regression, tmp_path):
    interrupted(regression(), tmp_path, 60)
    data = interrupted(regression(), tmp_path, 25, resume=False)
    assert data.sizes["step"] == 5


def test_a_shorter_run_than_stored_is_refused(regression, tmp_path):
    interrupted(regression(), tmp_path, 60)
    with pytest.raises(CheckpointError, match="already holds 60 steps, more than the 25"):
        interrupted(regression(), tmp_path, 25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": 4}, "seeds"),
        ({"grid": {"lr": [1e-3]}}, "hparams"),
        ({"record_every": 10}, r"record_every \(stored 5, asked 10\)"),
        ({"mode": "exact"}, r"mode \(stored fast, asked exact\)"),
        ({"key": jax.random.key(1)}, "key"),
        ({"config": {"width": 8}}, r"config.width \(stored None, asked 8\)"),
    ],
)
def test_another_run_is_refused_by_what_differs(regression, tmp_path, options, words):
    interrupted(regression(), tmp_path, 20)
    with pytest.raises(CheckpointError, match=f"it differs in.*{words}"):
        interrupted(regression(), tmp_path, 60, **options)


def test_another_experiment_is_refused_even_with_equal_shapes(regression, tmp_path):
    interrupted(regression(), tmp_path, 20)
    other = regression()

    def update(state):
        state, metrics = regression().update(state)
        return state, {k: v * 1.0001 if k == "loss" else v for k, v in metrics.items()}

    with pytest.raises(CheckpointError, match="it differs in experiment"):
        interrupted(other._replace(update=update), tmp_path, 60)


def test_constants_closed_over_are_part_of_the_identity(tmp_path):
    import jax.numpy as jnp

    def closing_over(value):
        data = jnp.full(100, value)
        return ensemble.Experiment(
            lambda key, h: {"x": jnp.float32(0)},
            lambda s: ({"x": s["x"] + data.sum()}, {"x": s["x"]}),
        )

    interrupted(closing_over(1.0), tmp_path, 20)
    with pytest.raises(CheckpointError, match="it differs in experiment"):
        interrupted(closing_over(2.0), tmp_path, 60)
    interrupted(closing_over(1.0), tmp_path, 60)


def damage(kind, directory, other, rng):
    """Does one kind of harm to the newest checkpoint of `directory`."""
    newest = sorted(directory.glob("manifest-*.json"))[-1]
    state = directory / newest.stem.replace("manifest", "state")
    files = [newest, *(p for p in state.rglob("*") if p.is_file() and p.stat().st_size)]
    victim = rng.choice(files)
    if kind == "flip":
        data = bytearray(victim.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
    elif kind == "truncate":
        data = victim.read_bytes()
        victim.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "delete":
        victim.unlink()
    elif kind == "stale":
        oldest = sorted(directory.glob("manifest-*.json"))[0]
        old_state = directory / oldest.stem.replace("manifest", "state")
        if rng.random() < 0.5:
            shutil.copyfile(oldest, newest)
        shutil.rmtree(state)
        shutil.copytree(old_state, state)
    elif kind == "metrics":
        part = sorted((directory / "metrics").glob("*.npz"))[-1]
        data = bytearray(part.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        part.write_bytes(data)
    elif kind == "foreign":
        foreign = sorted(other.glob("manifest-*.json"))[-1]
        shutil.copyfile(foreign, newest)
        shutil.rmtree(state)
        shutil.copytree(other / foreign.stem.replace("manifest", "state"), state)


KINDS = {"flip": 18, "truncate": 10, "delete": 10, "stale": 8, "metrics": 6, "foreign": 8}


def test_sixty_damaged_checkpoints_none_accepted(regression, tmp_path, one_row_visits):
    run, other = tmp_path / "run", tmp_path / "other"
    whole = interrupted(regression(), run, 40)
    interrupted(regression(), other, 40, grid={"lr": [1e-3]})
    template, identity = _restore_arguments(regression(), run)
    rng, outcomes, total = random.Random(0), {"repaired": 0, "refused": 0}, 0
    for kind, count in KINDS.items():
        for _ in range(count):
            total += 1
            case = tmp_path / "case"
            shutil.copytree(run, case)
            damage(kind, case, other, rng)
            try:
                restored = storage.restore(case, template, identity)
            except CheckpointError:
                outcomes["refused"] += 1
            else:
                assert restored is not None and restored.row < 8, (kind, restored)
                expected = whole.loss.values[:, : restored.row]
                np.testing.assert_array_equal(restored.table["loss"], expected)
                outcomes["repaired"] += 1
            shutil.rmtree(case)
    assert total == 60 == sum(outcomes.values())
    assert outcomes["repaired"] >= 45  # only a foreign checkpoint is refused outright


def _restore_arguments(experiment, directory):
    """What `run` itself hands to `restore` for that directory."""
    seen = []
    original = storage.restore

    def spy(*args):
        seen.append(args)
        return original(*args)

    storage.restore = spy
    try:
        interrupted(experiment, directory, 40)
    finally:
        storage.restore = original
    return seen[0][1:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "stale"])
def test_a_repaired_run_ends_with_the_same_numbers(regression, tmp_path, kind, one_row_visits):
    whole = ensemble.run(regression(), **RUN)
    interrupted(regression(), tmp_path, 40)
    damage(kind, tmp_path, None, random.Random(1))
    assert interrupted(regression(), tmp_path, 60).identical(whole)


def test_all_checkpoints_damaged_is_an_error_that_says_what_to_do(
    regression, tmp_path, one_row_visits
):
    interrupted(regression(), tmp_path, 40)
    for manifest in tmp_path.glob("manifest-*.json"):
        manifest.write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* verifies.*resume=False"):
        interrupted(regression(), tmp_path, 60)


def test_a_failed_write_keeps_the_previous_checkpoint(regression, tmp_path, monkeypatch):
    interrupted(regression(), tmp_path, 20)
    write = storage.write_json

    def full(path, content):
        if path.name.startswith("manifest"):
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(storage, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        interrupted(regression(), tmp_path, 60)
    monkeypatch.setattr(storage, "write_json", write)
    whole = ensemble.run(regression(), **RUN)
    assert interrupted(regression(), tmp_path, 60).identical(whole)


ARGS = ("--steps", 4000, "--record-every", 10, "--visit-seconds", 0.02, "--width", 64)


def killed_and_resumed(worker, tmp_path, kills):
    """Kills a run at random moments, resumes it each time; returns how often a save was hit."""
    assert worker(*ARGS, out=tmp_path / "whole.nc").wait() == 0
    rng, during_save, checkpoint = random.Random(0), 0, tmp_path / "ck"
    done = 0
    while done < kills:
        process = worker(*ARGS, "--checkpoint", checkpoint, out=tmp_path / "resumed.nc")
        before = _newest(checkpoint)
        deadline = time.monotonic() + 120
        # Die some way after this process has made progress of its own, half the time in a save.
        while _newest(checkpoint) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        if rng.random() < 0.5:
            while not list(checkpoint.glob("*orbax-checkpoint-tmp*")) and process.poll() is None:
                time.sleep(0.0005)
        else:
            time.sleep(rng.uniform(0, 0.2))
        assert process.poll() is None, "the run ended before it could be killed: make it longer"
        process.send_signal(signal.SIGKILL)
        process.wait()
        during_save += bool(list(checkpoint.glob("*orbax-checkpoint-tmp*")))
        done += 1
    assert worker(*ARGS, "--checkpoint", checkpoint, out=tmp_path / "resumed.nc").wait() == 0
    whole = xarray.open_dataset(tmp_path / "whole.nc", engine="h5netcdf")
    resumed = xarray.open_dataset(tmp_path / "resumed.nc", engine="h5netcdf")
    assert resumed.identical(whole)
    return during_save


def _newest(directory):
    names = [p.name for p in directory.glob("manifest-*.json")] if directory.exists() else []
    return max(names, default="")


@pytest.mark.slow
def test_two_kills(worker, tmp_path):
    killed_and_resumed(worker, tmp_path, 2)


@pytest.mark.slow
def test_twenty_kills(worker, tmp_path):
    assert killed_and_resumed(worker, tmp_path, 20) >= 3


def test_sigterm_checkpoints_and_resumes(worker, tmp_path):
    checkpoint = tmp_path / "ck"
    process = worker(*ARGS, "--checkpoint", checkpoint, out=tmp_path / "out.nc")
    while not _newest(checkpoint):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    said = (tmp_path / "out.log").read_text()
    assert "stopped by SIGTERM at step" in said
    process = worker(*ARGS, "--checkpoint", checkpoint, out=tmp_path / "out.nc")
    assert process.wait() == 0
    said = (tmp_path / "out.log").read_text()
    assert "resumed at step" in said

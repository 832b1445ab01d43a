"""Exact mode: a member's numbers do not depend on who runs beside it, or where."""

import pytest
import xarray

LAYOUTS = [("--devices", 2), ("--devices", 4), ("--seeds", "5"), ("--microbatch", 3)]
REGRESSION = ("--steps", 300)
DYNA = ("--experiment", "dyna", "--steps", 3, "--record-every", 1)


def run(worker, directory, *args):
    out = directory / "out.nc"
    assert worker(*args, out=out).wait() == 0, out.with_suffix(".log").read_text()
    with xarray.open_dataset(out, engine="h5netcdf") as data:
        return data.load()


@pytest.fixture(scope="module")
def reference(worker, tmp_path_factory):
    return run(worker, tmp_path_factory.mktemp("reference"), *REGRESSION)


@pytest.fixture(scope="module")
def dyna_reference(worker, tmp_path_factory):
    return run(worker, tmp_path_factory.mktemp("reference"), *DYNA)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda args: " ".join(map(str, args)))
def test_numbers_are_bitwise_the_same_in_every_layout(worker, tmp_path, layout, reference):
    data = run(worker, tmp_path, *REGRESSION, *layout)
    assert data.identical(reference.sel(seed=data.seed))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda args: " ".join(map(str, args)))
def test_also_for_the_model_based_loop(worker, tmp_path, layout, dyna_reference):
    data = run(worker, tmp_path, *DYNA, *layout)
    assert data.identical(dyna_reference.sel(seed=data.seed))

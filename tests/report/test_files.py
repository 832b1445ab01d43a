import json
import os

import numpy as np
import pytest
import xarray

from jaxlab.report import files, read_dataset, write_dataset


def test_dataset_round_trip_keeps_values_dtypes_coordinates_and_attributes(tmp_path):
    dataset = xarray.Dataset(
        {
            "flag": (("arm", "seed"), np.array([[True, False], [False, True]])),
            "died_at": (("seed",), np.array([-1, 7], np.int32)),
            "big": (("seed",), np.array([2**40, -3], np.int64)),
            "score": (("seed",), np.array([1.5, np.nan], np.float32), {"units": "m"}),
            "scalar": ((), np.float64(3.0)),
        },
        {"arm": ["treatment", "control"], "seed": np.array([1000, 1001])},
        {"mode": "exact"},
    )
    path = tmp_path / "deep" / "x.nc"
    write_dataset(path, dataset)
    back = read_dataset(path)
    xarray.testing.assert_identical(back, dataset)
    for name in dataset.variables:
        if dataset[name].dtype.kind in "bif":
            assert back[name].dtype == dataset[name].dtype, name
    # The file is closed: it can be replaced and read again.
    write_dataset(path, dataset.isel(seed=[0]))
    assert read_dataset(path).sizes["seed"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["x.nc"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_reader_never_sees_a_mixture(tmp_path):
    path = tmp_path / "x"
    files.write_text(path, "old")
    with path.open() as reader:
        files.write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_written_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        files.write_text(tmp_path / "x", "y")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_unreadable_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not"):
        files.read_json(tmp_path / "x.json")

"""The file of a data set: what is written comes back, and nothing else is accepted."""

import dataclasses
import json

import numpy as np
import pytest

from jaxlab.datasets import Dataset, DatasetError, load, save
from jaxlab.safetensors import read_header
from jaxlab.types import Transition

ROWS = 7


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    rows = Transition(
        obs=normal(ROWS, 3),
        action=normal(ROWS, 2),
        reward=normal(ROWS),
        terminated=rng.random(ROWS) < 0.3,
        truncated=rng.random(ROWS) < 0.3,
        next_obs=normal(ROWS, 3),
    )
    episode = np.arange(ROWS, dtype=np.int32) // 3
    return Dataset(rows, episode, normal(ROWS), {"env": "é", "seed": 3, "training": {"lr": 1e-3}})


def test_what_is_written_comes_back(dataset, tmp_path):
    path = tmp_path / "folder" / "data.safetensors"
    digest = save(path, dataset)
    back = load(path)
    assert len(back) == ROWS and back.about == dataset.about
    for field in dataclasses.fields(Transition):
        got, wanted = (getattr(x.transitions, field.name) for x in (back, dataset))
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(back.episode, dataset.episode)
    np.testing.assert_array_equal(back.log_prob, dataset.log_prob)
    assert digest.encode() in path.read_bytes()
    # Any reader of the format finds the tensors.
    assert read_header(path)["obs"].shape == (ROWS, 3)
    assert [p.name for p in path.parent.iterdir()] == ["data.safetensors"]
    again = tmp_path / "again.safetensors"
    save(str(again), load(str(path)))
    assert again.read_bytes() == path.read_bytes()


def test_a_file_that_differs_in_any_byte_is_refused(dataset, tmp_path):
    path = tmp_path / "data.safetensors"
    save(path, dataset)
    whole = path.read_bytes()
    for place in range(len(whole)):
        # A bit of the value, or the one that tells letters' cases, and spaces from NUL.
        flip = 1 if place % 2 else 0x20
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        with pytest.raises(DatasetError, match=r"data\.safetensors"):
            load(path)
    path.write_bytes(whole)
    load(path)


def test_a_file_that_is_cut_short_or_goes_on_is_refused(dataset, tmp_path):
    path = tmp_path / "data.safetensors"
    save(path, dataset)
    whole = path.read_bytes()
    for length in (0, 5, 8, 100, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match="truncated"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(DatasetError, match="truncated or overlong"):
        load(path)
    with pytest.raises(DatasetError, match="nowhere: cannot be read: No such file"):
        load(tmp_path / "nowhere")


def rewritten(path, change):
    """Writes a file's header anew, as somebody would who alters it with care."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def test_other_formats_and_versions_are_refused(dataset, tmp_path):
    path = tmp_path / "data.safetensors"
    save(path, dataset)
    rewritten(path, lambda header: header["__metadata__"].update(version="2"))
    with pytest.raises(DatasetError, match="is of version 2 of the format, expected 1"):
        load(path)
    rewritten(path, lambda header: header["__metadata__"].update(format="pt"))
    with pytest.raises(DatasetError, match="not a data set: its header does not say"):
        load(path)
    rewritten(path, lambda header: header.pop("__metadata__"))
    with pytest.raises(DatasetError, match="not a data set"):
        load(path)
    save(path, dataset)
    rewritten(path, lambda header: header["__metadata__"].update(about="{}"))
    with pytest.raises(DatasetError, match="altered: its SHA-256 is"):
        load(path)
    rewritten(path, lambda header: header["__metadata__"].pop("sha256"))
    with pytest.raises(DatasetError, match="altered: its SHA-256 is nothing"):
        load(path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"episode": np.arange(ROWS)}, "episode: expected I32 of rank 1 with 7 rows, got int64"),
        ({"log_prob": np.zeros(3, np.float32)}, "log_prob: expected F32 of rank 1 with 7 rows"),
        ({"about": {"lr": float("nan")}}, "Out of range float values are not JSON compliant"),
        (
            {"about": {"lr": np.float32(1)}},
            "about: Object of type float32 is not JSON serializable",
        ),
    ],
)
def test_arrays_of_another_kind_are_not_written(dataset, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(tmp_path / "data.safetensors", dataclasses.replace(dataset, **change))
    rows = dataclasses.replace(dataset.transitions, next_obs=np.zeros((ROWS, 2), np.float32))
    with pytest.raises(ValueError, match="next_obs: expected the shape of obs"):
        save(tmp_path / "x", dataclasses.replace(dataset, transitions=rows))
    assert not list(tmp_path.iterdir())

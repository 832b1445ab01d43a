"""A project folder that holds one fake experiment."""

import shutil
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_experiment.py")


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "experiments"
    folder.mkdir()
    shutil.copy(FAKE, folder / "fake.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""A project folder that holds one fake experiment, and runs of it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from jaxlab.report import load_program, register, results, save

FAKE = Path(__file__).parents[1] / "cli" / "fake_experiment.py"


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "experiments"
    folder.mkdir()
    shutil.copy(FAKE, folder / "fake.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def program(project):
    return load_program(project / "experiments" / "fake.py")


def run(program, config, directory, tamper=lambda outcome: outcome):
    """Runs a configuration the way the command line does."""
    register(directory, program, config, program.claims(config), resume=True)
    outcome = tamper(program.run(config, directory=directory, resume=True, progress=False))
    options = {"git": None, "wall_seconds": 2.0, "resumed": False}
    return directory, save(directory, program, config, outcome, **options)


@pytest.fixture
def finish(program, project, monkeypatch):
    """Runs a configuration without plots and returns (directory, record)."""
    monkeypatch.setattr(results, "_draw", lambda *_: [])

    def finish(config, name="run", **options):
        return run(program, config, project / "runs" / name, **options)

    return finish


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """Three runs with their plots, made once; read only: a paper, a modified and a smoke run."""
    folder = tmp_path_factory.mktemp("stored")
    path = folder / "fake.py"
    shutil.copy(FAKE, path)
    program = load_program(path)
    presets = program.presets
    modified = dataclasses.replace(presets["small"], seeds=17)
    configs = {"a": presets["paper"], "b": modified, "c": presets["smoke"]}
    return [run(program, config, folder / name) for name, config in configs.items()]


@pytest.fixture(scope="session")
def record(stored):
    """An inconclusive record: one of its seeds diverged."""
    return stored[1][1]

import dataclasses
import shutil
import sys

import pytest

import jaxlab
from jaxlab.report import discover, experiments_folder, load_program, programs_in


def test_finds_experiments_upwards_and_ignores_everything_else(project, monkeypatch):
    folder = project / "experiments"
    (folder / "_helper.py").write_text("PAPER = PRESETS = 1\n")
    (folder / "README.md").write_text("PAPER PRESETS")
    (folder / "stranger.py").write_text("raise SystemExit('must not run')\n")
    (folder / "broken.py").write_text("PAPER = (\n")
    deep = project / "a" / "b"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert experiments_folder() == folder
    assert list(discover()) == ["fake"]


def test_a_strangers_experiments_folder_does_not_hide_ours(project, monkeypatch):
    inner = project / "inner"
    (inner / "experiments").mkdir(parents=True)
    (inner / "experiments" / "train.py").write_text("print('hi')\n")
    monkeypatch.chdir(inner)
    assert experiments_folder() == project / "experiments"


def test_falls_back_to_the_copies_inside_the_package(project, monkeypatch, tmp_path_factory):
    package = project / "site" / "jaxlab"
    (package / "_experiments").mkdir(parents=True)
    shutil.copy(project / "experiments" / "fake.py", package / "_experiments" / "shipped.py")
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    monkeypatch.setattr(jaxlab, "__file__", str(package / "__init__.py"))
    assert list(discover()) == ["shipped"]
    # A checkout beside the package comes first.
    shutil.copytree(project / "experiments", project / "site" / "experiments")
    assert list(discover()) == ["fake"]


def test_listing_executes_nothing(project):
    (project / "experiments" / "bad.py").write_text("PAPER = PRESETS = 1\nraise RuntimeError\n")
    assert "bad" in programs_in(project / "experiments")


def test_loaded_by_path_under_a_private_name(program):
    assert program.name == "fake"
    assert program.paper.number == "99"
    assert "experiments" not in sys.modules
    assert dataclasses.is_dataclass(program.config_type)
    assert program.config_type.__module__ == "jaxlab_experiment_fake"


def test_a_module_that_fails_leaves_no_trace(project):
    path = project / "experiments" / "bad.py"
    path.write_text("PAPER = PRESETS = 1\nraise RuntimeError('boom')\n")
    with pytest.raises(RuntimeError, match="boom"):
        load_program(path)
    assert "jaxlab_experiment_bad" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def run(", "def walk(", "must define run"),
        ("@dataclass(frozen=True)\nclass Config", "@dataclass\nclass Config", "frozen"),
        ("    seeds: int = 16", "    members: int = 16", "'seeds'"),
        ('    stop: str = ""', '    stop: str = ""\n    out: str = ""', "must not have.*out"),
        ('"small": Config()', '"little": Config()', "preset='little'"),
    ],
)
def test_broken_contracts_are_named(project, old, new, message):
    path = project / "experiments" / "fake.py"
    text = path.read_text()
    assert old in text
    text = text.replace(old, new)
    if "members" in new:  # keep the module itself executable
        text = text.replace("self.seeds", "self.members").replace("seeds=", "members=")
    path.write_text(text)
    with pytest.raises((ValueError, TypeError), match=message):
        load_program(path)

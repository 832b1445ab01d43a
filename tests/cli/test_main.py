import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlab
from jaxlab.cli import main


def test_help_and_version(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        assert "jaxlab run NAME" in capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert "jaxlab run NAME --help" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxlab {jaxlab.__version__}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run", "fkae"], "unknown experiment 'fkae'; did you mean 'fake'?"),
        (["run", "zzz"], "unknown experiment 'zzz'; known: fake"),
        (["run"], "name an experiment: jaxlab run NAME, one of: fake"),
        (["run", "fake", "--preset", "smal"], "unknown preset 'smal'; did you mean 'small'?"),
        (["run", "fake", "--preset=papr"], "unknown preset 'papr'; did you mean 'paper'?"),
        (["run", "fake", "--sedes", "3"], "unknown option '--sedes'; did you mean '--seeds'?"),
        (
            ["run", "fake", "--shift.sise=3"],
            "unknown option '--shift.sise'; did you mean '--shift.size'?",
        ),
        (
            ["run", "fake", "extra"],
            "unexpected word 'extra'; options are in jaxlab run fake --help",
        ),
        (["run", "fake", "--resum"], "unknown option '--resum'; did you mean '--resume'?"),
        (["run", "fake", "--seeds", "0"], "seeds: expected at least 1, got 0"),
        (["list", "--al"], "unknown option '--al'; there is none here"),
        (["report", "nowhere"], "nowhere is not a folder"),
        (["report", "--outt", "x"], "unknown option '--outt'; did you mean '--out'?"),
        (["report"], "no verdict.json below"),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(project, capsys, words, sentence):
    assert main(words) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"jaxlab: {sentence}")
    assert streams.err.count("\n") == 1
    assert not (project / "runs").exists()


def test_a_value_of_the_wrong_type_is_explained(project, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "fake", "--seeds", "many"])
    assert stop.value.code == 2
    assert "--seeds" in capsys.readouterr().err


def python(*words):
    """A fresh interpreter that finds the jaxlab under test, installed or not."""
    environment = os.environ | {"PYTHONPATH": str(Path(jaxlab.__file__).parents[1])}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)


def test_importing_the_command_line_is_light():
    code = (
        "import sys, jaxlab.cli\n"
        "heavy = {'jax', 'tyro', 'rich', 'xarray', 'matplotlib', 'scipy', 'orbax', 'brax'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_runs_as_a_module(project):
    done = python("-m", "jaxlab", "rnu")
    assert done.returncode == 2
    assert "did you mean 'run'" in done.stderr and "Traceback" not in done.stderr

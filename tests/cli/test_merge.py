"""`jaxlab merge`, as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxlab
from jaxlab.cli import main, merging

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(jaxlab.__file__).parents[1])}


def checkpoint(folder, seed, shapes):
    """A float32 checkpoint, written without the code under test; zeros that take no disk if 0."""
    folder.mkdir()
    header, position = {}, 0
    for name, shape in shapes.items():
        offsets = [position, position + 4 * int(np.prod(shape))]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header).encode()
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values() if seed else ():
            file.write(rng.standard_normal(shape, np.float32))
        file.truncate(8 + len(text) + position)


@pytest.fixture
def project(tmp_path, monkeypatch):
    shapes = {f"layers.{i}.w": (30, 20) for i in range(3)}
    for seed, name in enumerate(["base", "a", "b"], 1):
        checkpoint(tmp_path / name, seed, shapes)
    (tmp_path / "merge.yml").write_text(
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
        "parameters: {weight: 0.5, density: 0.4}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_merge_from_the_command_line(project, capsys):
    options = ["--dtype", "float16", "--shard-size", "2K", "--memory", "64M"]
    assert main(["merge", "merge.yml", "out", *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("out: 3 tensors, 0.0018 M parameters, ties of 3 models in ")
    assert sorted(p.name for p in (project / "out").iterdir()) == [
        "README.md",
        "mergekit_config.yml",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]


def test_models_are_looked_for_beside_the_recipe(project, monkeypatch):
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    assert main(["merge", "../merge.yml", "out"]) == 0


def test_sizes_are_read_in_both_spellings():
    for text, size in (("5B", 5e9), ("256M", 2**28), ("2 GiB", 2**31), ("1.5kb", 1536), ("7", 7)):
        assert merging._bytes("shard-size", text) == size


def test_an_empty_folder_to_be_in_is_an_output(project, monkeypatch):
    (project / "out").mkdir()
    monkeypatch.chdir(project / "out")
    assert main(["merge", "../merge.yml", "."]) == 0
    assert (project / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["merge.yml"], r"name a recipe and a folder: jaxlab merge CONFIG.yml OUT"),
        (["none.yml", "out"], "none.yml cannot be read"),
        (["merge.yml", "out", "--memory", "lots"], "memory: expected a size such as 256M"),
        (["merge.yml", "out", "--memory", "1K"], "layers.0.w: needs 30 MB of memory"),
        (["merge.yml", "out", "--dtype", "int8"], "dtype: expected one of float16"),
        (["merge.yml", "base"], "base exists already"),
        (["merge.yml", "."], r"\. exists already"),
        (["merge.yml", "out", "--memori", "1G"], "unknown option '--memori'; did you mean"),
        (["broken.yml", "out"], "broken.yml: unknown merge_method 'tis'; did you mean 'ties'?"),
        (["torn.yml", "out"], "torn.yml: no readable YAML: while parsing"),
        (["absent.yml", "out"], "model 'x' is no folder here or beside absent.yml"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(project, capsys, words, sentence):
    (project / "broken.yml").write_text("merge_method: tis\nmodels: [{model: a}]")
    (project / "torn.yml").write_text("models: [{model: a},\n")
    (project / "absent.yml").write_text("merge_method: linear\nmodels: [{model: x}]")
    before = {p.name for p in project.iterdir()}
    assert main(["merge", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and re.match(f"jaxlab: {sentence}", said)
    left = {p.name for p in project.iterdir()} - before
    assert left <= {"out.partial"}  # only where arithmetic had begun


def test_help_says_what_is_not_supported(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["merge", "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Not supported, and refused: merging of tokenizers" in said and "--resume" in said


def run(folder, *words):
    command = [sys.executable, "-m", "jaxlab", "merge", "merge.yml", *words]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_killed_and_resumed_the_bytes_are_those_of_the_unbroken_merge(project):
    shapes = {f"layers.{i}.w": (500, 1500) for i in range(24)}
    for seed, name in enumerate(["base2", "a2", "b2"], 1):
        checkpoint(project / name, seed, shapes)
    (project / "merge.yml").write_text(
        "merge_method: dare_ties\nbase_model: base2\nmodels: [{model: a2}, {model: b2}]\n"
        "parameters: {weight: 0.5, density: 0.4}\n"
    )
    assert run(project, "whole").wait() == 0
    stops, partial = 0, project / "out.partial"
    for attempt, name in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]):
        process = run(project, "out", *(["--resume"] if attempt else []))
        deadline = time.monotonic() + 60
        journal = partial / "merge.journal"
        while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3 * (attempt + 1))
        process.send_signal(name)
        process.wait()
        stops += partial.exists()
        if (project / "out").exists():  # all of it, even if the process did not live to say so
            break
    assert stops
    if not (project / "out").exists():
        assert run(project, "out", "--resume").wait() == 0
    for path in (project / "whole").iterdir():
        assert path.read_bytes() == (project / "out" / path.name).read_bytes()


# Not ru_maxrss: that of a child starts from its parent's.
PEAK = r"""
import re, sys
from jaxlab.cli import main
status = main(["merge", "merge.yml", sys.argv[1], "--memory", sys.argv[2], "--no-progress"])
peak = re.search(r"VmHWM:\s*(\d+)", open("/proc/self/status").read())
print(status, peak[1] if peak else 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "budget"), [("ties", 56), ("slerp", 56), ("dare_linear", 80)])
def test_a_checkpoint_eight_times_the_budget_stays_within_it(tmp_path, method, budget):
    shapes = {
        "tiny": {"layers.0.w": (30, 20)},
        "large": {"embed.weight": (50_000, 1024), "layers.0.w": (115_000, 1024)},  # 676 MB
    }
    models = "[{model: a}]" if method == "slerp" else "[{model: a}, {model: b}]"
    given = {"slerp": "t: 0.3", "ties": "weight: 0.5, density: 0.3"}
    parameters = given.get(method, "weight: 0.5, density: 0.5")
    peaks = {}
    for size, of_size in shapes.items():
        folder = tmp_path / size
        folder.mkdir()
        for seed, name in enumerate(["a", "base", "b"]):
            checkpoint(folder / name, seed, of_size)
        (folder / "merge.yml").write_text(
            f"merge_method: {method}\nbase_model: base\nmodels: {models}\n"
            f"parameters: {{{parameters}}}\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "out", f"{budget}M"],
            cwd=folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        status, peak = done.stdout.split("\n")[-2].split()
        assert status == "0", done.stderr
        peaks[size] = int(peak) / 1024
    assert peaks["large"] - peaks["tiny"] < budget

"""What the README says is true: its block runs, its commands exist, imports go one way."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxlab import rwkv7

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_worked_example_runs_and_is_short(capsys):
    block = BLOCKS[0]
    assert len([line for line in block.splitlines() if line.strip()]) < 40
    exec(compile(block, "README.md", "exec"), {})
    assert "reproduced" in capsys.readouterr().out


@pytest.mark.slow
def test_the_lines_on_weights_run(tmp_path, monkeypatch):
    block = BLOCKS[1]
    config = rwkv7.Config(11, n_layer=1, n_embd=16, head_size=16, ranks=(4, 4, 4, 4))
    rwkv7.save(tmp_path / "model.pth", rwkv7.init(jax.random.key(0), config), config)
    monkeypatch.chdir(tmp_path)
    names = {"tokens": jax.numpy.zeros((2, 5), jax.numpy.int32)}
    exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (2, 5, 11)


@pytest.mark.slow
def test_the_lines_on_a_verifier_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(BLOCKS[2], "README.md", "exec"), names)
    assert names["results"].test_pass_at_1.isel(step=-1).notnull().all()


def test_the_lines_on_merging_run():
    base, one, another = ({"kernel": jax.numpy.full((4, 3), x)} for x in (0.0, 1.0, 2.0))
    names = {"base": base, "one": one, "another": another}
    exec(compile(BLOCKS[3], "README.md", "exec"), names)
    assert names["merged"]["kernel"].shape == (32, 4, 3)


def test_every_verdict_but_a_plain_yes_is_explained():
    notes = (ROOT / "experiments" / "README.md").read_text().partition("## Notes on the record")[2]
    for path in (ROOT / "experiments" / "results").glob("*/verdict.json"):
        if json.loads(path.read_text())["status"] != "reproduced":
            assert f"\n`{path.parent.name}`: " in notes, path.parent.name


def test_intervals_in_the_notes_are_those_of_the_records():
    elsewhere = {"-0.093 [-0.209, 0.023]", "0.003 [-0.017, 0.023]"}  # an earlier run's, a guard's
    notes = (ROOT / "experiments" / "README.md").read_text().split("\n\n")
    found = set()
    for path in (ROOT / "experiments" / "results").glob("*/verdict.json"):
        stored = set()
        for part in json.loads(path.read_text())["parts"]:
            numbers = (part["verdict"][key] for key in ("estimate", "low", "high"))
            stored.add("{:.3f} [{:.3f}, {:.3f}]".format(*numbers))
        for note in (n for n in notes if n.startswith(f"`{path.parent.name}`: ")):
            told = set(re.findall(r"-?\d\.\d+ \[.*?\]", note.replace("\n", " "))) - elsewhere
            assert told <= stored, path.parent.name
            found |= told
    assert len(found) >= 5


def test_records_of_changed_code_are_named():
    notes = (ROOT / "experiments" / "README.md").read_text().split("\n\n")
    for path in (ROOT / "experiments" / "results").glob("*/verdict.json"):
        if json.loads(path.read_text())["git"]["dirty"]:
            (note,) = [n for n in notes if n.startswith(f"`{path.parent.name}`: ")]
            assert "local changes" in note.replace("\n", " "), path.parent.name


def test_every_make_target_named_is_there():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


FLOOR = {
    "types": 0, "arrays": 0, "files": 0, "safetensors": 0,
    "ensemble": 1, "stats": 1, "nets": 1, "envs": 1,
    "rwkv7": 2, "values": 2, "merging": 2, "tasks": 2, "worldmodels": 3, "search": 3,
    "agents": 4, "posttrain": 4, "datasets": 5, "report": 5, "bench": 5, "cli": 6,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "jaxlab").rglob("*.py")), ids=str)
def test_imports_go_one_way(path):
    parts = path.relative_to(ROOT / "jaxlab").parts
    room = parts[0].removesuffix(".py")
    if room in ("__init__", "__main__", "_experiments"):
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "jaxlab":
                names = [f"jaxlab.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            assert not name.startswith("experiments")
            if name.startswith("jaxlab."):
                other = name.split(".")[1]
                if other in FLOOR:
                    assert other == room or FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def test_import_is_fast_and_light():
    code = (
        "import time, sys, jax; t = time.perf_counter(); "
        "import jaxlab, jaxlab.ensemble, jaxlab.stats, jaxlab.envs, jaxlab.agents, jaxlab.cli; "
        "print(time.perf_counter() - t); "
        "print([m for m in ('brax', 'orbax', 'xarray', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = out.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 5  # 1.5 s on an idle machine

"""The notebooks run as they stand, from top to bottom, and are kept without outputs."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    source = "\n\n".join("".join(cell["source"]) for cell in code_cells(path))
    script = tmp_path / "notebook.py"
    script.write_text(re.sub(r"^( *)%.*$", r"\1pass", source, flags=re.M))  # magics
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "PYTHONPATH": PATHS}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("| reproduced |" in done.stdout) == ("verdict" in source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_makes_and_stores_none_of_it(path):
    cells = code_cells(path)
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    install, *others = ("".join(cell["source"]) for cell in cells)
    assert "pip install -q git+" in install and "matplotlib inline" in install
    shown = [ast.parse(source).body[-1] for source in others if "plots.curve_plot" in source]
    assert shown and all(isinstance(last, ast.Expr) for last in shown)

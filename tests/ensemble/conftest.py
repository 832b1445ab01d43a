"""The toy experiment that every engine test runs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


def _load():
    spec = importlib.util.spec_from_file_location("ensemble_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def regression():
    return _load().regression


@pytest.fixture(scope="session")
def worker():
    """Starts worker.py, which writes what it says to `out` with the suffix .log.

    What is bitwise the same must be so for programs as users compile them.
    """
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}

    def start(*args, out):
        command = [sys.executable, str(WORKER), "--out", str(out), *map(str, args)]
        with out.with_suffix(".log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    return start

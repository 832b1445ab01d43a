"""Importing the room is cheap, and everything it exports exists and is documented."""

import inspect
import subprocess
import sys

import jaxlab.stats


def test_import_loads_neither_scipy_nor_matplotlib():
    code = (
        "import sys, jax, jaxlab.stats\n"
        "slow = ('scipy.stats', 'scipy.special', 'matplotlib', 'pandas', 'brax')\n"
        "print([m for m in slow if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_public_names_exist_and_are_documented():
    for name in jaxlab.stats.__all__:
        value = getattr(jaxlab.stats, name)
        if inspect.isfunction(value):
            assert value.__doc__.strip(), name
            assert "Args:" in value.__doc__, name

"""Every implementation against the float64 oracle: values, last state and all gradients."""

import itertools

import numpy as np
import pytest
from wkv7_check import check

STATIC = {  # each case is one compilation
    "length": (1, 2, 15, 16, 17, 63, 64, 65, 127, 130, 1000),
    "widths": ((64, 64), (16, 16), (32, 32), (128, 128), (64, 128), (128, 64)),  # (K, D)
    "heads": ((1, 1), (1, 3), (4, 2)),  # (B, H)
    "chunk": (16, 32, 64, 128),
    "dtype": ("float32", "bfloat16", "mixed"),
    "restart": ("never", "from zero", "from a learned state"),
}
DATA = {
    "decay": ("random", "bound", "slow"),
    "keys": ("random", "near", "same"),
    "alpha": ("random", 0, 0.9, 1),
    "resets": ("start", "every7", "edges", "often"),
}
SMALL = STATIC | {
    "length": (17, 65, 130),
    "widths": ((64, 64), (16, 32)),
    "heads": ((1, 1), (3, 2)),
    "chunk": (16, 64),
}


def pairwise(grid, seed=0):
    """Cases that together contain every pair of values of every two factors (greedy)."""
    names = list(grid)
    open_pairs = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(names)), 2)
        for x in range(len(grid[names[a]]))
        for y in range(len(grid[names[b]]))
    }
    rng = np.random.default_rng(seed)
    cases = []
    while open_pairs:
        a, x, b, y = min(open_pairs)
        candidates = []
        for _ in range(60):
            case = [int(rng.integers(len(grid[name]))) for name in names]
            case[a], case[b] = x, y
            covered = {
                (i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(names)), 2)
            }
            candidates.append((len(covered & open_pairs), case, covered))
        _, case, covered = max(candidates, key=lambda candidate: candidate[0])
        open_pairs -= covered
        cases.append({name: grid[name][i] for name, i in zip(names, case)})
    return cases


def describe(case):
    return "-".join(str(value).replace(" ", "") for value in case.values())


def check_all(impl, static):
    static = dict(static)
    restart = static.pop("restart")
    for data in pairwise(DATA):
        if restart == "never":
            data = data | {"resets": "none"}
        check(impl, static | data | {"reset_state": restart == "from a learned state"})


@pytest.mark.parametrize("case", pairwise(SMALL), ids=describe)
def test_chunked_equals_oracle(case):
    check_all("xla", case)


@pytest.mark.parametrize("case", pairwise(SMALL)[1::5], ids=describe)
@pytest.mark.parametrize("impl", ["scan", "xla_ad"])
def test_scan_and_plain_autodiff_equal_oracle(impl, case):
    check_all(impl, case)


@pytest.mark.parametrize("length", [1, 2])
def test_shortest_sequences_equal_oracle(length):
    static = {"length": length, "widths": (16, 32), "heads": (3, 2), "chunk": 16}
    check_all("auto", static | {"dtype": "mixed", "restart": "from a learned state"})


@pytest.mark.slow
@pytest.mark.parametrize("case", pairwise(STATIC), ids=describe)
@pytest.mark.parametrize("impl", ["scan", "xla", "xla_ad"])
def test_whole_grid(impl, case):
    check_all(impl, case)

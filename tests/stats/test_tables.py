"""The table: one readable row per claim, missing numbers included."""

import numpy as np

from jaxlab.stats import Claim, Evidence, Guard, decide, evaluation_seeds, verdict_table


def make_parts():
    guard = Guard("learns", "control learns")
    one = Claim("E1|a", "s", "m", "t", "c", 0.5, -9.0, guards=(guard,))
    two = Claim("E2", "s", "m", "t", "c", 0.25, -9.0, kind="equivalence", required=False)
    control = np.linspace(0.0, 1.0, 20)
    treatment = control + 1.0
    treatment[0] = np.nan
    evidence = Evidence(treatment, control, evaluation_seeds(20), {"learns": (False, "0.1")})
    nothing = Evidence(np.zeros(0), np.zeros(0), ())
    return [(one, decide(one, evidence)), (two, decide(two, nothing))]


def test_table_shows_what_decides():
    lines = verdict_table(make_parts()).split("\n")
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    first = [cell.strip() for cell in lines[2].replace("\\|", "/")[1:-1].split("|")]
    assert first == [
        "E1/a",
        "inconclusive",
        "0.5 [-0.547, 1.55]",
        ">= 0.5",
        "20",
        "0.49",
        "1, 0",
        "0/1, failed: learns",
    ]
    second = [cell.strip() for cell in lines[3][1:-1].split("|")]
    assert second == [
        "E2 (secondary)",
        "inconclusive",
        "- [-, -]",
        "+-0.25",
        "0",
        "-",
        "0, 0",
        "-",
    ]


def test_table_of_nothing_is_a_header():
    assert verdict_table([]).count("\n") == 1

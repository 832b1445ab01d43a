import dataclasses

import pytest

from jaxlab.report.summary import conclusion, duration, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.23456, "1.23"),
        (-0.00012, "-1.20e-04"),
        (12345.0, "1.23e+04"),
        (0.0, "0"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("s", "text"), [(3, "3 s"), (600, "10 min"), (7200, "2.0 h")])
def test_duration(s, text):
    assert duration(s) == text


@pytest.mark.slow
def test_conclusion_names_the_parts_that_decided(record):
    gain, level, cost = record.parts

    def having(part, status, guards=()):
        return dataclasses.replace(
            part, verdict=dataclasses.replace(part.verdict, status=status, guards=guards)
        )

    failed = having(gain, "not_reproduced", (("learns", False, ""), ("room", True, "")))
    text = conclusion("not_reproduced", (failed, level, cost))
    assert "gain" in text and "cost" not in text and text.endswith("guards: learns.")
    text = conclusion("inconclusive", (gain, having(level, "inconclusive"), cost), ("a 1 -> 2",))
    assert "gain" in text and "level" not in text  # secondary parts do not decide
    assert text.endswith("(modified: a 1 -> 2).")
    none = dataclasses.replace(gain, claim=dataclasses.replace(gain.claim, required=False))
    assert "no part" in conclusion("inconclusive", (none,))
    for status, word in (("reproduced", "Reproduced"), ("smoke", "never"), ("invalid", "Invalid")):
        assert word in conclusion(status, record.parts)

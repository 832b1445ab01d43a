import dataclasses

import pytest

from jaxlab.report import multiplicity


def with_p(record, values, required=(True, True, True)):
    parts = tuple(
        dataclasses.replace(
            part,
            claim=dataclasses.replace(part.claim, required=needed),
            verdict=dataclasses.replace(part.verdict, p_value=p),
        )
        for part, p, needed in zip(record.parts, values, required)
    )
    return dataclasses.replace(record, parts=parts)


def test_the_weakest_required_part_decides(record):
    assert multiplicity.p_value(with_p(record, (0.01, 0.9, 0.03), (True, False, True))) == 0.03
    assert multiplicity.p_value(with_p(record, (0.01, None, 0.03))) == 1.0
    assert multiplicity.p_value(with_p(record, (0.01, 0.02, 0.03), (False,) * 3)) == 1.0


def test_q_values_by_hand(record):
    # Benjamini and Hochberg: 4 * .01 / 1, 4 * .03 / 2 = .06 and 4 * .04 / 3 = .0533, 4 * .5 / 4.
    records = [with_p(record, (p, p, p)) for p in (0.5, 0.01, 0.04, 0.03)]
    expected = [0.5, 0.04, 4 * 0.04 / 3, 4 * 0.04 / 3]
    assert multiplicity.q_values(records) == pytest.approx(expected, rel=1e-5)
    assert multiplicity.q_values([]) == []


def test_expected_false_reproduced_is_the_least_error_of_each(record):
    assert multiplicity.expected_false_reproduced([record] * 46) == pytest.approx(46 * 0.025)
    level = next(part for part in record.parts if part.claim.kind == "equivalence")
    needed = dataclasses.replace(level, claim=dataclasses.replace(level.claim, required=True))
    both = dataclasses.replace(record, parts=(*record.parts, needed))
    alone = dataclasses.replace(record, parts=(needed,))
    assert multiplicity.expected_false_reproduced([both, alone]) == pytest.approx(0.025 + 0.05)


def test_smoke_and_invalid_are_no_tests(record):
    statuses = ("smoke", "invalid", "reproduced", "inconclusive", "not_reproduced")
    records = [dataclasses.replace(record, status=status) for status in statuses]
    assert [r.status for r in multiplicity.judged(records)] == list(statuses[2:])

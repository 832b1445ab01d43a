import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import equiv, equiv_formats
from jaxlab.tasks.vocabulary import EOS

LETTERS = {"-": 26, ".": 25, "/": 23, "+": 20, "E": 2, "_": 0, "J": 77, "n": 21}
LETTERS |= {str(i): 10 + i for i in range(10)}
CONFIG = equiv.Config()


def tokens(text, width=12):
    return jnp.asarray([LETTERS[c] for c in text.ljust(width, "_")], jnp.int32)


def read(ids):
    """The grammar by a regular expression on letters; None if it is no number."""
    names = {v: k for k, v in LETTERS.items()}
    text = "".join(names.get(int(i), "?") for i in ids)
    found = re.match(r"^(-?)(\d+)(?:\.(\d+)|/(\d+))?[E_]", text)
    if not found:
        return None
    sign, front, places, below = found.groups()
    if len(front) + len(places or "") > 4 or len(below or "") > 4:
        return None
    if below and int(below) == 0:
        return None
    value = Fraction(int(front + (places or "")), int(below or 10 ** len(places or "")))
    return -value if sign else value


@pytest.mark.parametrize(
    ("text", "want"),
    [("12E", (12, 1)), ("-3/4E", (-3, 4)), ("6/8E", (6, 8)), ("0.125E", (125, 1000)),
     ("2.50E", (250, 100)), ("-0E", (0, 1)), ("007E", (7, 1)), ("9999/9999E", (9999, 9999)),
     ("5_J", (5, 1)), ("5EJJ", (5, 1)), ("1/0E", None), ("3/00E", None), ("1.E", None),
     (".5E", None), ("1/2/3E", None), ("1.5/2E", None), ("+1E", None), ("E", None), ("", None),
     ("12345E", None), ("1.2345E", None), ("1/12345E", None), ("--1E", None), ("1-E", None),
     ("-E", None), ("1/-2E", None), ("1.2.3E", None), ("n1E", None), ("J5E", None)],
)  # fmt: skip
def test_parser(text, want):
    got = equiv_formats.parse_rational(tokens(text))
    assert bool(got.valid) == (want is not None)
    assert (int(got.num), int(got.den)) == (want or (0, 1))


def test_text_without_an_end_is_no_number():
    assert not equiv_formats.parse_rational(jnp.asarray([11, 12])).valid


def test_parser_agrees_with_a_regular_expression_on_any_text():
    rng = np.random.default_rng(0)
    rows = rng.choice(list(LETTERS.values()), (6000, 7)).astype(np.int32)
    rows[:3000] = rng.choice([10, 11, 12, 23, 25, 26, 2], (3000, 7))
    got = jax.jit(jax.vmap(equiv_formats.parse_rational))(jnp.asarray(rows))
    valid = 0
    for row, num, den, good in zip(rows, *(np.asarray(x).tolist() for x in got[:3])):
        want = read(row)
        assert good == (want is not None), row
        valid += good
        assert not good or Fraction(num, den) == want
    assert valid > 300


def value_of(problem):
    return [Fraction(n, d) for n, d in zip(problem.num.tolist(), problem.den.tolist())]


def test_values_and_formats(draw):
    problem, good = draw(equiv.make(), 400)
    assert good.all()
    functions = {20: Fraction.__add__, 21: Fraction.__sub__, 22: Fraction.__mul__}
    values = value_of(problem)
    for terms, op, value in zip(problem.terms.tolist(), problem.operator.tolist(), values):
        a, b, c, d = terms
        assert functions[op](Fraction(a, b), Fraction(c, d)) == value
    assert {v.denominator for v in values} == {1, 2, 4, 5, 8, 10, 20} and min(values) < 0
    write = jax.jit(jax.vmap(equiv_formats.render))
    patterns = [r"-?\d+(/\d+)?", r"-?\d+/\d+", r"-?\d+(\.\d*[1-9])?", r"-?\d+\.\d+", r"-?\d+.*"]
    names = {v: k for k, v in LETTERS.items()}
    for style, factor in [(0, 2), (1, 2), (1, 3), (2, 2), (3, 2), (4, 2), (4, 3)]:
        fill = [jnp.full_like(problem.num, x) for x in (style, factor)]
        for row, value in zip(np.asarray(write(problem.num, problem.den, *fill)), values):
            text = "".join(names[i] for i in row.tolist())
            assert read(row) == value, text
            stem = text[: text.index("E")]
            assert text[len(stem) + 1 :].strip("_") == ""
            assert re.fullmatch(patterns[style], stem), (style, stem)
            above, _, below = stem.lstrip("-").partition("/")
            if style == 0:
                assert (int(above), int(below or 1)) == (abs(value.numerator), value.denominator)
            if style == 1:
                assert int(below) == factor * value.denominator
            if style == 3:  # one zero more, if the parser takes so many digits
                count = sum(c.isdigit() for c in stem)
                assert stem.endswith("0") or count == equiv_formats.MAX_DIGITS
            if style == 4 and value.denominator == 1:
                assert stem.endswith(".0" if factor == 2 else "/1")


def rows_of(problem):
    """All formats of one problem with both factors."""
    return jnp.stack([
        equiv_formats.render(problem.num, problem.den, jnp.int32(style), jnp.int32(factor))
        for style in range(5) for factor in (2, 3)
    ])  # fmt: skip


def accepted(verifier, num, den):
    """Which formats (rows) are accepted against which references (columns)."""
    problem = equiv.Problem(None, None, jnp.int32(num), jnp.int32(den), *[None] * 4)
    rows = rows_of(problem)
    return np.asarray(jax.jit(jax.vmap(jax.vmap(verifier, (None, 0)), (0, None)))(rows, rows))


@pytest.mark.parametrize(
    ("verifier", "num", "den", "recall"),
    [  # formats have a fifth each; of a fraction F4 is F0
        (equiv.oracle, 3, 4, 1.0),
        (equiv.rule_exact, 3, 4, 0.4**2 + 0.2**2 / 2 + 2 * 0.2**2),
        (equiv.rule_fraction, 3, 4, 0.6**2),
        (equiv.rule_numeric, 3, 4, 0.4**2),
        # of an integer F0 is F2, half of F4 is F3, the other half a fraction
        (equiv.oracle, -7, 1, 1.0),
        (equiv.rule_exact, -7, 1, 0.4**2 + 0.2**2 / 2 + 0.3**2 + 0.1**2),
        (equiv.rule_fraction, -7, 1, 0.7**2),
        (equiv.rule_numeric, -7, 1, 0.7**2),
    ],
)
def test_recall_is_a_sum_over_the_formats(verifier, num, den, recall):
    assert accepted(verifier, num, den).mean() == pytest.approx(recall)


@pytest.mark.slow
def test_precision_is_one_and_the_reference_is_always_accepted(draw):
    problem, _ = draw(equiv.make(), 60)
    references = jax.jit(jax.vmap(equiv.reference_tokens))(problem)
    values = value_of(problem)
    same = np.asarray([[a == b for b in values] for a in values])
    for verifier in (equiv.oracle, equiv.rule_exact, equiv.rule_fraction, equiv.rule_numeric):
        pairs = jax.jit(jax.vmap(jax.vmap(verifier, (None, 0)), (0, None)))
        verdict = np.asarray(pairs(references, references))
        assert not (verdict & ~same).any()
        if verifier in (equiv.oracle, equiv.rule_exact):
            assert verdict.diagonal().all()
        if verifier is equiv.oracle:
            np.testing.assert_array_equal(verdict, same)


def test_hybrid():
    rule, model, plain = (jnp.asarray([i >> b & 1 for i in range(8)], bool) for b in (2, 1, 0))
    got = equiv.hybrid(rule, model, plain)
    assert got.tolist() == [False, False, True, False, True, True, True, True]
    assert bool(equiv.both_plain(tokens("1.5E"), tokens("2E")))
    assert not bool(equiv.both_plain(tokens("1.5E"), tokens("3/2E")))
    assert not bool(equiv.both_plain(tokens("JE"), tokens("3E")))


def test_an_answer_without_its_end_is_wrong():
    reference = tokens("3/4E")
    for text, want in (("3/4E", True), ("3/4___", False), ("3/4_E", False), ("0.75EJ", True)):
        for verifier in (equiv.oracle,):
            assert bool(verifier(tokens(text, len(text)), reference)) == want
    assert not bool(equiv.rule_exact(tokens("3/4", 3), reference))
    assert EOS not in tokens("3/4", 3).tolist()


def test_mixes_are_kept_and_hidden(draw):
    config = equiv.Config(reference_mix=(0.5, 0, 0.5, 0, 0), solution_mix=(0, 1, 0, 0, 0))
    problem, _ = draw(equiv.make(config), 1000)
    share = float((problem.reference_format == 0).mean())
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(1000)
    assert set(problem.reference_format.tolist()) == {0, 2}
    assert set(problem.solution_format.tolist()) == {1}
    for field, value in (
        ("largest", 0), ("denominators", (3,)), ("operators", ()), ("solution_mix", (1, 1, 0, 0, 0))
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}: expected"):
            equiv.Config(**{field: value})

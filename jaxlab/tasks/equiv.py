"""Answers with many equivalent formats, and verifiers that know some of them.

Prompt: BOS EQUIV a '/' b op c '/' d QRY, all numbers with two digits. Completion: the value in any
format, EOS. The format of the reference is drawn per problem and never shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks.equiv_formats import (
    DENOMINATORS,
    FORMATS,
    LENGTH,
    Rational,
    finished,
    parse_rational,
    render,
    writable,
)
from jaxlab.tasks.sequences import first
from jaxlab.tasks.task import Task
from jaxlab.tasks.vocabulary import (
    BOS,
    DIGITS,
    DIVIDE,
    EOS,
    EQUIV,
    MINUS,
    NEG,
    PLUS,
    POINT,
    QRY,
    TIMES,
    VOCAB_SIZE,
    digits,
)

OPERATORS = (PLUS, MINUS, TIMES)
_WIDTH = 2
Mix = tuple[float, float, float, float, float]
EVEN: Mix = (0.2, 0.2, 0.2, 0.2, 0.2)


@dataclass(frozen=True)
class Config:
    """Sizes of the fractions and shares of the formats."""

    largest: int = 9  # numerators are 1 to this
    denominators: tuple[int, ...] = DENOMINATORS
    operators: tuple[int, ...] = OPERATORS
    reference_mix: Mix = EVEN  # of the hidden reference
    solution_mix: Mix = EVEN  # of the solutions to learn from, drawn independently
    tries: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.largest <= 99:
            raise ValueError(f"largest: expected 1 to 99, got {self.largest}")
        if not self.denominators or not set(self.denominators) <= set(DENOMINATORS):
            raise ValueError(
                f"denominators: expected some of {DENOMINATORS}, got {self.denominators}"
            )
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"operators: expected some of {OPERATORS}, got {self.operators}")
        if self.tries < 1:
            raise ValueError(f"tries: expected at least 1, got {self.tries}")
        for name in ("reference_mix", "solution_mix"):
            mix = getattr(self, name)
            if len(mix) != FORMATS or min(mix) < 0 or abs(sum(mix) - 1) > 1e-6:
                raise ValueError(f"{name}: expected {FORMATS} shares that sum to 1, got {mix}")

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return 6 + 4 * _WIDTH

    @property
    def solution_length(self) -> int:
        """Tokens of the longest solution."""
        return LENGTH


class Problem(NamedTuple):
    """a/b op c/d = num/den in lowest terms, and how it is written."""

    terms: Int[Array, " 4"]  # a, b, c, d
    operator: Int[Array, ""]  # token
    num: Int[Array, ""]
    den: Int[Array, ""]
    reference_format: Int[Array, ""]
    reference_factor: Int[Array, ""]
    solution_format: Int[Array, ""]
    solution_factor: Int[Array, ""]


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws an expression whose value can be written in all formats.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem, and False if no draw has such a value.
    """
    tops, bottoms, ops, reference, solution = jax.random.split(key, 5)
    shape = (config.tries, 2)
    num = jax.random.randint(tops, shape, 1, config.largest + 1, jnp.int32)
    table = jnp.asarray(config.denominators, jnp.int32)
    den = table[jax.random.randint(bottoms, shape, 0, len(config.denominators), jnp.int32)]
    table = jnp.asarray(config.operators, jnp.int32)
    operator = table[jax.random.randint(ops, shape[:1], 0, len(config.operators), jnp.int32)]
    (a, c), (b, d) = num.T, den.T
    top = jnp.select([operator == PLUS, operator == MINUS], [a * d + c * b, a * d - c * b], a * c)
    common = jnp.maximum(jnp.gcd(jnp.abs(top), b * d), 1)
    top, bottom = top // common, b * d // common
    good = jax.vmap(writable)(top, bottom)
    at = jnp.argmax(good)
    problem = Problem(
        jnp.stack([a[at], b[at], c[at], d[at]]),
        operator[at],
        top[at],
        bottom[at],
        *_draw_format(reference, config.reference_mix),
        *_draw_format(solution, config.solution_mix),
    )
    return problem, jnp.any(good)


def _draw_format(key: Array, mix: Mix) -> tuple[Array, Array]:
    which, factor = jax.random.split(key)
    style = jax.random.choice(which, FORMATS, p=jnp.asarray(mix, jnp.float32))
    return style.astype(jnp.int32), jax.random.randint(factor, (), 2, 4, jnp.int32)


def identity(problem: Problem) -> Int[Array, " n"]:
    """The expression; the formats do not tell problems apart."""
    return jnp.concatenate([problem.terms, problem.operator[None]])


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The question.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens.
    """
    a, b, c, d = (digits(term, _WIDTH) for term in problem.terms)
    begin, over, end = (jnp.asarray(t, jnp.int32) for t in ([BOS, EQUIV], [DIVIDE], [QRY]))
    return jnp.concatenate([begin, a, over, b, problem.operator[None], c, over, d, end])


def reference_tokens(problem: Problem) -> Int[Array, " L"]:
    """The hidden reference: tokens, EOS, `PAD` behind it."""
    return render(problem.num, problem.den, problem.reference_format, problem.reference_factor)


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """A right answer in a format of its own.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens, EOS, `PAD` behind it.
    """
    return render(problem.num, problem.den, problem.solution_format, problem.solution_factor)


def equal(a: Rational, b: Rational) -> Bool[Array, ""]:
    """Whether both are numbers and the same; -0 is 0."""
    return a.valid & b.valid & (a.num * b.den == b.num * a.den)


def oracle(completion: Int[Array, " T"], reference: Int[Array, " L"]) -> Bool[Array, ""]:
    """Accepts every way to write the reference's value."""
    return equal(parse_rational(finished(completion)), parse_rational(reference))


def rule_exact(completion: Int[Array, " T"], reference: Int[Array, " L"]) -> Bool[Array, ""]:
    """Accepts the reference's tokens alone."""
    stop, end = first(completion == EOS), first(reference == EOS)
    size = max(completion.shape[0], reference.shape[0])
    place = jnp.arange(size)

    def padded(tokens: Array) -> Array:
        return jnp.pad(tokens, (0, size - tokens.shape[0]), constant_values=-1)

    same = (padded(completion) == padded(reference)) | (place >= end)
    return (stop == end) & (stop < completion.shape[0]) & jnp.all(same)


def rule_fraction(completion: Int[Array, " T"], reference: Int[Array, " L"]) -> Bool[Array, ""]:
    """Compares fractions and integers; a decimal on either side is refused."""
    a, b = parse_rational(finished(completion)), parse_rational(reference)
    return equal(a, b) & ~a.decimal & ~b.decimal


def rule_numeric(completion: Int[Array, " T"], reference: Int[Array, " L"]) -> Bool[Array, ""]:
    """Compares decimals and integers as floats to 1e-6; a fraction on either side is refused."""
    a, b = parse_rational(finished(completion)), parse_rational(reference)
    x, y = (r.num.astype(jnp.float32) / r.den.astype(jnp.float32) for r in (a, b))
    return a.valid & b.valid & (jnp.abs(x - y) <= 1e-6) & ~a.fraction & ~b.fraction


def both_plain(completion: Int[Array, " T"], reference: Int[Array, " L"]) -> Bool[Array, ""]:
    """Whether both sides are plain numbers, integers or decimals."""
    a, b = parse_rational(finished(completion)), parse_rational(reference)
    return a.valid & b.valid & ~a.fraction & ~b.fraction


def hybrid(
    rule: Bool[Array, "*b"], model: Bool[Array, "*b"], plain: Bool[Array, "*b"]
) -> Bool[Array, "*b"]:
    """A rule first; the model may accept what the rule refuses, unless both are plain numbers.

    Args:
        rule: verdict of a rule.
        model: verdict of a learned verifier.
        plain: from `both_plain`.

    Returns:
        The verdict.

    Reference: Huang et al. 2025, Pitfalls of Rule- and Model-based Verifiers, section 4.
    """
    return rule | (model & ~plain)


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether the value is right, in whatever format.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    return oracle(completion, reference_tokens(problem)).astype(jnp.float32)


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`.
    """

    def judge(problem: Problem, completion: Array) -> Array:
        return outcome(problem, completion, config)

    return Task(
        name="equiv",
        vocab_size=VOCAB_SIZE,
        stop=EOS,
        used=(BOS, EQUIV, DIVIDE, POINT, NEG, QRY, *DIGITS, *config.operators, EOS),
        prompt_length=config.prompt_length,
        solution_length=config.solution_length,
        sample=lambda key: sample(key, config),
        identity=identity,
        prompt=lambda problem: prompt_tokens(problem, config),
        solution=lambda problem: solution_tokens(problem, config),
        outcome=judge,
        reward=judge,
    )

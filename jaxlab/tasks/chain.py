"""Chains of modular arithmetic with worked steps.

Prompt: BOS CHAIN x0 (op d)*n QRY, with a hint: HINT and the first reference steps.
Solution: steps "x op d = x' STEP", then ANS x_n EOS; everything modulo p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks.sequences import StepLabels, at, read_answer, read_digits, segments
from jaxlab.tasks.task import Task
from jaxlab.tasks.vocabulary import (
    ANS,
    BOS,
    CHAIN,
    DIGITS,
    EOS,
    EQUALS,
    HINT,
    MINUS,
    PLUS,
    QRY,
    STEP,
    TIMES,
    VOCAB_SIZE,
    digits,
)

OPERATORS = (PLUS, MINUS, TIMES)


@dataclass(frozen=True)
class Config:
    """Sizes of the chain."""

    n_steps: int = 4
    p: int = 10  # the modulus; from 11 on numbers have two digits
    operators: tuple[int, ...] = OPERATORS
    avoid_collapse: bool = True  # no multiplication by 0, which would hide earlier errors
    style: Literal["full", "values"] = "full"  # "values" writes results without the operations
    merge: int = 1  # operations per written step
    hint: int = 0  # written steps given away in the prompt

    def __post_init__(self) -> None:
        if not self.n_steps >= 1:
            raise ValueError(f"n_steps: expected at least 1, got {self.n_steps}")
        if not 2 <= self.p <= 100:
            raise ValueError(f"p: expected 2 to 100, got {self.p}")
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"operators: expected some of {OPERATORS}, got {self.operators}")
        if self.style not in ("full", "values"):
            raise ValueError(f'style: expected "full" or "values", got {self.style!r}')
        if self.merge < 1 or self.n_steps % self.merge:
            raise ValueError(
                f"merge: expected a divisor of n_steps {self.n_steps}, got {self.merge}"
            )
        if not 0 <= self.hint <= self.written:
            raise ValueError(f"hint: expected 0 to {self.written} steps, got {self.hint}")

    @property
    def width(self) -> int:
        """Digits of a number."""
        return 1 if self.p <= 10 else 2

    @property
    def written(self) -> int:
        """Number of written steps."""
        return self.n_steps // self.merge

    @property
    def step_length(self) -> int:
        """Tokens of a written step, its STEP included."""
        w = self.width
        return w + 1 if self.style == "values" else (self.merge + 1) * (w + 1) + w + 1

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        hint = 1 + self.hint * self.step_length if self.hint else 0
        return 3 + self.width + self.n_steps * (1 + self.width) + hint

    @property
    def solution_length(self) -> int:
        """Tokens of a solution."""
        return self.written * self.step_length + self.width + 2


class Problem(NamedTuple):
    """x_i = x_{i-1} op_i d_i mod p."""

    start: Int[Array, ""]
    operator: Int[Array, " n"]  # tokens
    operand: Int[Array, " n"]
    value: Int[Array, " n"]  # x_1, ..., x_n


def apply_operator(operator: Array, left: Array, right: Array, p: int) -> Array:
    """left op right, modulo p."""
    result = jnp.where(
        operator == PLUS,
        left + right,
        jnp.where(operator == MINUS, left - right, left * right),
    )
    return result % p


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a chain; never fails.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem and True.
    """
    keys = jax.random.split(key, 3)
    n = config.n_steps
    start = jax.random.randint(keys[0], (), 0, config.p, jnp.int32)
    table = jnp.asarray(config.operators, jnp.int32)
    operator = table[jax.random.randint(keys[1], (n,), 0, len(config.operators), jnp.int32)]
    least = jnp.where((operator == TIMES) & config.avoid_collapse, 1, 0)
    operand = jax.random.randint(keys[2], (n,), least, config.p, jnp.int32)

    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        x = apply_operator(pair[0], x, pair[1], config.p)
        return x, x

    _, value = jax.lax.scan(step, start, (operator, operand))
    return Problem(start, operator, operand, value), jnp.asarray(True)


def identity(problem: Problem) -> Int[Array, " n"]:
    """What tells this problem from others."""
    return jnp.concatenate([problem.start[None], problem.operator, problem.operand])


def _operations(problem: Problem, config: Config) -> Int[Array, "n w+1"]:
    return jnp.concatenate(
        [problem.operator[:, None], digits(problem.operand, config.width)], axis=1
    )


def _steps(problem: Problem, config: Config) -> Int[Array, "S L"]:
    """The written reference steps."""
    results = problem.value[config.merge - 1 :: config.merge]
    ends = jnp.full((config.written, 1), STEP, jnp.int32)
    written = [digits(results, config.width), ends]
    if config.style == "full":
        left = jnp.concatenate([problem.start[None], results[:-1]])
        operations = _operations(problem, config).reshape(config.written, -1)
        equals = jnp.full_like(ends, EQUALS)
        written = [digits(left, config.width), operations, equals, *written]
    return jnp.concatenate(written, axis=1)


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The question.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens, the hint included.
    """
    parts = [
        jnp.asarray([BOS, CHAIN], jnp.int32),
        digits(problem.start, config.width),
        _operations(problem, config).reshape(-1),
        jnp.asarray([QRY], jnp.int32),
    ]
    if config.hint:
        given = _steps(problem, config)[: config.hint].reshape(-1)
        parts += [jnp.asarray([HINT], jnp.int32), given]
    return jnp.concatenate(parts)


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """The reference solution, whole even if there is a hint.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens up to and including EOS.
    """
    steps = _steps(problem, config).reshape(-1)
    answer = digits(problem.value[-1], config.width)
    answer = jnp.pad(jnp.pad(answer, (1, 0), constant_values=ANS), (0, 1), constant_values=EOS)
    return jnp.concatenate([steps, answer])


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether the answer is right: exactly x_n between the last ANS and the first EOS.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    answer = read_answer(completion, config.width)
    return (answer == problem.value[-1]).astype(jnp.float32)


def step_labels(problem: Problem, completion: Int[Array, " T"], config: Config) -> StepLabels:
    """Local correctness of each written step; the answer counts as the last step.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        Rows for the reference steps and one more. A step is right if it has the exact shape, goes
        on from the number written before and is right for that number, be it right or wrong
        itself; further steps are wrong. The row of the answer holds `outcome`.
    """
    w, written = config.width, config.written
    cut = segments(completion, written + 1)
    result, result_good = read_digits(completion, cut.end - w, w)
    before = jnp.concatenate([problem.start[None], result[:-1]])
    before_good = jnp.concatenate([jnp.ones(1, bool), result_good[:-1]])
    good = before_good & result_good & (cut.end - cut.start + 1 == config.step_length)
    operations = _operations(problem, config).reshape(written, config.merge, w + 1)
    operations = jnp.pad(operations, ((0, 1), (0, 0), (0, 0)), constant_values=-1)
    if config.style == "full":
        left, left_good = read_digits(completion, cut.start, w)
        good = good & left_good & (left == before)
        places = cut.start[:, None] + w + jnp.arange(config.merge * (w + 1))[None, :]
        flat = operations.reshape(written + 1, -1)
        good = good & jnp.all(at(completion, places) == flat, axis=1)
        good = good & (at(completion, cut.start + w + flat.shape[1]) == EQUALS)
    value = jnp.maximum(before, 0)
    for i in range(config.merge):
        operand = jnp.pad(problem.operand[i :: config.merge], (0, 1))
        value = apply_operator(operations[:, i, 0], value, operand, config.p)
    reference = jnp.arange(written + 1) < written
    good = good & (result == value) & reference & ~cut.final & cut.present
    label = jnp.where(cut.final, outcome(problem, completion, config), good.astype(jnp.float32))
    return StepLabels(label, cut.present, cut.end)


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`.
    """

    def judge(problem: Problem, completion: Array) -> Array:
        return outcome(problem, completion, config)

    used = (BOS, CHAIN, QRY, *DIGITS, *config.operators, STEP, ANS, EOS)
    used += (EQUALS,) if config.style == "full" else ()
    used += (HINT,) if config.hint else ()
    return Task(
        name="chain",
        vocab_size=VOCAB_SIZE,
        stop=EOS,
        used=used,
        prompt_length=config.prompt_length,
        solution_length=config.solution_length,
        sample=lambda key: sample(key, config),
        identity=identity,
        prompt=lambda problem: prompt_tokens(problem, config),
        solution=lambda problem: solution_tokens(problem, config),
        outcome=judge,
        reward=judge,
    )

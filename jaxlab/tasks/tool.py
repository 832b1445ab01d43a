"""A calculator to call, and pairs of a right and a wrong answer.

Prompt: BOS TOOL a op b QRY. Candidate: ANS c EOS. A call, written by the model, is
"CALL a op b = END"; the environment then forces "OBS r END", or "OBS NEG END" if it is malformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks.sequences import is_digit, read_answer
from jaxlab.tasks.task import Environment, Task
from jaxlab.tasks.vocabulary import (
    ANS,
    BOS,
    CALL,
    DIGIT,
    DIGITS,
    END,
    EOS,
    EQUALS,
    MINUS,
    NEG,
    OBS,
    PLUS,
    QRY,
    TIMES,
    TOOL,
    VOCAB_SIZE,
    digits,
)

OPERATORS = (PLUS, MINUS, TIMES)


@dataclass(frozen=True)
class Config:
    """Sizes of the operands."""

    first_digits: int = 2  # digits of a
    second_digits: int = 2  # digits of b
    width: int | None = None  # slots an operand is written in; the larger of the two if None
    operators: tuple[int, ...] = OPERATORS
    style: Literal["direct", "call"] = "direct"  # what the reference solution does
    tool_fail_prob: float = 0.0  # the calculator then gives a uniformly random result

    def __post_init__(self) -> None:
        for name in ("first_digits", "second_digits"):
            if not 1 <= getattr(self, name) <= 3:
                raise ValueError(f"{name}: expected 1 to 3, got {getattr(self, name)}")
        most = max(self.first_digits, self.second_digits)
        if self.width is None:
            object.__setattr__(self, "width", most)
        elif not most <= self.width <= 4:
            raise ValueError(f"width: expected {most} to 4, got {self.width}")
        if not self.operators or not set(self.operators) <= set(OPERATORS):
            raise ValueError(f"operators: expected some of {OPERATORS}, got {self.operators}")
        if self.style not in ("direct", "call"):
            raise ValueError(f'style: expected "direct" or "call", got {self.style!r}')
        if not 0 <= self.tool_fail_prob <= 1:
            raise ValueError(f"tool_fail_prob: expected 0 to 1, got {self.tool_fail_prob}")

    @property
    def slots(self) -> int:
        """Digits that an operand is written with."""
        return self.width or max(self.first_digits, self.second_digits)

    @property
    def answer_width(self) -> int:
        """Digits of an answer: five, more where the operands of a call could need them."""
        return max(5, 2 * self.slots)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return 4 + 2 * self.slots

    @property
    def solution_length(self) -> int:
        """Tokens of a solution."""
        call = 2 * self.slots + 4 + self.answer_width + 2 if self.style == "call" else 0
        return call + self.answer_width + 2


class Problem(NamedTuple):
    """a op b = c, a wrong answer, and what the calculator will do."""

    left: Int[Array, ""]
    operator: Int[Array, ""]  # token
    right: Int[Array, ""]
    answer: Int[Array, ""]
    wrong: Int[Array, ""]  # differs from the answer in one digit
    fails: Int[Array, ""]  # 1 if the calculator gives `noise`
    noise: Int[Array, ""]


def calculate(
    operator: Int[Array, "*b"], left: Int[Array, "*b"], right: Int[Array, "*b"]
) -> tuple[Int[Array, "*b"], Bool[Array, "*b"]]:
    """left op right.

    Args:
        operator: token; any id.
        left: at least 0.
        right: at least 0.

    Returns:
        The result, and whether there is one: an unknown operator or a negative difference is none.
    """
    result = jnp.select(
        [operator == PLUS, operator == MINUS, operator == TIMES],
        [left + right, left - right, left * right],
        -1,
    )
    return jnp.maximum(result, 0), result >= 0


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a calculation and a wrong answer to it; never fails.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem and True.
    """
    a, b, op, place, change, failing, noise = jax.random.split(key, 7)

    def operand(key: Array, count: int) -> Array:
        return jax.random.randint(
            key, (), 0 if count == 1 else 10 ** (count - 1), 10**count, jnp.int32
        )

    left, right = operand(a, config.first_digits), operand(b, config.second_digits)
    table = jnp.asarray(config.operators, jnp.int32)
    operator = table[jax.random.randint(op, (), 0, len(config.operators), jnp.int32)]
    swap = (operator == MINUS) & (left < right)
    left, right = jnp.where(swap, right, left), jnp.where(swap, left, right)
    answer, _ = calculate(operator, left, right)
    power = 10 ** jax.random.randint(place, (), 0, config.answer_width, jnp.int32)
    old = (answer // power) % 10
    new = (old + jax.random.randint(change, (), 1, 10, jnp.int32)) % 10
    fails = (jax.random.uniform(failing, (), jnp.float32) < config.tool_fail_prob).astype(jnp.int32)
    random = jax.random.randint(noise, (), 0, 10**config.answer_width, jnp.int32)
    wrong = answer + (new - old) * power
    return Problem(left, operator, right, answer, wrong, fails, random), jnp.asarray(True)


def identity(problem: Problem) -> Int[Array, " n"]:
    """What tells this problem from others; operands that may change places do not."""
    low, high = (f(problem.left, problem.right) for f in (jnp.minimum, jnp.maximum))
    return jnp.stack([problem.operator, low, high])


def _expression(problem: Problem, config: Config) -> Int[Array, " n"]:
    left, right = (digits(x, config.slots) for x in (problem.left, problem.right))
    return jnp.concatenate([left, problem.operator[None], right])


def _between(before: int, tokens: Array, *after: int) -> Array:
    tokens = jnp.pad(tokens, (1, 0), constant_values=before)
    return jnp.concatenate([tokens, jnp.asarray(after, jnp.int32)])


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The question.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens.
    """
    return jnp.concatenate(
        [jnp.asarray([BOS], jnp.int32), _between(TOOL, _expression(problem, config), QRY)]
    )


def candidate_tokens(answer: Int[Array, ""], config: Config) -> Int[Array, " n"]:
    """An answer as a completion.

    Args:
        answer: of a problem, right or wrong.
        config: sizes.

    Returns:
        ANS, digits, EOS.
    """
    return _between(ANS, digits(answer, config.answer_width), EOS)


def observation(problem: Problem) -> Int[Array, ""]:
    """What the calculator says to the problem's own calculation."""
    return jnp.where(problem.fails > 0, problem.noise, problem.answer)


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """The reference solution; in style "call" it asks the calculator and answers what is true.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens up to and including EOS.
    """
    answer = candidate_tokens(problem.answer, config)
    if config.style == "direct":
        return answer
    call = _between(CALL, _expression(problem, config), EQUALS, END)
    said = _between(OBS, digits(observation(problem), config.answer_width), END)
    return jnp.concatenate([call, said, answer])


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether the answer is right.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    answer = read_answer(completion, config.answer_width)
    return (answer == problem.answer).astype(jnp.float32)


class ToolState(NamedTuple):
    """Where the calculator is in reading a call or in writing its reply."""

    place: Int[Array, ""]  # tokens read of a call, -1 outside of one
    good: Bool[Array, ""]  # the call is well formed so far
    left: Int[Array, ""]
    operator: Int[Array, ""]
    right: Int[Array, ""]
    reply: Int[Array, " R"]  # OBS ... END, -1 behind it
    said: Int[Array, ""]  # tokens of the reply written
    fails: Int[Array, ""]
    noise: Int[Array, ""]


def tool_start(problem: Problem, config: Config) -> ToolState:
    """A calculator that nobody has called.

    Args:
        problem: decides whether the calculator fails.
        config: sizes.

    Returns:
        Its state.
    """
    zero, size = jnp.int32(0), config.answer_width + 2
    reply = jnp.full(size, -1, jnp.int32)
    return ToolState(
        jnp.int32(-1), jnp.asarray(False), zero, zero, zero, reply, jnp.int32(size),
        problem.fails, problem.noise,
    )  # fmt: skip


def tool_step(
    state: ToolState, token: Int[Array, ""], config: Config
) -> tuple[ToolState, Int[Array, ""]]:
    """Reads one token.

    Args:
        state: of the calculator.
        token: just emitted, by the model or forced; any id.
        config: sizes.

    Returns:
        The new state, and the token that comes next whatever the model wants, -1 if it may choose.
    """
    w, size = config.slots, config.answer_width + 2
    place = state.place
    reading = place >= 0
    digit = jnp.where(is_digit(token), token - DIGIT, 0)
    in_left, in_right = place < w, (place > w) & (place <= 2 * w)
    fits = jnp.where(in_left | in_right, is_digit(token), True)
    fits = jnp.where(place == 2 * w + 1, token == EQUALS, fits) & (place <= 2 * w + 2)
    good = state.good & fits & (token != CALL)
    left = jnp.where(reading & in_left, 10 * state.left + digit, state.left)
    right = jnp.where(reading & in_right, 10 * state.right + digit, state.right)
    operator = jnp.where(reading & (place == w), token, state.operator)

    closes = reading & (token == END)
    result, exists = calculate(operator, left, right)
    result = jnp.where(state.fails > 0, state.noise, result)
    fine = state.good & (place == 2 * w + 2) & exists
    right_reply = _between(OBS, digits(result, config.answer_width), END)
    error = jnp.full(size, -1, jnp.int32).at[:3].set(jnp.asarray([OBS, NEG, END], jnp.int32))
    reply = jnp.where(closes, jnp.where(fine, right_reply, error), state.reply)

    said = jnp.where(closes, 0, jnp.minimum(state.said + 1, size))
    forced = jnp.where(said < size, reply[jnp.clip(said, 0, size - 1)], -1)
    speaking = forced >= 0
    opens = ~reading & ~speaking & (token == CALL)
    new = ToolState(
        place=jnp.where(closes, -1, jnp.where(opens, 0, jnp.where(reading, place + 1, -1))),
        good=jnp.where(opens, True, good),
        left=jnp.where(opens, 0, left),
        operator=operator,
        right=jnp.where(opens, 0, right),
        reply=reply,
        said=said,
        fails=state.fails,
        noise=state.noise,
    )
    return new, forced


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`; the environment is the calculator.
    """

    def judge(problem: Problem, completion: Array) -> Array:
        return outcome(problem, completion, config)

    def start(problem: Problem) -> tuple[ToolState, Array]:
        return tool_start(problem, config), jnp.int32(-1)

    return Task(
        name="tool",
        vocab_size=VOCAB_SIZE,
        stop=EOS,
        used=(
            BOS, TOOL, QRY, *DIGITS, *config.operators, ANS, EOS, CALL, EQUALS, END, OBS, NEG
        ),
        prompt_length=config.prompt_length,
        solution_length=config.solution_length,
        sample=lambda key: sample(key, config),
        identity=identity,
        prompt=lambda problem: prompt_tokens(problem, config),
        solution=lambda problem: solution_tokens(problem, config),
        outcome=judge,
        reward=judge,
        environment=Environment(start, lambda state, token: tool_step(state, token, config)),
    )  # fmt: skip

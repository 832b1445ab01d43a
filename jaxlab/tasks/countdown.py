"""Reaching a target number with given numbers, each used once.

Prompt: BOS COUNTDOWN n_1 SP ... SP n_k QRY target. Solution, infix: k - 1 steps
"a op b = c STEP", then ANS c EOS; postfix: a program of one-digit numbers and operators, EOS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks import countdown_exact as exact
from jaxlab.tasks import countdown_postfix as postfix
from jaxlab.tasks.sequences import StepLabels, at, read_answer, read_digits, segments
from jaxlab.tasks.task import Task
from jaxlab.tasks.vocabulary import (
    ANS,
    BOS,
    COUNTDOWN,
    DIGITS,
    EOS,
    EQUALS,
    QRY,
    SP,
    STEP,
    VOCAB_SIZE,
    digits,
)

Kind = Literal["valid", "progress", "value"]


@dataclass(frozen=True)
class Config:
    """Sizes of the game."""

    k: int = 3  # numbers given
    low: int = 1
    high: int = 9
    cap: int = 99  # largest intermediate result
    target: int | None = None  # None constructs one that can be reached
    style: Literal["infix", "postfix"] = "infix"
    tries: int = 16  # draws for a fixed target

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 5:
            raise ValueError(f"k: expected 2 to 5, got {self.k}")
        if not 0 <= self.low <= self.high <= self.cap:
            raise ValueError(
                f"low, high, cap: expected 0 <= low <= high <= cap, got "
                f"{self.low}, {self.high}, {self.cap}"
            )
        if self.cap > 9999:
            raise ValueError(f"cap: expected at most 9999, got {self.cap}")
        if self.style not in ("infix", "postfix"):
            raise ValueError(f'style: expected "infix" or "postfix", got {self.style!r}')
        if self.style == "postfix" and self.high > 9:
            raise ValueError(f"high: expected one digit in postfix style, got {self.high}")
        if self.tries < 1:
            raise ValueError(f"tries: expected at least 1, got {self.tries}")
        if self.target is not None and not 0 <= self.target <= self.cap:
            raise ValueError(f"target: expected 0 to cap {self.cap}, got {self.target}")

    @property
    def width(self) -> int:
        """Digits of a number."""
        return len(str(self.cap))

    @property
    def step_length(self) -> int:
        """Tokens of an infix step, its STEP included."""
        return 3 * self.width + 3

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return 2 + self.k * self.width + (self.k - 1) + 1 + self.width

    @property
    def solution_length(self) -> int:
        """Tokens of a solution."""
        if self.style == "postfix":
            return 2 * self.k
        return self.step_length * (self.k - 1) + self.width + 2


class Problem(NamedTuple):
    """Numbers, what to reach, and one way to get there."""

    numbers: Int[Array, " k"]
    target: Int[Array, ""]
    left: Int[Array, " k-1"]
    operator: Int[Array, " k-1"]  # tokens
    right: Int[Array, " k-1"]
    result: Int[Array, " k-1"]


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a game that can be won.

    Without a fixed target: k - 1 uniformly random valid steps from random numbers. With one: the
    steps are uniform among those that keep it within reach.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem, and False if no draw can reach the fixed target.
    """
    numbers, steps = jax.random.split(key)
    if config.target is None:
        numbers = jax.random.randint(numbers, (config.k,), config.low, config.high + 1, jnp.int32)
        return _play(steps, numbers, config), jnp.asarray(True)
    shape = (config.tries, config.k)
    drawn = jax.random.randint(numbers, shape, config.low, config.high + 1, jnp.int32)
    good = _within_reach(drawn, config)
    return _play(steps, drawn[jnp.argmax(good)], config), jnp.any(good)


def _within_reach(states: Int[Array, "n m"], config: Config) -> Bool[Array, " n"]:
    """Whether each state can reach the fixed target; True if there is none."""
    target = config.target
    if target is None:
        return jnp.ones(states.shape[0], bool)
    return jax.vmap(lambda state: exact.reachable(state, target, config.cap))(states)


def _play(key: Key[Array, ""], numbers: Int[Array, " k"], config: Config) -> Problem:
    """Random steps from the numbers to one number, the target."""
    state, steps = numbers, []
    for i in range(config.k - 1):
        rest, valid = exact.successors(state, config.cap)
        logits = jnp.where(valid & _within_reach(rest, config), jnp.float32(0), -jnp.inf)
        choice = jax.random.categorical(jax.random.fold_in(key, i), logits)
        left, right, operator = (jnp.asarray(x) for x in exact.actions(state.shape[0]))
        steps.append(
            (state[left[choice]], operator[choice], state[right[choice]], rest[choice, -1])
        )
        state = rest[choice]
    columns = (jnp.stack(column) for column in zip(*steps))
    target = state[0] if config.target is None else jnp.int32(config.target)
    return Problem(numbers, target, *columns)


def identity(problem: Problem) -> Int[Array, " n"]:
    """What tells this problem from others; the order of the numbers does not."""
    return jnp.concatenate([jnp.sort(problem.numbers), problem.target[None]])


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The question.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens.
    """
    numbers = jnp.pad(digits(problem.numbers, config.width), ((0, 0), (0, 1)), constant_values=SP)
    return jnp.concatenate(
        [
            jnp.asarray([BOS, COUNTDOWN], jnp.int32),
            numbers.reshape(-1).at[-1].set(QRY),
            digits(problem.target, config.width),
        ]
    )


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """The reference solution.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens up to and including EOS.
    """
    if config.style == "postfix":
        return postfix.from_steps(
            problem.numbers, problem.left, problem.operator, problem.right, problem.result
        )
    columns = [
        digits(problem.left, config.width),
        problem.operator[:, None],
        digits(problem.right, config.width),
        jnp.full((config.k - 1, 1), EQUALS, jnp.int32),
        digits(problem.result, config.width),
        jnp.full((config.k - 1, 1), STEP, jnp.int32),
    ]
    answer = digits(problem.target, config.width)
    answer = jnp.pad(jnp.pad(answer, (1, 0), constant_values=ANS), (0, 1), constant_values=EOS)
    return jnp.concatenate([jnp.concatenate(columns, axis=1).reshape(-1), answer])


class Played(NamedTuple):
    """What an infix completion did."""

    valid: Bool[Array, " k-1"]  # this step and all before it keep the rules
    numbers: Int[Array, "k-1 k"]  # after each step, remaining ones first
    final: Bool[Array, ""]  # exactly k - 1 steps, then the end


def _replay(problem: Problem, completion: Int[Array, " T"], config: Config) -> Played:
    w, k = config.width, config.k
    cut = segments(completion, k)
    start = cut.start[: k - 1]
    left, left_good = read_digits(completion, start, w)
    operator = at(completion, start + w)
    right, right_good = read_digits(completion, start + w + 1, w)
    result, result_good = read_digits(completion, start + 2 * w + 2, w)
    shaped = cut.present[: k - 1] & ~cut.final[: k - 1] & left_good & right_good & result_good
    shaped = shaped & (cut.end[: k - 1] - start + 1 == config.step_length)
    shaped = shaped & (at(completion, start + 2 * w + 1) == EQUALS)
    numbers, valid = problem.numbers, jnp.asarray(True)
    history = []
    for i in range(k - 1):
        numbers, used = postfix.take(numbers, left[i], right[i])
        want, legal = exact.calculate(
            operator[i], jnp.maximum(left[i], 0), jnp.maximum(right[i], 0), config.cap
        )
        valid = valid & shaped[i] & used & legal & (want == result[i])
        numbers = numbers.at[k - 2 - i].set(want)
        history.append((valid, numbers))
    valids, states = (jnp.stack(column) for column in zip(*history))
    return Played(valids, states, cut.final[k - 1])


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether a completion wins: all steps within the rules, the last result the target.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    if config.style == "postfix":
        return postfix.outcome(problem.numbers, problem.target, completion, config.cap)
    played = _replay(problem, completion, config)
    answer = read_answer(completion, config.width)
    last = played.numbers[-1, 0]
    won = played.valid[-1] & played.final & (last == problem.target) & (answer == last)
    # Nothing but ANS and the number behind the last step.
    behind = segments(completion, config.k).start[-1]
    return (won & (at(completion, behind) == ANS)).astype(jnp.float32)


def step_labels(
    problem: Problem,
    completion: Int[Array, " T"],
    config: Config,
    kind: Kind = "valid",
    policy: exact.Policy = exact.uniform,
) -> StepLabels:
    """Labels of each infix step; the answer counts as the last step.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.
        kind: "valid": this step and those before it keep the rules; "progress": and the target is
            still within reach; "value": probability that a policy goes on to reach the target.
        policy: for "value".

    Returns:
        Rows for k - 1 steps and the answer, whose row holds `outcome`.

    Raises:
        ValueError: an unknown kind, or postfix style, which has no steps.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {get_args(Kind)}, got {kind!r}")
    if config.style != "infix":
        raise ValueError(f'style: expected "infix" for step labels, got {config.style!r}')
    played = _replay(problem, completion, config)
    labels = []
    for i in range(config.k - 1):
        label, remaining = (
            played.valid[i].astype(jnp.float32),
            played.numbers[i, : config.k - 1 - i],
        )
        if kind == "progress":
            possible = exact.reachable(remaining, problem.target, config.cap)
            label = label * possible.astype(jnp.float32)
        elif kind == "value":
            label = label * exact.value(remaining, problem.target, config.cap, policy)
        labels.append(label)
    cut = segments(completion, config.k)
    label = jnp.stack([*labels, outcome(problem, completion, config)])
    final = jnp.arange(config.k) == config.k - 1
    return StepLabels(jnp.where(cut.final == final, label, 0), cut.present, cut.end)


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`.
    """

    def judge(problem: Problem, completion: Array) -> Array:
        return outcome(problem, completion, config)

    used = (BOS, COUNTDOWN, SP, QRY, *DIGITS, *exact.OPERATORS, EOS)
    used += (STEP, EQUALS, ANS) if config.style == "infix" else ()
    return Task(
        name="countdown",
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

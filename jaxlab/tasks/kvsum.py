"""Running sums of looked-up values: state tracking over many turns.

Prompt: BOS KVSUM (key value)*n QRY. Turn i: the environment writes K keys and QRY, the model w
digits of the running sum modulo p, the environment STEP. An EOS, forced too, ends the last turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks.sequences import read_digits
from jaxlab.tasks.task import Environment, Task
from jaxlab.tasks.vocabulary import (
    BOS,
    DIGITS,
    EOS,
    KEY,
    KVSUM,
    QRY,
    STEP,
    VOCAB_SIZE,
    digits,
)

KEYS = 16
Mode = Literal["independent", "accumulating"]


@dataclass(frozen=True)
class Config:
    """Sizes of the ledger."""

    n_keys: int = 8
    p: int = 10  # the modulus, 10 or 100
    turns: int = 8
    keys_per_turn: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.n_keys <= KEYS:
            raise ValueError(f"n_keys: expected 1 to {KEYS}, got {self.n_keys}")
        if self.p not in (10, 100):
            raise ValueError(f"p: expected 10 or 100, got {self.p}")
        for name in ("turns", "keys_per_turn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def width(self) -> int:
        """Digits of a number."""
        return 1 if self.p == 10 else 2

    @property
    def turn_length(self) -> int:
        """Tokens of a turn."""
        return self.keys_per_turn + 1 + self.width + 1

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return 3 + self.n_keys * (1 + self.width)

    @property
    def solution_length(self) -> int:
        """Tokens of a completion."""
        return self.turns * self.turn_length + 1


class Problem(NamedTuple):
    """A dictionary, what is asked in each turn, and the running sums."""

    keys: Int[Array, " n"]  # distinct, in [0, 16)
    values: Int[Array, " n"]
    queries: Int[Array, "N K"]  # places in `keys`
    sums: Int[Array, " N"]


class TurnScores(NamedTuple):
    """How each turn went."""

    absolute: Float[Array, " N"]  # the written sum is the true one
    step: Float[Array, " N"]  # it is right for the sum written before
    task: Float[Array, " N"]  # this turn and all before it are the true ones


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a dictionary and queries; never fails.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem and True.
    """
    names, values, queries = jax.random.split(key, 3)
    keys = jax.random.permutation(names, KEYS)[: config.n_keys].astype(jnp.int32)
    table = jax.random.randint(values, (config.n_keys,), 0, config.p, jnp.int32)
    shape = (config.turns, config.keys_per_turn)
    asked = jax.random.randint(queries, shape, 0, config.n_keys, jnp.int32)
    sums = jnp.cumsum(jnp.sum(table[asked], axis=1)).astype(jnp.int32) % config.p
    return Problem(keys, table, asked, sums), jnp.asarray(True)


def identity(problem: Problem) -> Int[Array, " n"]:
    """What tells this problem from others; the order of the dictionary does not."""
    by_name = jnp.full(KEYS, -1, jnp.int32).at[problem.keys].set(problem.values)
    return jnp.concatenate([by_name, problem.keys[problem.queries].reshape(-1)])


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The dictionary.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens.
    """
    values = digits(problem.values, config.width)
    pairs = jnp.concatenate([KEY + problem.keys[:, None], values], axis=1).reshape(-1)
    pairs = jnp.pad(pairs, (0, 1), constant_values=QRY)
    return jnp.concatenate([jnp.asarray([BOS, KVSUM], jnp.int32), pairs])


def completion_of(problem: Problem, written: Int[Array, " N"], config: Config) -> Int[Array, " T"]:
    """The transcript in which given sums were written.

    Args:
        problem: from `sample`.
        written: one sum per turn.
        config: sizes.

    Returns:
        Tokens of all turns and EOS.
    """
    return _transcript(problem, digits(written, config.width), config)


def template(problem: Problem, config: Config) -> Int[Array, " T"]:
    """What the environment writes.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens, -1 where the model writes.
    """
    return _transcript(problem, jnp.full((config.turns, config.width), -1, jnp.int32), config)


def _transcript(problem: Problem, answers: Array, config: Config) -> Array:
    turns = [
        KEY + problem.keys[problem.queries],
        jnp.full((config.turns, 1), QRY, jnp.int32),
        answers,
        jnp.full((config.turns, 1), STEP, jnp.int32),
    ]
    tokens = jnp.concatenate(turns, axis=1).reshape(-1)
    return jnp.pad(tokens, (0, 1), constant_values=EOS)


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """The transcript with the true sums.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens of all turns and EOS.
    """
    return completion_of(problem, problem.sums, config)


def turn_scores(problem: Problem, completion: Int[Array, " T"], config: Config) -> TurnScores:
    """Judges every turn, against the truth and against the model's own past.

    Args:
        problem: from `sample`.
        completion: any ids; only the places where the model writes are read.
        config: sizes.

    Returns:
        Scores; a turn that cannot be read is wrong, and the sum written before it goes on.

    Reference: Sinha et al. 2025, The Illusion of Diminishing Returns, section 2.
    """
    start = (
        config.keys_per_turn + 1 + config.turn_length * jnp.arange(config.turns, dtype=jnp.int32)
    )
    written, good = read_digits(completion, start, config.width)
    absolute = good & (written == problem.sums)
    increment = jnp.sum(problem.values[problem.queries], axis=1).astype(jnp.int32)

    def step(before: Array, turn: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        now, readable, added = turn
        right = readable & (now == (before + added) % config.p)
        return jnp.where(readable, now, before), right

    _, steps = jax.lax.scan(step, jnp.int32(0), (written, good, increment))
    absolute, steps = absolute.astype(jnp.float32), steps.astype(jnp.float32)
    return TurnScores(absolute, steps, jnp.cumprod(absolute))


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether all sums are true and the rest is what the environment writes.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    size, want = completion.shape[0], solution_tokens(problem, config)
    if size < want.shape[0]:
        return jnp.float32(0)
    return jnp.all(completion[: want.shape[0]] == want).astype(jnp.float32)


def inject(
    key: Key[Array, ""],
    problem: Problem,
    rate: Float[Array, ""] | float,
    config: Config,
    mode: Mode = "independent",
) -> Int[Array, " N"]:
    """Sums as an unreliable author would have written them.

    Args:
        key: random key.
        problem: from `sample`.
        rate: probability that a turn is wrong; traced.
        config: sizes.
        mode: "independent": a wrong sum next to true ones; "accumulating": a wrong increment, which
            all later sums contain.

    Returns:
        One sum per turn, for `completion_of`. An independent wrong one is never the true sum;
        accumulated errors may cancel.

    Raises:
        ValueError: an unknown mode.

    Pitfall: with independent errors the step after a wrong sum looks wrong too.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: expected one of {get_args(Mode)}, got {mode!r}")
    which, how = jax.random.split(key)
    wrong = jax.random.uniform(which, (config.turns,), jnp.float32) < rate
    offset = jnp.where(wrong, jax.random.randint(how, (config.turns,), 1, config.p, jnp.int32), 0)
    if mode == "accumulating":
        offset = jnp.cumsum(offset).astype(jnp.int32)
    return (problem.sums + offset) % config.p


def environment(config: Config) -> Environment:
    """The turns that are not the model's.

    Args:
        config: sizes.

    Returns:
        Forces `template`.
    """

    def start(problem: Problem) -> tuple[tuple[Array, Array], Array]:
        forced = template(problem, config)
        return (forced, jnp.int32(1)), forced[0]

    def step(state: tuple[Array, Array], token: Array) -> tuple[tuple[Array, Array], Array]:
        del token
        forced, place = state
        size = forced.shape[0]
        now = jnp.where(place < size, forced[jnp.clip(place, 0, size - 1)], -1)
        return (forced, place + 1), now

    return Environment(start, step)


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`; the reward is the share of turns that are right for the model's own past.
    """

    def reward(problem: Problem, completion: Array) -> Array:
        return jnp.mean(turn_scores(problem, completion, config).step)

    return Task(
        name="kvsum",
        vocab_size=VOCAB_SIZE,
        stop=EOS,
        used=(BOS, KVSUM, QRY, STEP, *DIGITS, *range(KEY, KEY + KEYS), EOS),
        prompt_length=config.prompt_length,
        solution_length=config.solution_length,
        sample=lambda key: sample(key, config),
        identity=identity,
        prompt=lambda problem: prompt_tokens(problem, config),
        solution=lambda problem: solution_tokens(problem, config),
        outcome=lambda problem, completion: outcome(problem, completion, config),
        reward=reward,
        environment=environment(config),
    )

"""Programs for a stack machine from examples of what they do.

Prompt: BOS STACK, m examples "x y = z SP", QRY. Solution: opcodes, EOS. Whether a program is right
is decided on all hundred inputs, so one that merely passes the examples is found out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks import stack_machine as machine
from jaxlab.tasks.sequences import first
from jaxlab.tasks.task import Task
from jaxlab.tasks.vocabulary import (
    BOS,
    DIGIT,
    DIGITS,
    EOS,
    EQUALS,
    OPCODE,
    PAD,
    QRY,
    SP,
    STACK,
    VOCAB_SIZE,
)

EQUAL, FAILS, CRASHES, BROKEN = 1.0, -0.3, -0.6, -1.0  # the reward's four values


@dataclass(frozen=True)
class Config:
    """Sizes of the programs."""

    max_length: int = 5  # opcodes of a reference program
    examples: int = 4
    tries: int = 8  # draws for a program that is not degenerate
    permutation: tuple[int, ...] = tuple(range(machine.OPCODES))  # token of opcode i is 30 + this

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length: expected at least 1, got {self.max_length}")
        if not 1 <= self.examples <= 100:
            raise ValueError(f"examples: expected 1 to 100, got {self.examples}")
        if self.tries < 1:
            raise ValueError(f"tries: expected at least 1, got {self.tries}")
        if sorted(self.permutation) != list(range(machine.OPCODES)):
            raise ValueError(f"permutation: expected one of 0, ..., 15, got {self.permutation}")

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt."""
        return 3 + 5 * self.examples

    @property
    def solution_length(self) -> int:
        """Tokens of the longest reference solution."""
        return self.max_length + 1


class Problem(NamedTuple):
    """A program, what it does, and the inputs that are shown."""

    program: Int[Array, " L"]  # opcodes
    length: Int[Array, ""]
    table: Int[Array, " 100"]
    shown: Int[Array, " m"]  # places in the table


class Parsed(NamedTuple):
    """A completion as a program."""

    program: Int[Array, " T"]
    length: Int[Array, ""]
    compiles: Bool[Array, ""]  # opcodes alone up to the first EOS, at least one


def sample(key: Key[Array, ""], config: Config) -> tuple[Problem, Bool[Array, ""]]:
    """Draws a program that depends on its inputs and is not one of them.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The problem, and False if all draws were degenerate.
    """
    programs, shown = jax.random.split(key)
    keys = jax.random.split(programs, config.tries)
    drawn, lengths = jax.vmap(lambda k: _draw_program(k, config))(keys)
    tables = jax.vmap(machine.truth_table)(drawn, lengths).output
    x, y = machine.all_inputs()
    constant = jnp.all(tables == tables[:, :1], axis=1)
    copies = jnp.all(tables == x[None], axis=1) | jnp.all(tables == y[None], axis=1)
    good = ~(constant | copies)
    chosen = jnp.argmax(good)
    order = jax.random.permutation(shown, machine.MODULUS**2)
    places = order[: config.examples].astype(jnp.int32)
    return Problem(drawn[chosen], lengths[chosen], tables[chosen], places), jnp.any(good)


def _draw_program(key: Key[Array, ""], config: Config) -> tuple[Array, Array]:
    """A random program that runs and leaves one value."""
    how_long, ops = jax.random.split(key)
    length = jax.random.randint(how_long, (), 1, config.max_length + 1, jnp.int32)

    def step(depth: Array, place: Array) -> tuple[Array, Array]:
        after = depth + jnp.asarray(machine.CHANGE)
        fits = (jnp.asarray(machine.ARITY) <= depth) & (after >= 1) & (after <= machine.CAPACITY)
        # From depth d it takes |d - 1| operations to come back to one value.
        fits = fits & (jnp.abs(after - 1) <= length - 1 - place)
        logits = jnp.where(fits | (place >= length), jnp.float32(0), -jnp.inf)
        opcode = jax.random.categorical(jax.random.fold_in(ops, place), logits).astype(jnp.int32)
        return jnp.where(place < length, after[opcode], depth), opcode

    _, program = jax.lax.scan(step, jnp.int32(2), jnp.arange(config.max_length))
    return jnp.where(jnp.arange(config.max_length) < length, program, 0), length


def identity(problem: Problem) -> Int[Array, " n"]:
    """The function that is computed, so that equal functions are one problem."""
    return problem.table


def prompt_tokens(problem: Problem, config: Config) -> Int[Array, " Tp"]:
    """The question.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Tokens.
    """
    x, y = (side[problem.shown] for side in machine.all_inputs())
    equals, gap = (jnp.full_like(x, token) for token in (EQUALS, SP))
    rows = [DIGIT + x, DIGIT + y, equals, DIGIT + problem.table[problem.shown], gap]
    examples = jnp.stack(rows, axis=1).reshape(-1)
    examples = jnp.pad(examples, (0, 1), constant_values=QRY)
    return jnp.concatenate([jnp.asarray([BOS, STACK], jnp.int32), examples])


def solution_tokens(problem: Problem, config: Config) -> Int[Array, " Ts"]:
    """The reference program.

    Args:
        problem: from `sample`.
        config: sizes.

    Returns:
        Opcodes and EOS, `PAD` behind it.
    """
    tokens = OPCODE + jnp.asarray(config.permutation, jnp.int32)[problem.program]
    tokens = jnp.pad(tokens, (0, 1))
    place = jnp.arange(config.solution_length)
    return jnp.where(
        place < problem.length, tokens, jnp.where(place == problem.length, EOS, PAD)
    ).astype(jnp.int32)


def parse(completion: Int[Array, " T"], config: Config) -> Parsed:
    """Reads a completion as a program.

    Args:
        completion: any ids.
        config: sizes.

    Returns:
        The program; opcode 0 where there is none.
    """
    size = completion.shape[0]
    length = first(completion == EOS)
    opcode = completion - OPCODE
    inside = (completion >= OPCODE) & (completion < OPCODE + machine.OPCODES)
    inverse = jnp.argsort(jnp.asarray(config.permutation)).astype(jnp.int32)
    program = jnp.where(inside, inverse[jnp.clip(opcode, 0, machine.OPCODES - 1)], 0)
    whole = jnp.all(inside | (jnp.arange(size) >= length))
    return Parsed(program, length, whole & (length > 0) & (length < size))


def reward(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """How far a completion gets.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        1 if equal on all inputs, -0.3 if it runs but differs somewhere, -0.6 for a run-time
        error, -1 if it does not compile.

    Reference: Yu et al. 2024, B-Coder, section 2.
    """
    parsed = parse(completion, config)
    run = machine.truth_table(parsed.program, parsed.length)
    equal = jnp.all(run.output == problem.table)
    value = jnp.where(jnp.any(run.error), CRASHES, jnp.where(equal, EQUAL, FAILS))
    return jnp.where(parsed.compiles, value, BROKEN).astype(jnp.float32)


def outcome(problem: Problem, completion: Int[Array, " T"], config: Config) -> Float[Array, ""]:
    """Whether a program equals the reference on all inputs.

    Args:
        problem: from `sample`.
        completion: any ids.
        config: sizes.

    Returns:
        0 or 1.
    """
    return (reward(problem, completion, config) == EQUAL).astype(jnp.float32)


def make(config: Config = Config()) -> Task:
    """The task as functions.

    Args:
        config: sizes.

    Returns:
        See `Task`.
    """
    opcodes = range(OPCODE, OPCODE + machine.OPCODES)
    return Task(
        name="stack",
        vocab_size=VOCAB_SIZE,
        stop=EOS,
        used=(BOS, STACK, EQUALS, SP, QRY, *DIGITS, *opcodes, EOS),
        prompt_length=config.prompt_length,
        solution_length=config.solution_length,
        sample=lambda key: sample(key, config),
        identity=identity,
        prompt=lambda problem: prompt_tokens(problem, config),
        solution=lambda problem: solution_tokens(problem, config),
        outcome=lambda problem, completion: outcome(problem, completion, config),
        reward=lambda problem, completion: reward(problem, completion, config),
    )

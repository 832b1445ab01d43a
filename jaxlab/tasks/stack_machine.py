"""A stack machine on digits: sixteen opcodes, a stack of four, values modulo 10."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

(ADD, SUB, MUL, DUP, SWAP, OVER, DROP, INC, DEC, MAX, MIN, DBL, CPL, ZERO, ONE, ROT) = range(16)
OPCODES = 16
CAPACITY = 4
MODULUS = 10
ARITY = np.asarray([2, 2, 2, 1, 2, 2, 1, 1, 1, 2, 2, 1, 1, 0, 0, 3], np.int32)
CHANGE = np.asarray([-1, -1, -1, 1, 0, 1, -1, 0, 0, -1, -1, 0, 0, 1, 1, 0], np.int32)


class Run(NamedTuple):
    """Where a program ended."""

    output: Int[Array, "*b"]  # the one value left; 0 after an error
    error: Bool[Array, "*b"]  # underflow, overflow, or not exactly one value left


def execute(
    program: Int[Array, " L"], length: Int[Array, ""], x: Int[Array, "*b"], y: Int[Array, "*b"]
) -> Run:
    """Runs one program on many inputs.

    Args:
        program: opcodes; anything behind `length` is not run.
        length: number of opcodes.
        x: bottom of the first stack.
        y: top of the first stack.

    Returns:
        Outputs and errors.
    """
    lead = x.shape
    stack = jnp.zeros((CAPACITY, *lead), jnp.int32).at[0].set(x).at[1].set(y)

    def step(
        carry: tuple[Array, Array, Array], opcode_place: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        stack, depth, error = carry
        opcode, place = opcode_place
        opcode = jnp.clip(opcode, 0, OPCODES - 1)
        arity, change = jnp.asarray(ARITY)[opcode], jnp.asarray(CHANGE)[opcode]
        # a is on top, b below it, c third.
        a, b, c = (stack[jnp.clip(depth - n, 0, CAPACITY - 1)] for n in (1, 2, 3))
        zero = jnp.zeros_like(a)
        pushed = (  # from the bottom up
            (a + b,), (b - a,), (a * b,), (a, a), (a, b), (b, a, b), (), (a + 1,), (a - 1,),
            (jnp.maximum(a, b),), (jnp.minimum(a, b),), (2 * a,), (9 - a,), (zero,), (zero + 1,),
            (b, a, c),
        )  # fmt: skip
        table = jnp.stack([jnp.stack([*row, zero, zero, zero][:3]) for row in pushed])
        values = table[opcode] % MODULUS
        base = depth - arity
        for n in range(3):
            # Below zero would count from the end: out of bounds on purpose, so it is dropped.
            place_n = jnp.where((n < arity + change) & (base >= 0), base + n, CAPACITY)
            stack = stack.at[place_n].set(values[n], mode="drop")
        wrong = error | (base < 0) | (depth + change > CAPACITY)
        active = (place < length) & ~error
        new_depth = jnp.where(active & ~wrong, depth + change, depth)
        kept = jnp.where(active & ~wrong, stack, carry[0])
        return (kept, new_depth, jnp.where(active, wrong, error)), None

    carry = (stack, jnp.int32(2), jnp.asarray(False))
    places = jnp.arange(program.shape[0])
    (stack, depth, error), _ = jax.lax.scan(step, carry, (program, places))
    # Depth and errors depend on the program alone, never on the inputs.
    error = error | (depth != 1)
    return Run(jnp.where(error, 0, stack[0]), jnp.broadcast_to(error, lead))


def all_inputs() -> tuple[Int[Array, " 100"], Int[Array, " 100"]]:
    """Every input (x, y), y fastest."""
    grid = jnp.arange(MODULUS**2, dtype=jnp.int32)
    return grid // MODULUS, grid % MODULUS


def truth_table(program: Int[Array, " L"], length: Int[Array, ""]) -> Run:
    """Outputs on all hundred inputs.

    Args:
        program: opcodes.
        length: number of opcodes.

    Returns:
        Rows in the order of `all_inputs`.
    """
    return execute(program, length, *all_inputs())

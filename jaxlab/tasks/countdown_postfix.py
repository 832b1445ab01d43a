"""Countdown in postfix notation: programs of one-digit numbers and operators."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.tasks.countdown_exact import OPERATORS, calculate
from jaxlab.tasks.sequences import first, is_digit
from jaxlab.tasks.vocabulary import DIGIT, EOS, PAD

GONE = -1


def take(
    numbers: Int[Array, " k"], left: Int[Array, ""], right: Int[Array, ""]
) -> tuple[Int[Array, " k"], Bool[Array, ""]]:
    """Removes two numbers from a multiset.

    Args:
        numbers: `GONE` where there is none.
        left: number to remove.
        right: number to remove after it.

    Returns:
        What remains, in order, in front, and whether both were there.
    """
    numbers, first_found = _remove(numbers, left)
    numbers, second_found = _remove(numbers, right)
    return numbers[jnp.argsort(numbers == GONE, stable=True)], first_found & second_found


def _remove(numbers: Array, number: Array) -> tuple[Array, Array]:
    place = first(numbers == number)
    found = (place < numbers.shape[0]) & (number >= 0)
    here = (jnp.arange(numbers.shape[0]) == place) & found
    return jnp.where(here, GONE, numbers), found


def from_steps(
    numbers: Int[Array, " k"],
    left: Int[Array, " k-1"],
    operator: Int[Array, " k-1"],
    right: Int[Array, " k-1"],
    result: Int[Array, " k-1"],
) -> Int[Array, " 2k"]:
    """The program that calculates what the steps do.

    Args:
        numbers: of the game.
        left: left operand of each step.
        operator: tokens.
        right: right operand of each step.
        result: of each step.

    Returns:
        2 k - 1 tokens and EOS.
    """
    k = numbers.shape[0]
    size = 2 * k
    place = jnp.arange(size)
    values = numbers
    texts = jnp.full((k, size), PAD, jnp.int32).at[:, 0].set(DIGIT + numbers)
    lengths = jnp.ones(k, jnp.int32)
    for i in range(k - 1):
        a = first(values == left[i])
        values = values.at[a].set(GONE)
        b = first(values == right[i])
        middle, end = lengths[a], lengths[a] + lengths[b]
        joined = jnp.where(
            place < middle, texts[a], texts[b][jnp.clip(place - middle, 0, size - 1)]
        )
        joined = jnp.where(place < end, joined, jnp.where(place == end, operator[i], PAD))
        values = values.at[b].set(result[i])
        texts = texts.at[b].set(joined)
        lengths = lengths.at[b].set(end + 1)
    whole = texts[first(values >= 0)]
    return whole.at[-1].set(EOS)


def outcome(
    numbers: Int[Array, " k"], target: Int[Array, ""], completion: Int[Array, " T"], cap: int
) -> Float[Array, ""]:
    """Whether a program uses every number once, keeps the rules and gives the target.

    Args:
        numbers: of the game.
        target: number to reach.
        completion: any ids.
        cap: largest number allowed.

    Returns:
        0 or 1.
    """
    k = numbers.shape[0]
    stop = first(completion == EOS)

    def step(
        carry: tuple[Array, Array, Array, Array], token_place: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array, Array], None]:
        remaining, stack, depth, good = carry
        token, place = token_place
        operand = is_digit(token)
        left_over, found = _remove(remaining, token - DIGIT)
        top, below = (stack[jnp.clip(depth - n, 0, k - 1)] for n in (1, 2))
        result, legal = calculate(token, below, top, cap)
        at_place = jnp.where(operand, depth, depth - 2)
        pushed = stack.at[jnp.clip(at_place, 0, k - 1)].set(
            jnp.where(operand, token - DIGIT, result)
        )
        fine = jnp.where(operand, found, legal & (depth >= 2))
        new = (
            jnp.where(operand, left_over, remaining),
            pushed,
            jnp.where(operand, depth + 1, depth - 1),
            good & fine,
        )
        active = (place < stop) & good
        return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, carry), None

    carry = (numbers, jnp.zeros(k, jnp.int32), jnp.int32(0), jnp.asarray(True))
    places = jnp.arange(completion.shape[0])
    (remaining, stack, depth, good), _ = jax.lax.scan(step, carry, (completion, places))
    won = good & (stop < completion.shape[0]) & (depth == 1) & (stack[0] == target)
    return (won & jnp.all(remaining == GONE)).astype(jnp.float32)


def programs(
    numbers: Int[Array, " k"], target: Int[Array, ""], cap: int
) -> tuple[Int[Array, "P 2k"], Bool[Array, " P"]]:
    """Every program that uses each number once, and which of them win.

    Args:
        numbers: of the game.
        target: number to reach.
        cap: largest number allowed.

    Returns:
        Programs with their EOS, and whether each wins; of programs that are the same text, because
        numbers are equal, only the first counts. P is 192 for three numbers, 7680 for four.
    """
    k = numbers.shape[0]
    rows = []
    for shape in _shapes(k):
        for order in itertools.permutations(range(k)):
            for choice in itertools.product(OPERATORS, repeat=k - 1):
                slots, operators = iter(order), iter(choice)
                rows.append([-1 - next(slots) if s else next(operators) for s in shape])
    table = np.asarray(rows, np.int32)  # slots are -1, -2, ...
    orders = -1 - table[table < 0].reshape(len(rows), k)
    chosen = numbers[jnp.maximum(-1 - table, 0)]
    texts = jnp.where(table < 0, DIGIT + chosen, jnp.asarray(table))
    texts = jnp.pad(texts, ((0, 0), (0, 1)), constant_values=EOS)
    # Where numbers are equal, only the order that takes the earlier slot first.
    places = jnp.asarray(np.argsort(orders, axis=1))
    later = places[:, :, None] > places[:, None, :]
    upper = jnp.asarray(np.triu(np.ones((k, k), bool), 1))
    repeated = later & ((numbers[:, None] == numbers[None, :]) & upper)[None]
    unique = ~jnp.any(repeated, axis=(1, 2))
    wins = jax.vmap(lambda text: outcome(numbers, target, text, cap))(texts)
    return texts, (wins > 0) & unique


def _shapes(k: int) -> list[tuple[bool, ...]]:
    """Orders of operands (True) and operators in postfix programs of k operands."""
    shapes = []
    for operands in itertools.combinations(range(2 * k - 1), k):
        shape = tuple(i in operands for i in range(2 * k - 1))
        depth = np.cumsum([1 if s else -1 for s in shape])
        if depth.min() >= 1:
            shapes.append(shape)
    return shapes

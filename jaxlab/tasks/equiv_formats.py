"""One rational number, many ways to write it: rendering and parsing."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxlab.tasks.sequences import first, is_digit
from jaxlab.tasks.vocabulary import DIGIT, DIVIDE, EOS, NEG, PAD, POINT

DENOMINATORS = (1, 2, 4, 5, 8, 10, 20)
DECIMALS = (0, 1, 2, 1, 3, 1, 2)  # places after the point that each denominator needs
FORMATS = 5
MAX_DIGITS = 4  # of a numerator, of a denominator, and of a decimal on both sides of its point
LENGTH = 9  # tokens of the longest text with its EOS: NEG, four digits, '/', two digits, EOS
REDUCED, UNREDUCED, DECIMAL, TRAILING_ZERO, LONG_INTEGER = range(FORMATS)


class Rational(NamedTuple):
    """A number read from tokens."""

    num: Int[Array, ""]
    den: Int[Array, ""]
    valid: Bool[Array, ""]
    fraction: Bool[Array, ""]  # written with '/'
    decimal: Bool[Array, ""]  # written with '.'


def decimals(den: Int[Array, ""]) -> Int[Array, ""]:
    """Places after the point of the shortest decimal; -1 if the denominator is not in the list."""
    places = jnp.full((), -1, jnp.int32)
    for known, count in zip(DENOMINATORS, DECIMALS):
        places = jnp.where(den == known, count, places)
    return places


def count_digits(number: Int[Array, ""]) -> Int[Array, ""]:
    """Digits of a number in [0, 10^8), at least one."""
    powers = jnp.asarray([10**i for i in range(1, 8)], jnp.int32)
    return 1 + jnp.sum(number >= powers).astype(jnp.int32)


def writable(num: Int[Array, ""], den: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether the formats of a reduced fraction stay within the digits that the parser takes."""
    places = decimals(den)
    whole = jnp.abs(num) // jnp.maximum(den, 1)
    fits = count_digits(whole) + jnp.maximum(places, 1) <= MAX_DIGITS
    return (places >= 0) & fits & (3 * jnp.abs(num) < 10**MAX_DIGITS)


def render(
    num: Int[Array, ""], den: Int[Array, ""], style: Int[Array, ""], factor: Int[Array, ""]
) -> Int[Array, " L"]:
    """Writes a number.

    Args:
        num: numerator of the reduced fraction, `writable`.
        den: its denominator.
        style: 0 "a/b" or an integer; 1 "ka/kb"; 2 the shortest decimal; 3 that with one more zero
            (as in 2 where this would be one digit too many); 4 an integer as "a.0" or "a/1", and as
            in 0 what is no integer.
        factor: k, 2 or 3; in style 4 an even one chooses "a.0".

    Returns:
        Tokens, EOS, `PAD` behind it.
    """
    size, places = jnp.abs(num), decimals(den)
    integer = den == 1
    k = jnp.where(style == UNREDUCED, factor, 1)
    point_zero = integer & (style == LONG_INTEGER) & (factor % 2 == 0)
    over_one = integer & (style == LONG_INTEGER) & (factor % 2 == 1)
    as_decimal = (style == DECIMAL) | (style == TRAILING_ZERO) | point_zero
    as_fraction = ~as_decimal & (~integer | (style == UNREDUCED) | over_one)

    whole = size // den
    roomy = count_digits(whole) + places + 1 <= MAX_DIGITS
    zero = point_zero | ((style == TRAILING_ZERO) & roomy)
    shown = jnp.where(as_decimal, places + zero.astype(jnp.int32), 0)  # places after the point
    power = jnp.asarray([1, 10, 100, 1000], jnp.int32)[jnp.clip(shown, 0, 3)]
    scaled = size * power // den
    tail = jnp.where(as_fraction, k * den, scaled % power)
    front = jnp.where(as_fraction, k * size, jnp.where(as_decimal, whole, size))
    tail_digits = jnp.where(as_fraction, count_digits(k * den), shown)
    mark = jnp.where(as_fraction, DIVIDE, POINT)

    sign = (num < 0).astype(jnp.int32)
    middle = sign + count_digits(front)
    has_tail = tail_digits > 0
    end = middle + jnp.where(has_tail, 1 + tail_digits, 0)
    place = jnp.arange(LENGTH, dtype=jnp.int32)

    def digit(number: Array, from_right: Array) -> Array:
        powers = jnp.asarray([10**i for i in range(LENGTH)], jnp.int32)
        return DIGIT + number // powers[jnp.clip(from_right, 0, LENGTH - 1)] % 10

    tokens = jnp.where(place < middle, digit(front, middle - 1 - place), PAD)
    tokens = jnp.where((place == 0) & (sign > 0), NEG, tokens)
    tokens = jnp.where((place == middle) & has_tail, mark, tokens)
    tokens = jnp.where((place > middle) & (place < end), digit(tail, end - 1 - place), tokens)
    return jnp.where(place == end, EOS, tokens).astype(jnp.int32)


_START, _SIGNED, _WHOLE, _POINT, _PLACES, _SLASH, _BELOW, _DONE, _WRONG = range(9)


def parse_rational(tokens: Int[Array, " T"]) -> Rational:
    """Reads NEG? digits ('.' digits | '/' digits)?, ended by EOS or PAD; what follows is ignored.

    Args:
        tokens: any ids.

    Returns:
        The number as written, not reduced; 0/1 where there is none. A zero denominator, more than
        four digits on a side of '/' or in a decimal, and text without an end are no numbers.
    """

    def step(
        carry: tuple[Array, Array, Array, Array, Array], token: Array
    ) -> tuple[tuple[Array, Array, Array, Array, Array], Array]:
        state, num, den, count, negative = carry
        reading = state < _DONE
        is_number = is_digit(token)
        above = (state == _START) | (state == _SIGNED) | (state == _WHOLE)
        after_point = (state == _POINT) | (state == _PLACES)
        below = (state == _SLASH) | (state == _BELOW)
        complete = (state == _WHOLE) | (state == _PLACES) | (state == _BELOW)
        after_digit = jnp.where(above, _WHOLE, jnp.where(after_point, _PLACES, _BELOW))
        room = jnp.where(state == _SLASH, 0, count) < MAX_DIGITS
        after = jnp.select(
            [
                is_number & room,
                (token == NEG) & (state == _START),
                (token == POINT) & (state == _WHOLE),
                (token == DIVIDE) & (state == _WHOLE),
                ((token == EOS) | (token == PAD)) & complete,
            ],
            [after_digit, _SIGNED, _POINT, _SLASH, _DONE],
            _WRONG,
        )
        take = reading & is_number & room
        value = jnp.where(take, token - DIGIT, 0)
        new_num = jnp.where(take & ~below, 10 * num + value, num)
        new_den = jnp.where(take & after_point, 10 * den, den)
        new_den = jnp.where(take & below, jnp.where(state == _SLASH, 0, 10 * den) + value, new_den)
        new_count = jnp.where(take, jnp.where(state == _SLASH, 0, count) + 1, count)
        minus = negative | (reading & (token == NEG))
        return (jnp.where(reading, after, state), new_num, new_den, new_count, minus), jnp.stack(
            [reading & (after == _SLASH), reading & (after == _POINT)]
        )

    zero = jnp.int32(0)
    carry = (jnp.int32(_START), zero, jnp.int32(1), zero, jnp.asarray(False))
    (state, num, den, _, negative), marks = jax.lax.scan(step, carry, tokens)
    valid = (state == _DONE) & (den > 0)
    slash, point = jnp.any(marks, axis=0)
    return Rational(
        jnp.where(valid, jnp.where(negative, -num, num), 0),
        jnp.where(valid, den, 1),
        valid,
        valid & slash,
        valid & point,
    )


def finished(completion: Int[Array, " T"]) -> Int[Array, " T"]:
    """Makes a PAD before the first EOS, or instead of one, unreadable: completions end with EOS."""
    stop = first(completion == EOS)
    early = (jnp.arange(completion.shape[0]) < stop) & (completion == PAD)
    return jnp.where(early, -1, completion)

"""The k-th largest of numbers that come in pieces, on the host, in two readings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Pieces = Callable[[], Iterator[np.ndarray]]  # [G, length] each, in order; read as often as asked
SAMPLE = 1 << 18  # numbers per group that the bracket is drawn from
_SMALL_SAMPLE = 1 << 13  # where all numbers are in memory, and a miss costs little
_SIGMAS = 6.0


class Selected(NamedTuple):
    """The k-th largest number of each group, and up to where its equals are in."""

    values: np.ndarray  # [G]; infinity for k = 0
    positions: np.ndarray  # [G]


class _Collected:
    """Numbers gathered in one array: many small ones between the blocks would keep memory torn."""

    def __init__(self, dtype: np.dtype, room: int):
        self._array, self._used = np.empty(max(room, 1024), dtype), 0

    def take(self, numbers: np.ndarray) -> None:
        if self._used + numbers.size > self._array.size:
            longer = np.empty(2 * self._array.size + numbers.size, self._array.dtype)
            longer[: self._used] = self.all
            self._array = longer
        self._array[self._used : self._used + numbers.size] = numbers
        self._used += numbers.size

    @property
    def all(self) -> np.ndarray:
        return self._array[: self._used]


def select(pieces: Pieces, size: int, k: Sequence[int], spare: int) -> Selected | None:
    """Finds the k-th largest number of each group.

    Args:
        pieces: reads all numbers, in order.
        size: numbers n in each group.
        k: one rank per group, 0 to n.
        spare: bytes that may be used to keep all numbers.

    Returns:
        Values, and positions below which equal numbers belong to the k largest; None if the
        bracket of the sample missed, which random order makes rarer than one in 10^8.

    Reference:
        Floyd & Rivest 1975, Expected time bounds for selection: a bracket from a sample, then a
        selection among the few numbers inside.
    """
    first = next(pieces())
    if fits(len(first), size, first.itemsize, spare):
        return _select_directly(gather(pieces, size), k)
    lows, highs = _brackets(pieces, size, k)
    above = np.zeros(len(k), np.int64)
    equal_high, equal_low = above.copy(), above.copy()
    inside = [_Collected(first.dtype, size // 32) for _ in k]
    for piece in pieces():
        for g, row in enumerate(piece):
            above[g] += np.count_nonzero(row > highs[g])
            equal_high[g] += np.count_nonzero(row == highs[g])
            equal_low[g] += np.count_nonzero(row == lows[g])
            inside[g].take(row[(row > lows[g]) & (row < highs[g])])
    values, rests, ties = [], [], []
    for g, wanted in enumerate(k):
        between = inside[g].all
        rest = wanted - int(above[g])
        counts = (int(equal_high[g]), between.size, int(equal_low[g]))
        if lows[g] == highs[g]:
            counts = (counts[0], 0, 0)
        if wanted == 0:
            found = (np.inf, 0, 0)
        elif 0 < rest <= counts[0]:
            found = (highs[g], rest, counts[0])
        elif 0 < rest - counts[0] <= counts[1]:
            rest -= counts[0]
            value = np.partition(between, between.size - rest)[between.size - rest]
            rest -= int(np.count_nonzero(between > value))
            found = (value, rest, int(np.count_nonzero(between == value)))
        elif 0 < rest - counts[0] - counts[1] <= counts[2]:
            found = (lows[g], rest - counts[0] - counts[1], counts[2])
        else:
            return None
        values.append(found[0])
        rests.append(found[1])
        ties.append(found[2])
    array = np.array(values, first.dtype)
    return Selected(array, _positions(pieces, array, rests, ties))


def fits(groups: int, size: int, itemsize: int, spare: int) -> bool:
    """Whether all numbers may be held at once."""
    return (groups + 1) * size * itemsize <= spare or size <= SAMPLE


def gather(pieces: Pieces, size: int) -> np.ndarray:
    """All numbers [G, size] in one array; not a copy where they come in one piece."""
    rows: np.ndarray | None = None
    start = 0
    for piece in pieces():
        if piece.shape[1] == size:
            return piece
        if rows is None:
            rows = np.empty((len(piece), size), piece.dtype)
        rows[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    assert rows is not None
    return rows


def _select_directly(rows: np.ndarray, k: Sequence[int]) -> Selected:
    values, rests, ties = [], [], []
    for row, wanted in zip(rows, k):
        value, rest, equal = _kth_largest(row, wanted) if wanted else (np.inf, 0, 0)
        values.append(value)
        rests.append(rest)
        ties.append(equal)
    array = np.array(values, rows.dtype)
    return Selected(array, _positions(lambda: iter([rows]), array, rests, ties))


def _kth_largest(row: np.ndarray, wanted: int) -> tuple[Any, int, int]:
    """The k-th largest of numbers at hand, how many of its equals count, and how many exist."""
    stride = row.size // _SMALL_SAMPLE | 1
    low, high = _bracket(np.sort(row[::stride]), wanted, row.size)
    inside = row[(row > low) & (row < high)]
    rest = wanted - int(np.count_nonzero(row >= high))
    if not 0 < rest <= inside.size:  # rare, and the rule where many numbers are equal
        inside, rest = row, wanted
    value = np.partition(inside, inside.size - rest)[inside.size - rest]
    return (
        value,
        rest - int(np.count_nonzero(inside > value)),
        int(np.count_nonzero(inside == value)),
    )


def _brackets(pieces: Pieces, size: int, k: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    stride = max(size // SAMPLE, 1) | 1  # odd: most widths are even, so all columns are met
    count = -(-size // stride)
    ordered, start, have = np.empty((0, 0)), 0, 0
    for piece in pieces():
        if start == 0:
            ordered = np.empty((len(piece), count), piece.dtype)
        sample = piece[:, -start % stride :: stride]
        ordered[:, have : have + sample.shape[1]] = sample
        have += sample.shape[1]
        start += piece.shape[1]
    ordered.sort(axis=1)
    pairs = [_bracket(row, wanted, size) for row, wanted in zip(ordered, k)]
    lows, highs = zip(*pairs)
    return np.array(lows, ordered.dtype), np.array(highs, ordered.dtype)


def _bracket(ordered: np.ndarray, wanted: int, size: int) -> tuple[Any, Any]:
    """Numbers of a sorted sample that the k-th largest of all lies between, almost surely."""
    share, count = wanted / size, ordered.size
    margin = _SIGMAS * np.sqrt(max(share * (1 - share), 1 / count) / count) + 2 / count
    low = int(np.floor((1 - share - margin) * count))
    high = int(np.ceil((1 - share + margin) * count))
    return (
        ordered[low] if low >= 0 else -np.inf,
        ordered[high] if high < count else np.inf,
    )


def _positions(
    pieces: Pieces, values: np.ndarray, rests: Sequence[int], ties: Sequence[int]
) -> np.ndarray:
    """Where the equals of each value stop being in."""
    positions = np.full(len(values), np.iinfo(np.int32).max, np.int64)
    open_groups = {g for g, rest in enumerate(rests) if rest < ties[g]}
    for g in [g for g in open_groups if rests[g] == 0]:
        positions[g] = 0
        open_groups.discard(g)
    if not open_groups:
        return positions
    seen, start = [0] * len(values), 0
    for piece in pieces():
        for g in list(open_groups):
            tied = np.flatnonzero(piece[g] == values[g])
            if seen[g] + tied.size > rests[g]:
                positions[g] = start + tied[rests[g] - seen[g]]
                open_groups.discard(g)
            seen[g] += tied.size
        start += piece.shape[1]
        if not open_groups:
            break
    return positions

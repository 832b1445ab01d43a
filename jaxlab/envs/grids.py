"""Moves on a square grid, shared by the grid worlds. Cells are numbered row by row."""

import numpy as np

MOVES = np.array([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])  # stay, up, left, down, right


def neighbours(size: int) -> np.ndarray:
    """Cell that each move leads to, [size^2, 5]; a move off the grid stays where it is."""
    cells = np.arange(size**2)
    places = np.stack([cells // size, cells % size], axis=-1)[:, None] + MOVES[None]
    inside = ((places >= 0) & (places < size)).all(axis=-1)
    return np.where(inside, places[..., 0] * size + places[..., 1], cells[:, None])

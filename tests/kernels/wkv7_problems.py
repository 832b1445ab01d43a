"""Inputs of every kind the operator must bear, as float32 NumPy arrays."""

from typing import NamedTuple

import numpy as np

BOUND = np.exp(-0.5)


class Problem(NamedTuple):
    inputs: tuple
    s0: np.ndarray
    reset: np.ndarray | None
    reset_state: np.ndarray | None
    dy: np.ndarray
    ds: np.ndarray


def problem(
    length=64,
    width=64,
    value_width=None,
    batch=1,
    heads=1,
    decay="random",
    keys="random",
    alpha="random",
    resets="none",
    reset_state=False,
    chunk=16,
    seed=0,
    dtype=np.float32,
):
    """decay: random, bound, slow. keys: random, near, same. alpha: random or a number.
    resets: none, start, every7, edges (of chunks, and their neighbours), often.
    """
    rng = np.random.default_rng(seed)
    value_width = value_width or width
    shape = (batch, length, heads, width)

    def normal(*shape):
        return rng.standard_normal(shape)

    logw = (
        -BOUND
        * {
            "random": rng.uniform(0, 1, shape),
            "bound": np.ones(shape),
            "slow": rng.uniform(0, 1e-4, shape),
        }[decay]
    )
    direction = normal(*shape)
    if keys != "random":
        same = np.broadcast_to(normal(batch, 1, heads, width), shape)
        direction = same + (0.3 * direction if keys == "near" else 0)
    kk = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    rate = rng.uniform(0, 1, shape) if alpha == "random" else np.full(shape, float(alpha))
    times = np.arange(length)
    reset = {
        "none": None,
        "start": times == 0,
        "every7": times % 7 == 3,
        "edges": (times > 1) & np.isin(times % chunk, (0, 1, chunk - 1)),
        "often": rng.uniform(size=length) < 0.4,
    }[resets]
    if reset is not None:
        reset = np.broadcast_to(reset, (batch, length)).copy()
        reset[1:] = np.roll(reset[1:], 1, axis=1)  # rows of a batch must not share their resets
    state = (batch, heads, value_width, width)
    values = (batch, length, heads, value_width)
    return Problem(
        tuple(
            x.astype(dtype)
            for x in (normal(*shape), logw, normal(*shape), normal(*values), -kk, kk * rate)
        ),
        normal(*state).astype(np.float32),
        reset,
        normal(*state).astype(np.float32) if reset_state else None,
        normal(*values).astype(dtype),
        normal(*state).astype(np.float32),
    )

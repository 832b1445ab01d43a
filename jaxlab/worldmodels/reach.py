"""Which states truncated branches only ever end in, and so never start a stored transition."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Num


def level_sets(
    transition: Num[Array, "S A"] | Num[Array, "S A S"],
    start: Bool[Array, " S"],
    steps: int,
) -> Bool[Array, "k+1 S"]:
    """States that some policy can be in after exactly t steps, for t = 0 to k.

    Args:
        transition: next state of every state and action (integers), or probabilities of all next
            states.
        start: states that branches start from.
        steps: number of steps k.

    Returns:
        One set of states per t, the first of which is `start`.

    Raises:
        ValueError: if `steps` is negative or the shapes do not fit.

    Reference:
        Sims et al. 2024 (The Edge-of-Reach Problem), definition 1: rho_t(s) > 0 for some policy.
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    states = start.shape[0]
    if transition.ndim == 2 and jnp.issubdtype(transition.dtype, jnp.integer):
        transition = jax.nn.one_hot(transition, states, dtype=jnp.float32)
    if transition.ndim != 3 or transition.shape != (states, transition.shape[1], states):
        raise ValueError(
            f"transition: expected integers [{states}, A] or probabilities [{states}, A, {states}],"
            f" got {transition.dtype}{list(transition.shape)}"
        )
    follows = jnp.any(transition > 0, axis=1)

    def step(level: Array, _: None) -> tuple[Array, Array]:
        level = jnp.any(level[:, None] & follows, axis=0)
        return level, level

    _, later = jax.lax.scan(step, start, None, length=steps)
    return jnp.concatenate([start[None], later])


def edge_of_reach(
    transition: Num[Array, "S A"] | Num[Array, "S A S"],
    start: Bool[Array, " S"],
    steps: int,
) -> Bool[Array, " S"]:
    """States that a branch of k steps can end in, but that no branch can be in before.

    Their values are bootstrapped from and never updated.

    Args:
        transition: see `level_sets`.
        start: states that branches start from.
        steps: length k of a branch, at least 1.

    Returns:
        The set; empty once branches are as long as it takes to get anywhere.

    Raises:
        ValueError: if `steps` is not positive or the shapes do not fit.

    Reference:
        Sims et al. 2024 (The Edge-of-Reach Problem), definition 1.

    Pitfall:
        The set quantifies over all policies: a state that the current policy does not reach early
        is not at the edge if another policy would.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    levels = level_sets(transition, start, steps)
    return levels[-1] & ~jnp.any(levels[:-1], axis=0)


def box_edge_of_reach(
    obs: Float[Array, "*b o"],
    t: Int[Array, "*b"],
    steps: int,
    half_width: ArrayLike,
    step: ArrayLike,
) -> Bool[Array, "*b"]:
    """`edge_of_reach` of a point that starts in a box and moves freely, by at most `step` per axis.

    Args:
        obs: positions that were reached.
        t: after how many steps.
        steps: length k of a branch.
        half_width: starts fill the box |s_i| <= half_width.
        step: farthest move along an axis.

    Returns:
        Whether the position ends its branch and lies outside of what k - 1 steps can reach.
    """
    reach = jnp.asarray(half_width, obs.dtype) + (steps - 1) * jnp.asarray(step, obs.dtype)
    return (t == steps) & (jnp.max(jnp.abs(obs), axis=-1) > reach)


def unvisited(
    obs: Float[Array, "B o"],
    rows: Float[Array, "C o"],
    width: Float[Array, " o"],
    count: ArrayLike | None = None,
) -> Bool[Array, " B"]:
    """States in whose cell of a grid no stored row starts: an estimate of the edge from samples.

    Args:
        obs: states to be judged.
        rows: states in which stored transitions start; only the first `count` count.
        width: side lengths of a cell, positive.
        count: number of valid rows; None for all.

    Returns:
        Whether a state's cell is empty. (Cells are compared by 32-bit hashes: two of them are taken
        for one with probability 2^-32 per pair.)

    Raises:
        ValueError: if the dimensions differ.
    """
    if obs.shape[-1] != rows.shape[-1]:
        raise ValueError(f"rows: expected {obs.shape[-1]} dimensions, got {rows.shape[-1]}")
    known = _cell(rows, width)
    if count is not None:
        # Rows that do not count repeat the first one.
        known = jnp.where(jnp.arange(len(rows)) < count, known, known[0])
    known = jnp.sort(known)
    asked = _cell(obs, width)
    place = jnp.minimum(jnp.searchsorted(known, asked), len(rows) - 1)
    empty = known[place] != asked
    return empty if count is None else empty | (jnp.asarray(count) < 1)  # no row, no first one


def _cell(obs: Float[Array, "B o"], width: Float[Array, " o"]) -> Array:
    """A hash of the cell that a state lies in."""
    index = jnp.floor(obs / jnp.broadcast_to(width, obs.shape)).astype(jnp.int32).astype(jnp.uint32)
    mixed = jnp.full(obs.shape[:-1], 2166136261, jnp.uint32)
    for axis in range(obs.shape[-1]):
        mixed = _scramble(mixed ^ _scramble(index[..., axis] + jnp.uint32(axis)))
    return mixed


def _scramble(x: Array) -> Array:
    """A bijection of 32-bit words that changes half of the bits for every changed bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)

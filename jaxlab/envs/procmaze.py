"""A new maze in every episode."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.envs.discrete import DiscreteEnv
from jaxlab.envs.grids import neighbours


@flax.struct.dataclass
class ProcMazeState:
    """A maze and who is where in it."""

    player: Int[Array, ""]  # cell
    goal: Int[Array, ""]  # cell
    open: Bool[Array, " c"]  # cells without a wall


def carve_maze(key: Key[Array, ""], size: int) -> Bool[Array, " c"]:
    """Draws a perfect maze by depth-first search with backtracking.

    From the cell on top of the stack, a uniformly chosen neighbour is opened of which the only open
    neighbour is this cell; if there is none, the search goes back.

    Args:
        key: random key.
        size: cells on a side.

    Returns:
        Which of the size^2 cells are open: they form a tree.
    """
    table = neighbours(size)[:, 1:]
    on_grid = jnp.asarray(table != np.arange(size**2)[:, None])
    around = jnp.asarray(table, jnp.int32)
    start_key, key = jax.random.split(key)
    start = jax.random.randint(start_key, (), 0, size**2)

    def search(carry: tuple) -> tuple:
        opened, stack, top, key = carry
        key, choice_key = jax.random.split(key)
        cell = stack[top]
        cells = around[cell]
        touching = jnp.sum(opened[around[cells]] & on_grid[cells], axis=-1)
        possible = on_grid[cell] & ~opened[cells] & (touching == 1)
        draw = jax.random.uniform(choice_key, (4,))
        chosen = cells[jnp.argmax(jnp.where(possible, draw, -1.0))]
        goes_on = jnp.any(possible)
        opened = opened.at[chosen].set(opened[chosen] | goes_on)
        place = jnp.where(goes_on, top + 1, stack.size)  # beyond the stack: dropped
        stack = stack.at[place].set(chosen, mode="drop")
        return opened, stack, jnp.where(goes_on, top + 1, top - 1), key

    stack = jnp.zeros(size**2, jnp.int32).at[0].set(start)
    opened = jnp.zeros(size**2, bool).at[start].set(True)
    carry = (opened, stack, jnp.zeros((), jnp.int32), key)
    return jax.lax.while_loop(lambda carry: carry[2] >= 0, search, carry)[0]


def procmaze(size: int = 3, *, spontaneous: bool = True) -> DiscreteEnv:
    """Find the goal of a maze that is drawn anew in every episode.

    Actions: stay, up, left, down, right; walls and the border stop a move. Every step costs 1. An
    episode ends with the step that *starts* on the goal. After the move, with a tenth of the
    inverse of the longest solution as probability, the player is carried to the goal. Observation:
    for every cell the bits player, goal, wall, empty.

    Args:
        size: n, cells on a side.
        spontaneous: whether the player may be carried to the goal.

    Returns:
        The environment.

    Raises:
        ValueError: if `size` is not positive.

    Reference: Young et al. 2023, The Benefits of Model-Based Generalization in Reinforcement
    Learning, section 4 (ProcMaze).
    """
    if size < 1:
        raise ValueError(f"size: expected at least 1, got {size}")
    target = jnp.asarray(neighbours(size), jnp.int32)
    longest = (size + 1) * math.ceil(size / 2) - size % 2
    probability = 0.1 / longest if spontaneous else 0.0

    def uniform_cell(key: Key[Array, ""], opened: Bool[Array, " c"]) -> Int[Array, ""]:
        draw = jax.random.uniform(key, opened.shape)
        return jnp.argmax(jnp.where(opened, draw, -1.0)).astype(jnp.int32)

    def reset(key: Key[Array, ""]) -> ProcMazeState:
        maze_key, player_key, goal_key = jax.random.split(key, 3)
        opened = carve_maze(maze_key, size)
        return ProcMazeState(
            uniform_cell(player_key, opened), uniform_cell(goal_key, opened), opened
        )

    def step(
        state: ProcMazeState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[ProcMazeState, Float[Array, ""], Bool[Array, ""]]:
        terminated = state.player == state.goal
        aim = target[state.player, action]
        player = jnp.where(state.open[aim], aim, state.player)
        player = jnp.where(jax.random.uniform(key) < probability, state.goal, player)
        return ProcMazeState(player, state.goal, state.open), jnp.float32(-1.0), terminated

    def observe(state: ProcMazeState) -> Float[Array, " o"]:
        cells = jnp.arange(size**2)
        channels = (cells == state.player, cells == state.goal, ~state.open, state.open)
        return jnp.stack(channels, axis=-1).reshape(-1).astype(jnp.float32)

    return DiscreteEnv(
        reset=reset,
        step=step,
        observe=observe,
        name=f"procmaze{size}",
        num_actions=5,
        obs_dim=4 * size**2,
        episodic=True,
    )

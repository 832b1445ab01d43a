"""A grid of buttons that have to be switched on by stepping onto them."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.envs.discrete import DiscreteEnv
from jaxlab.envs.grids import neighbours


@flax.struct.dataclass
class ButtonGridState:
    """Where the player and the buttons are, and which buttons are on."""

    player: Int[Array, ""]  # cell
    buttons: Int[Array, " k"]  # distinct cells
    on: Bool[Array, " k"]


def buttongrid(size: int = 3, buttons: int = 2, *, spontaneous: bool = True) -> DiscreteEnv:
    """Switch all buttons on; then everything starts afresh.

    Actions: stay, up, left, down, right. Entering a button's cell toggles it; staying on it or
    bumping into the border does not. If all buttons are on at the start of a step, its reward is 1
    and it ends in a newly drawn state. With probability 1 / (10 m^2) all buttons switch on by
    themselves. The task is continuing; observation: for every cell the bits player, on, off.

    Args:
        size: m, cells on a side.
        buttons: k, at most m^2.
        spontaneous: whether buttons switch on by themselves.

    Returns:
        The environment.

    Raises:
        ValueError: if the buttons do not fit on the grid.

    Reference: Young et al. 2023, The Benefits of Model-Based Generalization in Reinforcement
    Learning, section 4 (ButtonGrid).
    """
    if not 1 <= buttons <= size**2:
        raise ValueError(f"buttons: expected 1 to {size**2}, got {buttons}")
    target = jnp.asarray(neighbours(size), jnp.int32)
    probability = 1 / (10 * size**2) if spontaneous else 0.0

    def reset(key: Key[Array, ""]) -> ButtonGridState:
        player_key, button_key = jax.random.split(key)
        player = jax.random.randint(player_key, (), 0, size**2)
        # The largest of independent uniforms: k distinct cells in random order.
        _, cells = jax.lax.top_k(jax.random.uniform(button_key, (size**2,)), buttons)
        return ButtonGridState(player, cells, jnp.zeros(buttons, bool))

    def step(
        state: ButtonGridState, action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[ButtonGridState, Float[Array, ""], Bool[Array, ""]]:
        event_key, reset_key = jax.random.split(key)
        success = jnp.all(state.on)
        player = target[state.player, action]
        entered = (player != state.player) & (state.buttons == player)
        on = (state.on ^ entered) | (jax.random.uniform(event_key) < probability)
        moved = ButtonGridState(player, state.buttons, on)
        state = jax.tree.map(lambda x, y: jnp.where(success, x, y), reset(reset_key), moved)
        return state, success.astype(jnp.float32), jnp.zeros((), bool)

    def observe(state: ButtonGridState) -> Float[Array, " o"]:
        cells = jnp.arange(size**2)
        at = state.buttons[:, None] == cells[None, :]
        channels = (
            cells == state.player,
            jnp.any(at & state.on[:, None], axis=0),
            jnp.any(at & ~state.on[:, None], axis=0),
        )
        return jnp.stack(channels, axis=-1).reshape(-1).astype(jnp.float32)

    return DiscreteEnv(
        reset=reset,
        step=step,
        observe=observe,
        name=f"buttongrid{size}x{buttons}",
        num_actions=5,
        obs_dim=3 * size**2,
        episodic=False,
    )

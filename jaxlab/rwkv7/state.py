"""The recurrent state of RWKV-7: constant in size, whatever the length of the text."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.rwkv7.config import Config


class State(NamedTuple):
    """State of a batch, stacked over layers.

    A learned state (for `reset_state`, or to start from) has the same leaves without the batch
    axis.
    """

    att_shift: Float[Array, "L B C"]  # the last normalised input of the time mix
    wkv: Float[Array, "L B H V K"]  # float32; rows are value channels, columns key channels
    ffn_shift: Float[Array, "L B C"]  # the last normalised input of the channel mix
    enlarged: Float[Array, "L B H M M"] | None = (
        None  # float32; of an upscaled model, see `upscaled`
    )


def initial_state(config: Config, batch: int, learned: State | None = None) -> State:
    """The state before any token: zeros, or a learned state for every row.

    Args:
        config: sizes.
        batch: rows B.
        learned: leaves [L, C], [L, H, V, K], [L, C]; differentiable.

    Returns:
        The batched state.

    Raises:
        ValueError: `learned` has other shapes.
    """
    if learned is not None:
        check_state("learned", learned, config, None)
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(
                jnp.expand_dims(leaf, 1), (leaf.shape[0], batch, *leaf.shape[1:])
            ),
            learned,
        )
    shift = jnp.zeros((config.n_layer, batch, config.n_embd), config.dtype)
    size = config.head_size
    wkv = jnp.zeros((config.n_layer, batch, config.n_head, size, size), jnp.float32)
    return State(shift, wkv, shift)


def check_state(name: str, state: State, config: Config, batch: int | None) -> None:
    """Raises ValueError if a state does not fit.

    Args:
        name: of the argument, for the message.
        state: to be checked.
        config: sizes.
        batch: rows, or None for a learned state without a batch axis.
    """
    rows = () if batch is None else (batch,)
    lead = (config.n_layer, *rows)
    shift = (*lead, config.n_embd)
    wkv = (*lead, config.n_head, config.head_size, config.head_size)
    got = tuple(leaf.shape for leaf in state[:3])
    if got != (shift, wkv, shift):
        raise ValueError(f"{name}: expected shapes {(shift, wkv, shift)}, got {got}")
    if state.enlarged is not None and (
        state.enlarged.shape[:-2] != (*lead, config.n_head)
        or state.enlarged.shape[-1] != state.enlarged.shape[-2]
    ):
        raise ValueError(
            f"{name}: expected an enlarged state {(*lead, config.n_head, 'M', 'M')}, "
            f"got {state.enlarged.shape}"
        )

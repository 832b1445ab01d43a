"""Pipes through which notes travel: many joint states, one simple rule per bit."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.envs.discrete import DiscreteEnv


def panflute(pipes: int = 4, *, spontaneous: bool = True) -> DiscreteEnv:
    """Pipes of lengths 1 to n; all their ends must sound at once.

    Action i plays a note into pipe i, whose cells are i + 1, and silence into the others; all cells
    move on by one, the last one falls out. With probability 1 / n^2 all ends sound by themselves
    after the move. The reward is 1 if all ends sounded before the move. The task is continuing;
    observation: n (n + 1) / 2 bits, pipe after pipe, each from its mouth to its end.

    Args:
        pipes: n, at least 1.
        spontaneous: whether ends sound by themselves, without which random play is rewarded with
            probability n^-n.

    Returns:
        The environment.

    Raises:
        ValueError: if `pipes` is not positive.

    Reference: Young et al. 2023, The Benefits of Model-Based Generalization in Reinforcement
    Learning, section 4 (PanFlute).
    """
    if pipes < 1:
        raise ValueError(f"pipes: expected at least 1, got {pipes}")
    lengths = np.arange(1, pipes + 1)
    pipe_of = np.repeat(np.arange(pipes, dtype=np.int32), lengths)
    ends = np.cumsum(lengths) - 1
    is_end = np.isin(np.arange(len(pipe_of)), ends)
    is_mouth = np.isin(np.arange(len(pipe_of)), ends - lengths + 1)
    probability = 1 / pipes**2 if spontaneous else 0.0

    def reset(key: Key[Array, ""]) -> Bool[Array, " o"]:
        del key
        return jnp.zeros(len(pipe_of), bool)

    def step(
        state: Bool[Array, " o"], action: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Bool[Array, " o"], Float[Array, ""], Bool[Array, ""]]:
        reward = jnp.all(state[ends]).astype(jnp.float32)
        moved = jnp.where(is_mouth, jnp.asarray(pipe_of) == action, jnp.roll(state, 1))
        sounds = jax.random.uniform(key) < probability
        return moved | (is_end & sounds), reward, jnp.zeros((), bool)

    return DiscreteEnv(
        reset=reset,
        step=step,
        observe=lambda state: state.astype(jnp.float32),
        name=f"panflute{pipes}",
        num_actions=pipes,
        obs_dim=len(pipe_of),
        episodic=False,
    )


def panflute_rewards(pipes: int, *, spontaneous: bool = True) -> tuple[float, float]:
    """Average rewards per step of uniformly random and of optimal play.

    Args:
        pipes: n.
        spontaneous: as in `panflute`.

    Returns:
        (p + (1 - p) n^-n, 1 / n + (1 - 1 / n) p) with p = 1 / n^2, or 0. Optimal play is round by
        round, the longest pipe first; between its rewards only spontaneous ones can come.
    """
    p = 1 / pipes**2 if spontaneous else 0.0
    return p + (1 - p) * pipes**-pipes, 1 / pipes + (1 - 1 / pipes) * p

"""An observer: a smaller model whose state is to follow that of a larger one.

[R]: the paper says what it is for; the loss is our reconstruction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.model import step, with_second_state
from jaxlab.rwkv7.state import State, initial_state
from jaxlab.rwkv7.state_tuning.decorrelation import Scalar
from jaxlab.rwkv7.state_tuning.tuning import (
    Batch,
    Tuned,
    learned_state,
    state_tuning_loss,
    tuned_model,
)


class ObserverMaps(NamedTuple):
    """S^T_i is predicted as sum_j A_ij S^s_j B_ij over the heads j of the student."""

    left: Float[Array, "L HT HS NT NS"]  # A
    right: Float[Array, "L HT HS NS NT"]  # B


def init_observer(key: Key[Array, ""], student: Config, teacher: Config) -> ObserverMaps:
    """Random maps of moderate size.

    Args:
        key: random key.
        student: sizes.
        teacher: sizes; as many layers.

    Returns:
        The maps.

    Raises:
        ValueError: different numbers of layers.
    """
    if student.n_layer != teacher.n_layer:
        raise ValueError(
            f"student: expected {teacher.n_layer} layers as the teacher has, got {student.n_layer}"
        )
    lead = (teacher.n_layer, teacher.n_head, student.n_head)
    small, large = student.head_size, teacher.head_size
    one, two = jax.random.split(key)
    scale = 1 / jnp.sqrt(jnp.float32(small))
    return ObserverMaps(
        scale * jax.random.normal(one, (*lead, large, small)),
        scale * jax.random.normal(two, (*lead, small, large)),
    )


def state_trajectory(
    params: Params, config: Config, tokens: Int[Array, "B T"], state: State | None = None
) -> Float[Array, "T L B H N N"]:
    """The matrix states behind every token, differentiable in the first one.

    Args:
        params: from `init` or `load`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        state: before the first token; zero if None.

    Returns:
        T times the memory of a state.
    """
    start = initial_state(config, tokens.shape[0]) if state is None else state
    start = with_second_state(params["blocks"], start)

    def go(state: State, token: Array) -> tuple[State, Array]:
        _, state = step(params, config, token, state)
        return state, state.wkv

    return jax.lax.scan(go, start, tokens.T)[1]


def observer_loss(
    maps: ObserverMaps,
    student_states: Float[Array, "T L B HS NS NS"],
    teacher_states: Float[Array, "T L B HT NT NT"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """mean_t |A S^s_t B - S^T_t|^2 / |S^T_t|^2, in squared Frobenius norms per layer and row.

    Args:
        maps: learned.
        student_states: from `state_trajectory`; differentiable.
        teacher_states: from the teacher on the same tokens; constants.

    Returns:
        The loss, and "explained": 1 minus the error's share of the teacher's variance over tokens
        and rows, averaged over layers.
    """
    teacher = jax.lax.stop_gradient(teacher_states)
    predicted = jnp.einsum("lijab,tlzjbc,lijcd->tlziad", maps.left, student_states, maps.right)
    error = jnp.sum((predicted - teacher) ** 2, axis=(3, 4, 5))
    size = jnp.sum(teacher**2, axis=(3, 4, 5))
    spread = teacher - jnp.mean(teacher, axis=(0, 2), keepdims=True)
    variance = jnp.sum(spread**2, axis=(0, 2, 3, 4, 5))
    explained = 1 - jnp.sum(error, axis=(0, 2)) / jnp.maximum(variance, 1e-12)
    loss = jnp.mean(error / jnp.maximum(size, 1e-12))
    return loss, {"explained": jax.lax.stop_gradient(jnp.mean(explained))}


def observed_tuning_loss(
    trained: tuple[Tuned, ObserverMaps],
    params: Params,
    config: Config,
    batch: Batch,
    teacher_states: Float[Array, "T L B HT NT NT"],
    weight: Scalar = 1.0,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The observer's loss plus `weight` times the cross-entropy, in the student's state and maps.

    Args:
        trained: what is learned.
        params: of the student; frozen.
        config: sizes of the student.
        batch: sequences, not packed.
        teacher_states: of the teacher on `batch.tokens[:, :-1]`.
        weight: lambda.

    Returns:
        The loss, and "nll", "accuracy" and "explained".

    Raises:
        ValueError: packed sequences.
    """
    if batch.reset is not None:
        raise ValueError(
            f"batch: expected sequences that are not packed, got a reset {batch.reset.shape}"
        )
    tuned, maps = trained
    state = initial_state(config, batch.tokens.shape[0], learned_state(tuned, config))
    states = state_trajectory(tuned_model(params, tuned), config, batch.tokens[:, :-1], state)
    apart, told = observer_loss(maps, states, teacher_states)
    loss, metrics = state_tuning_loss(tuned, params, config, batch)
    return apart + weight * loss, {
        "nll": metrics["nll"], "accuracy": metrics["accuracy"], **told
    }  # fmt: skip

"""One training step of the recipe: loss, gradient, update, on one device or spread over many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab.nets import constrain_batch, constrain_fsdp
from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params, init
from jaxlab.rwkv7.losses import l2wrap_cross_entropy
from jaxlab.rwkv7.model import forward


class TrainState(NamedTuple):
    """What training changes."""

    params: Params
    optimizer: Any


class Training(NamedTuple):
    """A trainer as two pure functions."""

    init: Callable[[Key[Array, ""]], TrainState]
    step: Callable[
        [TrainState, Int[Array, "B T+1"]], tuple[TrainState, dict[str, Float[Array, ""]]]
    ]


def make_training(
    config: Config,
    optimizer: optax.GradientTransformation,
    *,
    impl: str = "auto",
    remat: str = "none",
) -> Training:
    """Next-token training of the whole model.

    Where a mesh with an axis "data" is in context, parameters, moments and the batch are spread
    over it (fully sharded data parallelism).

    Args:
        config: sizes.
        optimizer: `rwkv7.optimizer(...)` or another one.
        impl: implementation of the recurrence, see `jaxlab_kernels.wkv7`.
        remat: see `forward`.

    Returns:
        `init` and `step`; a step takes sequences of T inputs and their successors, and reports
        "loss" in nats per token and the "grad_norm" before clipping.
    """

    def start(key: Key[Array, ""]) -> TrainState:
        params = constrain_fsdp(init(key, config))
        return TrainState(params, constrain_fsdp(optimizer.init(params)))

    def step(
        state: TrainState, tokens: Int[Array, "B T+1"]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        tokens = constrain_batch(tokens)

        def loss_of(params: Params) -> Float[Array, ""]:
            logits, _ = forward(params, config, tokens[:, :-1], impl=impl, remat=remat)
            return l2wrap_cross_entropy(logits, tokens[:, 1:])

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        grads = constrain_fsdp(grads)
        updates, moments = optimizer.update(grads, state.optimizer, state.params)
        params = constrain_fsdp(optax.apply_updates(state.params, updates))
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(params, constrain_fsdp(moments)), metrics

    return Training(start, step)

"""The optimiser of the RWKV recipe: AdamW with parameter groups, warm-up and cosine decay."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab.rwkv7.initialization import Params

Scalar = float | Float[Array, ""]

_MATRICES = ("emb", "head", "receptance", "key", "value", "output")


def param_labels(params: Params) -> Any:
    """Names the group of every parameter.

    Args:
        params: from `init` or `load`.

    Returns:
        The tree with "decay" (embedding, head and the large matrices: weight decay), "w0_2x" (the
        decay's bias: twice the learning rate) or "no_decay" at each leaf.

    Pitfall: decaying the low-rank factors or anything else hurts a lot.
    """

    def label(path: tuple[Any, ...], leaf: Array) -> str:
        # The leaves of `Upscaling` have a name instead of a key.
        name = getattr(path[-1], "key", getattr(path[-1], "name", None))
        if name == "w0":
            return "w0_2x"
        return "decay" if name in _MATRICES else "no_decay"

    return jax.tree_util.tree_map_with_path(label, params)


def learning_rate_schedule(
    step: Int[Array, ""],
    total_steps: int | Int[Array, ""],
    peak: Scalar,
    final: Scalar,
    warmup_steps: int | Int[Array, ""] = 10,
) -> Float[Array, ""]:
    """Cosine from `peak` to `final`; during warm-up also scaled linearly up from 1 %.

    Args:
        step: number of updates made so far.
        total_steps: where `final` is reached.
        peak: the recipe has 6e-4 (L12 C768), 4e-4 (L24 C1024), 3e-4 (L24 C2048).
        final: learning rate at the end.
        warmup_steps: length of the warm-up; the cosine starts after it.

    Returns:
        The learning rate of the next update.
    """
    now, total, warmup = (jnp.asarray(n, jnp.float32) for n in (step, total_steps, warmup_steps))
    progress = jnp.clip((now - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
    rate = final + (peak - final) * (0.5 + 0.5 * jnp.cos(jnp.pi * progress))
    ramp = 0.01 + 0.99 * now / jnp.maximum(warmup, 1)
    return rate * jnp.where(now < warmup, ramp, 1)


class OptimizerState(NamedTuple):
    """Moments in float32, whatever the dtype of the parameters."""

    updates: Int[Array, ""]
    moments: Any


def optimizer(
    peak: Scalar,
    final: Scalar,
    total_steps: int | Int[Array, ""],
    *,
    warmup_steps: int | Int[Array, ""] = 10,
    weight_decay: Scalar = 0.1,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-18,
    clip: Scalar = 1.0,
) -> optax.GradientTransformation:
    """The whole recipe as one optax transformation; every number may be traced and swept.

    Args:
        peak: learning rate after warm-up.
        final: learning rate at `total_steps`.
        total_steps: length of the run.
        warmup_steps: length of the warm-up.
        weight_decay: decoupled, for the "decay" group only.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment; 1e-18 is below bfloat16's and float16's reach
            next to a moment, so the moments are float32.
        clip: largest global norm of the gradient.

    Returns:
        `init` and `update`; `update` needs the parameters. `init` raises ValueError for parameters
        below float32, to which most updates would be lost by rounding.

    Reference: the official RWKV-7 trainer.
    """

    def adam() -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def init(params: Params) -> OptimizerState:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.dtype not in (jnp.float32, jnp.float64):
                raise ValueError(
                    f"params: expected float32, got {leaf.dtype} at {jax.tree_util.keystr(path)}: "
                    "load with param_dtype='float32'; activations stay bfloat16 through `dtype`"
                )
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        return OptimizerState(jnp.zeros((), jnp.int32), adam().init(wide))

    def update(
        grads: Params, state: OptimizerState, params: Params | None = None
    ) -> tuple[Params, OptimizerState]:
        if params is None:
            raise ValueError("params: expected the parameters, for weight decay, got None")
        grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
        shrink = jnp.minimum(1, clip / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        grads = jax.tree.map(lambda leaf: leaf * shrink, grads)
        with jax.numpy_dtype_promotion("standard"):
            directions, moments = adam().update(grads, state.moments)
        rate = learning_rate_schedule(state.updates, total_steps, peak, final, warmup_steps)

        def move(label: str, direction: Array, leaf: Array) -> Array:
            decay = weight_decay if label == "decay" else 0.0
            speed = rate * (2.0 if label == "w0_2x" else 1.0)
            return (-speed * (direction + decay * leaf.astype(jnp.float32))).astype(leaf.dtype)

        updates = jax.tree.map(move, param_labels(params), directions, params)
        return updates, OptimizerState(state.updates + 1, moments)

    return optax.GradientTransformation(init, update)

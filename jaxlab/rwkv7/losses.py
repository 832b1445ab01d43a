"""The language-modelling loss of the RWKV recipe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def l2wrap_cross_entropy(
    logits: Float[Array, "*b V"],
    targets: Int[Array, "*b"],
    mask: Bool[Array, "*b"] | None = None,
    factor: float = 1e-4,
) -> Float[Array, ""]:
    """Mean cross-entropy whose gradient also pulls the largest logit of each position towards zero.

    The value is the plain cross-entropy; the gradient is that of cross-entropy plus
    factor / 2 * mean(max_logit^2), and it scales with the incoming cotangent.

    Args:
        logits: unnormalised log-probabilities; computed in float32.
        targets: ids in [0, V); anything where the mask is False.
        mask: positions that count, all if None.
        factor: strength of the pull.

    Returns:
        The loss in nats per counted position; 0 if none counts.

    Raises:
        ValueError: shapes that do not fit.

    Reference: the official RWKV trainer ("L2Wrap").
    """
    if targets.shape != logits.shape[:-1] or (mask is not None and mask.shape != targets.shape):
        shapes = [x.shape for x in (logits, targets, mask) if x is not None]
        raise ValueError(f"logits, targets, mask: shapes that do not fit: {shapes}")
    logits = logits.astype(jnp.float32)
    weight = jnp.ones(targets.shape)
    if mask is not None:
        # Replaced before anything is computed: NaN times zero would still be a NaN gradient.
        logits = jnp.where(mask[..., None], logits, 0)
        targets = jnp.where(mask, targets, 0)
        weight = mask.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight), 1)

    def pick(index: Array) -> Array:
        return jnp.take_along_axis(logits, index[..., None], axis=-1)[..., 0]

    nll = jax.nn.logsumexp(logits, axis=-1) - pick(targets)
    # Picked by arg-max: the gradient of max() would be shared between equal logits.
    largest = pick(jnp.argmax(logits, axis=-1))
    pull = 0.5 * factor * jnp.sum(weight * largest**2)
    return jnp.sum(weight * nll) + (pull - jax.lax.stop_gradient(pull))

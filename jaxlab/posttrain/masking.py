"""Masked sums and moments: what the mask hides may be anything, also NaN.

Conventions of this package: B sequences, T completion positions, V ids, G samples per prompt, with
the G rows of a prompt next to each other. `tokens[b, t]` was drawn from `logits[b, t]`: the shift
is done already. `mask[b, t]` is 1 where the policy chose the token, its stop token included, and 0
behind the end, on padding and on tokens that an environment wrote.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

Axis = int | tuple[int, ...] | None


def select(x: Num[Array, "*b"], mask: Num[Array, "*b"]) -> Float[Array, "*b"]:
    """Zero where nothing counts; in float32.

    Args:
        x: values.
        mask: 1 where they count.

    Returns:
        The values, 0 elsewhere.

    Raises:
        ValueError: shapes that differ.

    Pitfall: 0 * NaN is NaN, in values and in gradients; so the mask selects and never multiplies.
    """
    if x.shape != mask.shape:
        raise ValueError(f"mask: expected the shape of the values, {x.shape}, got {mask.shape}")
    return jnp.where(mask > 0, x, 0).astype(jnp.float32)


def masked_sum(
    x: Num[Array, "*b"], mask: Num[Array, "*b"], axis: Axis = None
) -> Float[Array, "*c"]:
    """Sum of what counts."""
    return jnp.sum(select(x, mask), axis=axis)


def masked_mean(
    x: Num[Array, "*b"], mask: Num[Array, "*b"], axis: Axis = None
) -> Float[Array, "*c"]:
    """Mean of what counts, 0 if nothing does."""
    count = jnp.sum((mask > 0).astype(jnp.float32), axis=axis)
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def masked_var(x: Num[Array, "*b"], mask: Num[Array, "*b"], ddof: int = 0) -> Float[Array, ""]:
    """Variance of what counts, around its mean.

    Args:
        x: values.
        mask: 1 where they count.
        ddof: 1 for the unbiased estimate.

    Returns:
        The variance, 0 where `ddof` or fewer values count.
    """
    count = jnp.sum((mask > 0).astype(jnp.float32))
    centred = select(x, mask) - masked_mean(x, mask)
    total = masked_sum(centred**2, mask)
    return jnp.where(count > ddof, total / jnp.maximum(count - ddof, 1), 0)


def masked_whiten(
    x: Num[Array, "*b"], mask: Num[Array, "*b"], shift_mean: bool = True, eps: float = 1e-8
) -> Float[Array, "*b"]:
    """Mean 0 and variance 1 over what counts.

    Args:
        x: values.
        mask: 1 where they count.
        shift_mean: False keeps the mean.
        eps: added to the variance.

    Returns:
        Whitened values, 0 where nothing counts.
    """
    mean = masked_mean(x, mask)
    unit = (select(x, mask) - mean) / jnp.sqrt(masked_var(x, mask) + eps)
    return select(unit if shift_mean else unit + mean, mask)


def check_mask(logits: Array, tokens: Array, mask: Array) -> None:
    """Refuses logits [B, T, V], tokens [B, T] and mask [B, T] that do not fit.

    Args:
        logits: of every position.
        tokens: ids.
        mask: 1 where they count.

    Raises:
        ValueError: naming the argument.
    """
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens: expected shape {logits.shape[:-1]}, got {tokens.shape}")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask: expected shape {tokens.shape}, got {mask.shape}")

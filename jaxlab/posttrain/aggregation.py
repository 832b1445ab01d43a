"""From a number per token to one number: the choice decides what long and short answers weigh."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxlab.posttrain.masking import masked_mean, masked_sum

Mode = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]


def aggregate_parts(
    per_token: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    mode: Mode = "token_mean",
    norm: float | None = None,
    *,
    count_empty_rows: bool = False,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Numerator and denominator, for sums over devices and microbatches before the division.

    Args:
        per_token: values.
        mask: 1 where they count.
        mode: "token_mean": over all tokens; "seq_mean_token_mean": the mean of the rows' means;
            "seq_mean_token_sum": the mean of the rows' sums; "seq_mean_token_sum_norm": that
            divided by a constant.
        norm: the constant of the last mode, for example the largest completion length.
        count_empty_rows: rows without a token count as zeros in the mean over rows.

    Returns:
        Two sums; their quotient is `aggregate`.

    Raises:
        ValueError: an unknown mode, or a `norm` that is missing or not used.

    Reference: Liu et al. 2025, Understanding R1-Zero-Like Training (Dr. GRPO), section 3; Yu et al.
    2025, DAPO, section 3.3.

    Pitfall: the constant must not be the width of the current batch, or the effective learning
    rate depends on padding; and means of microbatches must not be averaged.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
    if (norm is not None) != (mode == "seq_mean_token_sum_norm"):
        raise ValueError(
            f"norm: expected a number in mode seq_mean_token_sum_norm and None otherwise, "
            f"got {norm!r} in mode {mode}"
        )
    if mode == "token_mean":
        return masked_sum(per_token, mask), jnp.sum((mask > 0).astype(jnp.float32))
    if mode == "seq_mean_token_mean":
        rows = masked_mean(per_token, mask, axis=1)
    else:
        rows = masked_sum(per_token, mask, axis=1)
    present = jnp.any(mask > 0, axis=1) | count_empty_rows
    count = jnp.sum(present.astype(jnp.float32))
    return jnp.sum(rows), count if norm is None else count * norm


def aggregate(
    per_token: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    mode: Mode = "token_mean",
    norm: float | None = None,
    *,
    count_empty_rows: bool = False,
) -> Float[Array, ""]:
    """One number from a number per token.

    Args:
        per_token: values.
        mask: 1 where they count.
        mode: see `aggregate_parts`.
        norm: see `aggregate_parts`.
        count_empty_rows: see `aggregate_parts`.

    Returns:
        The quotient, 0 if nothing counts.
    """
    total, count = aggregate_parts(per_token, mask, mode, norm, count_empty_rows=count_empty_rows)
    return total / jnp.where(count > 0, count, 1)

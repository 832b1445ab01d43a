"""Decorrelated backpropagation: a local rule that whitens what a linear map reads."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Scalar = float | Float[Array, ""]


class Decorrelation(NamedTuple):
    """Numbers of the rule; all may be traced."""

    lr: Scalar
    kappa: Scalar = 1e-3  # 0: decorrelation alone, 1: unit variance alone


def dbp_init(size: int) -> Float[Array, "M M"]:
    """R = I, with which nothing changes.

    Args:
        size: M.

    Returns:
        The matrix.
    """
    return jnp.eye(size)


def dbp_update(
    decorrelation: Float[Array, "M M"],
    z: Float[Array, "S M"],
    lr: Scalar,
    kappa: Scalar = 1e-3,
) -> tuple[Float[Array, "M M"], Float[Array, ""]]:
    """R <- R - lr ((1 - kappa) / (M - 1) C R + 2 kappa diag(v) R).

    C is mean z z^T without its diagonal, v = mean z^2 - 1.

    Args:
        decorrelation: R.
        z: R x for a batch of inputs x; a constant, no gradient of the task reaches R.
        lr: step size.
        kappa: weight of the variances.

    Returns:
        The new R, and the loss ((1 - kappa) / (M - 1) sum C^2 + kappa sum v^2) / M before the step.

    Reference: Dalm et al. 2024, Efficient Deep Learning with Decorrelated Backpropagation.

    Pitfall: v scales the rows of R; a public implementation scales its columns, which is not the
        gradient.
    """
    z = jax.lax.stop_gradient(z.astype(jnp.float32))
    size = z.shape[1]
    moment = z.T @ z / z.shape[0]
    apart = moment * (1 - jnp.eye(size))
    excess = jnp.diagonal(moment) - 1
    share = (1 - kappa) / max(size - 1, 1)
    loss = (share * jnp.sum(apart**2) + kappa * jnp.sum(excess**2)) / size
    step = share * (apart @ decorrelation) + 2 * kappa * excess[:, None] * decorrelation
    return decorrelation - lr * step, loss

"""How far a policy is from its reference: sampled estimators and the exact sum.

The estimators differ in their values and, what matters in a loss, in their gradients on samples of
the policy: E grad k1 = 0, E grad k2 = grad KL(policy || reference), E grad k3 = grad
KL(reference || policy).
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.values.arrays import check_same_shape

Kind = Literal["k1", "k2", "k3"]
LIMIT = 20.0  # of exponents


def kl_estimate(
    log_probs: Float[Array, "*b"],
    reference: Float[Array, "*b"],
    kind: Kind = "k3",
    *,
    gradient: Kind | None = None,
) -> Float[Array, "*b"]:
    """KL(policy || reference) from samples of the policy, one number per token.

    Args:
        log_probs: of the sampled tokens under the policy.
        reference: under the reference; a constant of differentiation.
        kind: with d = log_probs - reference: "k1" d; "k2" d^2 / 2; "k3" exp(-d) - 1 + d.
        gradient: take the gradient of this kind instead ("k2" gives that of KL itself).

    Returns:
        Estimates: k1 and k3 are unbiased, k3 is never negative, k2 is biased.

    Raises:
        ValueError: an unknown kind, or shapes that differ.

    Reference: Schulman 2020, Approximating KL Divergence.

    Pitfall: k3 overflows where the policy has left the reference; the exponent is bounded by 20.
    """
    for name, asked in (("kind", kind), ("gradient", gradient or kind)):
        if asked not in get_args(Kind):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(Kind))}, got {asked!r}")
    check_same_shape(log_probs=log_probs, reference=reference)
    value = _estimate(log_probs, reference, kind)
    if gradient is None:
        return value
    slope = _estimate(log_probs, reference, gradient)
    return jax.lax.stop_gradient(value - slope) + slope


def _estimate(log_probs: Array, reference: Array, kind: Kind) -> Array:
    d = log_probs - jax.lax.stop_gradient(reference)
    if kind == "k1":
        return d
    if kind == "k2":
        return d**2 / 2
    # Not exp(-d) - 1: near the reference the rounding of that is larger than the estimate.
    return jnp.expm1(jnp.clip(-d, -LIMIT, LIMIT)) + d


def exact_kl(logits: Float[Array, "*b V"], reference: Float[Array, "*b V"]) -> Float[Array, "*b"]:
    """KL(policy || reference) of each position, summed over the vocabulary.

    Args:
        logits: of the policy.
        reference: logits of the reference; a constant of differentiation.

    Returns:
        Divergences in nats; differentiable.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_q = jax.nn.log_softmax(jax.lax.stop_gradient(reference).astype(jnp.float32), axis=-1)
    possible = log_p > -jnp.inf
    difference = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)

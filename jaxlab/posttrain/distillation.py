"""Distillation: divergences between a teacher p and a student q at every position."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxlab.posttrain.aggregation import Mode, aggregate

Kind = Literal["forward_kl", "reverse_kl", "jsd"]
TopK = Literal["renormalised", "cross_entropy", "tail"]
Metrics = dict[str, Float[Array, ""]]
Scalar = float | Float[Array, ""]


def _log_softmax(logits: Array, tau: Scalar) -> Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32) / tau, axis=-1)


def _kl(log_p: Array, log_q: Array) -> Array:
    possible = log_p > -jnp.inf
    difference = jnp.where(possible, log_p, 0) - jnp.where(possible, log_q, 0)
    return jnp.sum(jnp.exp(log_p) * difference, axis=-1)


def divergence(
    student: Float[Array, "*b V"],
    teacher: Float[Array, "*b V"],
    kind: Kind = "forward_kl",
    *,
    beta: Scalar = 0.5,
    tau: Scalar = 1.0,
) -> Float[Array, "*b"]:
    """How far the student is from the teacher at each position.

    Args:
        student: logits of q.
        teacher: logits of p; constants.
        kind: "forward_kl" KL(p || q), "reverse_kl" KL(q || p), or "jsd", beta KL(p || m) +
            (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.
        beta: weight of the teacher in the mixture, strictly between 0 and 1.
        tau: temperature of both.

    Returns:
        Divergences in nats.

    Raises:
        ValueError: an unknown kind, or `beta` a number that is not between 0 and 1.

    Reference: Agarwal et al. 2024, On-Policy Distillation of Language Models (GKD), eq. 1.

    Pitfall: the generalised divergence tends to 0 as beta goes to 0 or 1; it is JSD / beta that
    tends to the forward KL. Ask for the KL by name.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if kind == "jsd" and isinstance(beta, (int, float)) and not 0 < beta < 1:
        raise ValueError(f"beta: expected strictly between 0 and 1, got {beta}")
    log_p = jax.lax.stop_gradient(_log_softmax(teacher, tau))
    log_q = _log_softmax(student, tau)
    if kind == "forward_kl":
        return _kl(log_p, log_q)
    if kind == "reverse_kl":
        return _kl(log_q, log_p)
    # What neither can say has no gradient: that of log(0 + 0) is NaN.
    possible = (log_p > -jnp.inf) | (log_q > -jnp.inf)
    some_p, some_q = (jnp.where(possible, x, 0) for x in (log_p, log_q))
    mixed = jnp.logaddexp(jnp.log(beta) + some_p, jnp.log1p(-beta) + some_q)
    log_m = jnp.where(possible, mixed, -jnp.inf)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def top_k_divergence(
    student: Float[Array, "*b V"],
    teacher: Float[Array, "*b V"],
    k: int,
    variant: TopK = "tail",
    *,
    tau: Scalar = 1.0,
) -> Float[Array, "*b"]:
    """Forward divergence when only the teacher's k most likely ids are stored.

    Args:
        student: logits of q.
        teacher: logits of p; constants.
        k: how many ids.
        variant: "renormalised": both on these ids alone, blind to the student's mass elsewhere;
            "cross_entropy": -sum p log q over them, no renormalisation; "tail": one more bucket
            for all the rest, a lower bound of KL(p || q).
        tau: temperature of both.

    Returns:
        Divergences in nats; with k = V the first and the last are KL(p || q), and the second is
        that plus the teacher's entropy.

    Raises:
        ValueError: an unknown variant, or k outside of 1 to V.
    """
    if variant not in get_args(TopK):
        raise ValueError(f"variant: expected one of {', '.join(get_args(TopK))}, got {variant!r}")
    if not 1 <= k <= teacher.shape[-1]:
        raise ValueError(f"k: expected 1 to {teacher.shape[-1]}, got {k}")
    log_p, index = jax.lax.top_k(jax.lax.stop_gradient(_log_softmax(teacher, tau)), k)
    all_q = _log_softmax(student, tau)
    log_q = jnp.take_along_axis(all_q, index, axis=-1)
    if variant == "renormalised":
        return _kl(jax.nn.log_softmax(log_p, axis=-1), jax.nn.log_softmax(log_q, axis=-1))
    if variant == "cross_entropy":
        return -jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_q, 0), axis=-1)
    inside = jnp.any(jax.nn.one_hot(index, teacher.shape[-1], dtype=bool), axis=-2)
    rest_p = 1 - jnp.sum(jnp.exp(log_p), axis=-1)
    # The student's rest as a sum of what lies outside: one minus a sum would lose it to rounding.
    outside = jnp.where(inside, -jnp.inf, all_q)
    nothing = jnp.all(outside == -jnp.inf, axis=-1)
    rest_q = jax.nn.logsumexp(jnp.where(nothing[..., None], 0.0, outside), axis=-1)
    rest_q = jnp.where(nothing, -jnp.inf, rest_q)
    has_rest = (rest_p > 1e-7) & ~jnp.all(inside, axis=-1)
    safe_p = jnp.where(has_rest, rest_p, 1.0)
    tail = jnp.where(has_rest, safe_p * (jnp.log(safe_p) - jnp.where(has_rest, rest_q, 0.0)), 0.0)
    return _kl(log_p, log_q) + tail


def distillation_loss(
    student: Float[Array, "B T V"],
    teacher: Float[Array, "B T V"],
    mask: Num[Array, "B T"],
    kind: Kind = "forward_kl",
    *,
    beta: Scalar = 0.5,
    tau: Scalar = 1.0,
    mode: Mode = "token_mean",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Masked divergence times tau^2, which keeps the size of the gradient.

    Args:
        student: logits of q.
        teacher: logits of p; constants.
        mask: 1 where they count.
        kind: see `divergence`.
        beta: see `divergence`.
        tau: see `divergence`.
        mode: see `aggregate`.
        norm: see `aggregate`.

    Returns:
        The loss, and "agreement" of the most likely ids.
    """
    wide = mask[..., None] > 0
    student, teacher = jnp.where(wide, student, 0), jnp.where(wide, teacher, 0)
    per_token = divergence(student, teacher, kind, beta=beta, tau=tau)
    same = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    agreement = aggregate(same.astype(jnp.float32), mask)
    return tau**2 * aggregate(per_token, mask, mode, norm), {"agreement": agreement}

"""What training keeps, finds and loses: the support of right answers before and after."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

Level = Literal["completion", "problem"]


class SupportCounts(NamedTuple):
    """Right completions, or problems, by who reaches them; may be traced or batched."""

    preserved: Num[Array, "*b"]  # both
    expanded: Num[Array, "*b"]  # the trained model alone
    shrunk: Num[Array, "*b"]  # the base model alone
    out: Num[Array, "*b"]  # neither


class SupportMetrics(NamedTuple):
    """Ratios of the counts; 0 / 0 is 0."""

    retention: Float[Array, "*b"]  # P / (P + S), "SRR"
    discovery: Float[Array, "*b"]  # E / (P + E), "NDR"
    dynamics: Float[Array, "*b"]  # harmonic mean of the two, "SDS"
    net_change: Float[Array, "*b"]  # (E - S) / (P + E + S), "NSCR"


def detect_threshold(samples: int, miss: float = 0.05) -> float:
    """Largest probability that may well go unseen.

    Args:
        samples: how many were drawn.
        miss: probability of not seeing it.

    Returns:
        -ln(miss) / samples: with confidence 1 - miss, what is unseen is no more likely than this.
    """
    return -math.log(miss) / samples


def support_counts(
    base: Float[Array, "N C"],
    trained: Float[Array, "N C"],
    correct: Bool[Array, "N C"],
    threshold: float | Float[Array, ""],
    level: Level = "completion",
) -> SupportCounts:
    """Counts from exact probabilities.

    Args:
        base: probability of each completion of each problem before training.
        trained: after training.
        correct: which completions are right.
        threshold: a completion is reached if more likely than this.
        level: "completion" counts right completions; "problem" counts problems, reached if the
            probability of any right completion together is above the threshold.

    Returns:
        Counts.

    Raises:
        ValueError: an unknown level.

    Reference: Wu et al. 2025, The Invisible Leash, section 2.
    """
    if level not in get_args(Level):
        raise ValueError(f"level: expected one of {', '.join(get_args(Level))}, got {level!r}")
    if level == "completion":
        before, after = (base > threshold) & correct, (trained > threshold) & correct
        return _count(before, after, correct)
    before, after = (
        jnp.sum(jnp.where(correct, p, 0), axis=-1) > threshold for p in (base, trained)
    )
    return _count(before, after, jnp.ones_like(before))


def support_from_samples(
    hits_base: Num[Array, " N"], hits_trained: Num[Array, " N"]
) -> SupportCounts:
    """Counts of problems from samples.

    Args:
        hits_base: right samples per problem before training.
        hits_trained: after training.

    Returns:
        Counts.
    """
    return _count(hits_base > 0, hits_trained > 0, jnp.ones_like(hits_base, dtype=bool))


def _count(before: Array, after: Array, possible: Array) -> SupportCounts:
    kinds = (before & after, ~before & after, before & ~after, ~before & ~after)
    return SupportCounts(*(jnp.sum(kind & possible) for kind in kinds))


def support_metrics(counts: SupportCounts) -> SupportMetrics:
    """Ratios from counts.

    Args:
        counts: of completions or problems.

    Returns:
        Ratios in [0, 1]; the net change in [-1, 1].

    Reference: Wu et al. 2025, The Invisible Leash, definitions 2.3 to 2.6.
    """
    p, e, s, _ = (jnp.asarray(x, jnp.float32) for x in counts)

    def ratio(top: Array, bottom: Array) -> Array:
        return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1), 0)

    return SupportMetrics(
        ratio(p, p + s),
        ratio(e, p + e),
        ratio(2 * p * e, p * p + 2 * p * e + e * s),
        ratio(e - s, p + e + s),
    )


def exact_pass_at_k(probability: Float[Array, "*b"], k: Num[Array, ""] | int) -> Float[Array, "*b"]:
    """Probability that k independent samples contain a right one.

    Args:
        probability: of a right completion.
        k: number of samples.

    Returns:
        1 - (1 - p)^k.
    """
    certain = probability >= 1
    inside = jnp.where(certain, 0.5, probability)
    return jnp.where(certain, 1.0, -jnp.expm1(k * jnp.log1p(-inside)))


def tilt(
    probabilities: Float[Array, "*b C"], rewards: Num[Array, "*b C"], beta: float | Float[Array, ""]
) -> Float[Array, "*b C"]:
    """The optimum of reward under a KL tie: probabilities times exp(beta r), renormalised.

    Args:
        probabilities: of the base.
        rewards: of the completions.
        beta: 0 changes nothing; infinity restricts to the best.

    Returns:
        Probabilities; the ratios among completions of equal reward are those of the base.
    """
    possible = probabilities > 0
    best = jnp.max(jnp.where(possible, rewards, -jnp.inf), axis=-1, keepdims=True)
    behind = jnp.where(possible, rewards - best, 0).astype(jnp.float32)
    # At beta = infinity, 0 * infinity would be NaN where the reward is the best.
    factor = jnp.where(behind < 0, jnp.exp(beta * jnp.where(behind < 0, behind, -1.0)), 1.0)
    weight = jnp.where(possible, probabilities * factor, 0)
    return weight / jnp.sum(weight, axis=-1, keepdims=True)

"""Hints for problems that no sample solves, with an update on the prompt without the hint.

Completions sampled behind prompt and hint are judged like all others, but the gradient is taken
where the policy will stand: behind the prompt alone. Their ratios compare the two contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from jaxlab.posttrain.aggregation import Mode, aggregate
from jaxlab.posttrain.pass_rates import pass_at_k
from jaxlab.posttrain.policy_losses import Metrics, Scalar, importance_ratio

Shaping = Literal["none", "constant", "percentile", "power"]
Shape = Callable[[Float[Array, "B T"], Float[Array, "B T"]], Float[Array, "B T"]]
_LEAST_GAMMA = 1e-4


class Gain(NamedTuple):
    """Share of problems that the first sample missed before and hits after, and its two parts."""

    solved: Float[Array, ""]
    distilled: Float[Array, ""]  # k samples would have solved them before
    new: Float[Array, ""]  # they would not


def needs_guidance(rewards: Float[Array, "N G"], threshold: float = 1e-3) -> Bool[Array, " N"]:
    """Which groups failed as a whole.

    Args:
        rewards: 0 or 1 for every completion.
        threshold: largest mean of a failed group.

    Returns:
        True where a hint is due.

    Reference: Guide-GRPO, "Adaptive Guidance Accelerates Reinforcement Learning of Reasoning
    Models".
    """
    return jnp.mean(rewards, axis=1) <= threshold


def shape_ratio(
    ratio: Float[Array, "B T"],
    mask: Num[Array, "B T"],
    kind: Shaping = "none",
    gamma: Scalar = 0.1,
) -> Float[Array, "B T"]:
    """Shapes the ratios of hinted tokens.

    Args:
        ratio: w, of the policy behind the plain prompt to the one behind the hint.
        mask: 1 where they count.
        kind: "none": w; "constant": w / (w + gamma); "percentile": the same with the
            gamma-quantile of the ratios that count in place of gamma, a constant of
            differentiation, at least 1e-4; "power": w^gamma.
        gamma: see `kind`; traced.

    Returns:
        Shaped ratios.

    Raises:
        ValueError: an unknown kind.

    Pitfall: w / (w + gamma) has the factor gamma w / (w + gamma)^2 on the gradient, at most 1/4: a
    gamma near 1 only damps.
    """
    if kind not in get_args(Shaping):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Shaping))}, got {kind!r}")
    if kind == "none":
        return ratio
    if kind == "power":
        return ratio**gamma
    if kind == "percentile":
        counted = jnp.where(mask > 0, jax.lax.stop_gradient(ratio), jnp.nan)
        found = jnp.nanquantile(counted, jnp.asarray(gamma, ratio.dtype))
        gamma = jnp.maximum(jnp.where(jnp.isnan(found), 1.0, found), _LEAST_GAMMA)
    return ratio / (ratio + gamma)


def guide_policy_loss(
    log_probs: Float[Array, "B T"],
    old: Float[Array, "B T"],
    advantages: Num[Array, " B"],
    mask: Num[Array, "B T"],
    hinted: Bool[Array, " B"],
    *,
    shape: Shape = lambda ratio, mask: ratio,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    mode: Mode = "token_mean",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The clipped surrogate for ordinary rows, and shaped ratios without clipping for hinted ones.

    Args:
        log_probs: of the tokens behind the plain prompt.
        old: when they were sampled, behind the prompt that was used; a constant.
        advantages: per completion; constants.
        mask: 1 where they count.
        hinted: rows that were sampled behind a hint.
        shape: (ratios, 1 where a hinted token counts) -> shaped ratios; see `shape_ratio`.
        clip_low: see `ppo_clip_loss`.
        clip_high: see `ppo_clip_loss`.
        mode: see `aggregate`.
        norm: see `aggregate`.

    Returns:
        The loss, and "hinted_share" of the tokens that count and "effective_share", the effective
        sample size of the hinted ratios against their number.

    Pitfall: log-probabilities of hinted rows behind the plain prompt as `old` make every ratio 1,
    and the gradient a biased one.
    """
    ratio = importance_ratio(log_probs, old, mask)
    advantage = jax.lax.stop_gradient(advantages)[:, None]
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    ordinary = jnp.minimum(ratio * advantage, clipped * advantage)
    weight = mask.astype(ratio.dtype)
    counted = jnp.where(hinted[:, None], weight, 0)
    gain = jnp.where(hinted[:, None], shape(ratio, counted) * advantage, ordinary)
    weights = ratio * counted
    square = jnp.sum(weights) ** 2 / jnp.maximum(jnp.sum(weights**2), 1e-12)
    metrics = {
        "hinted_share": jnp.sum(counted) / jnp.maximum(jnp.sum(weight), 1),
        "effective_share": square / jnp.maximum(jnp.sum(counted), 1),
    }
    return aggregate(-gain, mask, mode, norm), jax.lax.stop_gradient(metrics)


def gain_decomposition(
    before: Int[Array, " N"], after: Int[Array, " N"], samples: int, k: int
) -> Gain:
    """Splits what training solved into what k samples found before, and what they did not.

    Args:
        before: right completions of each problem among `samples`, before training.
        after: the same after it.
        samples: completions per problem, at least k.
        k: attempts that count as "could be found"; with a large k nothing is new.

    Returns:
        Unbiased estimates over problems; `solved` is the sum of the two others.
    """
    missed_once = 1 - pass_at_k(samples, before, 1)
    missed = 1 - pass_at_k(samples, before, k)
    hit = pass_at_k(samples, after, 1)
    return Gain(
        jnp.mean(missed_once * hit),
        jnp.mean((missed_once - missed) * hit),
        jnp.mean(missed * hit),
    )

"""Policy-gradient losses on sampled completions.

At the first update after sampling every ratio is 1: the loss then equals minus the mean advantage,
which group baselines make 0, while its gradient is that of REINFORCE. A loss of zero is no error;
look at the norm of the gradient.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxlab.posttrain.aggregation import Mode, aggregate
from jaxlab.posttrain.masking import masked_mean, select

Level = Literal["token", "sequence", "sequence_token"]
Metrics = dict[str, Float[Array, ""]]
Scalar = float | Float[Array, ""]
LIMIT = 20.0  # of log-ratios


def importance_ratio(
    log_probs: Float[Array, "B T"],
    old: Float[Array, "B T"],
    mask: Num[Array, "B T"],
    level: Level = "token",
) -> Float[Array, "B T"]:
    """Ratio of the policy to the one that sampled.

    Args:
        log_probs: of the tokens under the policy.
        old: when they were sampled; a constant of differentiation.
        mask: 1 where they count.
        level: "token": each token's own; "sequence": the geometric mean over the completion;
            "sequence_token": the value of that with the gradient of the token's own.

    Returns:
        Ratios, 1 where nothing counts.

    Raises:
        ValueError: an unknown level.

    Reference: Zheng et al. 2025, Group Sequence Policy Optimization, eq. 7 and 14.
    """
    if level not in get_args(Level):
        raise ValueError(f"level: expected one of {', '.join(get_args(Level))}, got {level!r}")
    difference = select(log_probs, mask) - jax.lax.stop_gradient(select(old, mask))
    if level != "token":
        mean = masked_mean(difference, mask, axis=1)[:, None]
        if level == "sequence":
            difference = select(jnp.broadcast_to(mean, mask.shape), mask)
        else:
            own = difference - jax.lax.stop_gradient(difference)
            difference = select(own + jax.lax.stop_gradient(mean), mask)
    return jnp.exp(jnp.clip(difference, -LIMIT, LIMIT))


def _per_token(advantages: Array, mask: Array) -> Array:
    if advantages.ndim == 1:
        advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
    return jax.lax.stop_gradient(select(advantages, mask))


def _weighted(per_token: Array, weights: Array | None) -> Array:
    return per_token if weights is None else per_token * jax.lax.stop_gradient(weights)


def ppo_clip_loss(
    log_probs: Float[Array, "B T"],
    old: Float[Array, "B T"],
    advantages: Num[Array, B * T],
    mask: Num[Array, "B T"],
    *,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    dual_clip: Scalar | None = None,
    ratio_limit: Scalar | None = None,
    level: Level = "token",
    weights: Float[Array, "B T"] | None = None,
    mode: Mode = "token_mean",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The clipped surrogate; `clip_high` above `clip_low` is DAPO's clip-higher.

    Args:
        log_probs: of the tokens under the policy.
        old: when they were sampled; a constant.
        advantages: per completion or per token; constants.
        mask: 1 where they count.
        clip_low: ratios below 1 - clip_low earn nothing for negative advantages.
        clip_high: ratios above 1 + clip_high earn nothing for positive advantages.
        dual_clip: bound, above 1, of the ratio that negative advantages are charged with.
        ratio_limit: bound of the unclipped ratio.
        level: see `importance_ratio`.
        weights: further factors per token, for example `truncated_importance`; constants.
        mode: see `aggregate`.
        norm: see `aggregate`.

    Returns:
        The loss, and "clip_fraction", "ratio", "approx_kl" (k1 of the old policy).

    Reference: Schulman et al. 2017, Proximal Policy Optimization, eq. 7; Ye et al. 2020 (dual
    clip); Yu et al. 2025, DAPO, eq. 10.
    """
    ratio = importance_ratio(log_probs, old, mask, level)
    advantage = _per_token(advantages, mask)
    free = ratio if ratio_limit is None else jnp.minimum(ratio, ratio_limit)
    clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    gain = jnp.minimum(free * advantage, clipped * advantage)
    if dual_clip is not None:
        gain = jnp.where(advantage < 0, jnp.maximum(gain, dual_clip * advantage), gain)
    loss = aggregate(_weighted(-gain, weights), mask, mode, norm)
    outside = jnp.where(advantage > 0, ratio > 1 + clip_high, ratio < 1 - clip_low)
    outside = outside & (advantage != 0)
    metrics = {
        "clip_fraction": masked_mean(outside.astype(jnp.float32), mask),
        "ratio": masked_mean(ratio, mask),
        "approx_kl": masked_mean(select(old, mask) - select(log_probs, mask), mask),
    }
    return loss, jax.lax.stop_gradient(metrics)


def reinforce_loss(
    log_probs: Float[Array, "B T"],
    advantages: Num[Array, B * T],
    mask: Num[Array, "B T"],
    *,
    weights: Float[Array, "B T"] | None = None,
    mode: Mode = "seq_mean_token_sum",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Minus advantage times log-probability.

    Args:
        log_probs: of the tokens under the policy.
        advantages: per completion or per token; constants.
        mask: 1 where they count.
        weights: further factors per token; constants.
        mode: see `aggregate`; the default is the policy gradient of the textbook.
        norm: see `aggregate`.

    Returns:
        The loss and no metrics.

    Reference: Williams 1992.
    """
    gain = _per_token(advantages, mask) * select(log_probs, mask)
    return aggregate(_weighted(-gain, weights), mask, mode, norm), {}


def cispo_loss(
    log_probs: Float[Array, "B T"],
    old: Float[Array, "B T"],
    advantages: Num[Array, B * T],
    mask: Num[Array, "B T"],
    *,
    ratio_limit: Scalar = 5.0,
    weights: Float[Array, "B T"] | None = None,
    mode: Mode = "token_mean",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """REINFORCE with a bounded, detached ratio: clipping never silences a token.

    Args:
        log_probs: of the tokens under the policy.
        old: when they were sampled; a constant.
        advantages: per completion or per token; constants.
        mask: 1 where they count.
        ratio_limit: largest ratio.
        weights: further factors per token; constants.
        mode: see `aggregate`.
        norm: see `aggregate`.

    Returns:
        The loss, and "clip_fraction" and "ratio".

    Reference: MiniMax 2025, MiniMax-M1 (CISPO), eq. 4.
    """
    ratio = jax.lax.stop_gradient(importance_ratio(log_probs, old, mask))
    factor = jnp.minimum(ratio, ratio_limit)
    gain = factor * _per_token(advantages, mask) * select(log_probs, mask)
    metrics = {
        "clip_fraction": masked_mean((ratio > ratio_limit).astype(jnp.float32), mask),
        "ratio": masked_mean(ratio, mask),
    }
    return aggregate(_weighted(-gain, weights), mask, mode, norm), metrics


def truncated_importance(
    old: Float[Array, "B T"],
    behavior: Float[Array, "B T"],
    mask: Num[Array, "B T"],
    *,
    cap: Scalar = 2.0,
    floor: Scalar | None = None,
) -> Float[Array, "B T"]:
    """Weights that correct for a sampler that is not quite the trainer.

    Args:
        old: log-probabilities by the trainer at the time of sampling.
        behavior: by the sampler.
        mask: 1 where they count.
        cap: largest weight.
        floor: with a floor, weights outside of [floor, cap] become 0 instead of being capped.

    Returns:
        Weights, constants; 1 where nothing counts.

    Reference: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy Training.
    """
    ratio = jax.lax.stop_gradient(importance_ratio(old, behavior, mask))
    if floor is None:
        return jnp.minimum(ratio, cap)
    return jnp.where((ratio >= floor) & (ratio <= cap), ratio, 0)


def value_loss(
    values: Float[Array, "B T"],
    returns: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    *,
    old_values: Float[Array, "B T"] | None = None,
    clip: Scalar | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Half the squared error of a value head, its moves optionally clipped.

    Args:
        values: predictions.
        returns: targets; constants.
        mask: 1 where they count.
        old_values: predictions at the time of sampling; constants.
        clip: how far a prediction may move from the old one; needs `old_values`.

    Returns:
        The loss, and "explained_variance".

    Raises:
        ValueError: one of `old_values` and `clip` without the other.

    Reference: Schulman et al. 2017, as implemented in OpenAI baselines.
    """
    if (old_values is None) != (clip is None):
        raise ValueError("old_values, clip: expected both or none, got one")
    target = jax.lax.stop_gradient(select(returns, mask))
    value = select(values, mask)
    error = (value - target) ** 2
    if old_values is not None and clip is not None:
        old = jax.lax.stop_gradient(select(old_values, mask))
        error = jnp.maximum(error, (jnp.clip(value, old - clip, old + clip) - target) ** 2)
    spread = masked_mean((target - masked_mean(target, mask)) ** 2, mask)
    left = masked_mean((value - target) ** 2, mask)
    explained = jnp.where(spread > 0, 1 - left / jnp.where(spread > 0, spread, 1), 0)
    return 0.5 * masked_mean(error, mask), {"explained_variance": jax.lax.stop_gradient(explained)}

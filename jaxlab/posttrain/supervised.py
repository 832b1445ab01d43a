"""Supervised losses, and the selections that turn samples into data for them."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from jaxlab.posttrain.aggregation import Mode, aggregate
from jaxlab.posttrain.log_probs import token_log_probs
from jaxlab.posttrain.masking import check_mask, masked_mean, select

Normalize = Literal["none", "batch", "group"]
Metrics = dict[str, Float[Array, ""]]
Scalar = float | Float[Array, ""]


def sft_loss(
    logits: Float[Array, "B T V"],
    tokens: Int[Array, "B T"],
    mask: Num[Array, "B T"],
    *,
    weights: Num[Array, B * T] | None = None,
    label_smoothing: Scalar = 0.0,
    mode: Mode = "token_mean",
    norm: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Negative log-likelihood of completions.

    Args:
        logits: the distributions that the tokens are judged by.
        tokens: ids in [0, V) where the mask is 1.
        mask: 1 on the tokens to learn, 0 on the prompt's.
        weights: factors per row or per token; constants. They do not enter the denominator.
        label_smoothing: share of the target that is uniform over the vocabulary.
        mode: see `aggregate`.
        norm: see `aggregate`.

    Returns:
        The loss in nats, and "nll" and "accuracy" per token.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_mask(logits, tokens, mask)
    # Replaced before anything is computed: NaN times zero would still be a NaN gradient.
    logits = jnp.where(mask[..., None] > 0, logits, 0)
    tokens = jnp.where(mask > 0, tokens, 0)
    nll = -token_log_probs(logits, tokens)
    # Without smoothing an id that cannot occur, with a logit of -inf, costs nothing.
    smooth = jnp.asarray(label_smoothing) != 0
    every = jnp.where(smooth, jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), 0)
    flat = -jnp.mean(every, axis=-1)
    per_token = (1 - label_smoothing) * nll + label_smoothing * flat
    if weights is not None:
        if weights.ndim == 1:
            weights = jnp.broadcast_to(weights[:, None], mask.shape)
        per_token = per_token * jax.lax.stop_gradient(select(weights, mask))
    hit = (jnp.argmax(logits, axis=-1) == tokens).astype(jnp.float32)
    metrics = {"nll": masked_mean(nll, mask), "accuracy": masked_mean(hit, mask)}
    return aggregate(per_token, mask, mode, norm), jax.lax.stop_gradient(metrics)


def exponential_weights(
    scores: Num[Array, " B"],
    *,
    tau: Scalar = 1.0,
    normalize: Normalize = "batch",
    group: int | None = None,
    clip: Scalar | None = None,
) -> Float[Array, " B"]:
    """exp(score / tau), with mean 1 over the batch or over each group.

    Args:
        scores: rewards or advantages.
        tau: temperature: large makes all weights equal, small picks the best.
        normalize: "none" keeps the raw weight; "batch" and "group" divide by the mean.
        group: rows per prompt, for "group".
        clip: largest weight.

    Returns:
        Weights, constants.

    Raises:
        ValueError: an unknown normalisation, or groups that do not fit.
    """
    if normalize not in get_args(Normalize):
        raise ValueError(
            f"normalize: expected one of {', '.join(get_args(Normalize))}, got {normalize!r}"
        )
    if (group is not None) != (normalize == "group"):
        raise ValueError(f'group: expected rows per prompt with normalize="group", got {group!r}')
    scaled = jax.lax.stop_gradient(scores.astype(jnp.float32)) / tau
    if normalize == "none":
        weights = jnp.exp(scaled)
    else:
        size = scores.shape[0] if group is None else group
        _check_group(scores.shape[0], size)
        weights = size * jax.nn.softmax(scaled.reshape(-1, size), axis=1).reshape(-1)
    return weights if clip is None else jnp.minimum(weights, clip)


def reward_weighted_regression(
    log_probs: Float[Array, "B T"],
    mask: Num[Array, "B T"],
    rewards: Num[Array, " B"],
    *,
    tau: Scalar = 1.0,
    normalize: Normalize = "batch",
    group: int | None = None,
    clip: Scalar | None = None,
    mode: Mode = "seq_mean_token_sum",
) -> tuple[Float[Array, ""], Metrics]:
    """Likelihood weighted by exp(reward / tau); with advantages it is AWR.

    Args:
        log_probs: of the tokens under the policy.
        mask: 1 where they count.
        rewards: one per completion.
        tau: see `exponential_weights`.
        normalize: see `exponential_weights`.
        group: see `exponential_weights`.
        clip: see `exponential_weights`.
        mode: see `aggregate`.

    Returns:
        The loss, and "effective_samples" ((sum w)^2 / sum w^2).

    Reference: Peters & Schaal 2007; Peng et al. 2019, Advantage-Weighted Regression, eq. 5.
    """
    weights = exponential_weights(rewards, tau=tau, normalize=normalize, group=group, clip=clip)
    spread = jnp.broadcast_to(weights[:, None], mask.shape)
    loss = aggregate(-spread * select(log_probs, mask), mask, mode)
    effective = jnp.sum(weights) ** 2 / jnp.maximum(jnp.sum(weights**2), 1e-30)
    return loss, {"effective_samples": effective}


def select_correct(
    key: Key[Array, ""], correct: Bool[Array, " B"], group: int, max_per_prompt: int
) -> Float[Array, " B"]:
    """Picks at most so many right completions per prompt, at random.

    Args:
        key: random key.
        correct: which completions are right.
        group: completions per prompt.
        max_per_prompt: most to keep of each prompt.

    Returns:
        1 for those kept, as row weights of `sft_loss`.

    Reference: Yuan et al. 2023 (rejection sampling fine-tuning); Zelikman et al. 2022, STaR.

    Raises:
        ValueError: groups that do not fit.

    Pitfall: prompts without a right completion add nothing; report their share.
    """
    _check_group(correct.shape[0], group)
    table = correct.reshape(-1, group)
    draws = jax.random.uniform(key, table.shape)
    priority = jnp.where(table, draws, 2.0)
    rank = jnp.argsort(jnp.argsort(priority, axis=1), axis=1)
    return (table & (rank < max_per_prompt)).astype(jnp.float32).reshape(-1)


def first_of_equals(
    tokens: Int[Array, "B T"], mask: Num[Array, "B T"], group: int
) -> Float[Array, " B"]:
    """Marks the first of completions that are the same within a group.

    Args:
        tokens: ids.
        mask: 1 where they count.
        group: completions per prompt.

    Returns:
        1 for the first of each kind, 0 for its copies.

    Raises:
        ValueError: groups that do not fit.
    """
    _check_group(tokens.shape[0], group)
    seen = jnp.where(mask > 0, tokens, -1).reshape(-1, group, tokens.shape[1])
    same = jnp.all(seen[:, :, None, :] == seen[:, None, :, :], axis=-1)
    earlier = jnp.tril(jnp.ones((group, group), bool), -1)
    return (~jnp.any(same & earlier[None], axis=2)).astype(jnp.float32).reshape(-1)


def _check_group(rows: int, group: int) -> None:
    if group < 1 or rows % group:
        raise ValueError(f"group: expected a divisor of {rows} rows, got {group}")

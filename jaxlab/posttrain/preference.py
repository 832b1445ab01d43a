"""Losses on pairs of a chosen and a rejected completion, and on labelled single ones.

All take log-probabilities of whole completions (`sequence_log_prob`) of the policy, and where there
is a reference, of it; those are constants. All have one shape [B]: [B] and [B, 1] would broadcast
to [B, B], and are refused. With policy = reference DPO is ln 2 for every beta, IPO 1 / (4 beta^2),
KTO 1/2.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from jaxlab.values.arrays import check_same_shape

Metrics = dict[str, Float[Array, ""]]
Scalar = float | Float[Array, ""]
Kind = Literal["sigmoid", "robust", "hinge"]
Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"]
LIMIT = 20.0  # of exponents


def _pair_metrics(chosen: Array, rejected: Array, margin: Array) -> Metrics:
    """Both log-probabilities may fall while the margin grows: that is to be seen."""
    return jax.lax.stop_gradient(
        {
            "chosen": jnp.mean(chosen),
            "rejected": jnp.mean(rejected),
            "margin": jnp.mean(margin),
            "accuracy": jnp.mean(jnp.where(margin == 0, 0.5, jnp.where(margin > 0, 1.0, 0.0))),
        }
    )


def bradley_terry_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    *,
    margin: Scalar | Float[Array, " B"] = 0.0,
    centring: Scalar = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Loss of a reward model on pairs.

    Args:
        chosen: rewards of the better completions.
        rejected: rewards of the worse ones.
        margin: how much more the better one should earn.
        centring: weight of the mean of (chosen + rejected)^2, which fixes the free constant.

    Returns:
        The loss, and "accuracy" (ties count half) and "margin" among the metrics.

    Reference: Bradley & Terry 1952; Touvron et al. 2023, Llama 2, eq. 1 (margin); Eisenstein et al.
    2023, Helping or Herding?, section 3 (centring).
    """
    check_same_shape(chosen=chosen, rejected=rejected)
    difference = chosen - rejected
    loss = -jnp.mean(jax.nn.log_sigmoid(difference - margin))
    loss = loss + centring * jnp.mean((chosen + rejected) ** 2)
    return loss, _pair_metrics(chosen, rejected, difference)


def dpo_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    reference_chosen: Float[Array, " B"],
    reference_rejected: Float[Array, " B"],
    *,
    beta: Scalar = 0.1,
    label_smoothing: Scalar = 0.0,
    kind: Kind = "sigmoid",
    divergence: Divergence = "reverse_kl",
    alpha: Scalar = 0.5,
) -> tuple[Float[Array, ""], Metrics]:
    """Direct preference optimisation.

    Args:
        chosen: log-probabilities of the better completions.
        rejected: of the worse ones.
        reference_chosen: under the reference.
        reference_rejected: under the reference.
        beta: strength of the tie to the reference.
        label_smoothing: share e of wrong labels, below 1/2.
        kind: "sigmoid" (with smoothing: conservative), "robust" (unbiased under wrong labels) or
            "hinge".
        divergence: which one ties the policy to the reference; "alpha" needs `alpha` other than 1.
        alpha: order of the alpha-divergence.

    Returns:
        The loss and the metrics of pairs; by default, the gradient of a step at the reference is
        -beta/2 (grad chosen - grad rejected).

    Raises:
        ValueError: an unknown kind or divergence, or numbers for `label_smoothing` outside of
            [0, 1/2) or for `alpha` that the loss would divide by.

    Reference: Rafailov et al. 2023, Direct Preference Optimization, eq. 7; Mitchell 2023
    (conservative); Chowdhury et al. 2024 (robust); Wang et al. 2024, Beyond Reverse KL.
    """
    check_same_shape(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    if kind not in get_args(Kind):
        raise ValueError(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if isinstance(label_smoothing, (int, float)) and not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: expected 0 to 1/2 exclusive, got {label_smoothing}")
    if divergence == "alpha" and isinstance(alpha, (int, float)) and alpha == 1:
        raise ValueError('alpha: expected another number than 1, whose limit is "reverse_kl"')
    up = _score(chosen - jax.lax.stop_gradient(reference_chosen), divergence, alpha)
    down = _score(rejected - jax.lax.stop_gradient(reference_rejected), divergence, alpha)
    margin = beta * (up - down)
    if kind == "hinge":
        losses = jax.nn.relu(1 - margin)
    else:
        e = label_smoothing
        right, wrong = jax.nn.log_sigmoid(margin), jax.nn.log_sigmoid(-margin)
        if kind == "sigmoid":
            losses = -(1 - e) * right - e * wrong
        else:
            losses = (-(1 - e) * right + e * wrong) / (1 - 2 * e)
    return jnp.mean(losses), _pair_metrics(chosen, rejected, margin)


def _score(log_ratio: Array, divergence: Divergence, alpha: Scalar) -> Array:
    """f'(ratio) up to a constant, which the difference of two scores cancels."""
    if divergence == "reverse_kl":
        return log_ratio
    if divergence == "jensen_shannon":
        return jax.nn.log_sigmoid(log_ratio)
    bounded = jnp.clip(log_ratio, -LIMIT, LIMIT)
    if divergence == "forward_kl":
        return -jnp.exp(-bounded)
    if divergence == "alpha":
        return jnp.exp((alpha - 1) * bounded) / (alpha - 1)
    raise ValueError(
        f"divergence: expected one of {', '.join(get_args(Divergence))}, got {divergence!r}"
    )


def ipo_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    reference_chosen: Float[Array, " B"],
    reference_rejected: Float[Array, " B"],
    chosen_count: Num[Array, " B"],
    rejected_count: Num[Array, " B"],
    *,
    beta: Scalar = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
    """Identity preference optimisation: a squared distance from a margin of 1 / (2 beta).

    Args:
        chosen: log-probabilities of the better completions.
        rejected: of the worse ones.
        reference_chosen: under the reference.
        reference_rejected: under the reference.
        chosen_count: tokens of the better completions.
        rejected_count: tokens of the worse ones.
        beta: strength of the tie to the reference.

    Returns:
        The loss and the metrics of pairs.

    Reference: Azar et al. 2023, A General Theoretical Paradigm, eq. 17; per token, as its authors
    confirmed.
    """
    check_same_shape(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        chosen_count=chosen_count,
        rejected_count=rejected_count,
    )
    up = (chosen - jax.lax.stop_gradient(reference_chosen)) / chosen_count
    down = (rejected - jax.lax.stop_gradient(reference_rejected)) / rejected_count
    margin = up - down
    loss = jnp.mean((margin - 1 / (2 * beta)) ** 2)
    return loss, _pair_metrics(chosen, rejected, margin)


def kto_loss(
    log_probs: Float[Array, " B"],
    reference: Float[Array, " B"],
    desirable: Bool[Array, " B"],
    mismatched: Float[Array, " B"],
    mismatched_reference: Float[Array, " B"],
    *,
    beta: Scalar = 0.1,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Kahneman-Tversky optimisation: single completions, good or bad.

    Args:
        log_probs: of completions.
        reference: under the reference.
        desirable: which of them are good.
        mismatched: log-probabilities of completion i - 1 after prompt i.
        mismatched_reference: under the reference.
        beta: strength of the tie to the reference.
        desirable_weight: weight of good ones.
        undesirable_weight: weight of bad ones.

    Returns:
        The loss, and "kl" (the reference point) among the metrics.

    Raises:
        ValueError: one row, whose mismatched pair would be the pair itself.

    Reference: Ethayarajh et al. 2024, KTO, eq. 8.
    """
    check_same_shape(
        log_probs=log_probs,
        reference=reference,
        desirable=desirable,
        mismatched=mismatched,
        mismatched_reference=mismatched_reference,
    )
    if log_probs.shape[0] < 2:
        raise ValueError(f"log_probs: expected at least 2 rows, got {log_probs.shape[0]}")
    distance = jnp.mean(mismatched - mismatched_reference)
    point = jax.lax.stop_gradient(jnp.maximum(distance, 0))
    reward = log_probs - jax.lax.stop_gradient(reference)
    good = desirable_weight * (1 - jax.nn.sigmoid(beta * (reward - point)))
    bad = undesirable_weight * (1 - jax.nn.sigmoid(beta * (point - reward)))
    loss = jnp.mean(jnp.where(desirable, good, bad))
    metrics = {"kl": point, "reward": jnp.mean(reward)}
    return loss, jax.lax.stop_gradient(metrics)


def log1mexp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """log(1 - exp(x)) for x < 0, accurate at both ends; its gradient is finite there too."""
    x = jnp.minimum(x, -1e-7)
    near = x > -0.6931472
    # Each branch sees harmless numbers where the other is taken.
    inner = jnp.log(-jnp.expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, inner, jnp.log1p(-jnp.exp(jnp.where(near, -1.0, x))))


def orpo_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    chosen_count: Num[Array, " B"],
    rejected_count: Num[Array, " B"],
    *,
    weight: Scalar = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
    """Odds-ratio preference optimisation: SFT on the chosen one and a log odds ratio.

    Args:
        chosen: log-probabilities of the better completions.
        rejected: of the worse ones.
        chosen_count: tokens of the better completions.
        rejected_count: tokens of the worse ones.
        weight: of the odds ratio.

    Returns:
        The loss and the metrics of pairs.

    Reference: Hong et al. 2024, ORPO, eq. 6 and 7.

    Pitfall: the odds are those of the mean log-probability; those of the sum vanish for long
    completions.
    """
    check_same_shape(
        chosen=chosen, rejected=rejected, chosen_count=chosen_count, rejected_count=rejected_count
    )
    up, down = chosen / chosen_count, rejected / rejected_count
    odds = (up - down) - (log1mexp(up) - log1mexp(down))
    loss = jnp.mean(-up - weight * jax.nn.log_sigmoid(odds))
    return loss, _pair_metrics(chosen, rejected, odds)


def simpo_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    chosen_count: Num[Array, " B"],
    rejected_count: Num[Array, " B"],
    *,
    beta: Scalar = 2.5,
    gamma: Scalar = 0.5,
) -> tuple[Float[Array, ""], Metrics]:
    """Simple preference optimisation: mean log-probabilities, a margin, no reference.

    Args:
        chosen: log-probabilities of the better completions.
        rejected: of the worse ones.
        chosen_count: tokens of the better completions.
        rejected_count: tokens of the worse ones.
        beta: scale.
        gamma: margin, in units of the scaled difference.

    Returns:
        The loss and the metrics of pairs.

    Reference: Meng et al. 2024, SimPO, eq. 6.
    """
    check_same_shape(
        chosen=chosen, rejected=rejected, chosen_count=chosen_count, rejected_count=rejected_count
    )
    margin = beta * (chosen / chosen_count - rejected / rejected_count)
    loss = -jnp.mean(jax.nn.log_sigmoid(margin - gamma))
    return loss, _pair_metrics(chosen, rejected, margin)


def cpo_loss(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    chosen_count: Num[Array, " B"],
    *,
    beta: Scalar = 0.1,
    alpha: Scalar = 1.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Contrastive preference optimisation: DPO with a uniform reference, and SFT.

    Args:
        chosen: log-probabilities of the better completions.
        rejected: of the worse ones.
        chosen_count: tokens of the better completions.
        beta: scale.
        alpha: weight of the negative log-likelihood per token of the better completions.

    Returns:
        The loss and the metrics of pairs.

    Reference: Xu et al. 2024, Contrastive Preference Optimization, eq. 5.
    """
    check_same_shape(chosen=chosen, rejected=rejected, chosen_count=chosen_count)
    margin = beta * (chosen - rejected)
    loss = jnp.mean(-jax.nn.log_sigmoid(margin) - alpha * chosen / chosen_count)
    return loss, _pair_metrics(chosen, rejected, margin)

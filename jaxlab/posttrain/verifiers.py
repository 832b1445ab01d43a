"""Value heads that judge partial solutions: trained on outcomes, or on labels of the steps."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from jaxlab.posttrain.masking import masked_mean, masked_sum, select

Reduction = Literal["sequence_sum", "token_mean"]
Metrics = dict[str, Float[Array, ""]]


class ValueHead(NamedTuple):
    """A scalar read off the hidden state: w . (gain h + bias); no sigmoid."""

    weight: Float[Array, " D"]
    gain: Float[Array, ""]
    bias: Float[Array, ""]


def value_head_init(key: Key[Array, ""], weight: Float[Array, "V D"]) -> ValueHead:
    """Starts from the mean row of the output embedding.

    Args:
        key: random key.
        weight: the model's output embedding.

    Returns:
        The head; gain and bias are small normal numbers.

    Reference: Yu et al. 2024, OVM, its published code.
    """
    gain, bias = 0.02 * jax.random.normal(key, (2,))
    return ValueHead(jnp.mean(weight.astype(jnp.float32), axis=0), 1 + gain, bias)


def value_head_apply(head: ValueHead, hidden: Float[Array, "*b D"]) -> Float[Array, "*b"]:
    """Values of hidden states.

    Args:
        head: the head.
        hidden: activations before the output embedding.

    Returns:
        Values in float32; regression may leave [0, 1].
    """
    return (head.gain * hidden.astype(jnp.float32) + head.bias) @ head.weight


def ovm_labels(outcome: Num[Array, " B"], mask: Num[Array, "B T"]) -> Float[Array, "B T"]:
    """The final outcome at every token: its regression is the value of the sampler.

    Args:
        outcome: 1 for right solutions.
        mask: 1 on tokens of the solution, its end included.

    Returns:
        Labels.
    """
    return jnp.where(mask > 0, outcome[:, None].astype(jnp.float32), 0)


def prm_labels(
    labels: Num[Array, "B S"], end: Int[Array, "B S"], mask: Num[Array, "B T"]
) -> Float[Array, "B T"]:
    """The label of its step at every token.

    Args:
        labels: of each step.
        end: position of each step's last token; T or more where there is no step.
        mask: 1 on tokens of the solution, its end included.

    Returns:
        Labels, 0 behind the last step.
    """
    place = jnp.arange(mask.shape[1])[None, :, None]
    step = jnp.sum(end[:, None, :] < place, axis=2)
    size = labels.shape[1]
    chosen = jnp.take_along_axis(labels, jnp.minimum(step, size - 1), axis=1)
    return jnp.where((mask > 0) & (step < size), chosen.astype(jnp.float32), 0)


def verifier_loss(
    values: Float[Array, "B T"],
    labels: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    reduction: Reduction = "sequence_sum",
) -> tuple[Float[Array, ""], Metrics]:
    """Squared error of a value head.

    Args:
        values: predictions at every token.
        labels: targets; constants.
        mask: 1 where they count.
        reduction: "sequence_sum" sums over tokens and averages over solutions, so that long ones
            weigh more, as in the paper; "token_mean" averages over tokens.

    Returns:
        The loss, and the mean "value" and "label".

    Raises:
        ValueError: an unknown reduction.

    Reference: Yu et al. 2024, OVM, eq. 3.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"reduction: expected one of {', '.join(get_args(Reduction))}, got {reduction!r}"
        )
    target = jax.lax.stop_gradient(select(labels, mask))
    error = (select(values, mask) - target) ** 2
    if reduction == "sequence_sum":
        loss = masked_sum(error, mask) / mask.shape[0]
    else:
        loss = masked_mean(error, mask)
    metrics = {"value": masked_mean(values, mask), "label": masked_mean(labels, mask)}
    return loss, jax.lax.stop_gradient(metrics)


def within_problem_auc(
    scores: Float[Array, "N M"], truth: Num[Array, "N M"], mask: Num[Array, "N M"]
) -> Float[Array, ""]:
    """How well scores rank candidates of the same problem, which is what a search needs.

    Args:
        scores: of M candidates of each problem.
        truth: what they are worth; larger is better.
        mask: 1 for candidates that exist.

    Returns:
        Share of pairs of different worth, within problems, that the scores put in order; ties of
        scores count one half. 1/2 if there is no such pair.

    Pitfall: across problems a score may rank well by knowing which problems are hard, and be of
    no use to a search.
    """
    ahead = truth[:, :, None] > truth[:, None, :]
    pairs = ahead & (mask[:, :, None] > 0) & (mask[:, None, :] > 0)
    right = scores[:, :, None] > scores[:, None, :]
    tied = scores[:, :, None] == scores[:, None, :]
    credit = jnp.where(right, 1.0, jnp.where(tied, 0.5, 0.0))
    count = jnp.sum(pairs)
    total = jnp.sum(jnp.where(pairs, credit, 0))
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(jnp.float32), 0.5)

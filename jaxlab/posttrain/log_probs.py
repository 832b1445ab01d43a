"""Log-probabilities and entropies of completions, in float32 whatever the logits are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxlab.posttrain.masking import masked_sum


def token_log_probs(
    logits: Float[Array, "*b V"],
    tokens: Int[Array, "*b"],
    temperature: Float[Array, ""] | float = 1.0,
) -> Float[Array, "*b"]:
    """Log-probability of each token.

    Args:
        logits: the distributions that produced the tokens.
        tokens: ids in [0, V).
        temperature: what the sampler divided the logits by; above 0.

    Returns:
        log softmax(logits / temperature) at the tokens.

    Raises:
        ValueError: shapes that do not fit.
    """
    if tokens.shape != logits.shape[:-1]:
        raise ValueError(f"tokens: expected shape {logits.shape[:-1]}, got {tokens.shape}")
    scaled = logits.astype(jnp.float32) / temperature
    chosen = jnp.take_along_axis(scaled, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)


def sequence_log_prob(
    log_probs: Float[Array, "B T"], mask: Num[Array, "B T"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Log-probability of whole completions.

    Args:
        log_probs: of each token.
        mask: 1 where they count.

    Returns:
        Sums over the tokens, and how many there are, at least 1.
    """
    count = jnp.sum((mask > 0).astype(jnp.float32), axis=1)
    return masked_sum(log_probs, mask, axis=1), jnp.maximum(count, 1)


def token_entropy(
    logits: Float[Array, "*b V"], temperature: Float[Array, ""] | float = 1.0
) -> Float[Array, "*b"]:
    """Exact entropy of each position in nats.

    Args:
        logits: may hold -inf for ids that cannot occur.
        temperature: divides the logits; above 0.

    Returns:
        Entropies.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    possible = log_p > -jnp.inf
    return -jnp.sum(jnp.exp(log_p) * jnp.where(possible, log_p, 0), axis=-1)

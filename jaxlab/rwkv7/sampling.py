"""From logits to tokens: temperature, top-k and top-p as functions of logits alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = float | Float[Array, "*b"]


class Sampler(NamedTuple):
    """How to choose from logits; numbers are traced, one for all rows or one per row."""

    temperature: Scalar = 1.0  # 0 takes the most likely token
    top_k: int | Int[Array, "*b"] | None = None  # keep so many; None or 0 keeps all
    top_p: Scalar | None = None  # keep the smallest set with this mass; None or 1 keeps all


def filtered_logits(logits: Float[Array, "*b V"], sampler: Sampler) -> Float[Array, "*b V"]:
    """The distribution that is sampled from: temperature, then top-k, then top-p.

    Args:
        logits: unnormalised log-probabilities.
        sampler: how to choose.

    Returns:
        Float32 logits, -inf where a token cannot be chosen; at least one can be. At temperature 0
        the most likely token alone, with log-probability 0.
    """
    temperature = _column(sampler.temperature, logits)
    greedy = temperature <= 0
    scaled = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, temperature)
    if sampler.top_k is not None:
        scaled = top_k(scaled, sampler.top_k)
    if sampler.top_p is not None:
        scaled = top_p(scaled, sampler.top_p)
    vocabulary = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
    best = vocabulary == jnp.argmax(scaled, axis=-1, keepdims=True)
    return jnp.where(jnp.broadcast_to(greedy, best.shape), jnp.where(best, 0.0, -jnp.inf), scaled)


def top_k(logits: Float[Array, "*b V"], k: int | Int[Array, "*b"]) -> Float[Array, "*b V"]:
    """Keeps the k largest logits; among equal ones the earlier.

    Args:
        logits: unnormalised log-probabilities.
        k: how many; 0 keeps all.

    Returns:
        Logits with -inf elsewhere.
    """
    count = _column(k, logits)
    _, rank = _ranked(logits)
    return _keep(logits, (rank < count) | (count <= 0))


def top_p(logits: Float[Array, "*b V"], p: Scalar) -> Float[Array, "*b V"]:
    """Keeps the smallest set of most likely tokens whose mass reaches p, at least one.

    Args:
        logits: unnormalised log-probabilities.
        p: mass in [0, 1]; 1 keeps all.

    Returns:
        Logits with -inf elsewhere.

    Reference: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1.
    """
    mass = _column(p, logits)
    ordered, rank = _ranked(logits)
    # In half precision the sum would stop growing far below one.
    reached = jnp.cumsum(jax.nn.softmax(ordered.astype(jnp.float32), axis=-1), axis=-1)
    # Mass of the strictly more likely tokens: the token that crosses p is kept.
    before = jnp.concatenate([jnp.zeros_like(reached[..., :1]), reached[..., :-1]], axis=-1)
    # The sum may round to one before the end: p = 1 must not cut the tail.
    kept = (before < mass) | (mass >= 1)
    kept = kept.at[..., 0].set(True)
    return _keep(logits, jnp.take_along_axis(kept, rank, axis=-1))


def sample(
    key: Key[Array, ""], logits: Float[Array, " V"], sampler: Sampler
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Draws one token.

    Args:
        key: random key.
        logits: of one row.
        sampler: how to choose.

    Returns:
        The token and its log-probability under the distribution it was drawn from.
    """
    filtered = filtered_logits(logits, sampler)
    token = jax.random.categorical(key, filtered)
    return token, jax.nn.log_softmax(filtered)[token]


def _column(value: Scalar | int, logits: Array) -> Array:
    """A number per row as a column beside the logits."""
    array = jnp.asarray(value)
    return jnp.broadcast_to(array, logits.shape[:-1])[..., None]


def _ranked(logits: Array) -> tuple[Array, Array]:
    """Logits from the largest down, and the place of each token in that order."""
    order = jnp.argsort(-logits, axis=-1, stable=True)
    return jnp.take_along_axis(logits, order, axis=-1), jnp.argsort(order, axis=-1)


def _keep(logits: Array, kept: Bool[Array, "*b V"]) -> Array:
    return jnp.where(kept, logits, -jnp.inf)

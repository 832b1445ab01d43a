"""Every completion of a tiny vocabulary with its exact probability: the truth behind estimators."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.posttrain.language_model import LanguageModel, Params, completion_logits
from jaxlab.posttrain.log_probs import token_log_probs
from jaxlab.posttrain.masking import masked_sum
from jaxlab.tasks.vocabulary import PAD

LIMIT = 100_000


class Completions(NamedTuple):
    """All completions, those without a stop token within the length included."""

    tokens: Int[Array, "M T"]  # `PAD` behind the stop token
    mask: Float[Array, "M T"]  # 1 up to and including the stop token


def all_completions(vocab_size: int, length: int, stop: int) -> Completions:
    """Lists every completion.

    Args:
        vocab_size: V.
        length: most tokens, T.
        stop: id that ends a completion.

    Returns:
        (V - 1)^T unfinished ones and, for each t < T, (V - 1)^t that stop after t tokens.

    Raises:
        ValueError: a stop token outside of the vocabulary, or more than 100 000 completions.
    """
    if not 0 <= stop < vocab_size:
        raise ValueError(f"stop: expected an id in [0, {vocab_size}), got {stop}")
    count = sum((vocab_size - 1) ** t for t in range(length + 1))
    if length < 1 or count > LIMIT:
        raise ValueError(
            f"length: expected 1 or more and at most {LIMIT} completions, got {length} and {count}"
        )
    others = [token for token in range(vocab_size) if token != stop]
    tokens, mask = [], []
    for t in range(length + 1):
        for body in itertools.product(others, repeat=t):
            row = [*body, stop][:length]
            tokens.append(row + [PAD] * (length - len(row)))
            mask.append([1.0] * len(row) + [0.0] * (length - len(row)))
    return Completions(
        jnp.asarray(np.asarray(tokens, np.int32)), jnp.asarray(np.asarray(mask, np.float32))
    )


def enumerate_policy(
    model: LanguageModel,
    params: Params,
    prompt: Int[Array, " P"],
    completions: Completions,
    temperature: Float[Array, ""] | float = 1.0,
) -> tuple[Float[Array, "M T"], Float[Array, " M"]]:
    """Exact log-probabilities of all completions of one prompt; differentiable.

    Args:
        model: language model.
        params: its parameters.
        prompt: ids.
        completions: from `all_completions`.
        temperature: of the sampler.

    Returns:
        Log-probabilities per token, 0 behind the stop token, and per completion; the exponentials
        of the latter sum to 1, so expectations are dot products.
    """
    logits = completion_logits(model, params, prompt[None], completions.tokens)
    per_token = token_log_probs(logits, completions.tokens, temperature)
    per_token = jnp.where(completions.mask > 0, per_token, 0)
    return per_token, masked_sum(per_token, completions.mask, axis=1)

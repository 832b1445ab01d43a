"""What rollouts and trainers need of a language model: any model with a state of fixed size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import nets, rwkv7

Params = Any
State = Any


class LanguageModel(NamedTuple):
    """A causal language model as pure functions.

    Attributes:
        vocab_size: number of ids.
        init: key -> parameters.
        initial_state: rows -> the state before any token.
        extend: (params, state, tokens [B, T], lengths [B] or None) -> (float32 logits [B, T, V],
            state). Behind a row's length the state stands still and the logits mean nothing.
        take_rows: (state, rows [B']) -> the state of those rows; repeats and branches.
    """

    vocab_size: int
    init: Callable[[Key[Array, ""]], Params]
    initial_state: Callable[[int], State]
    extend: Callable[
        [Params, State, Int[Array, "B T"], Int[Array, " B"] | None],
        tuple[Float[Array, "B T V"], State],
    ]
    take_rows: Callable[[State, Int[Array, " R"]], State]


def rwkv7_model(config: rwkv7.Config, *, impl: str = "auto", remat: str = "none") -> LanguageModel:
    """RWKV-7: constant memory, whatever the length.

    Args:
        config: sizes.
        impl: implementation of the recurrence, see `jaxlab_kernels.wkv7`.
        remat: see `rwkv7.forward`.

    Returns:
        The model.
    """

    def extend(
        params: Params, state: State, tokens: Array, lengths: Array | None
    ) -> tuple[Array, State]:
        return rwkv7.forward(params, config, tokens, state, lengths=lengths, impl=impl, remat=remat)

    return LanguageModel(
        vocab_size=config.vocab_size,
        init=lambda key: rwkv7.init(key, config),
        initial_state=lambda rows: rwkv7.initial_state(config, rows),
        extend=extend,
        take_rows=lambda state, rows: jax.tree.map(lambda leaf: leaf[:, rows], state),
    )


def transformer_model(config: nets.TransformerConfig, capacity: int) -> LanguageModel:
    """A transformer whose state is a cache of fixed size.

    Args:
        config: sizes.
        capacity: room for prompt and completion together.

    Returns:
        The model.

    Pitfall: beyond its capacity the logits are NaN.
    """

    def extend(
        params: Params, state: State, tokens: Array, lengths: Array | None
    ) -> tuple[Array, State]:
        return nets.transformer_extend(params, config, tokens, state, lengths)

    def take_rows(state: nets.KVCache, rows: Array) -> nets.KVCache:
        return nets.KVCache(state.keys[:, rows], state.values[:, rows], state.length[rows])

    return LanguageModel(
        vocab_size=config.vocab_size,
        init=lambda key: nets.transformer_init(key, config),
        initial_state=lambda rows: nets.transformer_cache(config, rows, capacity),
        extend=extend,
        take_rows=take_rows,
    )


def prefill(
    model: LanguageModel,
    params: Params,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B V"], State]:
    """Reads prompts, padded on the right.

    Args:
        model: language model.
        params: its parameters.
        prompts: ids.
        lengths: tokens of each prompt, at least 1; all if None.

    Returns:
        Logits of the next token, and the state behind each prompt.
    """
    logits, state = model.extend(params, model.initial_state(len(prompts)), prompts, lengths)
    if lengths is None:
        return logits[:, -1], state
    return jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0], state


def repeat(
    model: LanguageModel, logits: Float[Array, "B V"], state: State, times: int
) -> tuple[Float[Array, "R V"], State]:
    """Makes so many copies of each row, next to each other.

    Args:
        model: language model.
        logits: of the next token.
        state: that gave them.
        times: copies of each row.

    Returns:
        Logits and state with `times` as many rows.
    """
    rows = jnp.repeat(jnp.arange(logits.shape[0]), times)
    return logits[rows], model.take_rows(state, rows)


def completion_logits(
    model: LanguageModel,
    params: Params,
    prompts: Int[Array, "N P"],
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " N"] | None = None,
) -> Float[Array, "B T V"]:
    """The distributions that produced completions: the one place where the shift happens.

    Args:
        model: language model.
        params: its parameters; gradients flow.
        prompts: ids, padded on the right; each is read once.
        tokens: completions, B / N of each prompt next to each other.
        lengths: tokens of each prompt; all if None.

    Returns:
        Float32 logits, before any temperature.

    Raises:
        ValueError: B is no multiple of N.
    """
    if tokens.shape[0] % prompts.shape[0]:
        raise ValueError(
            f"tokens: expected a multiple of {prompts.shape[0]} rows, got {tokens.shape[0]}"
        )
    logits, state = prefill(model, params, prompts, lengths)
    times = tokens.shape[0] // prompts.shape[0]
    if times > 1:
        logits, state = repeat(model, logits, state, times)
    if tokens.shape[1] == 1:
        return logits[:, None]
    rest, _ = model.extend(params, state, tokens[:, :-1], None)
    return jnp.concatenate([logits[:, None], rest], axis=1)


def active_lengths(active: Bool[Array, " B"]) -> Int[Array, " B"]:
    """Lengths that make a step of one token move the active rows alone."""
    return active.astype(jnp.int32)

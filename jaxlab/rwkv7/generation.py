"""Decoding: text of any length in constant memory, as one program or as a stream."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.model import prefill, step, with_second_state
from jaxlab.rwkv7.sampling import Sampler, sample
from jaxlab.rwkv7.state import State

StopTokens = Sequence[int] | Int[Array, " S"]
PAD = 0


class Generation(NamedTuple):
    """What was generated, and where to go on from."""

    tokens: Int[Array, "B n"]  # `PAD` behind a stop token
    mask: Bool[Array, "B n"]  # True up to and including the stop token
    log_probs: Float[Array, "B n"]  # under the distribution sampled from; 0 behind a stop token
    done: Bool[Array, " B"]  # a stop token was generated
    logits: Float[Array, "B V"]  # after the last token; stale in rows that are done
    state: State  # after the last generated token


@functools.partial(jax.jit, static_argnames=("config", "n", "impl"))
def generate(
    params: Params,
    config: Config,
    prompt: Int[Array, "B P"],
    n: int,
    key: Key[Array, ""],
    sampler: Sampler = Sampler(),
    *,
    lengths: Int[Array, " B"] | None = None,
    stop_tokens: StopTokens = (),
    state: State | None = None,
    impl: str = "auto",
) -> Generation:
    """Reads prompts with the sequence kernel and goes on token by token.

    Row b's randomness depends on (key, b, position) alone: more rows or tokens leave the others as
    they were. To sample one prompt with many seeds, vmap over keys.

    Args:
        params: from `init` or `load`.
        config: sizes.
        prompt: ids, padded on the right.
        n: number of tokens to generate.
        key: random key.
        sampler: temperature, top-k, top-p; traced, one for all rows or one per row.
        lengths: valid tokens of each prompt, at least 1; P each if None.
        stop_tokens: a row that generates one of these is done.
        state: state before the prompts, zero if None.
        impl: see `forward`.

    Returns:
        Tokens and the state behind them.

    Raises:
        ValueError: a prompt without a token.
    """
    logits, state = prefill(params, config, prompt, lengths, state, impl=impl)
    done = jnp.zeros(prompt.shape[:1], bool)
    return decode(params, config, logits, state, done, n, key, sampler, stop_tokens, impl=impl)


@functools.partial(jax.jit, static_argnames=("config", "n", "impl"))
def decode(
    params: Params,
    config: Config,
    logits: Float[Array, "B V"],
    state: State,
    done: Bool[Array, " B"],
    n: int,
    key: Key[Array, ""],
    sampler: Sampler = Sampler(),
    stop_tokens: StopTokens = (),
    start: int | Int[Array, ""] = 0,
    *,
    impl: str = "auto",
) -> Generation:
    """Goes on from logits and a state; pieces give the same tokens as one long run.

    Args:
        params: from `init` or `load`.
        config: sizes.
        logits: of the next token.
        state: state that gave the logits.
        done: rows that generate nothing more.
        n: number of tokens to generate.
        key: random key, the same for all pieces of a run.
        sampler: temperature, top-k, top-p; traced, one for all rows or one per row.
        stop_tokens: a row that generates one of these is done.
        start: number of tokens generated before.
        impl: see `forward`.

    Returns:
        Tokens and the state behind them.
    """
    state = with_second_state(params["blocks"], state)
    # One number for all rows stays one: the program is the same as without rows.
    each = jax.tree.map(lambda leaf: 0 if jnp.ndim(leaf) else None, sampler)
    stops = jnp.asarray(stop_tokens, jnp.int32).reshape(-1)
    row_keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))

    def body(
        carry: tuple[Array, State, Array], position: Array
    ) -> tuple[tuple[Array, State, Array], tuple[Array, Array, Array]]:
        logits, state, done = carry
        keys = jax.vmap(lambda row_key: jax.random.fold_in(row_key, position))(row_keys)
        drawn, log_prob = jax.vmap(sample, in_axes=(0, 0, each))(keys, logits, sampler)
        active = ~done
        token = jnp.where(active, drawn, PAD).astype(jnp.int32)
        done = done | (active & jnp.any(token[:, None] == stops[None, :], axis=1))
        logits, state = step(params, config, token, state, active=active, impl=impl)
        return (logits, state, done), (token, active, jnp.where(active, log_prob, 0))

    positions = jnp.asarray(start, jnp.int32) + jnp.arange(n)
    (logits, state, done), (tokens, mask, log_probs) = jax.lax.scan(
        body, (logits, state, done), positions
    )
    return Generation(tokens.T, mask.T, log_probs.T, done, logits, state)


def stream(
    params: Params,
    config: Config,
    prompt: Sequence[int],
    n: int,
    key: Key[Array, ""],
    sampler: Sampler = Sampler(),
    *,
    stop_tokens: StopTokens = (),
    state: State | None = None,
    chunk: int = 1,
    impl: str = "auto",
) -> Iterator[list[int]]:
    """The tokens of `generate` for one prompt as they come.

    Args:
        params: from `init` or `load`.
        config: sizes.
        prompt: ids, at least one.
        n: number of tokens to generate.
        key: random key.
        sampler: temperature, top-k, top-p.
        stop_tokens: ends the text; is yielded itself.
        state: state of one row before the prompt, zero if None.
        chunk: tokens per call of the compiled program.
        impl: see `forward`.

    Yields:
        At most `chunk` tokens at a time.

    Raises:
        ValueError: an empty prompt.
    """
    if not len(prompt):
        raise ValueError("prompt: expected at least one token, got none")
    # Padding to a power of two: prompts of similar length share a compiled program.
    width = 1 << (len(prompt) - 1).bit_length()
    padded = np.full((1, width), PAD, np.int32)
    padded[0, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt)])
    logits, state = _prefill(params, config, jnp.asarray(padded), lengths, state, impl=impl)
    done = jnp.zeros(1, bool)
    for start in range(0, n, chunk):
        piece = decode(
            params, config, logits, state, done, chunk, key, sampler, stop_tokens, start, impl=impl
        )
        tokens = np.asarray(piece.tokens)[0][np.asarray(piece.mask)[0]]
        yield tokens[: n - start].tolist()
        logits, state, done = piece.logits, piece.state, piece.done
        if bool(done[0]):
            return


_prefill = jax.jit(prefill, static_argnames=("config", "impl"))

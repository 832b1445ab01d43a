"""RWKV-7 as one function of a sequence and a state; a decoding step is a sequence of one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.mixing import Segments, channel_mix, layer_norm, time_mix
from jaxlab.rwkv7.state import State, check_state, initial_state
from jaxlab.rwkv7.upscaling import UPSCALING

REMAT = ("none", "block")


def forward(
    params: Params,
    config: Config,
    tokens: Int[Array, "B T"],
    state: State | None = None,
    reset: Bool[Array, "B T"] | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    reset_state: State | None = None,
    impl: str = "auto",
    remat: str = "none",
) -> tuple[Float[Array, "B T V"], State]:
    """Next-token logits at every position, and the state after the last one.

    Args:
        params: from `init` or `load`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        state: state before tokens[:, 0], zero if None; `initial_state` makes a learned one.
        reset: True where a new sequence starts (packing): before that token the matrix state and
            both token shifts go to `reset_state`.
        lengths: number of valid tokens per row, T each if None. Behind them the state stands still
            and the logits mean nothing.
        reset_state: what a reset goes to, without a batch axis; zeros if None.
        impl: implementation of the recurrence, see `jaxlab_kernels.wkv7`.
        remat: "block" recomputes each block in the backward pass: memory of one block, not L.

    Returns:
        Float32 logits and the new state.

    Raises:
        ValueError: shapes or dtypes that do not fit, unknown `remat`.

    Reference: Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution.
    """
    hidden, state = features(
        params,
        config,
        tokens,
        state,
        reset,
        lengths=lengths,
        reset_state=reset_state,
        impl=impl,
        remat=remat,
    )
    return _logits(params, hidden), state


def features(
    params: Params,
    config: Config,
    tokens: Int[Array, "B T"],
    state: State | None = None,
    reset: Bool[Array, "B T"] | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    reset_state: State | None = None,
    impl: str = "auto",
    remat: str = "none",
) -> tuple[Float[Array, "B T C"], State]:
    """What the head reads, for other heads (values, rewards) or a chunked loss.

    Args:
        params: from `init` or `load`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        state: see `forward`.
        reset: see `forward`.
        lengths: see `forward`.
        reset_state: see `forward`.
        impl: see `forward`.
        remat: see `forward`.

    Returns:
        Activations after the last layer normalisation, and the new state.
    """
    x, state = run_blocks(
        params["blocks"],
        config,
        _embed(params, config, tokens),
        state,
        reset,
        lengths=lengths,
        reset_state=reset_state,
        impl=impl,
        remat=remat,
    )
    return layer_norm(params["ln_out"], x), state


def step(
    params: Params,
    config: Config,
    token: Int[Array, " B"],
    state: State,
    *,
    active: Bool[Array, " B"] | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "B V"], State]:
    """One token for every row.

    Args:
        params: from `init` or `load`.
        config: sizes.
        token: ids in [0, vocab_size).
        state: state before the token.
        active: rows whose state moves, all if None; the logits of the others mean nothing.
        impl: see `forward`.

    Returns:
        Float32 logits and the new state.
    """
    lengths = None if active is None else active.astype(jnp.int32)
    logits, state = forward(params, config, token[:, None], state, lengths=lengths, impl=impl)
    return logits[:, 0], state


def prefill(
    params: Params,
    config: Config,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"] | None = None,
    state: State | None = None,
    *,
    impl: str = "auto",
) -> tuple[Float[Array, "B V"], State]:
    """Reads prompts of different lengths, padded on the right; only the last logits are computed.

    Args:
        params: from `init` or `load`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        lengths: number of valid tokens per row, at least 1; T each if None.
        state: state before the prompts, zero if None.
        impl: see `forward`.

    Returns:
        Float32 logits after the last valid token of each row, and the state there.
    """
    hidden, state = features(params, config, tokens, state, lengths=lengths, impl=impl)
    if lengths is None:
        last = hidden[:, -1]
    else:
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return _logits(params, last), state


def receptances_and_keys(
    params: Params,
    config: Config,
    tokens: Int[Array, "B T"],
    state: State | None = None,
    reset: Bool[Array, "B T"] | None = None,
    *,
    reset_state: State | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "B T V"], tuple[Float[Array, "L B T H K"], Float[Array, "L B T H K"]]]:
    """What every layer's state is read with and written with, beside the logits.

    Args:
        params: from `init` or `load`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        state: see `forward`.
        reset: see `forward`.
        reset_state: see `forward`.
        impl: see `forward`.

    Returns:
        Logits, and receptances and keys in float32.
    """
    x = _embed(params, config, tokens)
    x, _, seen = _scan(
        params["blocks"], config, x, state, reset, reset_state=reset_state, impl=impl, collect=True
    )
    return _logits(params, layer_norm(params["ln_out"], x)), seen


def run_blocks(
    blocks: Params,
    config: Config,
    x: Float[Array, "B T C"],
    state: State | None = None,
    reset: Bool[Array, "B T"] | None = None,
    *,
    lengths: Int[Array, " B"] | None = None,
    reset_state: State | None = None,
    impl: str = "auto",
    remat: str = "none",
) -> tuple[Float[Array, "B T C"], State]:
    """The stack of blocks on any inputs, for models without tokens.

    Args:
        blocks: `params["blocks"]`.
        config: sizes.
        x: inputs in `config.dtype`.
        state: see `forward`.
        reset: see `forward`.
        lengths: see `forward`.
        reset_state: see `forward`.
        impl: see `forward`.
        remat: see `forward`.

    Returns:
        The residual stream after the last block, and the new state.
    """
    x, state, _ = _scan(
        blocks,
        config,
        x,
        state,
        reset,
        lengths=lengths,
        reset_state=reset_state,
        impl=impl,
        remat=remat,
    )
    return x, state


def with_second_state(blocks: Params, state: State) -> State:
    """The state with zeros as the second one of an upscaled model, where it has none yet.

    Loops over tokens need it, because the state they carry must have the same leaves throughout.

    Args:
        blocks: `params["blocks"]`.
        state: of a batch.

    Returns:
        The state; the same one without upscaling.
    """
    upscaling = blocks.get(UPSCALING)
    if upscaling is None or state.enlarged is not None:
        return state
    shape = (*state.wkv.shape[:-2], *upscaling.decorrelation.shape[-2:])
    return state._replace(enlarged=jnp.full_like(state.wkv, 0, shape=shape))


def _scan(
    blocks: Params,
    config: Config,
    x: Array,
    state: State | None,
    reset: Array | None = None,
    *,
    lengths: Array | None = None,
    reset_state: State | None = None,
    impl: str,
    remat: str = "none",
    collect: bool = False,
) -> tuple[Array, State, Any]:
    """`run_blocks`, and receptances and keys of every layer if they are to be collected."""
    batch, length = _check(config, x, reset, lengths, remat)
    if state is None:
        # Zeros made from x, because inside shard_map they must vary over the mesh as x does.
        state = jax.tree.map(
            lambda leaf: jnp.full_like(x, 0, dtype=leaf.dtype, shape=leaf.shape),
            jax.eval_shape(lambda: initial_state(config, batch)),
        )
    check_state("state", state, config, batch)
    if reset_state is not None:
        check_state("reset_state", reset_state, config, None)
    for name, given in (("state", state), ("reset_state", reset_state)):
        if given is not None and given.enlarged is not None and UPSCALING not in blocks:
            raise ValueError(
                f"{name}: expected no enlarged state, as the model is not one of `upscaled`, "
                f"got {given.enlarged.shape}"
            )
    state = with_second_state(blocks, state)
    valid = None
    if lengths is not None:
        valid = jnp.arange(length)[None, :] < lengths[:, None]
        reset = None if reset is None else reset & valid
    segments = Segments(reset, valid, lengths)

    def block(
        carry: tuple[Array, Array], layer: tuple[Params, Array, State, State | None]
    ) -> tuple[tuple[Array, Array], tuple[State, Any]]:
        x, v_first = carry
        p, is_first, old, fresh = layer
        mixed = time_mix(
            p["att"],
            config,
            layer_norm(p["ln1"], x),
            v_first,
            is_first,
            old.att_shift,
            old.wkv,
            segments,
            fresh,
            impl,
            p.get(UPSCALING),
            old.enlarged,
        )
        x = x + mixed.out
        fresh_shift = None if fresh is None else fresh.ffn_shift
        out, ffn_shift = channel_mix(
            p["ffn"], layer_norm(p["ln2"], x), old.ffn_shift, segments, fresh_shift
        )
        after = State(mixed.shift, mixed.wkv, ffn_shift, mixed.enlarged)
        return (x + out, mixed.v_first), (after, mixed.receptances_and_keys if collect else None)

    if remat == "block":
        # Inside a scan the compiler cannot merge the recomputation with the forward pass anyway.
        block = functools.partial(jax.checkpoint, prevent_cse=False)(block)
    is_first = jnp.arange(config.n_layer) == 0
    carry = (x, jnp.zeros_like(x))
    (x, _), (after, seen) = jax.lax.scan(block, carry, (blocks, is_first, state, reset_state))
    return x, after, seen


def _embed(params: Params, config: Config, tokens: Array) -> Array:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {tokens.dtype}{tokens.shape}")
    return layer_norm(params["ln0"], params["emb"][tokens].astype(config.dtype))


def _logits(params: Params, hidden: Array) -> Array:
    head = params["head"].astype(hidden.dtype)
    return jnp.matmul(hidden, head.T, preferred_element_type=jnp.float32)


def _check(
    config: Config, x: Array, reset: Array | None, lengths: Array | None, remat: str
) -> tuple[int, int]:
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != config.n_embd or x.dtype != config.dtype:
        raise ValueError(
            f"x: expected {config.dtype}[B, T >= 1, {config.n_embd}], got {x.dtype}{x.shape}"
        )
    batch, length = x.shape[:2]
    if reset is not None and (reset.shape != (batch, length) or reset.dtype != jnp.bool_):
        raise ValueError(f"reset: expected bool{(batch, length)}, got {reset.dtype}{reset.shape}")
    if lengths is not None and (
        lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer)
    ):
        raise ValueError(
            f"lengths: expected integers ({batch},), got {lengths.dtype}{lengths.shape}"
        )
    if remat not in REMAT:
        raise ValueError(f"remat: expected one of {', '.join(REMAT)}, got {remat!r}")
    return batch, length

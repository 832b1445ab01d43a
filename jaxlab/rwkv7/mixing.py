"""The two sub-layers of an RWKV-7 block: time mix and channel mix."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.state import State
from jaxlab.rwkv7.upscaling import Signals, Upscaling, project, stable_inputs
from jaxlab_kernels import wkv7

LAYER_NORM_EPS = 1e-5
_DECAY_SCALE = -math.exp(-0.5)  # log-decays are this times a sigmoid: the decay is in (0.545, 1)


class Segments(NamedTuple):
    """Where sequences begin and end inside a batch; None where there is nothing to say."""

    reset: Bool[Array, "B T"] | None  # a new sequence starts at this token
    valid: Bool[Array, "B T"] | None  # False on the padding at the end of a row
    lengths: Int[Array, " B"] | None  # number of valid tokens


class Mixed(NamedTuple):
    """What a time mix hands on."""

    out: Float[Array, "B T C"]
    v_first: Float[Array, "B T C"]  # values of the first layer
    shift: Float[Array, "B C"]
    wkv: Float[Array, "B H V K"]
    enlarged: Float[Array, "B H M M"] | None
    receptances_and_keys: tuple[
        Float[Array, "B T H K"], Float[Array, "B T H K"]
    ]  # receptance and key


def layer_norm(params: Params, x: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """Layer normalisation with weight and bias, in float32 inside.

    Args:
        params: "weight" and "bias", each [C].
        x: inputs.

    Returns:
        Normalised inputs in their dtype.
    """
    unit = _standardise(x.astype(jnp.float32), LAYER_NORM_EPS)
    return _affine(unit, params).astype(x.dtype)


def time_mix(
    params: Params,
    config: Config,
    h: Float[Array, "B T C"],
    v_first: Float[Array, "B T C"],
    is_first: Bool[Array, ""],
    shift: Float[Array, "B C"],
    wkv: Float[Array, "B H V K"],
    segments: Segments,
    fresh: State | None,
    impl: str,
    upscaling: Upscaling | None = None,
    enlarged: Float[Array, "B H M M"] | None = None,
) -> Mixed:
    """The sub-layer that carries the matrix-valued state.

    Args:
        params: "att" of one layer.
        config: sizes.
        h: normalised inputs.
        v_first: values of the first layer; ignored in the first layer.
        is_first: whether this is the first layer.
        shift: the normalised input before h[:, 0].
        wkv: the state before h[:, 0], float32.
        segments: resets and padding.
        fresh: state of this layer that a reset goes to; zeros if None.
        impl: implementation of the recurrence, see `jaxlab_kernels.wkv7`.
        upscaling: of this layer, None without.
        enlarged: the enlarged state before h[:, 0]; None without upscaling.

    Returns:
        Outputs and what goes on.

    Reference: Peng et al. 2025, RWKV-7 "Goose", equations of the time-mixing block.

    Pitfalls: the key is normalised before the learning rate changes it; the bonus uses the changed
    key, the mixed value and no normalisation; the decay is never rounded to bfloat16, which would
    lose the long memory near one.
    """
    size = config.head_size
    batch, length, _ = h.shape

    def mixed(name: str) -> Array:
        return h + delta * _row(params[f"x_{name}"], h)

    def low_rank(name: str, x: Array, inner: str | None = None) -> Array:
        hidden = x @ params[f"{name}1"].astype(x.dtype)
        if inner == "tanh":
            hidden = jnp.tanh(hidden)
        elif inner == "sigmoid":
            hidden = jax.nn.sigmoid(hidden)
        return (hidden @ params[f"{name}2"].astype(x.dtype)).astype(jnp.float32)

    def biased(name: str, x: Array) -> Array:
        return x + _row(params[f"{name}0"], x)

    def heads(x: Array) -> Array:
        return x.reshape(batch, length, config.n_head, size)

    fresh_shift, fresh_wkv = (None, None) if fresh is None else (fresh.att_shift, fresh.wkv)
    delta = _previous(h, shift, segments.reset, fresh_shift) - h
    receptance = linear(params["receptance"], mixed("r"))
    key = linear(params["key"], mixed("k")).astype(jnp.float32)
    xv = mixed("v")
    value = linear(params["value"], xv)

    log_decay = _DECAY_SCALE * jax.nn.sigmoid(biased("w", low_rank("w", mixed("w"), "tanh")))
    rate = jax.nn.sigmoid(biased("a", low_rank("a", mixed("a"))))
    gate = low_rank("g", mixed("g"), "sigmoid")
    residual = jax.nn.sigmoid(biased("v", low_rank("v", xv))).astype(value.dtype)
    v_first = jnp.where(is_first, value, v_first)
    value = jnp.where(is_first, value, value + (v_first - value) * residual)

    removal = heads(key * _row(params["k_k"], key))
    # max() before the root: the gradient at a zero key is zero, not NaN.
    norm = jnp.sqrt(jnp.maximum(jnp.sum(removal**2, axis=-1, keepdims=True), 1e-24))
    removal = removal / norm
    key = heads(key * (1 + (rate - 1) * _row(params["k_a"], key)))

    r, v, log_decay = heads(receptance), heads(value), heads(log_decay)
    k, read = key.astype(h.dtype), -removal.astype(h.dtype)
    write = (removal * heads(rate)).astype(h.dtype)

    def active(x: Array) -> Array:
        """Zero on padding, where the state then neither decays nor changes."""
        if segments.valid is None:
            return x
        return jnp.where(segments.valid[:, :, None, None], x, jnp.zeros_like(x))

    out, wkv = wkv7(
        r,
        active(log_decay),
        active(k),
        active(v),
        active(read),
        active(write),
        wkv,
        reset=segments.reset,
        reset_state=fresh_wkv,
        impl=impl,
    )
    if upscaling is not None:
        signals = Signals(r, log_decay, k, v, removal, heads(rate))
        reading, *others = stable_inputs(upscaling, signals)
        # Only now: the features of zero are not zero.
        faded, key, value, read, write = map(active, others)
        wide, enlarged = wkv7(
            reading,
            faded,
            key,
            value,
            read,
            write,
            enlarged,
            reset=segments.reset,
            reset_state=None if fresh is None else fresh.enlarged,
            impl=impl,
        )
        out = out + project(upscaling, wide)

    unit = _standardise(out.astype(jnp.float32), config.ln_x_eps).reshape(batch, length, -1)
    r, k, v = (x.astype(jnp.float32) for x in (r, k, v))
    bonus = jnp.sum(r * k * _row(params["r_k"], k), axis=-1, keepdims=True) * v
    normalised = _affine(unit, params["ln_x"]) + bonus.reshape(unit.shape)
    mixed_out = linear(params["output"], (normalised * gate).astype(h.dtype))
    return Mixed(mixed_out, v_first, _last(h, shift, segments), wkv, enlarged, (r, k))


def channel_mix(
    params: Params,
    h: Float[Array, "B T C"],
    shift: Float[Array, "B C"],
    segments: Segments,
    fresh_shift: Float[Array, " C"] | None,
) -> tuple[Float[Array, "B T C"], Float[Array, "B C"]]:
    """The position-wise sub-layer: squared ReLU over token-shifted inputs.

    Args:
        params: "ffn" of one layer.
        h: normalised inputs.
        shift: the normalised input before h[:, 0].
        segments: resets and padding.
        fresh_shift: shift that a reset goes to; zeros if None.

    Returns:
        Outputs and the new shift.
    """
    delta = _previous(h, shift, segments.reset, fresh_shift) - h
    hidden = linear(params["key"], h + delta * _row(params["x_k"], h))
    return linear(params["value"], jax.nn.relu(hidden) ** 2), _last(h, shift, segments)


def linear(weight: Float[Array, "o i"], x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
    """Applies a matrix stored [out, in], in the dtype of the inputs."""
    return x @ weight.astype(x.dtype).T


def _row(vector: Array, x: Array) -> Array:
    """Parameters of the trailing axes, in the dtype and shape of the activations."""
    return jnp.broadcast_to(vector.astype(x.dtype), x.shape)


def _standardise(x: Array, eps: float) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + eps)


def _affine(x: Array, params: Params) -> Array:
    return x * _row(params["weight"], x) + _row(params["bias"], x)


def _previous(h: Array, shift: Array, reset: Array | None, fresh: Array | None) -> Array:
    """h one token earlier: the carried one at the start, a fresh one where a sequence starts."""
    previous = jnp.concatenate([shift[:, None].astype(h.dtype), h[:, :-1]], axis=1)
    if reset is None:
        return previous
    start = jnp.zeros_like(h) if fresh is None else _row(fresh, h)
    return jnp.where(reset[:, :, None], start, previous)


def _last(h: Array, shift: Array, segments: Segments) -> Array:
    """The input to be carried: of the last valid token, the old one in a row that has none."""
    if segments.lengths is None:
        return h[:, -1]
    index = jnp.maximum(segments.lengths - 1, 0)[:, None, None]
    last = jnp.take_along_axis(h, index, axis=1)[:, 0]
    return jnp.where(segments.lengths[:, None] > 0, last, shift.astype(h.dtype))

"""A causal transformer with pre-normalisation: the baseline of language-model comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

TransformerParams = dict[str, Any]

_LAYER_NORM_EPS = 1e-5
_ROTARY_BASE = 10_000.0
_MATRICES = ("emb", "head", "qkv", "out", "up", "down")


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and dtypes."""

    vocab_size: int
    n_layer: int
    n_embd: int
    head_size: int = 64  # even: rotary positions turn pairs of channels
    dim_ffn: int | None = None  # 4 n_embd
    dtype: Any = jnp.float32  # of activations and the cache
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.dim_ffn is None:
            object.__setattr__(self, "dim_ffn", 4 * self.n_embd)
        for name in ("vocab_size", "n_layer", "n_embd", "head_size", "dim_ffn"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.head_size % 2 or self.n_embd % self.head_size:
            raise ValueError(
                f"head_size: expected an even divisor of n_embd {self.n_embd}, got {self.head_size}"
            )
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, jnp.dtype(getattr(self, name)))

    @property
    def n_head(self) -> int:
        """Number of heads."""
        return self.n_embd // self.head_size


class KVCache(NamedTuple):
    """Keys and values of the past, stacked over layers; room for S tokens per row."""

    keys: Float[Array, "L B S H N"]
    values: Float[Array, "L B S H N"]
    length: Int[Array, " B"]  # tokens seen


def transformer_init(key: Key[Array, ""], config: TransformerConfig) -> TransformerParams:
    """Draws parameters; leaves below "blocks" have a leading axis over layers.

    Args:
        key: random key.
        config: sizes.

    Returns:
        Normal matrices [in, out] of variance 1 / in, those that write to the residual stream
        divided by sqrt(2 L), so that its variance does not grow with depth; embeddings of
        standard deviation 0.02.

    Reference: Radford et al. 2019, Language Models are Unsupervised Multitask Learners, 2.3.
    """
    size, width, depth = config.n_embd, cast(int, config.dim_ffn), config.n_layer
    keys = iter(jax.random.split(key, 6))
    small = 1 / math.sqrt(2 * depth)

    def normal(*shape: int, scale: float) -> Array:
        draw = scale * jax.random.normal(next(keys), shape, jnp.float32)
        return draw.astype(config.param_dtype)

    def norm(*lead: int) -> TransformerParams:
        shape = (*lead, size)
        return {
            "weight": jnp.ones(shape, config.param_dtype),
            "bias": jnp.zeros(shape, config.param_dtype),
        }

    return {
        "emb": normal(config.vocab_size, size, scale=0.02),
        "blocks": {
            "ln1": norm(depth),
            "qkv": normal(depth, size, 3 * size, scale=size**-0.5),
            "out": normal(depth, size, size, scale=small * size**-0.5),
            "ln2": norm(depth),
            "up": normal(depth, size, width, scale=size**-0.5),
            "down": normal(depth, width, size, scale=small * width**-0.5),
        },
        "ln_out": norm(),
        "head": normal(size, config.vocab_size, scale=size**-0.5),
    }


def transformer_decay_mask(params: TransformerParams) -> Any:
    """True for the matrices, which weight decay is for.

    Args:
        params: from `transformer_init`.

    Returns:
        A tree of booleans, for `optax.adamw(mask=...)`.

    Pitfall: the usual rule, decay what has two axes, would decay norms stacked over layers.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in _MATRICES, params)


def transformer_cache(config: TransformerConfig, batch: int, capacity: int) -> KVCache:
    """An empty cache.

    Args:
        config: sizes.
        batch: rows B.
        capacity: room S, for prompt and generated tokens together.

    Returns:
        The cache, in `config.dtype`.
    """
    shape = (config.n_layer, batch, capacity, config.n_head, config.head_size)
    empty = jnp.zeros(shape, config.dtype)
    return KVCache(empty, empty, jnp.zeros(batch, jnp.int32))


def transformer_apply(
    params: TransformerParams,
    config: TransformerConfig,
    tokens: Int[Array, "B T"],
    reset: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T V"]:
    """Next-token logits at every position of whole sequences.

    Args:
        params: from `transformer_init`.
        config: sizes.
        tokens: ids in [0, vocab_size).
        reset: True where a new sequence starts (packing); it sees nothing before.

    Returns:
        Float32 logits.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Reference: Vaswani et al. 2017, Attention Is All You Need; Su et al. 2021, RoFormer (rotary
    positions).
    """
    batch, length = _check(tokens)
    if reset is not None and (reset.shape != tokens.shape or reset.dtype != jnp.bool_):
        raise ValueError(f"reset: expected bool{tokens.shape}, got {reset.dtype}{reset.shape}")
    steps = jnp.arange(length)
    seen = jnp.broadcast_to(steps[:, None] >= steps[None, :], (batch, length, length))
    if reset is not None:
        segment = jnp.cumsum(reset, axis=1)
        seen = seen & (segment[:, :, None] == segment[:, None, :])
    positions = jnp.broadcast_to(steps, (batch, length))

    def layer(x: Array, p: TransformerParams) -> tuple[Array, None]:
        q, k, v = _project(p, config, x, positions)
        return _mix(p, config, x, q, k, v, seen), None

    x = params["emb"][tokens].astype(config.dtype)
    x, _ = jax.lax.scan(layer, x, params["blocks"])
    return _logits(params, x)


def transformer_extend(
    params: TransformerParams,
    config: TransformerConfig,
    tokens: Int[Array, "B T"],
    cache: KVCache,
    lengths: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T V"], KVCache]:
    """Logits of further tokens, given the past: T = 1 is a decoding step, a longer T a prefill.

    Args:
        params: from `transformer_init`.
        config: sizes.
        tokens: ids in [0, vocab_size), padded on the right.
        cache: the past.
        lengths: number of valid tokens per row, T each if None; behind them the logits mean
            nothing, and the cache does not remember them.

    Returns:
        Float32 logits and the extended cache.

    Raises:
        ValueError: shapes or dtypes that do not fit.

    Pitfall: how full the cache is, is not known while tracing. Tokens beyond its capacity get NaN
    logits rather than those of a wrong past.
    """
    batch, length = _check(tokens)
    capacity = cache.keys.shape[2]
    shape = (config.n_layer, batch, capacity, config.n_head, config.head_size)
    if cache.keys.shape != shape or cache.values.shape != shape or cache.length.shape != (batch,):
        got = tuple(leaf.shape for leaf in cache)
        raise ValueError(f"cache: expected shapes {(shape, shape, (batch,))}, got {got}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},), got {lengths.shape}")
    positions = cache.length[:, None] + jnp.arange(length)[None, :]
    # Padding lies behind every valid query, and the next tokens overwrite it.
    seen = positions[:, :, None] >= jnp.arange(capacity)[None, None, :]
    rows = jnp.arange(batch)[:, None]

    def layer(x: Array, past: tuple[TransformerParams, Array, Array]) -> tuple[Array, Any]:
        p, keys, values = past
        q, k, v = _project(p, config, x, positions)
        keys = keys.at[rows, positions].set(k, mode="drop")
        values = values.at[rows, positions].set(v, mode="drop")
        return _mix(p, config, x, q, keys, values, seen), (keys, values)

    x = params["emb"][tokens].astype(config.dtype)
    x, (keys, values) = jax.lax.scan(layer, x, (params["blocks"], cache.keys, cache.values))
    logits = jnp.where((positions < capacity)[:, :, None], _logits(params, x), jnp.nan)
    advance = length if lengths is None else lengths.astype(jnp.int32)
    return logits, KVCache(keys, values, cache.length + advance)


def _check(tokens: Array) -> tuple[int, int]:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens: expected integers [B, T], got {tokens.dtype}{tokens.shape}")
    batch, length = tokens.shape
    return batch, length


def _project(
    p: TransformerParams, config: TransformerConfig, x: Array, positions: Array
) -> tuple[Array, Array, Array]:
    """Queries, keys and values [B, T, H, N] of the normalised inputs, positions turned in."""
    h = _layer_norm(p["ln1"], x) @ p["qkv"].astype(x.dtype)
    q, k, v = jnp.split(h.reshape(*h.shape[:2], config.n_head, -1), 3, axis=-1)
    return _rotate(q, positions), _rotate(k, positions), v


def _rotate(x: Array, positions: Int[Array, "B T"]) -> Array:
    """Turns each pair of channels by an angle that grows with the position."""
    half = x.shape[-1] // 2
    speed = _ROTARY_BASE ** (-jnp.arange(half) / half)
    angle = positions[:, :, None, None].astype(jnp.float32) * speed[None, None, None, :]
    cos, sin = (jnp.broadcast_to(f(angle), (*x.shape[:-1], half)) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _mix(
    p: TransformerParams,
    config: TransformerConfig,
    x: Array,
    q: Array,
    k: Array,
    v: Array,
    seen: Bool[Array, "B T S"],
) -> Array:
    """Attention and the position-wise sub-layer, each added to the residual stream."""
    scores = jnp.einsum("bthn,bshn->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None], scores / math.sqrt(config.head_size), -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    attended = jnp.einsum("bhts,bshn->bthn", weights, v)
    x = x + attended.reshape(x.shape) @ p["out"].astype(x.dtype)
    hidden = jax.nn.gelu(_layer_norm(p["ln2"], x) @ p["up"].astype(x.dtype))
    return x + hidden @ p["down"].astype(x.dtype)


def _logits(params: TransformerParams, x: Array) -> Array:
    h = _layer_norm(params["ln_out"], x)
    return jnp.matmul(h, params["head"].astype(h.dtype), preferred_element_type=jnp.float32)


def _layer_norm(params: TransformerParams, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + _LAYER_NORM_EPS)
    weight, bias = (
        jnp.broadcast_to(params[name].astype(jnp.float32), x.shape) for name in ("weight", "bias")
    )
    return (unit * weight + bias).astype(x.dtype)

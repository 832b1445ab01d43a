"""Initial parameters of RWKV-7, stacked over layers."""

from __future__ import annotations

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxlab.rwkv7.config import Config, Ranks

Params = dict[str, Any]  # {"emb", "ln0", "blocks": {"ln1", "ln2", "att", "ffn"}, "ln_out", "head"}


def init(key: Key[Array, ""], config: Config) -> Params:
    """Draws parameters by the recipe of the official trainer.

    Matrices are [out, in] as in the official files, the low-rank factors [in, rank] and
    [rank, out]. Every leaf below "blocks" has a leading axis over the L layers. Layer 0 carries
    `v0`, `v1`, `v2` too, which it does not use, so that layers can be scanned.

    Args:
        key: random key.
        config: sizes.

    Returns:
        The parameter tree in `config.param_dtype`.

    Reference: Peng et al. 2025, RWKV-7 "Goose" with Expressive Dynamic State Evolution, appendix
    on initialisation; the official trainer is newer than the paper and wins.

    Pitfall: at the start every block adds exactly zero (`output` and the second matrix of the
    channel mix are zero), and g1 = 0 does not close the gate: sigmoid(0) = 1/2.
    """
    size, width = config.n_embd, cast(int, config.dim_ffn)
    ranks = cast(Ranks, config.ranks)
    keys = iter(jax.random.split(key, 8))
    stack = config.n_layer

    def zeros(*shape: int) -> Array:
        return jnp.zeros((stack, *shape), config.param_dtype)

    def draw(count: int, rows: int, columns: int) -> Array:
        each = jax.random.split(jax.random.fold_in(next(keys), 0), count)
        return jax.vmap(lambda k: random_orthogonal(k, rows, columns))(each)

    def orthogonal(rows: int, columns: int, *gains: float) -> list[Array]:
        """One stack per gain, in one decomposition: compiling each takes a second."""
        drawn = draw(len(gains) * stack, rows, columns)
        return [gain * drawn[n * stack : (n + 1) * stack] for n, gain in enumerate(gains)]

    att: Params = dict(_vectors(config))
    for name, rank in zip("wavg", ranks):
        att[f"{name}1"] = zeros(size, rank)
        (att[f"{name}2"],) = orthogonal(rank, size, 0.1 * max(1.0, math.sqrt(rank / size)))
    att["receptance"], att["key"], att["value"] = orthogonal(size, size, 1.0, 0.1, 1.0)
    att["output"] = zeros(size, size)
    (ffn_key,) = orthogonal(width, size, 1.0)
    ffn = {"x_k": att.pop("ffn_x_k"), "key": ffn_key, "value": zeros(size, width)}
    att["ln_x"] = {"weight": att.pop("ln_x_weight"), "bias": zeros(size)}

    def layer_norm(*lead: int) -> Params:
        return {"weight": jnp.ones((*lead, size)), "bias": jnp.zeros((*lead, size))}

    vocab = config.vocab_size
    params = {
        "emb": jax.random.uniform(next(keys), (vocab, size), jnp.float32, -1e-4, 1e-4),
        "ln0": layer_norm(),
        "blocks": {"ln1": layer_norm(stack), "ln2": layer_norm(stack), "att": att, "ffn": ffn},
        "ln_out": layer_norm(),
        "head": 0.5 * max(1.0, math.sqrt(vocab / size)) * draw(1, vocab, size)[0],
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, config.param_dtype), params)


def num_params(config: Config) -> int:
    """Counts the parameters, layer 0's unused ones included, without allocating any.

    Args:
        config: sizes.

    Returns:
        2VC + 4C + L (19C + 4C^2 + 2CF + 2C (Dw + Da + Dv + Dg)) with F = 4C in the standard case.
    """
    shapes = jax.eval_shape(lambda key: init(key, config), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def random_orthogonal(key: Key[Array, ""], rows: int, columns: int) -> Float[Array, "R C"]:
    """A matrix with orthonormal rows or columns, whichever are fewer.

    Batches are made one after another: on a CPU, batched decompositions that run at the same time
    can wait for each other's threads for ever (seen with jax 0.10.2 on two cores).

    Args:
        key: random key.
        rows: R.
        columns: C.

    Returns:
        The matrix, float32.
    """

    @jax.custom_batching.sequential_vmap
    def one(key: Array) -> Array:
        return jax.nn.initializers.orthogonal()(key, (rows, columns), jnp.float32)

    return one(key)


def _vectors(config: Config) -> dict[str, np.ndarray]:
    """The per-channel starting values, [L, C] each."""
    size, depth = config.n_embd, config.n_layer
    layer, channel = np.ogrid[:depth, :size]
    q = layer / max(depth - 1, 1)
    p = 1 - layer / depth
    ramp = channel / size
    unit = channel / max(size - 1, 1)
    centred = unit - 0.5
    half = (config.head_size - 1) / 2
    zigzag = (channel % config.head_size - half) / max(half, 0.5)
    zigzag = zigzag * np.abs(zigzag)
    shape = (depth, size)
    values: dict[str, Any] = {
        **{name: 1 - ramp ** (0.2 * p) for name in ("x_r", "x_g")},
        **{name: 1 - ramp ** (0.9 * p) for name in ("x_w", "x_a")},
        **{name: 1 - ramp ** (0.7 * p) for name in ("x_k", "x_v")},
        "w0": -6 + 6 * unit ** (1 + q**0.3) + 0.5 + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * centred,
        "v0": 0.73 - 0.4 * centred,
        "k_k": 0.71 - 0.1 * centred,
        "k_a": 1.02,
        "ln_x_weight": ((1 + layer) / depth) ** 0.7,
        "ffn_x_k": 1 - ramp ** (p**4),
    }
    arrays = {name: np.broadcast_to(value, shape) for name, value in values.items()}
    arrays["r_k"] = np.full((depth, config.n_head, config.head_size), -0.04)
    return arrays

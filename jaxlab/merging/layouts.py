"""The units of the networks in `jaxlab.nets`: perceptrons and transformers."""

import dataclasses

import jax.numpy as jnp

from jaxlab.merging.axes import AxisSpec, LeafAxes
from jaxlab.nets import TransformerConfig, TransformerParams


def mlp_axes(layers: int, *, layer_norm: bool = False) -> AxisSpec:
    """The units of `mlp_init`'s parameters: hidden layer l has its own, called "hidden{l}".

    Args:
        layers: number of kernels, one more than hidden layers.
        layer_norm: whether hidden layers are normalised.

    Returns:
        A specification.
    """
    names = [None, *(f"hidden{i}" for i in range(layers - 1)), None]
    leaves = []
    for i in range(layers):
        inputs = (0,) if i else ()
        leaves.append((rf"^{i}/kernel$", LeafAxes((names[i], names[i + 1]), inputs)))
        leaves.append((rf"^{i}/(bias|scale|offset)$", LeafAxes((names[i + 1],))))
    hidden = tuple(name for name in names if name is not None)
    units = tuple((name, ()) for name in hidden)
    return AxisSpec(tuple(leaves), units, normalised=hidden if layer_norm else ())


def transformer_axes() -> AxisSpec:
    """The units of a transformer whose attention is split by `split_heads`.

    Returns:
        A specification with "residual" (shared by all layers), "heads", "channels" (of the values,
        within each head) and "hidden" (of the feed-forward layer).

    Pitfall:
        Channels of queries and keys are no symmetry: rotary positions tie each to its frequency.
    """
    layer, residual = "layer", "residual"
    leaves = (
        (r"^emb$", LeafAxes((None, residual))),
        (r"^head$", LeafAxes((residual, None), (0,))),
        (r"^ln_out/", LeafAxes((residual,))),
        (r"/ln[12]/", LeafAxes((layer, residual))),
        (r"/qk$", LeafAxes((layer, residual, "heads", None, None), (1,))),
        (r"/v$", LeafAxes((layer, residual, "heads", "channels"), (1,))),
        (r"/out$", LeafAxes((layer, "heads", "channels", residual), (1, 2))),
        (r"/up$", LeafAxes((layer, residual, "hidden"), (1,))),
        (r"/down$", LeafAxes((layer, "hidden", residual), (1,))),
    )
    units = (
        (residual, ()),
        ("heads", (layer,)),
        ("channels", (layer, "heads")),
        ("hidden", (layer,)),
    )
    return AxisSpec(leaves, units, normalised=(residual,))


def split_heads(params: TransformerParams, head_size: int) -> TransformerParams:
    """Gives the attention of a transformer an axis of heads.

    Args:
        params: from `transformer_init`.
        head_size: channels of a head.

    Returns:
        The parameters with `qk` [L, C, H, 2, N] and `v` [L, C, H, N] in the place of `qkv`, and
        `out` [L, H, N, C].
    """
    blocks = dict(params["blocks"])
    qkv = blocks.pop("qkv")
    qkv = qkv.reshape(*qkv.shape[:2], -1, 3, head_size)
    out = blocks["out"].reshape(qkv.shape[0], -1, head_size, blocks["out"].shape[-1])
    blocks |= {"qk": qkv[..., :2, :], "v": qkv[..., 2, :], "out": out}
    return {**params, "blocks": blocks}


def join_heads(params: TransformerParams) -> TransformerParams:
    """The inverse of `split_heads`."""
    blocks = dict(params["blocks"])
    qk, v = blocks.pop("qk"), blocks.pop("v")
    qkv = jnp.concatenate([qk, v[..., None, :]], axis=-2)
    out = blocks["out"]
    blocks["qkv"] = qkv.reshape(*qkv.shape[:2], -1)
    blocks["out"] = out.reshape(out.shape[0], -1, out.shape[-1])
    return {**params, "blocks": blocks}


def widened(config: TransformerConfig, sizes: dict[str, int]) -> TransformerConfig:
    """The configuration of a transformer after its units have grown.

    Args:
        config: of the small one.
        sizes: new sizes by label of `transformer_axes`.

    Returns:
        A configuration. Heads and residual channels are tied by n_embd = heads x head size.

    Raises:
        ValueError: if they do not grow together, or the channels of heads grow.
    """
    width = sizes.get("residual", config.n_embd)
    heads = sizes.get("heads", config.n_head)
    if heads * config.head_size != width or "channels" in sizes:
        raise ValueError(
            f"sizes: expected residual = heads x {config.head_size} and no channels, got {sizes}"
        )
    return dataclasses.replace(config, n_embd=width, dim_ffn=sizes.get("hidden", config.dim_ffn))

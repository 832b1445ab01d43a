"""Names and shapes of tensors: the official ones, those of flash-linear-attention, and ours."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxlab.rwkv7.checkpoints.tensors import CheckpointError, Tensor
from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import init

_MIXES = "rwkvag"  # the order in which old flash-linear-attention files stack them
# Vectors that official files store as [1, 1, C].
_ROWS = frozenset({*(f"x_{m}" for m in _MIXES), "w0", "a0", "v0", "k_k", "k_a"})
# A state-tuned file has the learned state beside the weights.
LEARNED_STATE = re.compile(r"blocks\.\d+\.att\.time_state")

_FLA_PROJECTIONS = {
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
_FLA_TOP = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
_FLA_PARTS = {
    "ln0": "pre_norm",
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "att": "attn",
    "ffn": "ffn",
}
_FLA_FACTORS = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}


class Entry(NamedTuple):
    """One official tensor and the place in our tree that it is a layer of."""

    name: str
    shape: tuple[int, ...]  # as official files store it
    path: tuple[str, ...]  # in the parameter tree
    layer: int | None  # index on the leading axis, None for unstacked leaves


def entries(config: Config) -> Iterator[Entry]:
    """Every tensor of a model in the official naming.

    Args:
        config: sizes.

    Yields:
        Entries, layer by layer for stacked leaves.
    """
    shapes = jax.eval_shape(lambda key: init(key, config), jax.random.key(0))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        path = tuple(key.key for key in keys)
        *rooms, last = path
        suffix = last if last in ("weight", "bias") else f"{last}.weight"
        if rooms[:1] != ["blocks"]:
            room = "blocks.0.ln0" if rooms == ["ln0"] else ".".join(rooms)
            yield Entry(f"{room}.{suffix}".lstrip("."), leaf.shape, path, None)
            continue
        shape = leaf.shape[1:]
        if len(shape) == 1 and last in _ROWS:
            suffix, shape = last, (1, 1, *shape)
        elif last == "r_k" or re.fullmatch("[wavg][12]", last):
            suffix = last
        for layer in range(config.n_layer):
            yield Entry(".".join(["blocks", str(layer), *rooms[1:], suffix]), shape, path, layer)


def to_fla(name: str) -> tuple[str, bool] | None:
    """The name flash-linear-attention gives an official tensor.

    Args:
        name: official name.

    Returns:
        Its name and whether it is stored transposed; None for the value residual of layer 0, which
        has no place there.
    """
    first, *rest = name.split(".")
    if first in _FLA_TOP:
        return ".".join([_FLA_TOP[first], *rest]), False
    layer, part, *rest = rest
    transposed = False
    if part == "att":
        if re.fullmatch("[wavg][012]", rest[0]):
            if layer == "0" and rest[0].startswith("v"):
                return None
            kind, number = rest[0][0], rest[0][1]
            rest = [f"{kind}_lora", "lora", _FLA_FACTORS[number]]
            transposed = number in "12"
        else:
            rest = [_FLA_PROJECTIONS.get(rest[0], rest[0]), *rest[1:]]
    return ".".join(["model.layers", layer, _FLA_PARTS[part], *rest]), transposed


def official(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Renames whatever was found in a file to the official names.

    Args:
        tensors: official or flash-linear-attention names, the latter in its older layout too.

    Returns:
        Tensors by official name, and whether the names were flash-linear-attention's.

    Raises:
        CheckpointError: neither kind of name.
    """
    tensors = {name.removeprefix("_forward_module."): t for name, t in tensors.items()}
    if "emb.weight" in tensors:
        return tensors, False
    if "model.embeddings.weight" not in tensors:
        raise CheckpointError("no RWKV-7 model: neither emb.weight nor model.embeddings.weight")
    return {new: t for name, t in tensors.items() for new, t in _from_fla(name, t)}, True


def _from_fla(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    for ours, theirs in _FLA_TOP.items():
        if name.startswith(f"{theirs}."):
            yield name.replace(theirs, ours, 1), tensor
            return
    match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.(.+)", name)
    parts = {theirs: ours for ours, theirs in _FLA_PARTS.items()}
    if match is None or match[2] not in parts:
        yield name, tensor
        return
    layer, part, rest = match[1], parts[match[2]], match[3]
    prefix = f"blocks.{layer}.{part}"
    if part == "att":
        if rest == "x_x":
            yield from _unstacked(prefix, tensor)
            return
        factor = re.fullmatch(r"([wavg])_lora\.lora\.(2\.bias|0\.weight|2\.weight)", rest)
        if factor is not None:
            number = {theirs: ours for ours, theirs in _FLA_FACTORS.items()}[factor[2]]
            yield f"{prefix}.{factor[1]}{number}", tensor if number == "0" else transpose(tensor)
            return
        head, *tail = rest.split(".")
        head = {theirs: ours for ours, theirs in _FLA_PROJECTIONS.items()}.get(head, head)
        rest = ".".join([head, *tail])
    yield f"{prefix}.{rest}", tensor


def _unstacked(prefix: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if tensor.shape[:1] != (len(_MIXES),):
        raise CheckpointError(f"{prefix}.x_x: expected 6 stacked vectors, got {tensor.shape}")
    for index, mix in enumerate(_MIXES):
        read = functools.partial(lambda i: tensor.read()[i], index)
        yield f"{prefix}.x_{mix}", Tensor(tensor.shape[1:], tensor.dtype, read)


def transpose(tensor: Tensor) -> Tensor:
    """The same tensor with its axes reversed."""
    return Tensor(tensor.shape[::-1], tensor.dtype, lambda: tensor.read().T)


def infer_config(tensors: Mapping[str, Tensor], **fields: Any) -> Config:
    """Reads the sizes off official tensors, never off a formula.

    Args:
        tensors: by official name.
        fields: further fields of the configuration.

    Returns:
        The configuration.

    Raises:
        CheckpointError: a tensor that the sizes are read from is missing or has no sensible shape.
    """

    def shape(name: str, rank: int = 2) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"no RWKV-7 model: {name} is missing")
        if len(tensors[name].shape) != rank:
            raise CheckpointError(f"{name}: expected {rank} axes, got {tensors[name].shape}")
        return tensors[name].shape

    vocab_size, n_embd = shape("emb.weight")
    layers = [int(m[1]) for name in tensors if (m := re.match(r"blocks\.(\d+)\.", name))]
    heads, head_size = shape("blocks.0.att.r_k")
    if heads * head_size != n_embd:
        raise CheckpointError(
            f"blocks.0.att.r_k: expected {n_embd} numbers, got {heads} x {head_size}"
        )
    ranks = {kind: shape(f"blocks.0.att.{kind}1")[1] for kind in "wag"}
    # Layer 0 has no use for the value residual, and its tensors may be absent.
    last = max(layers)
    if last >= len(tensors):
        raise CheckpointError(f"no RWKV-7 model: {len(tensors)} tensors, but a layer {last}")
    value = f"blocks.{last}.att.v1"
    ranks["v"] = shape(value)[1] if last or value in tensors else 1
    return Config(
        vocab_size=vocab_size,
        n_layer=last + 1,
        n_embd=n_embd,
        head_size=head_size,
        dim_ffn=shape("blocks.0.ffn.key.weight")[0],
        ranks=(ranks["w"], ranks["a"], ranks["v"], ranks["g"]),
        **fields,
    )

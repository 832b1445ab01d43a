"""Checkpoints on disk: `load` recognises what it is given, `save` writes what it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxlab.files import atomic
from jaxlab.rwkv7.checkpoints.names import (
    LEARNED_STATE,
    entries,
    infer_config,
    official,
    to_fla,
    transpose,
)
from jaxlab.rwkv7.checkpoints.pth import read_pth, write_pth
from jaxlab.rwkv7.checkpoints.safetensors import read_safetensors, write_safetensors
from jaxlab.rwkv7.checkpoints.tensors import CheckpointError, Tensor
from jaxlab.rwkv7.config import Config, Ranks
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.state import State, check_state
from jaxlab.rwkv7.upscaling import UPSCALING
from jaxlab.safetensors import INDEX, SINGLE, SafetensorsError, read_index

FORMATS = ("pth", "safetensors", "fla")
_OFFICIAL_EPS = 64e-5


def load(path: str | Path, *, dtype: Any = jnp.bfloat16, param_dtype: Any = None) -> tuple[
    Params, Config
]:  # fmt: skip
    """Reads RWKV-7 weights; sizes come from the tensors.

    Args:
        path: an official `.pth`, a `.safetensors` file with official or flash-linear-attention
            names, or a Hugging Face folder (`model.safetensors` or a sharded index).
        dtype: of the activations.
        param_dtype: of the parameters; None keeps bfloat16 files in bfloat16 and makes the rest
            float32.

    Returns:
        Parameters and configuration. A learned state in the file is left out, see
        `load_learned_state`.

    Raises:
        CheckpointError: anything but a whole RWKV-7 model, in one sentence.
        FileNotFoundError: nothing is there.
    """
    path = Path(path)
    tensors = _read(path)
    try:
        return from_tensors(tensors, dtype=dtype, param_dtype=param_dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def from_tensors(
    tensors: Mapping[str, Tensor], *, dtype: Any = jnp.bfloat16, param_dtype: Any = None
) -> tuple[Params, Config]:
    """Parameters from named tensors, see `load`.

    Args:
        tensors: official or flash-linear-attention names.
        dtype: of the activations.
        param_dtype: of the parameters.

    Returns:
        Parameters and configuration.

    Raises:
        CheckpointError: missing, unknown or misshapen tensors.
    """
    tensors, is_fla = official(tensors)
    if param_dtype is None:
        narrow = all(tensor.dtype == jnp.bfloat16 for tensor in tensors.values())
        param_dtype = jnp.bfloat16 if narrow else jnp.float32
    try:
        config = infer_config(tensors, dtype=dtype, param_dtype=param_dtype)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"no RWKV-7 model: {error}") from error
    if is_fla:  # its normalisation scales with the head size
        config = Config(**{**vars(config), "ln_x_eps": config.head_size * 1e-5})
    return _assemble(tensors, config), config


def _assemble(tensors: Mapping[str, Tensor], config: Config) -> Params:
    known = list(entries(config))
    unused = {f"blocks.0.att.v{n}" for n in range(3)}
    names = {entry.name for entry in known}
    missing = [name for name in names if name not in tensors and name not in unused]
    if missing:
        raise CheckpointError(f"{len(missing)} tensors are missing, {min(missing)} among them")
    unknown = [n for n in tensors if n not in names and not LEARNED_STATE.fullmatch(n)]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} tensors are not RWKV-7's, {min(unknown)} among them: another model"
        )
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    params: Params = {}
    for entry in known:
        tensor = tensors.get(entry.name)
        shape = tuple(n for n in entry.shape if n != 1)
        fits = tensor is not None and tuple(n for n in tensor.shape if n != 1) == shape
        if not fits and entry.name not in unused:
            got = "none" if tensor is None else tensor.shape
            raise CheckpointError(f"{entry.name}: expected shape {entry.shape}, got {got}")
        target = _place(leaves, entry.path, entry.shape, config, entry.layer)
        row = target if entry.layer is None else target[entry.layer]
        if fits and tensor is not None:
            row[...] = tensor.read().reshape(row.shape)
        else:
            row[...] = 0
        if entry.layer in (None, config.n_layer - 1):
            _insert(params, entry.path, jnp.asarray(leaves.pop(entry.path)))
    return params


def _place(
    leaves: dict[tuple[str, ...], np.ndarray],
    path: tuple[str, ...],
    shape: tuple[int, ...],
    config: Config,
    layer: int | None,
) -> np.ndarray:
    if path not in leaves:
        shape = shape[2:] if shape[:2] == (1, 1) and len(shape) == 3 else shape
        lead = () if layer is None else (config.n_layer,)
        leaves[path] = np.empty((*lead, *shape), config.param_dtype)
    return leaves[path]


def _insert(params: Params, path: tuple[str, ...], leaf: Array) -> None:
    for room in path[:-1]:
        params = params.setdefault(room, {})
    params[path[-1]] = leaf


def to_tensors(params: Params, config: Config, *, fla: bool = False) -> dict[str, Tensor]:
    """Named tensors of a model, read from the device one at a time.

    Args:
        params: parameters.
        config: sizes.
        fla: flash-linear-attention's names and layout instead of the official ones.

    Returns:
        Tensors by name.

    Raises:
        ValueError: parameters that do not fit the configuration, or a configuration that the
            format cannot express.
    """
    if UPSCALING in params["blocks"]:
        raise ValueError(
            "params: expected those of a base model, as no format has room for a second state, "
            "got those of `upscaled`"
        )
    eps = config.head_size * 1e-5 if fla else _OFFICIAL_EPS
    if abs(config.ln_x_eps - eps) > 1e-9:
        kind = "flash-linear-attention" if fla else "official"
        raise ValueError(
            f"config.ln_x_eps: {kind} files mean {eps:g} for head size {config.head_size}, "
            f"got {config.ln_x_eps:g}"
        )
    tensors = {}
    for entry in entries(config):
        leaf: Any = params
        for room in entry.path:
            leaf = leaf[room]
        shape = leaf.shape if entry.layer is None else leaf.shape[1:]
        if entry.layer is not None and leaf.shape[0] != config.n_layer:
            raise ValueError(f"params: expected {config.n_layer} layers, got {leaf.shape[0]}")
        if [n for n in shape if n != 1] != [n for n in entry.shape if n != 1]:
            raise ValueError(f"params: {entry.name}: expected {entry.shape}, got {shape}")
        tensor = _lazy(leaf, entry.layer, entry.shape)
        if not fla:
            tensors[entry.name] = tensor
        elif (renamed := to_fla(entry.name)) is not None:
            name, transposed = renamed
            if tensor.shape[:2] == (1, 1) and "attn.x_" not in name:
                tensor = _lazy(leaf, entry.layer, entry.shape[2:])
            tensors[name] = transpose(tensor) if transposed else tensor
    return tensors


def _lazy(leaf: Array, layer: int | None, shape: tuple[int, ...]) -> Tensor:
    def read() -> np.ndarray:
        return np.asarray(leaf if layer is None else leaf[layer]).reshape(shape)

    return Tensor(shape, np.dtype(leaf.dtype), read)


def save(path: str | Path, params: Params, config: Config, *, format: str | None = None) -> None:
    """Writes RWKV-7 weights; the file appears only when it is complete.

    Args:
        path: a file, or a folder for "fla".
        params: parameters; layer 0's unused ones are kept in the official formats.
        config: sizes.
        format: "pth" or "safetensors" with the official names, or "fla", a Hugging Face folder
            with flash-linear-attention's; None goes by the suffix, a folder being "fla".

    Raises:
        ValueError: unknown format, parameters that do not fit, or a configuration the format
            cannot express.
    """
    path = Path(path)
    if format is None:
        format = path.suffix.removeprefix(".") or "fla"
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    tensors = to_tensors(params, config, fla=format == "fla")
    if format == "pth":
        write_pth(path, tensors)
    elif format == "safetensors":
        write_safetensors(path, tensors)
    else:
        path.mkdir(exist_ok=True)
        write_safetensors(path / SINGLE, tensors)
        with atomic(path / "config.json") as temporary:
            temporary.write_text(json.dumps(_fla_config(config), indent=2))


def _fla_config(config: Config) -> dict[str, Any]:
    ranks, width = cast(Ranks, config.ranks), cast(int, config.dim_ffn)
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "num_heads": config.n_head,
        "intermediate_size": width,
        "hidden_ratio": width / config.n_embd,
        "value_dim": [config.n_embd] * config.n_layer,
        "decay_low_rank_dim": ranks.w,
        "a_low_rank_dim": ranks.a,
        "v_low_rank_dim": ranks.v,
        "gate_low_rank_dim": ranks.g,
        "hidden_act": "sqrelu",
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": config.param_dtype.name,
    }


def load_learned_state(path: str | Path, config: Config) -> State:
    """Reads the learned state of a state-tuned checkpoint.

    Args:
        path: a file with `blocks.i.att.time_state` for every layer, [H, V, K] each, with or
            without the weights.
        config: sizes of the model it belongs to.

    Returns:
        A state without a batch axis and with zero token shifts, for `initial_state` or
        `reset_state`.

    Raises:
        CheckpointError: a layer's state is missing or has another shape.
    """
    path = Path(path)
    tensors = {n.removeprefix("_forward_module."): t for n, t in _read(path).items()}
    size = config.head_size
    wkv = np.empty((config.n_layer, config.n_head, size, size), np.float32)
    for layer in range(config.n_layer):
        tensor = tensors.get(f"blocks.{layer}.att.time_state")
        if tensor is None or tensor.shape != wkv.shape[1:]:
            got = "none" if tensor is None else tensor.shape
            raise CheckpointError(
                f"{path}: blocks.{layer}.att.time_state: expected {wkv.shape[1:]}, got {got}"
            )
        wkv[layer] = tensor.read()
    shift = jnp.zeros((config.n_layer, config.n_embd), config.dtype)
    return State(shift, jnp.asarray(wkv), shift)


def save_learned_state(path: str | Path, state: State, config: Config) -> None:
    """Writes a tuned initial state as `load_learned_state` and state-tuning tools read it.

    Args:
        path: ".safetensors", or ".pth" for anything else; replaced only once complete.
        state: without a batch axis; its token shifts must be zero, as files have no room for them.
        config: sizes of the model it belongs to.

    Raises:
        ValueError: shapes that do not fit, or parts that the format cannot express.
    """
    check_state("state", state, config, None)
    if state.enlarged is not None or any(np.any(x) for x in (state.att_shift, state.ffn_shift)):
        raise ValueError("state: expected zero token shifts and no enlarged state, got others")
    path = Path(path)
    shape = state.wkv.shape[1:]
    tensors = {
        f"blocks.{layer}.att.time_state": _lazy(state.wkv, layer, shape)
        for layer in range(config.n_layer)
    }
    write = write_safetensors if path.suffix == ".safetensors" else write_pth
    write(path, tensors)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return _read_folder(path)
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip or path.suffix != ".safetensors":
        return read_pth(path)
    return read_safetensors(path)


def _read_folder(path: Path) -> dict[str, Tensor]:
    if (path / SINGLE).exists():
        return read_safetensors(path / SINGLE)
    index = path / INDEX
    if not index.exists():
        raise CheckpointError(f"{path}: neither {SINGLE} nor {INDEX} is in this folder")
    try:
        shards = read_index(index)
    except SafetensorsError as error:
        raise CheckpointError(str(error)) from error
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        tensors |= read_safetensors(path / name)
    lost = [name for name in shards if name not in tensors]
    if lost:
        raise CheckpointError(f"{path}: {lost[0]} is in the index and in no shard")
    return tensors

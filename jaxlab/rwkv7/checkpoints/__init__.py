"""Weights on disk: official `.pth`, `.safetensors` and Hugging Face folders, in and out."""

from jaxlab.rwkv7.checkpoints.files import (
    from_tensors,
    load,
    load_learned_state,
    save,
    save_learned_state,
    to_tensors,
)
from jaxlab.rwkv7.checkpoints.tensors import CheckpointError, Tensor

__all__ = [
    "CheckpointError",
    "Tensor",
    "from_tensors",
    "load",
    "load_learned_state",
    "save",
    "save_learned_state",
    "to_tensors",
]

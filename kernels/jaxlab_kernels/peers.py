"""Other people's ways to compute the same, for the benchmark; each only if it is installed."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlab_kernels.checks import Tokens


class Peer(NamedTuple):
    """Calls that return when they are done, and y for comparison."""

    name: str
    forward: Callable[[], object]
    training: Callable[[], object]
    output: Callable[[], np.ndarray]


def _torch_inputs(inputs: Tokens, device: str):
    import torch

    dtype = torch.bfloat16 if inputs[0].dtype == jnp.bfloat16 else torch.float32
    tensors = [torch.from_numpy(np.array(x, np.float32)).to(device) for x in inputs]
    return [
        x.to(dtype if i != 1 else torch.float32).requires_grad_() for i, x in enumerate(tensors)
    ]


def torch_sequential(inputs: Tokens) -> Peer | None:
    """The recurrence as a loop of PyTorch operations on the CPU, differentiated by autograd."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    tensors = _torch_inputs(inputs, "cpu")

    def run():
        # unbind, because the gradient of an index would be as long as the sequence, at each token
        r, logw, k, v, a, b = (x.float().unbind(1) for x in tensors)
        state = torch.zeros(*v[0].shape, k[0].shape[-1])
        outputs = []
        for t in range(len(r)):
            removed = (state @ a[t][..., None]) * b[t][..., None, :]
            state = state * torch.exp(logw[t])[..., None, :] + removed
            state = state + v[t][..., None] * k[t][..., None, :]
            outputs.append((state @ r[t][..., None])[..., 0])
        return torch.stack(outputs, dim=1)

    def forward():
        with torch.no_grad():
            return run()

    def training():
        y = run()
        return torch.autograd.grad(y, tensors, y.detach())

    return Peer("torch, CPU, loop", forward, training, lambda: forward().numpy())


def fla_chunked(inputs: Tokens) -> Peer | None:
    """`chunk_rwkv7` of flash-linear-attention on a CUDA device."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "fla")):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from fla.ops.rwkv7 import chunk_rwkv7

    tensors = _torch_inputs(inputs, "cuda")

    def run():
        r, logw, k, v, a, b = tensors
        y, _ = chunk_rwkv7(r=r, w=logw, k=k, v=v, a=a, b=b, scale=1.0, output_final_state=True)
        return y

    def forward():
        with torch.no_grad():
            y = run()
        torch.cuda.synchronize()
        return y

    def training():
        y = run()
        gradients = torch.autograd.grad(y, tensors, y.detach())
        torch.cuda.synchronize()
        return gradients

    return Peer("fla chunk_rwkv7", forward, training, lambda: forward().float().cpu().numpy())


PEERS = (torch_sequential, fla_chunked)

"""How the benchmark and the tuner measure: inputs, programs, times, errors."""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab_kernels.checks import Tokens
from jaxlab_kernels.op import wkv7


class Workload(NamedTuple):
    """Sizes of one measurement; K = D = width, decays in float32, the rest in dtype."""

    batch: int
    length: int
    heads: int
    width: int
    dtype: str

    @property
    def token_heads(self) -> int:
        """Tokens times heads times batch rows."""
        return self.batch * self.length * self.heads


def make_inputs(workload: Workload, seed: int = 0) -> Tokens:
    """Draw r, logw, k, v, a, b as RWKV-7 makes them: unit keys, decays over the whole range."""
    rng = np.random.default_rng(seed)
    shape = (workload.batch, workload.length, workload.heads, workload.width)
    key = rng.standard_normal(shape)
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    logw = -np.exp(-0.5) * rng.uniform(size=shape)
    r, k, v = rng.standard_normal((3, *shape))
    low = (jnp.asarray(x, workload.dtype) for x in (r, k, v, -key, key * rng.uniform(size=shape)))
    r, k, v, a, b = low
    return r, jnp.asarray(logw, jnp.float32), k, v, a, b


def operator(impl: str, chunk: int | None) -> Callable:
    """`wkv7` with its options settled: f(*inputs) -> y, state."""
    return lambda *inputs: wkv7(*inputs, impl=impl, chunk=chunk)


def training(f: Callable) -> Callable:
    """Forward and backward: f's y (as its own cotangent) and the cotangents of all inputs."""

    def both(*inputs):
        (y, state), pull = jax.vjp(f, *inputs)
        return y, pull((y, state))

    return both


def positive(text: str) -> int:
    """A command's number that must be at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def median_ms(call: Callable[[], object], repeats: int = 20) -> tuple[float, float]:
    """Milliseconds of a call that returns when it is done.

    Args:
        call: called once before, uncounted.
        repeats: how often it is timed.

    Returns:
        Median, and the spread from the lower to the upper quartile.
    """
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    lower, middle, upper = np.percentile(times, (25, 50, 75))
    return float(middle), float(upper - lower)


def time_jax(f: Callable, inputs: Tokens, repeats: int = 20) -> tuple[float, float]:
    """`median_ms` of a function of JAX arrays, compiled."""
    compiled = jax.jit(f)
    return median_ms(lambda: jax.block_until_ready(compiled(*inputs)), repeats)


def temporary_bytes(f: Callable, inputs: Tokens) -> int | None:
    """Peak of temporary memory, as the compiler planned it; None where it does not say."""
    memory = jax.jit(f).lower(*inputs).compile().memory_analysis()
    return None if memory is None else memory.temp_size_in_bytes


def error(f: Callable, workload: Workload) -> float:
    """Largest relative l2 error of y, state and gradients against the scan in float64.

    Measured on the rounded inputs, on at most 256 tokens of one row and two heads.
    """
    small = workload._replace(batch=1, length=min(workload.length, 256), heads=2)
    inputs = make_inputs(small, seed=1)

    def both(f, *inputs):
        (y, state), pull = jax.vjp(f, *inputs)
        return y, state, pull((jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype), state))

    got = jax.tree.leaves(jax.jit(lambda *x: both(f, *x))(*inputs))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: x.astype(jnp.float64), inputs)
        want = jax.tree.leaves(jax.jit(lambda *x: both(operator("scan", None), *x))(*exact))
    got, want = ([np.asarray(x).astype(np.float64) for x in leaves] for leaves in (got, want))
    pairs = zip(got, want, strict=True)
    return float(max(np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs))

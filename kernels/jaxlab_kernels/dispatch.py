"""Which implementation runs: the one place that knows platforms."""

import jax
import jax.numpy as jnp

from jaxlab_kernels import chunked, reference, tuning
from jaxlab_kernels.checks import CHUNKS, Tokens
from jaxlab_kernels.gradients import Implementation, differentiable

IMPLEMENTATIONS = (
    *("auto", "scan", "xla", "xla_ad"),
    *("pallas_tpu", "pallas_gpu", "pallas_triton", "pallas_mosaic_gpu"),
)
PALLAS_WIDTHS = (16, 32, 64, 128)
MOSAIC_CHUNK = 64  # the only one of "pallas_mosaic_gpu"


def load(name: str) -> Implementation:
    """Fetch a chunked implementation; Pallas is imported only when it is asked for."""
    if name == "xla":
        return chunked.IMPLEMENTATION
    from jaxlab_kernels import pallas

    return {
        "pallas_tpu": pallas.TPU,
        "pallas_gpu": pallas.GPU,
        "pallas_triton": pallas.TRITON,
        "pallas_mosaic_gpu": pallas.MOSAIC_GPU,
    }[name]


def default_device() -> jax.Device:
    """The device that uncommitted computations go to."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(chosen, jax.Device):
        return chosen
    return jax.local_devices(backend=chosen)[0]


def _why_not_pallas(widths: tuple[int, int], wide) -> str | None:
    if wide == jnp.float64:
        return "computes in float32; got a float64 argument"
    if not set(widths) <= set(PALLAS_WIDTHS):
        return f"needs K and D in {PALLAS_WIDTHS}; got K, D = {widths}"
    return None


def _mosaic_fits(inputs: Tokens, reset_state, chunk: int | None, dtype) -> bool:
    from jaxlab_kernels import pallas_mosaic_gpu

    return pallas_mosaic_gpu.supports(inputs, reset_state, chunk or MOSAIC_CHUNK, dtype)


def choose(
    impl: str, chunk: int | None, inputs: Tokens, reset_state: jax.Array | None, dtype, wide
) -> tuple[str, int, tuple[tuple[str, int], ...]]:
    """Settle the implementation, the chunk and the kernel's own tuned options.

    Args:
        impl: the caller's wish.
        chunk: the caller's wish, or None.
        inputs: r, logw, k, v, a, b.
        reset_state: as `run` takes it.
        dtype: of the matrix operands.
        wide: of the state.

    Returns:
        Name of an implementation other than "auto", the chunk (unused by "scan"), and pairs of name
        and value (none unless this implementation is the tuned one).

    Raises:
        ValueError: a Pallas kernel was asked for by name and cannot do this.
    """
    length, widths = inputs[0].shape[1], (inputs[0].shape[3], inputs[3].shape[3])
    tuned = tuning.lookup(default_device().device_kind, widths[0], jnp.dtype(dtype).name)
    obstacle = _why_not_pallas(widths, wide)
    if impl == "auto":
        impl = "scan" if length < tuned.scan_below else tuned.impl
        if impl.startswith("pallas") and obstacle:
            impl = "xla"
        if impl == "pallas_mosaic_gpu" and not _mosaic_fits(inputs, reset_state, chunk, dtype):
            impl = "xla"
    elif impl.startswith("pallas") and obstacle:
        raise ValueError(f"impl={impl!r} {obstacle}; use 'xla'")
    if chunk is None and impl == "pallas_mosaic_gpu":
        chunk = MOSAIC_CHUNK
    elif chunk is None:
        chunk = min([tuned.chunk, *(c for c in CHUNKS if c >= length)])
    return impl, chunk, tuned.options if impl == tuned.impl else ()


def _pad_time(x: jax.Array, chunk: int) -> jax.Array:
    """Pad axis 1 with zeros, which are identity steps, to a multiple of `chunk`."""
    missing = -x.shape[1] % chunk
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def _count_in_chunks(reset: jax.Array, chunk: int) -> jax.Array:
    """[B, T] bool to the inclusive count of resets within each chunk, int32."""
    marks = _pad_time(reset.astype(jnp.int32), chunk)
    return jnp.cumsum(marks.reshape(marks.shape[0], -1, chunk), axis=-1).reshape(marks.shape)


def run(
    inputs: Tokens,
    s0: jax.Array,
    reset: jax.Array | None,
    reset_state: jax.Array | None,
    *,
    impl: str,
    chunk: int | None,
    precision: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Run checked arguments (`op.wkv7` explains them); states are [B, H, D, K]."""
    r, logw, k, v, a, b = inputs
    length = r.shape[1]
    if length == 0:
        return jnp.zeros_like(v), s0
    if precision is None:
        low = all(x.dtype == jnp.bfloat16 for x in (r, k, v, a, b))
        precision = "bf16" if low else "float32"
    operand_dtype = jnp.bfloat16 if precision == "bf16" else s0.dtype
    impl, chunk, tuned = choose(impl, chunk, inputs, reset_state, operand_dtype, s0.dtype)
    if length == 1 or impl == "scan":
        return reference.scan(*inputs, s0, reset, reset_state)

    count = None if reset is None else _count_in_chunks(reset, chunk)
    r, logw, k, v, a, b = (_pad_time(x, chunk) for x in inputs)
    arguments = (r, logw, k, v, a, b, s0, count, reset_state)
    if impl == "xla_ad":
        y, last = chunked.forward_with_autodiff(*arguments, chunk=chunk)
    else:
        y, last = differentiable(load(impl), chunk, operand_dtype, tuned)(*arguments)
    return y[:, :length], last

"""The fused kernels lower for TPU and CUDA, forward and backward, on a machine with neither."""

import jax
import jax.numpy as jnp
import pytest
from lowering import lower

from jaxlab_kernels import compat, pallas, wkv7

CALLS = {  # implementation: platform, what its custom call is named
    "pallas_tpu": ("tpu", "tpu_custom_call"),
    "pallas_triton": ("cuda", "triton"),
    "pallas_mosaic_gpu": ("cuda", "mosaic_gpu"),
    "pallas_gpu": ("cuda", ""),
}
CASES = [  # K, D, heads, chunk, dtype, resets, reset state
    (64, 64, 4, 64, "bfloat16", False, False),
    (64, 64, 1, 64, "bfloat16", True, False),
    (64, 64, 3, 32, "float32", True, True),
    (16, 32, 1, 16, "float32", True, False),
    (128, 128, 2, 64, "bfloat16", True, True),
    (128, 64, 1, 16, "mixed", False, False),
]
COMBINATIONS = [
    pytest.param(impl, case, id="-".join(map(str, (impl, *case))))
    for impl in CALLS
    for case in CASES
    if impl != "pallas_mosaic_gpu" or (case[3:5] == (64, "bfloat16") and case[0] == 64)
]


def arguments(width, value_width, heads, length, dtype, resets, reset_state, batch=2):
    low = jnp.float32 if dtype == "float32" else jnp.bfloat16
    shape = jax.ShapeDtypeStruct
    keys = shape((batch, length, heads, width), low)
    decay = shape(keys.shape, jnp.float32)
    values = shape((batch, length, heads, value_width), low)
    state = shape((batch, heads, value_width, width), jnp.float32)
    second = decay if dtype == "mixed" else keys
    return (
        (keys, decay, second, values, keys, keys, state),
        shape((batch, length), jnp.bool) if resets else None,
        state if reset_state else None,
    )


def total(y, state):
    return jnp.sum(y.astype(jnp.float32)) + jnp.sum(state)


@pytest.mark.slow
@pytest.mark.parametrize("impl, case", COMBINATIONS)
def test_forward_and_gradient_lower(impl, case):
    width, value_width, heads, chunk, dtype, resets, reset_state = case
    platform, mark = CALLS[impl]
    arrays, reset, start = arguments(
        width, value_width, heads, 2 * chunk + 3, dtype, resets, reset_state
    )

    def forward(arrays, reset, start):
        return wkv7(*arrays, reset=reset, reset_state=start, impl=impl, chunk=chunk)

    def loss(arrays, reset, start):
        return total(*forward(arrays, reset, start))

    text = lower(forward, arrays, reset, start, platform=platform)
    assert text.count("custom_call @") == 1 and mark in text
    argnums = 0 if start is None else (0, 2)
    text = lower(jax.grad(loss, argnums), arrays, reset, start, platform=platform)
    assert text.count("custom_call @") == 2


@pytest.mark.slow
@pytest.mark.parametrize("impl", CALLS)
def test_vmap_is_one_kernel(impl):
    arrays, _, _ = arguments(64, 64, 2, 64, "bfloat16", False, False)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), arrays)

    def loss(arrays):
        return total(*wkv7(*arrays, impl=impl, chunk=64))

    text = lower(jax.vmap(jax.grad(loss)), stacked, platform=CALLS[impl][0])
    assert text.count("custom_call @") == 2


@pytest.mark.parametrize("impl", CALLS)
def test_no_other_platform(impl):
    arrays, _, _ = arguments(64, 64, 2, 64, "bfloat16", False, False)
    other = "tpu" if CALLS[impl][0] == "cuda" else "cuda"
    with pytest.raises(NotImplementedError):
        lower(lambda arrays: wkv7(*arrays, impl=impl, chunk=64), arrays, platform=other)


def test_mosaic_runs_what_it_fits_once_triton_is_deprecated(monkeypatch):
    def choice(width, chunk, dtype, reset_state):
        arrays, _, start = arguments(width, width, 2, 64, dtype, False, reset_state)
        low = jnp.dtype("float32" if dtype == "float32" else "bfloat16")
        return pallas.choose_gpu_lowering(arrays[:6], start, chunk, low)

    fitting = (64, 64, "bfloat16", False)
    monkeypatch.setattr(compat, "TRITON_IS_DEPRECATED", False)
    assert choice(*fitting) is pallas.TRITON
    monkeypatch.setattr(compat, "TRITON_IS_DEPRECATED", True)
    assert choice(*fitting) is pallas.MOSAIC_GPU
    for other in (
        (128, 64, "bfloat16", False),
        (64, 32, "bfloat16", False),
        (64, 64, "float32", False),
        (64, 64, "mixed", False),
        (64, 64, "bfloat16", True),
    ):
        assert choice(*other) is pallas.TRITON
    monkeypatch.setattr(pallas, "_compute_capability", lambda: "8.0")
    assert choice(*fitting) is pallas.TRITON


def test_mosaic_names_what_it_cannot_do():
    arrays, _, _ = arguments(64, 64, 2, 64, "float32", False, False)
    with pytest.raises(ValueError, match=r"chunk = K = D = 64.*float32"):
        jax.eval_shape(lambda arrays: wkv7(*arrays, impl="pallas_mosaic_gpu", chunk=64), arrays)

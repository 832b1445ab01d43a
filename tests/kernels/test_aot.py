"""Real compilers for accelerators that are not there: kernels fit, and cost what they should."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxlab_kernels import aot, cost

GPU = pytest.mark.skipif(not aot.available("h100"), reason="needs jax's CUDA plugin")
TPU = pytest.mark.skipif(not aot.available("v5e:2x2"), reason="needs libtpu")
CASES = [  # topology, width, chunk, dtype
    pytest.param("v5e:2x2", 64, 64, jnp.bfloat16, marks=TPU),
    pytest.param("v5e:1x1", 128, 128, jnp.float32, marks=TPU),
    pytest.param("v5p:2x2x2", 64, 32, jnp.float32, marks=TPU),
    pytest.param("v5p:2x2x1", 16, 16, jnp.bfloat16, marks=TPU),
    pytest.param("h100", 64, 16, jnp.bfloat16, marks=GPU),
]


@pytest.mark.parametrize("name, width, chunk, dtype", CASES)
def test_training_step_compiles_and_holds_only_checkpoints(name, width, chunk, dtype):
    mesh = aot.topology_mesh(name)
    chips = mesh.devices.size
    batch, length, heads = chips, 1024, 8
    impl = "pallas_gpu" if name == "h100" else "pallas_tpu"
    step = aot.wkv7_step(heads, impl=impl, chunk=chunk, mesh=mesh)
    args = aot.arguments(batch, length, heads, width, dtype)
    report = aot.compile_report(step, tuple(args), mesh, P("data"))
    assert report.kernels == 2
    assert report.collectives == ()
    assert report.argument_bytes == cost.nbytes(args) // chips
    saved = length // chunk * heads * width * width * jnp.dtype(dtype).itemsize
    states = 4 * heads * width * width * 4  # s0, the last state and their cotangents
    lanes = 2 if width < 128 else 1  # states alone are padded to 128 lanes
    slack = 2**20 + lanes * states * (128 // width if width < 64 else 1)
    assert report.temporary_bytes <= saved + slack  # small ones stay in VMEM


@TPU
def test_compiler_refuses_what_does_not_fit():
    mesh = aot.topology_mesh("v5e:2x2")
    shape = jax.ShapeDtypeStruct((4, 2**33), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="memory"):
        aot.compile_report(lambda x: x + 1, (shape,), mesh, P("data"))


def test_missing_compiler_is_named(monkeypatch, capsys):
    monkeypatch.setattr(aot, "available", lambda name: False)
    with pytest.raises(ImportError, match=r"pip install 'jax\[tpu\]'"):
        aot.topology_mesh("v5e:2x2")
    assert aot.main(["--topology", "v5e:2x2", "h100"]) == 0
    out = capsys.readouterr().out
    assert "compiled, not measured" in out.lower()
    assert "pip install 'jax[tpu]'" in out and "jax-cuda13-plugin" in out


@pytest.mark.parametrize(
    "chunk, forward, backward", [(16, 49, 119), (64, 98, 254), (128, 164, 434)]
)
def test_operation_counts(chunk, forward, backward):
    """Operations per token and head at N = 64, in thousands, from the matrix products' shapes."""
    assert round(cost.flops("forward", 1, chunk, 64, 64) / 1000) == forward
    assert round(cost.flops("backward", 1, chunk, 64, 64) / 1000) == backward


def test_ideal_bytes():
    """bfloat16 but for the decays: 8 tiles of 128 bytes forward, 15 backward, the states twice."""
    nbytes, _ = aot.ideal(2, 128, 3, 64, 64, jnp.bfloat16)
    tokens = 2 * 128 * 3
    assert nbytes == tokens * ((8 + 15) * 128 + 2 * 64 * 64 * 2 // 64)

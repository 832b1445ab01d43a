"""Compile for TPUs and GPUs that this machine does not have, and read what the compiler says.

    python -m jaxlab_kernels.aot --topology v5e:2x2 v5p:2x2x2

Needs the accelerator's own compiler, not the accelerator: the package `libtpu` for a TPU, and
`jax-cuda13-plugin` with `jax-cuda13-pjrt` (or their cuda12 namesakes) and CUDA's `ptxas` for a GPU.
A compiler accepts less than JAX's lowering does: tiles, on-chip memory and layouts are checked. It
runs nothing, so every number here is compiled, not measured.
"""

import argparse
import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab_kernels import cost
from jaxlab_kernels.op import wkv7

TOPOLOGIES = ("v5e:2x2", "v5p:2x2x2")
PEAKS = {  # device kind: bfloat16 operations/s, HBM bytes/s; the vendors' figures
    "TPU v4": (275e12, 1.2e12),
    "TPU v5 lite": (197e12, 0.82e12),
    "TPU v5": (459e12, 2.765e12),
    "TPU v6 lite": (918e12, 1.64e12),
    "NVIDIA H100 80GB HBM3": (989e12, 3.35e12),
    "NVIDIA H200": (989e12, 4.8e12),
}
KERNEL = r'custom_call_target="(tpu_custom_call|[^"]*triton|mosaic_gpu)'
H100 = """
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Report(NamedTuple):
    """What a compiler says about a program, per device."""

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float  # of XLA's cost model; kernels count as their own estimates say
    bytes_accessed: float
    kernels: int  # custom kernels in the program
    collectives: tuple[str, ...]
    seconds: float  # that compiling took


def available(name: str) -> bool:
    """Whether the compiler for a topology name is installed."""
    if name == "h100":
        return any(
            importlib.util.find_spec(f"jax_cuda{major}_plugin")
            and importlib.util.find_spec(f"jax_plugins.xla_cuda{major}")
            for major in (12, 13)
        )
    return importlib.util.find_spec("libtpu") is not None


def topology_mesh(
    name: str, axis_names: Sequence[str] = ("data",), shape: Sequence[int] | None = None
) -> Mesh:
    """Make a mesh of devices that exist only for the compiler.

    Args:
        name: "v5e:2x2", "v5p:2x2x2", "v6e:4x4", ... for TPUs, or "h100".
        axis_names: of the mesh.
        shape: of the mesh; None puts all devices on the first axis.

    Returns:
        A mesh with automatic axes.

    Raises:
        ImportError: the compiler is not installed.
    """
    if not available(name):
        package = "jax-cuda13-plugin jax-cuda13-pjrt" if name == "h100" else "'jax[tpu]'"
        raise ImportError(f"compiling for {name!r} needs its compiler: pip install {package}")
    if name == "h100":
        topology = topologies.get_topology_desc(
            name, platform="cuda", target_config=H100, topology="1x1x1"
        )
    else:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud's metadata server
        options: dict[str, Any] = {}
        if set(name.partition(":")[2].split("x")) == {"1"}:
            options["chips_per_host_bounds"] = (1, 1, 1)
        topology = topologies.get_topology_desc(name, platform="tpu", **options)
    devices: np.ndarray = np.array(topology.devices)
    shape = shape or (len(devices), *[1] * (len(axis_names) - 1))
    axis_types = (AxisType.Auto,) * len(axis_names)
    return Mesh(devices.reshape(shape), tuple(axis_names), axis_types=axis_types)


def compile_report(fn: Callable, args: Any, mesh: Mesh, shardings: Any = P()) -> Report:
    """Compile fn(*args) for a mesh's devices.

    Args:
        fn: what to compile; jitted here.
        args: tuple of pytrees of arrays or `jax.ShapeDtypeStruct`.
        mesh: from `topology_mesh`.
        shardings: a pytree prefix of `args` with `PartitionSpec` leaves.

    Returns:
        The compiler's account.
    """

    def place(spec, tree):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    args = jax.tree.map(place, shardings, args, is_leaf=lambda x: isinstance(x, P))
    start = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    costs = compiled.cost_analysis() or {}  # a GPU's compiler gives none without the GPU
    names = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
    return Report(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=costs.get("flops", 0.0),
        bytes_accessed=costs.get("bytes accessed", 0.0),
        kernels=len(re.findall(KERNEL, text)),
        collectives=tuple(name for name in names if re.search(rf"\b{name}(-start)?\(", text)),
        seconds=seconds,
    )


def wkv7_step(
    heads: int, *, impl: str, chunk: int, mesh: Mesh, training: bool = True
) -> Callable[..., Any]:
    """Make a program of one WKV-7 call with the batch sharded over the mesh's first axis.

    Its arguments are r, logw, k, v, a, b (and dy when training) as a model's projections leave
    them, [B, T, H * N]: arrays with 64 in the last axis would be laid out anew at the boundary.
    """

    def forward(*inputs):
        split = [x.reshape(*x.shape[:2], heads, -1) for x in inputs]
        y, _ = wkv7(*split, impl=impl, chunk=chunk)
        return y.reshape(*y.shape[:2], -1)

    def step(*args):
        if not training:
            return forward(*args)
        y, pull = jax.vjp(forward, *args[:6])
        return y, pull(args[6])

    spec = P(mesh.axis_names[0])
    return jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def arguments(batch: int, length: int, heads: int, width: int, dtype) -> list:
    """Shapes for `wkv7_step`, dy included: [B, T, H * N], decays in float32."""
    shape = (batch, length, heads * width)
    return [jax.ShapeDtypeStruct(shape, jnp.float32 if i == 1 else dtype) for i in range(7)]


def ideal(batch, length, heads, width, chunk, dtype) -> tuple[int, int]:
    """Least bytes and operations of forward and backward together, checkpoints included."""
    args = arguments(batch, length, heads, width, dtype)
    saved = batch * heads * (length // chunk) * width * width * jnp.dtype(dtype).itemsize
    read, written = cost.nbytes(args[:6]), cost.nbytes(args[3:4])
    forward = read + written + saved
    backward = read + cost.nbytes(args[6:]) + saved + read
    tokens = batch * length * heads
    flops = sum(
        cost.flops(way, tokens, chunk, width, width) + cost.inverse_flops(tokens, chunk)
        for way in ("forward", "backward")
    )
    return forward + backward, flops


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per topology and chunk."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topology", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--impl", help="as in wkv7; by default the fused kernel of the platform")
    parser.add_argument("--chunk", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    for name, default in (("batch", 8), ("length", 4096), ("heads", 64), ("width", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(argv)
    sizes = (options.length, options.heads, options.width)
    dtype = jnp.dtype(options.dtype)
    print(f"WKV-7 forward + backward, B T H N = {options.batch, *sizes}, {dtype.name}")
    print("Compiled, not measured. Per device; the floor is the larger of bytes and operations at")
    print("the vendor's peak, with every operand moved once.")
    print(
        "topology | chips | chunk | GiB args | GiB out | GiB temp | GB moved | GB least | TFLOP | "
        "floor ms | bound by | kernels | collectives | compile s"
    )
    for name in options.topology:
        try:
            mesh = topology_mesh(name)
        except ImportError as error:
            print(f"{name} | {error}")
            continue
        for chunk in options.chunk:
            print(
                " | ".join(_row(name, mesh, options.impl, chunk, options.batch, sizes, dtype)),
                flush=True,
            )
    return 0


def _row(name, mesh, impl, chunk, batch, sizes, dtype) -> list[str]:
    impl = impl or ("pallas_gpu" if name == "h100" else "pallas_tpu")
    chips = mesh.devices.size
    length, heads, width = sizes
    step = wkv7_step(heads, impl=impl, chunk=chunk, mesh=mesh)
    args = tuple(arguments(batch, length, heads, width, dtype))
    report = compile_report(step, args, mesh, P(mesh.axis_names[0]))
    nbytes, flops = (x / chips for x in ideal(batch, length, heads, width, chunk, dtype))
    peak = PEAKS.get(mesh.devices.flat[0].device_kind)
    floor, bound = "-", "-"
    if peak:
        by = {"operations": flops / peak[0], "bytes": nbytes / peak[1]}
        bound = max(by, key=lambda what: by[what])
        floor = f"{by[bound] * 1e3:.2f}"
    gib = [report.argument_bytes, report.output_bytes, report.temporary_bytes]
    return [
        name,
        str(chips),
        str(chunk),
        *(f"{x / 2**30:.2f}" for x in gib),
        f"{report.bytes_accessed / 1e9:.2f}" if report.bytes_accessed else "-",
        f"{nbytes / 1e9:.2f}",
        f"{flops / 1e12:.2f}",
        floor,
        bound,
        str(report.kernels),
        ",".join(report.collectives) or "none",
        f"{report.seconds:.1f}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())

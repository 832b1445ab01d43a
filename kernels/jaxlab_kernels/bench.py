"""Measure every implementation that runs here: `python -m jaxlab_kernels.bench --help`.

    python -m jaxlab_kernels.bench --batch 8 --length 256 --heads 2 --width 64 --dtype float32

"error" is the largest relative l2 error of y, state and gradients against float64 (for peers of y
against "xla"); "roofline" the least time that the device's memory and matrix units need for forward
and backward, over the time measured; "temp" the compiler's plan for forward and backward.
"""

import argparse
import platform
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxlab_kernels import aot, measure
from jaxlab_kernels.checks import CHUNKS
from jaxlab_kernels.dispatch import default_device
from jaxlab_kernels.measure import Workload
from jaxlab_kernels.peers import PEERS

COLUMNS = (
    *("implementation", "chunk", "forward ms", "fwd+bwd ms", "spread ms", "M token-heads/s"),
    *("roofline", "error", "temp MiB"),
)
KERNELS = {"gpu": ("pallas_triton", "pallas_mosaic_gpu"), "tpu": ("pallas_tpu",)}


def roofline_ms(workload: Workload, device_kind: str) -> float | None:
    """Least milliseconds for forward and backward in chunks of 64; None for unknown devices.

    In float32 only memory counts, because the vendors' peaks are for bfloat16.
    """
    peak = aot.PEAKS.get(device_kind)
    if peak is None:
        return None
    nbytes, flops = aot.ideal(*workload[:4], 64, workload.dtype)
    compute = flops / peak[0] if workload.dtype == "bfloat16" else 0.0
    return max(nbytes / peak[1], compute) * 1e3


def _rates(workload: Workload, floor: float | None, milliseconds: float) -> list[str]:
    rate = workload.token_heads / milliseconds / 1e3
    return [f"{rate:.2f}", "-" if floor is None else f"{floor / milliseconds:.0%}"]


def implementation_rows(
    workload: Workload, names: Sequence[str], chunks: Sequence[int], repeats: int
) -> Iterator[list[str]]:
    """One row per implementation and chunk; one that cannot run says why."""
    inputs = measure.make_inputs(workload)
    floor = roofline_ms(workload, default_device().device_kind)
    for name in names:
        for chunk in chunks if name != "scan" else [None]:
            label = [name, "-" if chunk is None else str(chunk)]
            f = measure.operator(name, chunk)
            try:
                forward, _ = measure.time_jax(f, inputs, repeats)
                both, spread = measure.time_jax(measure.training(f), inputs, repeats)
                wrong = measure.error(f, workload)
                temporary = measure.temporary_bytes(measure.training(f), inputs)
            except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as reason:
                yield [*label, str(reason).partition("\n")[0][:100]]
                continue
            memory = "-" if temporary is None else f"{temporary / 2**20:.1f}"
            rates = _rates(workload, floor, both)
            yield [
                *(*label, f"{forward:.2f}", f"{both:.2f}", f"{spread:.2f}", *rates),
                *(f"{wrong:.1e}", memory),
            ]


def peer_rows(workload: Workload, repeats: int) -> Iterator[list[str]]:
    """One row per installed peer."""
    inputs = measure.make_inputs(workload)
    floor = roofline_ms(workload, default_device().device_kind)
    for make in PEERS:
        peer = make(inputs)
        if peer is None:
            continue
        forward, _ = measure.median_ms(peer.forward, repeats)
        both, spread = measure.median_ms(peer.training, repeats)
        ours = np.asarray(jax.jit(measure.operator("xla", None))(*inputs)[0], np.float64)
        wrong = np.linalg.norm(peer.output() - ours) / np.linalg.norm(ours)
        rates = _rates(workload, floor, both)
        yield [
            *(peer.name, "-", f"{forward:.2f}", f"{both:.2f}", f"{spread:.2f}", *rates),
            *(f"{wrong:.1e}", "-"),
        ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    kernels = KERNELS.get(default_device().platform, ())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("batch", 8), ("length", 256), ("heads", 2), ("width", 64)):
        parser.add_argument(f"--{name}", type=measure.positive, default=default)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--impl", nargs="+", default=["scan", "xla", "xla_ad", *kernels])
    parser.add_argument("--chunk", nargs="+", type=int, default=[16, 32, 64], choices=CHUNKS)
    parser.add_argument("--repeats", type=measure.positive, default=20)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args(argv)
    workload = Workload(options.batch, options.length, options.heads, options.width, options.dtype)
    device = default_device()
    print(f"WKV-7, (B, T, H, N) = {tuple(workload[:4])}, {workload.dtype}; median of ", end="")
    print(
        f"{options.repeats} on {device.device_kind} ({platform.machine()}), jax {jax.__version__}"
    )
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS), flush=True)
    for row in implementation_rows(workload, options.impl, options.chunk, options.repeats):
        print("| " + " | ".join(row) + " |", flush=True)
    if not options.no_peers:
        for row in peer_rows(workload, options.repeats):
            print("| " + " | ".join(row) + " |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

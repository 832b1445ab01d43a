"""Measure what is fastest on this device and write it into the shipped table.

    python -m jaxlab_kernels.autotune

Each candidate must first agree with the float64 scan. "auto" then uses the row of the device's
kind; kinds without a row run plain XLA.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab_kernels import dispatch, measure, tuning
from jaxlab_kernels.gradients import differentiable
from jaxlab_kernels.measure import Workload

LENGTHS = (2, 4, 8, 16, 32)
LARGEST_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}


class Candidate(NamedTuple):
    """An implementation, its chunk, and options of its own."""

    impl: str
    chunk: int
    options: tuple[tuple[str, int], ...] = ()


def candidates(platform: str) -> Iterator[Candidate]:
    """What could be fastest on a platform: "cpu", "gpu" or "tpu"."""
    yield from (Candidate("xla", chunk) for chunk in (16, 32, 64))
    if platform == "tpu":
        yield from (Candidate("pallas_tpu", chunk) for chunk in (16, 32, 64, 128))
    if platform == "gpu":
        yield Candidate("pallas_mosaic_gpu", 64)
        for chunk, warps, stages in itertools.product((16, 32, 64), (2, 4, 8), (1, 2)):
            options = (("num_stages", stages), ("num_warps", warps))
            yield Candidate("pallas_triton", chunk, options)


def _program(candidate: Candidate, workload: Workload) -> Callable:
    """f(*inputs) -> y, state from a zero state; T must be a multiple of the chunk."""
    op = differentiable(
        dispatch.load(candidate.impl),
        candidate.chunk,
        jnp.dtype(workload.dtype),
        candidate.options,
    )

    def run(*inputs):
        batch, _, heads, width = inputs[0].shape
        start = jnp.zeros((batch, heads, width, width), jnp.float32)
        return op(*inputs, start, None, None)

    return run


def fastest(
    workload: Workload, repeats: int, say: Callable[[str], None]
) -> tuple[Candidate, float]:
    """Time forward and backward of all candidates that are right; the fastest and its ms."""
    times = {}
    inputs = measure.make_inputs(workload)
    for candidate in candidates(dispatch.default_device().platform):
        f = _program(candidate, workload)
        try:
            error = measure.error(f, workload)
            if not error <= LARGEST_ERROR[workload.dtype]:
                say(f"{candidate}: error {error:.1e}, left out")
                continue
            times[candidate], _ = measure.time_jax(measure.training(f), inputs, repeats)
        except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as reason:
            say(f"{candidate}: {str(reason).partition(chr(10))[0][:80]}, left out")
            continue
        say(f"{candidate}: {times[candidate]:.2f} ms, error {error:.1e}")
    best = min(times, key=lambda candidate: times[candidate])
    return best, times[best]


def scan_below(workload: Workload, best: Candidate, repeats: int) -> int:
    """The smallest T from which on the chunked form is faster than the scan."""

    def milliseconds(length, impl, chunk):
        inputs = measure.make_inputs(workload._replace(length=length))
        f = measure.operator(impl, chunk)
        both, _ = measure.time_jax(measure.training(f), inputs, repeats)
        return both + measure.time_jax(f, inputs, repeats)[0]

    threshold = 2 * LENGTHS[-1]
    for length in reversed(LENGTHS):
        chunk = min(best.chunk, max(16, length))
        if best.impl == "pallas_mosaic_gpu":
            chunk = dispatch.MOSAIC_CHUNK
        if milliseconds(length, best.impl, chunk) > milliseconds(length, "scan", None):
            break
        threshold = length
    return threshold


def tune(workload: Workload, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """One row of the table."""
    best, milliseconds = fastest(workload, repeats, say)
    return {
        "device_kind": dispatch.default_device().device_kind,
        "width": workload.width,
        "dtype": workload.dtype,
        "impl": best.impl,
        "chunk": best.chunk,
        "scan_below": scan_below(workload, best, repeats),
        "options": dict(best.options),
        "measured": {
            "batch, length, heads": [workload.batch, workload.length, workload.heads],
            "forward and backward ms": round(milliseconds, 2),
            "jax": jax.__version__,
        },
    }


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the rows of the same device kind, width and dtype."""

    def key(row):
        return row["device_kind"], row["dtype"], row["width"]

    return [row for _, row in sorted({key(row): row for row in (*old, *new)}.items())]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("batch", 8), ("length", 512), ("heads", 4), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=measure.positive, default=default)
    parser.add_argument("--width", nargs="+", type=int, default=list(dispatch.PALLAS_WIDTHS))
    parser.add_argument("--dtype", nargs="+", choices=LARGEST_ERROR, default=list(LARGEST_ERROR))
    parser.add_argument("--out", type=Path, default=tuning.TABLE)
    options = parser.parse_args(argv)
    largest = max(c.chunk for c in candidates(dispatch.default_device().platform))
    if options.length % largest:
        expected = f"a multiple of {largest}, the largest chunk"
        parser.error(f"argument --length: must be {expected}, got {options.length}")
    rows = []
    for width, dtype in itertools.product(options.width, options.dtype):
        workload = Workload(options.batch, options.length, options.heads, width, dtype)
        print(f"N = {width}, {dtype}")
        rows.append(tune(workload, options.repeats, partial(print, " ", flush=True)))
    old = json.loads(options.out.read_text()) if options.out.exists() else []
    lines = ",\n".join(json.dumps(row) for row in merge(old, rows))
    options.out.write_text(f"[\n{lines}\n]\n")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

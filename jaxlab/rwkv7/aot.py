"""Compiles the training step for TPUs that are not there: `python -m jaxlab.rwkv7.aot`.

Needs PyPI's `libtpu`, not a TPU. One member of an ensemble per chip, no communication between them.
Every number is the compiler's own account, not a measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import num_params
from jaxlab.rwkv7.optimization import optimizer
from jaxlab.rwkv7.training import make_training
from jaxlab_kernels import aot

HEAD = (
    "| topology | chips | GiB arguments | GiB temporary | GB moved* | TFLOP* | kernels "
    "| collectives | TFLOP of the model | floor, ms |\n|---|---|---|---|---|---|---|---|---|---|"
)


def compile_members(
    topology: str, config: Config, batch: int, length: int, *, impl: str = "pallas_tpu"
) -> aot.Report:
    """Compiles one training step of as many models as the topology has chips, one on each.

    Args:
        topology: "v5e:2x2", "v5p:2x2x2", ...
        config: sizes of the model.
        batch: sequences per step and chip.
        length: tokens per sequence.
        impl: implementation of the recurrence.

    Returns:
        The compiler's account, per chip.

    Raises:
        ImportError: `libtpu` is not installed.
    """
    mesh = aot.topology_mesh(topology, ("members",))
    training = make_training(config, optimizer(6e-4, 6e-5, 1000), impl=impl, remat="block")
    spec = PartitionSpec("members")
    step = jax.shard_map(
        jax.vmap(training.step), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    members = mesh.devices.size
    state = jax.eval_shape(jax.vmap(training.init), jax.random.split(jax.random.key(0), members))
    tokens = jax.ShapeDtypeStruct((members, batch, length + 1), jnp.int32)
    return aot.compile_report(step, (state, tokens), mesh, spec)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints one row per topology."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--topology", nargs="+", default=list(aot.TOPOLOGIES))
    for name, default in (("layers", 12), ("width", 768), ("batch", 8), ("length", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--impl", default="pallas_tpu")
    options = parser.parse_args(argv)
    config = Config(65536, options.layers, options.width)
    print(
        f"RWKV-7 L{config.n_layer} C{config.n_embd}, {num_params(config):,} parameters, bfloat16 "
        f"activations; training step on {options.batch} x {options.length} tokens per chip, "
        f"{options.impl}, blocks recomputed.\nCompiled, not measured, per chip. *: the compiler's "
        "cost model, which counts the body of the loop over layers once. The model's own count is "
        "6 operations per parameter and token, 8 in recomputed blocks; the floor is that at the "
        f"vendor's peak.\n\n{HEAD}"
    )
    table = config.vocab_size * config.n_embd
    tokens = options.batch * options.length
    # The head is not recomputed, and reading the embedding costs no operations.
    work = tokens * (8 * (num_params(config) - 2 * table) + 6 * table)
    for topology in options.topology:
        try:
            report = compile_members(
                topology, config, options.batch, options.length, impl=options.impl
            )
        except ImportError as error:
            print(f"| {topology} | {error} |")
            continue
        mesh = aot.topology_mesh(topology)
        peak, _ = aot.PEAKS[mesh.devices.flat[0].device_kind]
        print(
            f"| {topology} | {mesh.devices.size} | {report.argument_bytes / 2**30:.2f} | "
            f"{report.temporary_bytes / 2**30:.2f} | {report.bytes_accessed / 1e9:.1f} | "
            f"{report.flops / 1e12:.2f} | {report.kernels} | "
            f"{', '.join(report.collectives) or 'none'} | "
            f"{work / 1e12:.2f} | {1e3 * work / peak:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

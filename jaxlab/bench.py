"""Measures the rows of BENCHMARKS.md: `python -m jaxlab.bench`, or `make bench`.

Every ratio comes from one run on one machine, as the median of repeats in turn, so that a machine
that slows down slows both sides down.

Peers are measured too where they are to be found: `--mergekit`, `--mbrl` and `--torch` each take
the Python of an environment that has that library.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import ensemble
from jaxlab.agents import bench as agents_bench
from jaxlab.ensemble import Experiment, engine
from jaxlab.ensemble.progress import Progress
from jaxlab.merging import bench as merging_bench
from jaxlab.posttrain import bench as posttrain_bench

REPEATS = 7
SEEDS = 16


def regression(width: int = 64, batch: int = 256) -> Experiment:
    """A two-layer network fitted by Adam: small, and as expensive per byte as real updates are."""
    adam = optax.adam(1e-3)

    def predict(params, x):
        for w in params[:-1]:
            x = jnp.tanh(x @ w)
        return x @ params[-1]

    def init(key, hparams):
        key, *keys = jax.random.split(key, 4)
        sizes = [(8, width), (width, width), (width, 1)]
        params = [jax.random.normal(k, s) / np.sqrt(s[0]) for k, s in zip(keys, sizes)]
        return {"params": params, "adam": adam.init(params), "key": key}

    def update(state):
        key, noise = jax.random.split(state["key"])
        x = jax.random.normal(noise, (batch, 8))
        target = jnp.sin(2 * x.sum(-1, keepdims=True))
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((predict(p, x) - target) ** 2))(
            state["params"]
        )
        updates, moments = adam.update(grads, state["adam"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "adam": moments, "key": key}, {"loss": loss}

    return Experiment(init, update)


def dyna() -> tuple[Experiment, int]:
    """The model-based loop (SAC on an ensemble of models) on the pendulum; and its blocks."""
    from jaxlab import agents, envs, worldmodels

    config = agents.DynaConfig(
        sac=agents.SACConfig(hidden=(64, 64)),
        model=worldmodels.EnsembleConfig(members=5, elites=3, hidden=(32, 32)),
        fit=worldmodels.FitConfig(batch_size=128, max_epochs=5, patience=2),
        batch_size=128,
        utd=1,
        initial_steps=100,
        model_train_freq=100,
        rollout_batch=200,
        eval_episodes=1,
    )
    return agents.dyna.make(envs.make("pendulum"), config), 5


def by_hand(experiment: Experiment, steps: int) -> Callable[[Any], Any]:
    """The loop that a user would write: init and a scan of updates, keeping every metric."""

    def train(key):
        return jax.lax.scan(
            lambda state, _: experiment.update(state), experiment.init(key, {}), length=steps
        )[1]

    return train


def timed(function: Callable[[], Any]) -> float:
    """Seconds until everything `function` returns is there."""
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


class _Clock(Progress):
    """The silent progress line of a run, which remembers when the loop began."""

    began = 0.0

    def begin(self, step: int) -> None:
        super().begin(step)
        _Clock.began = time.perf_counter()


def run_seconds(experiment: Experiment, steps: int, seeds: int, mesh: Any) -> float:
    """Seconds of `ensemble.run` from the end of its compilation to the dataset in hand."""
    with mock.patch.object(engine, "Progress", _Clock):
        ensemble.run(experiment, steps=steps, seeds=seeds, mesh=mesh, progress=False)
    return time.perf_counter() - _Clock.began


def ensemble_against_one_by_one(name: str, experiment: Experiment, steps: int) -> list[str]:
    """One program of all seeds against the same seeds one after another."""
    keys = [jax.random.fold_in(jax.random.key(0), seed) for seed in range(SEEDS)]
    mesh = agents_bench.mesh_of(jax.device_count())
    together = agents_bench.together(by_hand(experiment, steps), mesh)
    single = jax.jit(by_hand(experiment, steps))
    stacked = jnp.stack(keys)
    first_together = timed(lambda: together(stacked))
    first_single = timed(lambda: [single(k) for k in keys])
    pairs = [
        (timed(lambda: together(stacked)), timed(lambda: [single(k) for k in keys]))
        for _ in range(3)
    ]
    warm_together, warm_single = map(statistics.median, zip(*pairs))
    return [
        f"| {name}, {SEEDS} seeds, compile included | {first_together:.2f} s | "
        f"{first_single:.2f} s | {first_single / first_together:.2f}× |",
        f"| {name}, {SEEDS} seeds, compile excluded | {warm_together:.2f} s | "
        f"{warm_single:.2f} s | {warm_single / warm_together:.2f}× |",
    ]


def engine_overhead(devices: int, steps: int = 2000) -> str:
    """The engine's loop, guard, records and visits against `jit(vmap(scan))` of the same update."""
    experiment = regression()
    keys = jnp.stack([jax.random.fold_in(jax.random.key(0), seed) for seed in range(SEEDS)])
    mesh = agents_bench.mesh_of(devices)
    hand = agents_bench.together(by_hand(experiment, steps), mesh)
    jax.block_until_ready(hand(keys))
    pairs = [
        (run_seconds(experiment, steps, SEEDS, mesh), timed(lambda: hand(keys)))
        for _ in range(REPEATS)
    ]
    ratio = statistics.median(a / b for a, b in pairs)
    ours, theirs = map(statistics.median, zip(*pairs))
    where = f"{devices} device{'s' if devices > 1 else ''}"
    return (
        f"| `ensemble.run` against `jit(vmap(scan))`, {SEEDS} members, {steps} updates, "
        f"{where} | {ours:.2f} s | {theirs:.2f} s | {100 * (ratio - 1):+.1f} % |"
    )


def drift() -> list[str]:
    """Largest difference between a member in fast mode and the same member in exact mode."""
    options: dict[str, Any] = {"steps": 100, "seeds": 8, "progress": False}
    fast = ensemble.run(regression(), mode="fast", **options).loss
    exact = ensemble.run(regression(), mode="exact", **options).loss
    relative = (abs(fast - exact) / abs(exact)).max("seed")
    return [f"| {step} | {float(relative.sel(step=step)):.1e} |" for step in (1, 10, 100)]


def seconds_to_first_step() -> str:
    """From the command to the first recorded step of `jaxlab run vagram`, as a user waits."""
    waits = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, "-m", "jaxlab", "run", "vagram", "--preset", "smoke"]
            began = time.perf_counter()
            process = subprocess.Popen(
                [*command, "--out", f"{directory}/out"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stderr is not None
            for line in process.stderr:
                if re.search(r"\d+/\d+ steps", line):
                    waits.append(time.perf_counter() - began)
                    break
            process.kill()
            process.wait()
    median = statistics.median(waits)
    return f"| from `jaxlab run vagram` to the first recorded step | {median:.1f} s |"


def decoding(tokens: int = 128) -> list[str]:
    """Milliseconds per generated token after prompts of different lengths, and of their prefill."""
    from jaxlab import rwkv7

    config = rwkv7.Config(257, n_layer=4, n_embd=128, head_size=64, dtype=jnp.float32)
    params = rwkv7.init(jax.random.key(0), config)
    prefill = jax.jit(rwkv7.prefill, static_argnames="config")
    prompts = {n: jnp.arange(n)[None] % 257 for n in (16, 256, 4096)}
    times: dict[int, list[tuple[float, float]]] = {n: [] for n in prompts}
    done, key = jnp.zeros(1, bool), jax.random.key(1)

    def once(prompt: jax.Array) -> tuple[float, float]:
        read = timed(lambda: prefill(params, config, prompt))
        logits, state = jax.block_until_ready(prefill(params, config, prompt))
        return read, timed(lambda: rwkv7.decode(params, config, logits, state, done, tokens, key))

    for _ in range(REPEATS + 1):  # in turn; the first round compiles
        for length, prompt in prompts.items():
            times[length].append(once(prompt))
    rows = []
    for length, measured in times.items():
        read, write = map(statistics.median, zip(*measured[1:]))
        rows.append(f"| {length} | {1e3 * read:.1f} ms | {1e3 * write / tokens:.3f} ms |")
    return rows


def report(mergekit: str | None, mbrl: str | None, torch: str | None) -> str:
    """Runs all measurements and lays them out as the body of BENCHMARKS.md.

    Args:
        mergekit: Python with mergekit; None if there is none.
        mbrl: Python with mbrl-lib.
        torch: Python with PyTorch.
    """
    version = importlib.metadata.version
    where = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), Python {platform.python_version()}, "
        f"jax {jax.__version__}, flax {version('flax')}, optax {version('optax')}"
    )
    pieces = [
        f"Measured on {where}.",
        "",
        "### An ensemble as one program",
        "",
        f"Vmapped on {jax.device_count()} devices, one for every core, as `jaxlab run` does it.",
        "",
        "| what | one program | one after another | ratio |",
        "|---|---|---|---|",
        *ensemble_against_one_by_one("MLP 2×64, 500 updates", regression(), 500),
        *ensemble_against_one_by_one("Dyna-SAC on pendulum, 5 blocks of 100 steps", *dyna()),
        "",
        "### What the engine costs",
        "",
        "The engine's own loop includes the divergence guard, metric rows and host visits; "
        "compilation is excluded on both sides. The bar of 5 % is for one device.",
        "",
        "| what | engine | by hand | overhead |",
        "|---|---|---|---|",
        *map(engine_overhead, sorted({1, jax.device_count()})),
        "",
        "### Fast mode against exact mode",
        "",
        "Random bits are equal. Largest relative difference of the loss, 8 members:",
        "",
        "| after updates | difference |",
        "|---|---|",
        *drift(),
        "",
        "### What a user waits for",
        "",
        "| what | median of 3 |",
        "|---|---|",
        seconds_to_first_step(),
        "",
        "### Decoding of RWKV-7",
        "",
        "L4 C128, float32, one prompt, 128 tokens generated; the prompt is read in chunks.",
        "",
        "| prompt, tokens | prefill | per generated token |",
        "|---|---|---|",
        *decoding(),
        "",
        "### Model-based policy optimisation, seeds per hour",
        "",
        *agents_bench.report(mbrl),
        "",
        "### Rollouts and reinforcement learning of a language model",
        "",
        *posttrain_bench.report(torch),
        "",
        "### Merging checkpoints",
        "",
        *merging_bench.report(mergekit),
    ]
    return "\n".join(pieces)


def main() -> None:
    """Measures and rewrites what stands between the markers of BENCHMARKS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    for library in ("mergekit", "mbrl", "torch"):
        parser.add_argument(f"--{library}", help="Python of an environment that has it")
    peers = parser.parse_args()
    agents_bench.devices_of_cores()
    path = Path("BENCHMARKS.md")
    text = path.read_text()
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    path.write_text(f"{head}{begin}\n{report(**vars(peers))}\n{end}{tail}")
    print(f"rewrote {path}")


if __name__ == "__main__":
    main()

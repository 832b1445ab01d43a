"""Seeds per hour of model-based policy optimisation: `python -m jaxlab.agents.bench`.

The same schedule on the pendulum as one program of all seeds, as a compiled program of one seed
called again and again, and by mbrl-lib, whose loop is PyTorch's: the same network sizes, fits,
branches and updates of the agent. mbrl-lib may live in an environment of its own:
`--peer /path/to/its/python`.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

SEEDS = 16
BLOCKS, BLOCK_STEPS, UTD = 3, 100, 4  # a fit, then steps of the environment, each with updates
EPOCHS, BRANCHES, BATCH, INITIAL = 5, 300, 256, 300


@dataclasses.dataclass(frozen=True)
class Size:
    """Network sizes: of the agent's two layers, and of the model's members."""

    agent: int
    members: int
    elites: int
    model: tuple[int, ...]


SIZES = {
    "agent 2×64, 5 models 2×64": Size(64, 5, 3, (64, 64)),
    "agent 2×256, 7 models 4×200": Size(256, 7, 5, (200,) * 4),
}


def seconds_of(calls: int, function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the first call, and the median of `calls` later ones."""
    times = []
    for _ in range(1 + calls):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])


def devices_of_cores() -> None:
    """Makes a CPU device of every core, as `jaxlab run` does, as far as seeds divide by them."""
    import jax

    jax.config.update("jax_num_cpu_devices", math.gcd(SEEDS, os.cpu_count() or 1))


def mesh_of(devices: int) -> Any:
    """The first so many devices, for members."""
    import jax
    from jax.sharding import AxisType

    return jax.make_mesh(
        (devices,), ("members",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def together(train: Callable[[Any], Any], mesh: Any) -> Callable[[Any], Any]:
    """One program of all seeds: vmapped on each device, without anything between devices."""
    import jax
    from jax.sharding import PartitionSpec

    rows = PartitionSpec("members")
    batched = jax.shard_map(
        jax.vmap(train), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False
    )
    return jax.jit(batched)


def measure_ours(size: Size) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and later seconds of all seeds in one program, and of one seed."""
    import jax

    devices_of_cores()
    from jaxlab import agents, envs, worldmodels

    config = agents.DynaConfig(
        sac=agents.SACConfig(hidden=(size.agent,) * 2),
        model=worldmodels.EnsembleConfig(
            members=size.members, elites=size.elites, hidden=size.model
        ),
        fit=worldmodels.FitConfig(batch_size=BATCH, max_epochs=EPOCHS, patience=EPOCHS),
        batch_size=BATCH,
        utd=UTD,
        capacity=INITIAL + BLOCKS * BLOCK_STEPS,
        initial_steps=INITIAL,
        model_train_freq=BLOCK_STEPS,
        rollout_batch=BRANCHES,
        eval_episodes=1,
    )
    experiment = agents.dyna.make(envs.make("pendulum"), config)

    def train(key: jax.Array) -> Any:
        state = experiment.init(key, {"real_ratio": 0.0})
        state, metrics = jax.lax.scan(
            lambda state, _: experiment.update(state), state, length=BLOCKS
        )
        assert experiment.evaluate is not None
        return metrics, experiment.evaluate(state, key)

    keys = jax.random.split(jax.random.key(0), SEEDS)
    all_, single = together(train, mesh_of(jax.device_count())), jax.jit(train)
    return (
        seconds_of(2, lambda: jax.block_until_ready(all_(keys))),
        seconds_of(3, lambda: jax.block_until_ready(single(keys[0]))),
    )


def peer_config(size: Size) -> dict[str, Any]:
    """mbrl-lib's configuration of the same schedule.

    Its first fit comes after the first block of steps, and updates begin with it. One block of
    steps fewer is explored, and the last step of the last block left out, so that fits and updates
    are as many as ours.
    """
    steps = (BLOCKS + 1) * BLOCK_STEPS - 1
    return {
        "seed": 0,
        "device": "cpu",
        "log_frequency_agent": 10**9,
        "dynamics_model": {
            "_target_": "mbrl.models.GaussianMLP",
            "_recursive_": False,
            "device": "cpu",
            "num_layers": len(size.model),
            "in_size": None,
            "out_size": None,
            "ensemble_size": size.members,
            "hid_size": size.model[0],
            "deterministic": False,
            "propagation_method": "random_model",
            "learn_logvar_bounds": True,
            "activation_fn_cfg": {"_target_": "torch.nn.SiLU"},
        },
        "algorithm": {
            "name": "mbpo",
            "normalize": True,
            "target_is_delta": True,
            "learned_rewards": True,
            "freq_train_model": BLOCK_STEPS,
            "real_data_ratio": 0.0,
            "sac_samples_action": True,
            "initial_exploration_steps": INITIAL - BLOCK_STEPS,
            "random_initial_explore": True,
            "num_eval_episodes": 1,
            "agent": {
                "_target_": "mbrl.third_party.pytorch_sac_pranz24.sac.SAC",
                "num_inputs": "???",
                "action_space": {
                    "_target_": "gymnasium.spaces.Box",
                    "low": -2.0,
                    "high": 2.0,
                    "shape": [1],
                },
                "args": {
                    "gamma": 0.99,
                    "tau": 0.005,
                    "alpha": 0.2,
                    "policy": "Gaussian",
                    "target_update_interval": 1,
                    "automatic_entropy_tuning": True,
                    "target_entropy": -1.0,
                    "hidden_size": size.agent,
                    "device": "cpu",
                    "lr": 3e-4,
                },
            },
        },
        "overrides": {
            "num_steps": steps,
            "epoch_length": steps,
            "num_elites": size.elites,
            "patience": EPOCHS,
            "num_epochs_train_model": EPOCHS,
            "model_lr": 1e-3,
            "model_wd": 5e-5,
            "model_batch_size": BATCH,
            "validation_ratio": 0.2,
            "freq_train_model": BLOCK_STEPS,
            "effective_model_rollouts_per_step": BRANCHES // BLOCK_STEPS,
            "rollout_schedule": [0, 1, 1, 1],
            "num_sac_updates_per_step": UTD,
            "sac_updates_every_steps": 1,
            "num_epochs_to_retain_sac_buffer": 1,
            "sac_batch_size": BATCH,
        },
    }


def measure_theirs(size: Size) -> tuple[float, float, int]:
    """First and later seconds of one seed by mbrl-lib, and its updates of the agent."""
    import gymnasium
    import omegaconf
    from mbrl.algorithms import mbpo
    from mbrl.env.termination_fns import no_termination
    from mbrl.third_party.pytorch_sac_pranz24 import SAC

    updates, plain = [0], SAC.update_parameters

    def counted(*args: Any, **kwargs: Any) -> Any:
        updates[0] += 1
        return plain(*args, **kwargs)

    SAC.update_parameters = counted

    def train() -> None:
        updates[0] = 0
        # The checker of this version asks for a type that NumPy 2 lacks.
        env, test_env = (gymnasium.make("Pendulum-v1", disable_env_checker=True) for _ in "ab")
        config = omegaconf.OmegaConf.create(peer_config(size))
        with tempfile.TemporaryDirectory() as directory:
            mbpo.train(env, test_env, no_termination, config, silent=True, work_dir=directory)

    return (*seconds_of(3, train), updates[0])


def in_process(python: str, side: str, name: str) -> Any:
    """Measures one side in a process of its own."""
    # By its path, and without its folder on the path: the peer's environment need not have jaxlab.
    command = [python, "-P", __file__, "--worker", side, name]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    return json.loads(process.stdout.strip().splitlines()[-1])


def report(peer: str | None = None) -> list[str]:
    """The table, as lines of Markdown."""
    rows = []
    for name, size in SIZES.items():
        (first_all, all_), (first_one, one) = in_process(sys.executable, "ours", name)
        ensemble, single = 3600 * SEEDS / all_, 3600 / one
        row = (
            f"| {name} | {ensemble:.0f} (first call {first_all:.0f} s) | "
            f"{single:.0f} (first call {first_one:.0f} s) | {ensemble / single:.2f}× | "
        )
        if peer is None:
            rows.append(row + "not measured | |")
            continue
        _, theirs, updates = in_process(peer, "theirs", name)
        if updates != BLOCKS * BLOCK_STEPS * UTD:
            raise RuntimeError(f"mbrl-lib made {updates} updates of {size}, not as many as ours")
        rows.append(row + f"{3600 / theirs:.0f} | {ensemble * theirs / 3600:.1f}× |")
    return [
        f"MBPO on the pendulum, {BLOCKS} blocks of a fit of {EPOCHS} epochs, {BRANCHES} branches "
        f"and {BLOCK_STEPS} steps, {UTD} updates of {BATCH} rows per step, and one evaluation. "
        "Seeds per hour, compilation excluded and shown in the first call. The one program of all "
        "seeds has a device of every core.",
        "",
        f"| networks | {SEEDS} seeds as one program | one at a time | ratio | mbrl-lib (PyTorch) "
        "| one program against mbrl-lib |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with mbrl-lib")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, name = options.worker
        measure = measure_theirs if side == "theirs" else measure_ours
        print(json.dumps(measure(SIZES[name])))
    else:
        print("\n".join(report(options.peer)))


if __name__ == "__main__":
    main()

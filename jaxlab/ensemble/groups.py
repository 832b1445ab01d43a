"""Where members live: groups of them on devices, and the calls that advance all groups."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxlab.ensemble.experiment import Experiment, Signature
from jaxlab.ensemble.members import Members
from jaxlab.ensemble.program import Member, advance, compile_exact, compile_fast, start

MEMORY_SHARE = 0.9  # of a device's memory that a run may plan with


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime error of JAX says that a device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


class Placement:
    """The members of one process on its devices, in groups that one call can hold.

    Fast mode: a group spans the mesh and is vmapped on each device. Exact mode: a group sits on one
    device, and groups of different devices run at the same time. Programs that CPU devices cannot
    run at the same time all sit on the first.
    """

    def __init__(
        self,
        experiment: Experiment,
        signature: Signature,
        members: Members,
        index: np.ndarray,
        base: jax.Array,
        mode: str,
        mesh: Mesh | None,
        capacity: int,
        microbatch: int | str,
    ):
        axes = ("members",) if mesh is None else mesh.axis_names
        devices = np.array(jax.local_devices() if mesh is None else mesh.devices)
        self.signature, self.members, self.index = signature, members, index
        self._init = partial(start, experiment, base)
        self._step = partial(advance, experiment, signature, capacity)
        if devices.ndim == 1 < devices.size and _wait_for_each_other(
            self._step, self._one(), devices
        ):
            devices = devices[:1]
        # Whatever the axis types of the mesh given, members are written without shardings in mind.
        mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))
        if "members" not in mesh.axis_names:
            raise ValueError(f'mesh needs an axis "members", it has {mesh.axis_names}')
        if mode == "exact" and len(mesh.axis_names) > 1:
            raise ValueError(f"exact mode runs a member on one device, mesh is {dict(mesh.shape)}")
        self.mesh, self.exact = mesh, mode == "exact"
        self.names = [*signature.update_metrics, *signature.evaluate_metrics]
        # Exact groups fill one device each, fast groups fill all of them.
        self._width = 1 if self.exact else mesh.shape["members"]
        self._devices: Sequence[jax.Device] = list(mesh.devices.flat)
        lanes = mesh.shape["members"]
        self.size = -(-len(index) // lanes) if microbatch == "auto" else int(microbatch)
        self._auto = microbatch == "auto"
        self._groups: list[Member] = []
        self._slices: list[np.ndarray] = []

    def start(self, restored: Any | None, advancing: bool) -> str:
        """Puts members on the devices, fresh or `restored`, and compiles; says what it did."""
        began = time.monotonic()
        self._compiled = self._plan() if advancing else []
        self._place(restored)
        size = f"{self.size} members a call and device" if len(self._slices) > 1 else "one call"
        return (
            f"{len(self.index)} members on {len(self._devices)} {self._devices[0].platform} "
            f"device{'s' if len(self._devices) > 1 else ''} ({size}), "
            f"ready after {time.monotonic() - began:.1f} s"
        )

    def advance(self, rows: int, every: int) -> dict[str, np.ndarray]:
        """Advances every member by `rows` windows; returns metric -> [members here, rows]."""
        tables = []
        for i, group in enumerate(self._groups):
            scalars = [rows, every, len(self._slices[i])] if self.exact else [rows, every]
            place = self._place_of(i, PartitionSpec())
            args = [jax.device_put(np.int32(x), place) for x in scalars]
            self._groups[i], table = self._compiled[i % len(self._compiled)](group, *args)
            tables.append(table)
        hosted = jax.device_get(tables)
        return {
            name: np.concatenate([t[name][: len(s), :rows] for t, s in zip(hosted, self._slices)])
            for name in self.names
        }

    def gather(self) -> Member:
        """All members on the host, leaves [M, ...]; keys stay keys."""
        counts = [len(s) for s in self._slices]
        return jax.tree.map(lambda *xs: _stack(xs, counts), *self._groups)

    def died_at(self) -> np.ndarray:
        parts = [g.died_at[: len(s)] for g, s in zip(self._groups, self._slices)]
        return np.concatenate(jax.device_get(parts))

    def dead(self) -> int:
        return int((self.died_at() >= 0).sum())

    def template(self) -> Member:
        """Abstract members, leaves [M, ...]."""
        return self._abstract(len(self.index), None)

    def topology(self) -> dict[str, int]:
        return {"devices": len(self._devices), "members_per_call": self.size}

    def _one(self) -> Member:
        seeds, hparams = self.members.take(self.index[:1])
        return jax.eval_shape(self._init, seeds[0], jax.tree.map(lambda x: x[0], hparams))

    def _abstract(self, count: int, sharding) -> Member:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=sharding),
            self._one(),
        )

    def _place_of(self, group: int, spec: PartitionSpec):
        if self.exact:
            return SingleDeviceSharding(self._devices[group % len(self._devices)])
        return NamedSharding(self.mesh, spec)

    def _plan(self) -> list[Any]:
        """Compiles for the largest microbatch that fits, one program per lane."""
        while True:
            self._split()
            places = [self._place_of(i, PartitionSpec("members")) for i in range(self._lanes())]
            shapes = [self._abstract(self.size * self._width, place) for place in places]
            with ThreadPoolExecutor() as pool:  # exact mode compiles once per device
                compiled = list(pool.map(self._compile, shapes))
            if not self._auto or self.size == 1 or self._fits(compiled[0]):
                return compiled
            self.size = -(-self.size // 2)

    def _lanes(self) -> int:
        return min(len(self._devices), len(self._slices)) if self.exact else 1

    def _compile(self, members: Member):
        if self.exact:
            (device,) = members.step.sharding.device_set
            return compile_exact(self._step, members, device)
        return compile_fast(self._step, members, self.mesh)

    def _fits(self, compiled) -> bool:
        analysis, limit = compiled.memory_analysis(), _memory_limit(self._devices)
        if analysis is None or limit is None:
            return True
        resident = analysis.argument_size_in_bytes * len(self._slices) / self._lanes()
        return resident + analysis.temp_size_in_bytes <= MEMORY_SHARE * limit

    def _split(self) -> None:
        """Cuts the members into the fewest groups of at most `size` a device, evenly filled."""
        chunk = self.size * self._width
        count = -(-len(self.index) // chunk)
        if not self.exact:
            self.size = -(-len(self.index) // (count * self._width))
            chunk = self.size * self._width
        self._slices = [self.index[i : i + chunk] for i in range(0, len(self.index), chunk)]

    def _place(self, restored: Any | None) -> None:
        if not self._slices:
            self._split()
        init = jax.jit(self._init) if self.exact else jax.jit(jax.vmap(self._init))
        self._groups, offset = [], 0
        for i, part in enumerate(self._slices):
            # A last group that is not full is filled up with copies that nobody reads.
            filled = np.resize(part, self.size * self._width)
            place = self._place_of(i, PartitionSpec("members"))
            if self._compiled:
                place = self._compiled[i % len(self._compiled)].input_shardings[0][0]
            if restored is not None:
                rows = np.resize(np.arange(offset, offset + len(part)), len(filled))
                group = jax.tree.map(lambda x: x[rows], restored)
            elif self.exact:
                seeds, hparams = self.members.take(part)
                # One after another: on CPUs, programs that run at the same time can wait for each
                # other for ever, as those of several devices do.
                each = [
                    jax.block_until_ready(init(seed, jax.tree.map(lambda x: x[j], hparams)))
                    for j, seed in enumerate(seeds)
                ]
                each += each[:1] * (len(filled) - len(part))
                group = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
            else:
                group = init(*self.members.take(filled))
            self._groups.append(jax.device_put(group, place))
            offset += len(part)


def _stack(parts: Sequence[Any], counts: Sequence[int]):
    if jnp.issubdtype(parts[0].dtype, jax.dtypes.prng_key):
        data = [jax.device_get(jax.random.key_data(x))[:n] for x, n in zip(parts, counts)]
        return jax.random.wrap_key_data(jnp.concatenate(data), impl="threefry2x32")
    return np.concatenate([jax.device_get(x)[:n] for x, n in zip(parts, counts)])


def _wait_for_each_other(step: Any, one: Member, devices: np.ndarray) -> bool:
    """Whether programs on several devices could wait for each other for ever.

    CPU devices share one pool of threads. LAPACK calls and FFTs on batches hold a thread of it
    while they wait for others (seen with jax 0.10.2: with as many devices as cores, all wait).
    """
    if devices[0].platform != "cpu":
        return False
    text = jax.jit(step).lower(one, 1, 1).as_text()
    return "@lapack_" in text or "stablehlo.fft" in text


def _memory_limit(devices: Sequence[jax.Device]) -> int | None:
    device = devices[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform == "cpu" and hasattr(os, "sysconf"):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return free // len(devices)
    return None

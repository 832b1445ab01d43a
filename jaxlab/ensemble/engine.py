"""Running an ensemble: placement, host visits, checkpoints, results."""

import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxlab.ensemble import storage
from jaxlab.ensemble.experiment import Experiment, inspect
from jaxlab.ensemble.groups import Placement, is_out_of_memory
from jaxlab.ensemble.members import Members, check_key, make_members
from jaxlab.ensemble.program import start
from jaxlab.ensemble.progress import Progress
from jaxlab.ensemble.results import census, dataset

if TYPE_CHECKING:
    import xarray

VISIT_SECONDS = 2.0  # the host looks at a run about this often
CAPACITY = 4096  # rows of metrics that one call can return


class Preempted(SystemExit):
    """The run stopped on SIGTERM after writing a checkpoint; the same call goes on from there."""


def run(
    experiment: Experiment,
    *,
    steps: int,
    seeds: int | Sequence[int],
    grid: Mapping[str, Sequence] | None = None,
    points: Any | None = None,
    mode: Literal["fast", "exact"] = "fast",
    record_every: int = 1,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    microbatch: int | Literal["auto"] = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 30.0,
    resume: bool = True,
    shard: tuple[int, int] | None = None,
    progress: bool = True,
    label: str = "run",
    config: Mapping[str, Any] | None = None,
) -> "xarray.Dataset":
    """Runs every member (hyper-parameter point x seed) of an experiment as one program.

    Members with the same seed get the same key at every hyper-parameter point, so that comparisons
    are paired. A member whose state turns non-finite is frozen, its metrics read NaN from then on,
    and the others go on untouched.

    Args:
        experiment: pure `init`, `update` and `evaluate` of one member.
        steps: updates per member, a multiple of `record_every`.
        seeds: how many (0, 1, ...) or which; distinct.
        grid: axis name -> values; `init` gets a dict with one scalar per axis of their product.
        points: instead of `grid`, a pytree whose leaves share a leading size: one row per point.
        mode: "fast" vmaps all members of a device. "exact" runs the unbatched program of a single
            member in a loop, so that its numbers are bitwise the same alone, in any ensemble and
            on any number of devices.
        record_every: updates per recorded row. A row holds the metrics of its last update and,
            if there is an `evaluate`, those of one evaluation after it.
        key: base of all keys, threefry; `jax.random.key(0)` if not given.
        mesh: devices, with a mesh axis "members"; all local devices if not given. A mesh may have
            further axes inside a member (fast mode).
        microbatch: most members that one call holds on a device. "auto" takes as many as fit by
            the memory analysis of the compiled program.
        checkpoint: directory for checkpoints and streamed metrics; without it nothing is written.
        checkpoint_seconds: time between checkpoints.
        resume: go on from the newest checkpoint that verifies. False discards what is there.
        shard: `(i, n)` runs the i-th of n slices of the members in this process, with no network
            between them; `merge` joins what they stored. The default under
            `jax.distributed.initialize()` is one slice per process.
        progress: show a progress line on stderr.
        label: name of the run in messages.
        config: JSON-like settings stored with checkpoints, so that a refusal can name what differs.

    Returns:
        One variable per metric with dims (hyper-parameters..., seed, step), and `died_at`
        (hyper-parameters..., seed): the update at which a member went non-finite, or -1.

    Raises:
        ValueError: an argument or the experiment breaks the contract; the message names it.
        CheckpointError: what is in `checkpoint` belongs to another run, or nothing there verifies.
        Preempted: SIGTERM came; a checkpoint was written first.
    """
    if mode not in ("fast", "exact"):
        raise ValueError(f'mode must be "fast" or "exact", got {mode!r}')
    if record_every < 1 or steps < 1 or steps % record_every:
        raise ValueError(
            f"steps must be a positive multiple of record_every, got {steps} and {record_every}"
        )
    if microbatch != "auto" and microbatch < 1:
        raise ValueError(f'microbatch must be "auto" or at least 1, got {microbatch!r}')
    members = make_members(seeds, grid, points)
    base = check_key(key)
    # Jitted here once, so that checking, planning and compiling share one trace of each function.
    experiment = Experiment(
        jax.jit(experiment.init),
        jax.jit(experiment.update),
        experiment.evaluate and jax.jit(experiment.evaluate),
    )
    if shard is None:
        shard = (jax.process_index(), jax.process_count())
    if not 0 <= shard[0] < shard[1] <= members.size:
        raise ValueError(f"shard {shard} must be (i, n), 0 <= i < n <= {members.size} members")
    index = np.array_split(np.arange(members.size), shard[1])[shard[0]]
    directory = None
    if checkpoint is not None:
        directory = Path(checkpoint)
        if shard[1] > 1:
            directory = directory / f"shard-{shard[0]:04d}-of-{shard[1]:04d}"
        directory.mkdir(parents=True, exist_ok=True)
        if not resume:
            storage.clear(directory)

    with Progress(label, len(index), steps, progress) as reporter, _sigterm() as stop:
        one = partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        signature = inspect(experiment, jax.eval_shape(lambda: base), one(members.hparams))
        names = [*signature.update_metrics, *signature.evaluate_metrics]
        clash = sorted({"seed", "step", "died_at", *members.axes, *members.coords} & set(names))
        if clash:
            raise ValueError(f"metrics {clash} have the name of a dimension: rename them")
        identity = _identity(signature, members, mode, record_every, base, shard, config)
        engine = partial(
            Placement, experiment, signature, members, index, base, mode, mesh, CAPACITY
        )
        loop = partial(
            _attempt, steps // record_every, record_every, directory, identity, reporter, stop,
            checkpoint_seconds,
        )  # fmt: skip
        while True:
            placement = engine(microbatch)
            try:
                table = loop(placement)
                break
            except jax.errors.JaxRuntimeError as error:
                if not is_out_of_memory(error) or placement.size == 1:
                    raise
                microbatch = placement.size // 2
                reporter.say(f"out of memory: going on with microbatches of {microbatch}")
        died_at = placement.died_at()
        dead = census(members, died_at, index)
        if dead:
            reporter.say(f"{len(dead)} of {len(index)} members went non-finite: {'; '.join(dead)}")
    attributes = {"label": label, "mode": mode, "config": json.dumps(config or {}, sort_keys=True)}
    return dataset(members, table, died_at, index, record_every, attributes | _versions())


def _attempt(rows, every, directory, identity, reporter, stop, checkpoint_seconds, placement):
    """Runs all rows with one placement, from the newest checkpoint if there is one."""
    row, parts, tables = 0, [], []
    restored = None
    if directory is not None:
        restored = storage.restore(directory, placement.template(), identity)
        storage.write_json(directory / "run.json", identity)
    if restored is not None:
        if restored.row > rows:
            raise storage.CheckpointError(
                f"{directory} already holds {restored.row * every} steps, more than the "
                f"{rows * every} asked for"
            )
        for reason in restored.manifest["refused"]:
            reporter.say(f"checkpoint refused: {reason}")
        row, parts, tables = restored.row, list(restored.manifest["parts"]), [restored.table]
        reporter.say(f"resumed at step {row * every} of {rows * every}")
        if identity["mode"] == "fast" and restored.manifest["topology"] != placement.topology():
            reporter.say(
                f"placement was {restored.manifest['topology']}, is {placement.topology()}: in "
                'fast mode last bits may differ from the unbroken run (mode="exact" never does)'
            )
    reporter.say(placement.start(restored.members if restored else None, row < rows))
    reporter.begin(row * every)
    saved = time.monotonic()
    count, limit = 1, min(CAPACITY, rows)
    while row < rows:
        before = time.monotonic()
        count = min(count, limit, rows - row)
        table = placement.advance(count, every)
        tables.append(table)
        if directory is not None:
            parts.append(storage.append_rows(directory, row, table))
        row += count
        reporter.update(row * every, placement.dead())
        now = time.monotonic()
        due = now - saved >= checkpoint_seconds or row == rows or stop.is_set()
        if directory is not None and due:
            storage.save(
                directory, row, placement.gather(), parts, identity, topology=placement.topology()
            )
            saved = time.monotonic()
        if stop.is_set():
            where = f"at step {row * every}; the same call resumes" if directory is not None else ""
            reporter.say(f"stopped by SIGTERM {where}")
            raise Preempted(143)
        # From the first, short call on, aim at one visit per VISIT_SECONDS; at most 8x a time,
        # because the first calls are not typical.
        per_row = max((now - before) / count, 1e-9)
        count = max(1, min(int(VISIT_SECONDS / per_row), 8 * count))
    return {k: np.concatenate([t[k] for t in tables], axis=1) for k in placement.names}


def load(checkpoint: str | Path) -> dict[str, np.ndarray]:
    """Rows of metrics ([members, rows] by name) that a running or killed run has streamed."""
    return storage.read_rows(Path(checkpoint))


def states(checkpoint: str | Path, experiment: Experiment, hparams: Any = None) -> Any:
    """States of all members at a run's newest checkpoint, for example trained parameters.

    Args:
        checkpoint: directory of the run.
        experiment: what was run; only shapes are taken from it.
        hparams: hyper-parameters of one member, {} if the run had none; only shapes matter.

    Returns:
        The experiment's state with leaves [members, ...]; members in the order of the results
        (hyper-parameter points, then seeds).

    Raises:
        CheckpointError: no checkpoint verifies, or it holds states of other shapes.
    """
    hparams = jax.tree.map(jnp.asarray, {} if hparams is None else hparams)
    one = jax.eval_shape(partial(start, experiment), jax.random.key(0), np.uint32(0), hparams)
    return storage.read_members(Path(checkpoint), one).state


def _identity(signature, members: Members, mode, every, base, shard, config) -> dict:
    """What must agree for one run to go on from the checkpoint of another."""
    leaves = jax.tree_util.tree_leaves_with_path(members.hparams)
    return {
        "experiment": signature.fingerprint,
        "config": json.loads(json.dumps(config or {}, sort_keys=True)),
        "mode": mode,
        "record_every": every,
        "seeds": members.seeds.tolist(),
        "hparams": {
            jax.tree_util.keystr(path): repr(np.asarray(leaf).tolist()) for path, leaf in leaves
        },
        "key": np.asarray(jax.random.key_data(base)).tolist(),
        "shard": list(shard),
        **_versions(),
    }


def _versions() -> dict[str, Any]:
    import jaxlib.version

    import jaxlab

    return {
        "jaxlab": jaxlab.__version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "device": jax.local_devices()[0].device_kind,
    }


@contextmanager
def _sigterm():
    """A flag that SIGTERM sets; only the main thread can listen, elsewhere it stays clear."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: flag.set())
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, previous)

"""Static sweeps, one compiled program per point, and joining the slices of a sharded run."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.ensemble.engine import run
from jaxlab.ensemble.experiment import Experiment
from jaxlab.ensemble.members import RESERVED, make_members
from jaxlab.ensemble.results import dataset

if TYPE_CHECKING:
    import xarray


def sweep(
    make: Callable[..., Experiment],
    *,
    static: Mapping[str, Sequence],
    checkpoint: str | Path | None = None,
    label: str = "sweep",
    config: Mapping[str, Any] | None = None,
    **options,
) -> "xarray.Dataset":
    """Runs `make(**point)` for every point of a product of static choices.

    Args:
        make: builds the experiment of one point, for example of one arm and one network size.
        static: name -> values, strings or numbers; each point compiles its own program.
        checkpoint: directory; every point gets a directory of its own below it.
        label: name of the run in messages, followed by the point.
        config: as in `run`; the point is added to it.
        **options: all other arguments of `run`, the same for every point.

    Returns:
        The results of `run` with one more leading dimension per static choice.

    Raises:
        ValueError: `static` is empty, or one of its axes is or has the name of another dimension.
    """
    import xarray

    if not static or not all(len(values) for values in static.values()):
        raise ValueError(f"static needs at least one axis with values, got {dict(static)}")
    taken = sorted({*RESERVED, *(options.get("grid") or {})} & set(static))
    if taken:
        raise ValueError(f"static axes {taken} have the name of another dimension: rename them")
    results: list[Any] = []
    for values in itertools.product(*static.values()):
        # What is stored with checkpoints is JSON, which has no NumPy scalars.
        plain = [v.item() if isinstance(v, np.generic) else v for v in values]
        point = dict(zip(static, plain))
        name = ",".join(f"{k}={v}" for k, v in point.items())
        result = run(
            make(**point),
            checkpoint=None if checkpoint is None else Path(checkpoint) / name,
            label=f"{label} {name}",
            config={**(config or {}), **point},
            **options,
        )
        result.attrs.update(label=label)
        del result.attrs["config"]
        results.append(result.expand_dims({k: [v] for k, v in point.items()}))
    nested = results
    for values in reversed(list(static.values())[1:]):
        size = len(values)
        nested = [nested[i : i + size] for i in range(0, len(nested), size)]
    return xarray.combine_nested(nested, concat_dim=list(static), combine_attrs="identical")


def merge(
    parts: Sequence["xarray.Dataset"],
    *,
    seeds: int | Sequence[int],
    grid: Mapping[str, Sequence] | None = None,
    points: Any | None = None,
) -> "xarray.Dataset":
    """Joins what `run(..., shard=(i, n))` returned for every i into the results of one run.

    Args:
        parts: one dataset per slice, in any order, each with the dimension `member`.
        seeds: as given to `run`.
        grid: as given to `run`.
        points: as given to `run`.

    Raises:
        ValueError: members are missing or there twice, or the slices are not of one run.
    """
    members = make_members(seeds, grid, points)
    index = np.concatenate([part["member"].values for part in parts])
    if sorted(index) != list(range(members.size)):
        missing = sorted(set(range(members.size)) - set(index.tolist()))
        raise ValueError(
            f"parts must hold each of {members.size} members once; missing {missing}, "
            f"{len(index) - len(set(index.tolist()))} there twice"
        )
    first = parts[0]
    for part in parts:
        if part.attrs != first.attrs or not part["step"].equals(first["step"]):
            raise ValueError(
                f"parts are not slices of one run: {part.attrs} with {part.sizes['step']} rows, "
                f"against {first.attrs} with {first.sizes['step']} rows"
            )
    names = [name for name in first.data_vars if name != "died_at"]
    table = {str(k): np.concatenate([part[k].values for part in parts]) for k in names}
    died_at = np.concatenate([part["died_at"].values for part in parts])
    every = int(first["step"].values[0])
    return dataset(members, table, died_at, index, every, first.attrs)

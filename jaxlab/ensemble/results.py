"""From rows of members to an xarray Dataset, and the census of the dead."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlab.ensemble.members import Members

if TYPE_CHECKING:
    import xarray


def dataset(
    members: Members,
    table: Mapping[str, np.ndarray],
    died_at: np.ndarray,
    index: np.ndarray,
    every: int,
    attributes: Mapping[str, Any],
) -> "xarray.Dataset":
    """Lays rows out by hyper-parameters, seed and step.

    Args:
        members: all members of the run.
        table: metric -> rows of the members present [m, n].
        died_at: update at which each went non-finite [m], -1 if it lived.
        index: which members are present [m].
        every: updates per row.
        attributes: facts to store with the data.

    Returns:
        Metrics of dims (hyper-parameters..., seed, step) and `died_at` of dims
        (hyper-parameters..., seed); for a part of the members, dims (member, step).
    """
    import xarray

    rows = next(iter(table.values())).shape[1] if table else 0
    step = every * np.arange(1, rows + 1)
    if len(index) == members.size:
        dims = [*members.axes, "seed"]
        sizes = [*(len(v) for v in members.axes.values()), len(members.seeds)]
        order = np.argsort(index)
        coords: dict[str, Any] = dict(members.axes)
        coords |= {name: ("point", values) for name, values in members.coords.items()}
        coords["seed"] = members.seeds.astype(np.int64)
    else:
        dims, sizes, order = ["member"], [len(index)], np.arange(len(index))
        point, seed = np.divmod(index, len(members.seeds))
        coords = {"member": index, "seed": ("member", members.seeds[seed].astype(np.int64))}
        where = np.unravel_index(point, [len(v) for v in members.axes.values()] or [1])
        coords |= {
            name: ("member", values[i]) for (name, values), i in zip(members.axes.items(), where)
        }
        coords |= {name: ("member", values[point]) for name, values in members.coords.items()}
    variables: dict[str, Any] = {
        name: ((*dims, "step"), values[order].reshape(*sizes, rows))
        for name, values in table.items()
    }
    variables["died_at"] = (tuple(dims), died_at[order].reshape(sizes))
    return xarray.Dataset(variables, {**coords, "step": step}, dict(attributes))


def census(members: Members, died_at: np.ndarray, index: np.ndarray) -> Sequence[str]:
    """One line per dead member: which one, and at which update."""
    return [
        f"{members.describe(int(member))} died at step {step}"
        for member, step in zip(index, died_at)
        if step >= 0
    ]

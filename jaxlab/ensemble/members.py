"""Members of an ensemble: hyper-parameter points times seeds."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.ensemble.experiment import check_threefry

RESERVED = ("seed", "step", "point", "died_at")  # names that the results use themselves


class Members(NamedTuple):
    """All members of a run, point-major: member m is (point m // S, seed m % S)."""

    seeds: np.ndarray  # [S] uint32
    hparams: Any  # pytree, leaves [P, ...]
    axes: dict[str, np.ndarray]  # hyper-parameter dimensions of the results, in order
    coords: dict[str, np.ndarray]  # for `points`: values [P] along the one axis "point"

    @property
    def points(self) -> int:
        return int(np.prod([len(v) for v in self.axes.values()], dtype=int))

    @property
    def size(self) -> int:
        return self.points * len(self.seeds)

    def describe(self, member: int) -> str:
        """Names one member in the words of the run, for example `lr=0.1, seed=3`."""
        point, seed = divmod(member, len(self.seeds))
        sizes = [len(v) for v in self.axes.values()]
        where = np.unravel_index(point, sizes) if sizes else ()
        named = [f"{k}={v[i]:g}" for (k, v), i in zip(self.axes.items(), where)]
        return ", ".join([*named, f"seed={self.seeds[seed]}"])

    def take(self, index: np.ndarray) -> tuple[np.ndarray, Any]:
        """Seeds [n] and hyper-parameters (leaves [n, ...]) of the members at `index` [n]."""
        point, seed = np.divmod(index, len(self.seeds))
        return self.seeds[seed], jax.tree.map(lambda x: x[point], self.hparams)


def make_members(
    seeds: int | Sequence[int], grid: Mapping[str, Sequence] | None, points: Any | None
) -> Members:
    """Lays out the members of a run.

    Raises:
        ValueError: seeds repeat, are out of range or no integers, both `grid` and `points` are
            given, a grid axis is empty, not one-dimensional or not numeric, or the leaves of
            `points` disagree on their leading size.
    """
    ids = np.arange(seeds) if isinstance(seeds, int | np.integer) else np.asarray(list(seeds))
    if not ids.size:
        raise ValueError("seeds is empty: a run needs at least one member")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"seeds must be integers in [0, 2**32), got {ids.tolist()}")
    seed_list = ids.tolist()
    repeated = sorted(s for s, n in Counter(seed_list).items() if n > 1)
    if repeated:
        raise ValueError(f"seeds must be distinct, these repeat: {repeated}")
    if any(not 0 <= s < 2**32 for s in seed_list):
        raise ValueError(f"seeds must be integers in [0, 2**32), got {seed_list}")
    seed_array = np.asarray(seed_list, np.uint32)
    if grid is not None and points is not None:
        raise ValueError("give grid (a product of axes) or points (rows of values), not both")
    if points is not None:
        return _from_points(seed_array, points)
    axes = {name: _axis(name, values) for name, values in (grid or {}).items()}
    rows = np.asarray(list(itertools.product(*(range(len(v)) for v in axes.values()))), int)
    hparams = {name: jnp.asarray(v)[rows[:, i]] for i, (name, v) in enumerate(axes.items())}
    return Members(seed_array, hparams, axes, {})


def _axis(name: str, values) -> np.ndarray:
    if name in RESERVED:
        raise ValueError(f"grid axis {name!r} is a name the results use themselves")
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"grid axis {name!r} must be a non-empty list, got shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"grid axis {name!r} holds {array.dtype}: traced axes are numeric; "
            "sweep a static choice with ensemble.sweep(static=...)"
        )
    return np.asarray(jnp.asarray(array))  # the dtype that the program will see


def _from_points(seeds: np.ndarray, points: Any) -> Members:
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(points)
    }
    sizes = {name: (leaf.shape[0] if leaf.ndim else None) for name, leaf in leaves.items()}
    if not leaves or len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(f"the leaves of points must share one leading size, got {sizes}")
    count = next(iter(leaves.values())).shape[0]
    coords = {name: np.asarray(leaf) for name, leaf in leaves.items() if leaf.ndim == 1}
    hparams = jax.tree.map(jnp.asarray, points)
    return Members(seeds, hparams, {"point": np.arange(count)}, coords)


def check_key(key: jax.Array | None) -> jax.Array:
    """The base key of a run: threefry, because only its bits are the same alone and vmapped."""
    if key is None:
        return jax.random.key(0, impl="threefry2x32")
    if not jnp.issubdtype(getattr(key, "dtype", np.dtype(float)), jax.dtypes.prng_key):
        raise ValueError(f"key must be a typed key from jax.random.key, got {type(key).__name__}")
    check_threefry("key", key)
    return key

"""How each arm makes a merged task vector, tuned by the same number of trials.

A trial is a point of a 12 x 10 grid: twelve settings of what the arm has to set besides, ten
scales. Task arithmetic has nothing to set besides, so its scales are twelve times as many.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxlab import merging
from jaxlab.merging.sparsify import band_mask

Vectors: TypeAlias = PyTree[Float[Array, "T ..."]]

SETTINGS, SCALES = 12, 10
ALPHAS = np.geomspace(0.05, 1.0, SETTINGS * SCALES).astype(np.float32)
BANDS = np.array([(k, d) for k in (0.05, 0.1, 0.2, 0.5) for d in (0.01, 0.05, 0.1)], np.float32)
KEEPS = np.geomspace(0.02, 0.9, SETTINGS).astype(np.float32)
DROPS = np.geomspace(0.005, 0.5, SETTINGS).astype(np.float32)

ARITHMETIC, AGAIN = "task arithmetic", "task arithmetic, other data"
BREADCRUMBS = "breadcrumbs"
MASKS = {
    BREADCRUMBS: "the band of each layer",
    "breadcrumbs of rows": "the band of each row",
    "without the largest": "all but the largest elements of each layer",
    "the largest only": "the largest elements of each layer",
    "random mask": "random elements",
    "DARE": "random elements, rescaled",
}
ARMS = (ARITHMETIC, *MASKS, "TIES", AGAIN)


def alpha(arm: str, trial: Int[Array, ""]) -> Float[Array, ""]:
    """The scale of a trial; trial = setting * SCALES + scale."""
    setting, scale = trial // SCALES, trial % SCALES
    if arm in (ARITHMETIC, AGAIN):
        return jnp.asarray(ALPHAS)[scale * SETTINGS + setting]
    return jnp.asarray(np.geomspace(0.05, 1.0, SCALES).astype(np.float32))[scale]


def directions(
    key: Key[Array, ""], arm: str, vectors: Vectors, counts: tuple[int, ...]
) -> Callable[[Int[Array, ""]], PyTree[Float[Array, "n ..."]]]:
    """The arm's merged task vectors of the first tasks, before they are scaled.

    Args:
        key: randomness of masks; the same for every setting.
        arm: out of `ARMS`.
        vectors: task vectors, tasks first.
        counts: how many tasks to merge, rising.

    Returns:
        A function of the setting, whose result has one row per count.
    """
    last = np.array(counts) - 1

    def sums(masked: Vectors) -> Any:
        return jax.tree.map(lambda x: jnp.cumsum(x, axis=0)[last], masked)

    if arm in (ARITHMETIC, AGAIN):
        plain = sums(vectors)
        return lambda setting: plain
    if arm == "TIES":

        def elected(setting: Array) -> Any:
            density = jnp.asarray(KEEPS)[setting]

            def merge(x: Array) -> Array:
                given = {"weight": 1.0, "density": density, "normalize": False}
                zero = jnp.zeros_like(x[0])
                return jnp.stack([merging.ties(zero, x[:n], **given) for n in counts])

            return jax.tree.map(merge, vectors)

        return elected

    leaves, structure = jax.tree.flatten(vectors)
    keys = jax.tree.unflatten(structure, list(jax.random.split(key, len(leaves))))

    def mask(setting: Array, x: Float[Array, "T ..."], key: Array) -> Array:
        keep, (width, drop) = jnp.asarray(KEEPS)[setting], jnp.asarray(BANDS)[setting]
        if arm in ("random mask", "DARE"):
            kept = jax.random.uniform(key, x.shape) < keep
            return jnp.where(kept, x / keep if arm == "DARE" else x, 0)
        if arm == "without the largest":
            drop = jnp.asarray(DROPS)[setting]
            width = 1 - drop
        elif arm == "the largest only":
            width, drop = keep, jnp.zeros_like(drop)
        axis = -1 if arm == "breadcrumbs of rows" else None
        band = jax.vmap(lambda v: band_mask(v, width, drop, axis))(x)
        return jnp.where(band, x, 0)

    return lambda setting: sums(jax.tree.map(lambda x, k: mask(setting, x, k), vectors, keys))


def add_scaled(base: PyTree, direction: PyTree, scale: Float[Array, ""]) -> PyTree:
    """base + scale direction."""
    return jax.tree.map(lambda b, d: b + scale * d, base, direction)


def matched_per_leaf(direction: PyTree, target: PyTree) -> PyTree:
    """A direction with, leaf by leaf, the norm of another one."""
    return jax.tree.map(merging.norm_match, direction, target)


def matched_globally(direction: PyTree, target: PyTree) -> PyTree:
    """A direction with the norm of another one over all leaves."""
    have, want = (sum(jnp.sum(x**2) for x in jax.tree.leaves(t)) for t in (direction, target))
    factor = jnp.sqrt(want / have)
    return jax.tree.map(lambda x: factor * x, direction)

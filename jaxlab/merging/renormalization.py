"""Gives the hidden units of a merged network the activation statistics of its parents."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxlab.arrays import safe_sqrt
from jaxlab.merging.arrays import model_sum, safe_divide

Tap = Callable[[str, Array], Array]  # (name of the layer, its units [..., n]) -> what goes on
Forward = Callable[[PyTree, Any, Tap], Any]  # (params, inputs, tap) -> outputs


class UnitStatistics(NamedTuple):
    """Mean and standard deviation of each unit over inputs."""

    mean: Float[Array, " n"]
    std: Float[Array, " n"]


class Rescaling(NamedTuple):
    """An affine map of each unit: scale * h + shift."""

    scale: Float[Array, " n"]
    shift: Float[Array, " n"]


def unit_statistics(forward: Forward, params: PyTree, inputs: Any) -> dict[str, UnitStatistics]:
    """Statistics of every unit that a network shows.

    Args:
        forward: the network; it passes the units of each layer through `tap(name, units)`.
        params: the model.
        inputs: what it sees.

    Returns:
        By the layers' names.
    """
    found: dict[str, UnitStatistics] = {}

    def tap(name: str, units: Array) -> Array:
        found[name] = _statistics(units)
        return units

    forward(params, inputs, tap)
    return found


def repair(
    forward: Forward,
    merged: PyTree,
    parents: list[dict[str, UnitStatistics]],
    inputs: Any,
    weight: ArrayLike | None = None,
) -> dict[str, Rescaling]:
    """How to rescale the units of a merged network.

    Args:
        forward: as for `unit_statistics`; layers are corrected in the order in which it shows them.
        merged: the merged model.
        parents: statistics of the models it was merged of, aligned.
        inputs: what the merged model sees.
        weight: share of each parent; equal shares if None.

    Returns:
        For each layer the map that gives its units the weighted mean of the parents' means and
        standard deviations, each given that the layers before are corrected. A unit that never
        changes is only shifted. `rescale_units` writes the map into a layer.

    Reference:
        Jordan et al. 2023, REPAIR: renormalizing permuted activations for interpolation repair,
        section 4.

    Pitfall:
        Without it, the variance of averaged units collapses layer by layer, and a barrier plot
        shows that rather than how far two networks are apart.
    """
    count = len(parents)
    share = jnp.full(count, 1 / count) if weight is None else jnp.asarray(weight)
    found: dict[str, Rescaling] = {}

    def tap(name: str, units: Array) -> Array:
        shares = [share[i].astype(units.dtype) for i in range(count)]
        mean, std = (
            model_sum([w * parent[name][field] for w, parent in zip(shares, parents)])
            for field in range(2)
        )
        now = _statistics(units)
        flat = now.std <= jnp.finfo(units.dtype).eps * (jnp.abs(now.mean) + 1)
        scale = safe_divide(std, now.std, flat, 1.0)
        found[name] = Rescaling(scale, mean - scale * now.mean)
        return units * _last(scale, units) + _last(found[name].shift, units)

    forward(merged, inputs, tap)
    return found


def rescale_units(
    kernel: Float[Array, "*i n"], bias: Float[Array, " n"], rescaling: Rescaling
) -> tuple[Float[Array, "*i n"], Float[Array, " n"]]:
    """Writes a rescaling of a layer's pre-activations into the layer.

    Args:
        kernel: weights, units last.
        bias: one per unit.
        rescaling: from `repair`.

    Returns:
        Kernel and bias in their own dtypes.
    """
    scaled = kernel * _last(rescaling.scale, kernel).astype(kernel.dtype)
    moved = bias * rescaling.scale.astype(bias.dtype) + rescaling.shift.astype(bias.dtype)
    return scaled, moved


def _statistics(units: Float[Array, "*b n"]) -> UnitStatistics:
    flat = units.reshape(-1, units.shape[-1])
    mean = jnp.mean(flat, axis=0)
    return UnitStatistics(mean, safe_sqrt(jnp.mean((flat - mean[None]) ** 2, axis=0)))


def _last(vector: Array, like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)

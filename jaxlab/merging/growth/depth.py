"""Growing in depth: layers, stacked along a leading axis, are repeated, silenced or added."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from jaxlab.merging.trees import leaf_path

Layers: TypeAlias = Any  # pytree of leaves [l, ...]


def stack(layers: Layers, factor: int, *, borrowed: str | None = None) -> Layers:
    """Repeats the whole stack: 0 1 2 0 1 2.

    Args:
        layers: trained layers.
        factor: how many times, g.
        borrowed: pattern of leaves that layer 0 has but never used, so that its copies take layer
            1's (the value residual of RWKV-7: "v[012]$").

    Returns:
        g l layers. The function changes: the loss jumps and recovers quickly.

    Reference:
        Du et al. 2024, Stacking Your Transformers, section 3 (G_stack).

    Pitfall:
        Repeating each layer in place is `interleave`, another operator.
    """
    return take_layers(layers, np.tile(np.arange(depth_of(layers)), _factor(factor)), borrowed)


def interleave(layers: Layers, factor: int, *, borrowed: str | None = None) -> Layers:
    """Repeats each layer in place: 0 0 1 1 2 2.

    Args:
        layers: trained layers.
        factor: how many times.
        borrowed: as for `stack`.

    Returns:
        g l layers.
    """
    return take_layers(layers, np.repeat(np.arange(depth_of(layers)), _factor(factor)), borrowed)


def gradual(layers: Layers, new_layers: int, *, borrowed: str | None = None) -> Layers:
    """Repeats the last layers once, one stage of gradual stacking: 0 1 2 3 2 3.

    Args:
        layers: trained layers.
        new_layers: how many, at most l.
        borrowed: as for `stack`; counts where layer 0 is repeated too.

    Returns:
        l + new_layers layers.

    Reference:
        Gong et al. 2019, Efficient training of BERT by progressively stacking; Reddi et al. 2023.
    """
    depth = depth_of(layers)
    _check_count("new_layers", new_layers, depth)
    order = np.r_[np.arange(depth), np.arange(depth - new_layers, depth)]
    return take_layers(layers, order, borrowed)


def solar(layers: Layers, drop: int, *, borrowed: str | None = None) -> Layers:
    """Two copies, the first without its last and the second without its first layers.

    Args:
        layers: trained layers.
        drop: how many are left out of each copy, m.
        borrowed: as for `stack`; counts where nothing is left out.

    Returns:
        2 (l - m) layers.

    Reference:
        Kim et al. 2023, SOLAR 10.7B (depth up-scaling).
    """
    depth = depth_of(layers)
    _check_count("drop", drop, depth - 1)
    return take_layers(layers, np.r_[np.arange(depth - drop), np.arange(drop, depth)], borrowed)


def identity_depth(
    layers: Layers, depth: int, *, zero: tuple[str, ...], borrowed: str | None = None
) -> Layers:
    """Adds copies that write nothing to the residual stream, so that the function stays.

    Args:
        layers: trained layers of residual blocks.
        depth: how many there are to be.
        zero: patterns of the leaves through which a block writes; zero in the copies.
        borrowed: as for `stack`.

    Returns:
        The layers, then copies in the order of `stack`.

    Reference:
        Du et al. 2024, Stacking Your Transformers, G_zero in depth.
    """
    old = depth_of(layers)
    _check_count("depth", old, depth)
    grown = take_layers(layers, np.arange(depth) % old, borrowed)
    return _scale_new(grown, old, zero, 0.0)


def random_depth(
    layers: Layers, fresh: Layers, *, zero: tuple[str, ...]
) -> tuple[Layers, Callable[[ArrayLike], Layers]]:
    """Adds new layers that are faded in.

    Args:
        layers: trained layers of residual blocks.
        fresh: new layers, initialised.
        zero: patterns of the leaves through which a block writes.

    Returns:
        All layers, and a function from the ramp, 0 to 1, to the layers to compute with: at 0 the
        new ones write nothing, at 1 the layers are all that was given.

    Reference:
        Yao et al. 2024, Masked structural growth (G_random in depth).
    """
    old = depth_of(layers)
    grown = jax.tree.map(lambda x, y: jnp.concatenate([x, y.astype(x.dtype)]), layers, fresh)
    return grown, lambda ramp: _scale_new(grown, old, zero, ramp)


def depth_of(layers: Layers) -> int:
    """How many layers there are.

    Args:
        layers: leaves [l, ...].

    Returns:
        l.

    Raises:
        ValueError: if the leaves disagree.
    """
    depths = {jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for leaf in jax.tree.leaves(layers)}
    if len(depths) != 1 or None in depths:
        raise ValueError(f"layers: expected one leading axis of layers, got {depths}")
    (depth,) = depths
    return int(depth or 0)


def take_layers(layers: Layers, index: Any, borrowed: str | None = None) -> Layers:
    """Layers in a given order, each as often as it is named.

    Args:
        layers: leaves [l, ...].
        index: which layers.
        borrowed: pattern of leaves that layer 0 never used; where it is not the first, it takes
            layer 1's.

    Returns:
        Leaves [len(index), ...].
    """
    index = np.asarray(index)
    used = np.where((index == 0) & (np.arange(len(index)) > 0), min(1, depth_of(layers) - 1), index)

    def take(path: Any, leaf: Array) -> Array:
        lent = borrowed is not None and re.search(borrowed, leaf_path(path))
        return jnp.asarray(leaf)[used if lent else index]

    return jax.tree_util.tree_map_with_path(take, layers)


def _scale_new(layers: Layers, old: int, patterns: tuple[str, ...], factor: ArrayLike) -> Layers:
    found = set()

    def scale(path: Any, leaf: Array) -> Array:
        hits = {pattern for pattern in patterns if re.search(pattern, leaf_path(path))}
        found.update(hits)
        if not hits:
            return leaf
        ramp = jnp.asarray(factor).astype(leaf.dtype)
        return jnp.concatenate([leaf[:old], ramp * leaf[old:]])

    scaled = jax.tree_util.tree_map_with_path(scale, layers)
    if missing := [pattern for pattern in patterns if pattern not in found]:
        raise ValueError(f"zero: expected patterns of leaves, {missing} match none")
    return scaled


def _factor(factor: int) -> int:
    _check_count("factor", 1, factor)
    return factor


def _check_count(name: str, low: int, high: int) -> None:
    if not 0 <= low <= high:
        raise ValueError(f"{name}: expected a number that fits, got {low} against {high}")

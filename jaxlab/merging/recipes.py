"""What evolution searches: coefficients of groups of leaves, and paths through pools of layers."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.merging.growth.depth import depth_of
from jaxlab.merging.operators import Operator
from jaxlab.merging.trees import PathSpec, PerLayer, leaf_path, merge

_LEAST_SCALE = 0.05  # of a hidden state between two layers


class Genes(NamedTuple):
    """Coefficients of each group of leaves and each model."""

    weight: Float[Array, "g M"]
    density: Float[Array, "g M"]


def read_genes(genome: Float[Array, " d"], groups: int, models: int) -> Genes:
    """Coefficients of a merge out of a vector that may hold anything.

    Args:
        genome: 2 x groups x models numbers.
        groups: how many groups.
        models: how many models.

    Returns:
        Weights as they are, densities |g| up to 1.

    Reference:
        Akiba et al. 2025, Evolutionary optimization of model merging recipes, 3.1; the decoding is
        mergekit's.
    """
    weight, density = genome.reshape(2, groups, models)
    return Genes(weight, jnp.clip(jnp.abs(density), 0, 1))


def merge_genes(
    operator: Operator,
    base: PyTree,
    models: PyTree[Array],
    genes: Genes,
    group_of: Callable[[str], Any],
    *,
    spec: PathSpec = PathSpec(),
    key: Key[Array, ""] | None = None,
) -> PyTree:
    """Merges whole models with coefficients of their own for every group.

    Args:
        operator: one that takes "weight" and "density".
        base: a model.
        models: stacked models.
        genes: coefficients; traced, so that a population is one `vmap`.
        group_of: path of a leaf -> its group, or one for each layer of a leaf that holds them all.
        spec: how leaves are treated.
        key: random key; the same for all members of a population, or its noise hides the genes.

    Returns:
        The merged model.
    """

    def coefficients(path: str) -> dict[str, Any]:
        index = np.asarray(group_of(path))
        given = {name: x[index] for name, x in genes._asdict().items()}
        return {k: PerLayer(x) for k, x in given.items()} if index.ndim else given

    return merge(operator, base, models, coefficients, spec=spec, key=key)


def route_layers(
    pool: PyTree[Float[Array, "M ..."]],
    indicators: Float[Array, " T"],
    scales: Float[Array, "M M"],
    writes: tuple[str, ...],
) -> PyTree[Float[Array, "T ..."]]:
    """The layers of a path through a pool of layers, as a model with one layer per slot.

    Slot t holds layer t mod M and is passed by if its indicator is not positive. On the way from
    layer i to layer j the hidden state is multiplied by |scales[i, j]|. Blocks that read through a
    norm do not see the scale of what they read, so that it suffices to divide what they write by
    the product of all scales so far: the result differs by that product, which the last norm takes
    out. Slots that are passed by write nothing.

    Args:
        pool: layers of all sources, in sequence.
        indicators: of every slot; T may be a multiple of M.
        scales: a twentieth at least, whatever is given.
        writes: patterns of the leaves through which a block writes to the residual stream.

    Returns:
        Stacked layers for the model that the sources are of.

    Reference:
        Akiba et al. 2025, Evolutionary optimization of model merging recipes, 3.2.
    """
    order = np.arange(indicators.shape[0]) % depth_of(pool)
    active = indicators > 0

    def slot(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[Any, Array]:
        before, product = carry
        layer, on = at
        # The embedding enters the first layer as it is.
        factor = jnp.maximum(jnp.abs(scales[jnp.maximum(before, 0), layer]), _LEAST_SCALE)
        product = jnp.where(on & (before >= 0), product * factor, product)
        return (jnp.where(on, layer, before), product), product

    start = (jnp.int32(-1), jnp.ones((), scales.dtype))
    _, products = jax.lax.scan(slot, start, (jnp.asarray(order, jnp.int32), active))
    factors = jnp.where(active, 1 / products, 0)

    def take(path: Any, leaf: Array) -> Array:
        taken = leaf[order]
        if not any(re.search(pattern, leaf_path(path)) for pattern in writes):
            return taken
        shape = (-1, *(1,) * (leaf.ndim - 1))
        return taken * factors.astype(leaf.dtype).reshape(shape)

    return jax.tree_util.tree_map_with_path(take, pool)

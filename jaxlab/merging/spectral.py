"""Operators on the singular vectors of matrix-shaped task vectors; other leaves are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.merging.arrays import model_sum, safe_divide
from jaxlab.merging.factorizations import polar_factor, thin_svd
from jaxlab.merging.leaf import Block, Leaf
from jaxlab.merging.operators import Shared, operator

_PRECISE = jax.lax.Precision.HIGHEST


@operator(layout="whole")
def iso_c(leaf: Leaf, *, alpha: Shared = 1.0):
    """The sum of the task vectors with all singular values set to their mean.

    Args:
        leaf: base and models.
        alpha: scale of the merged task vector.

    Reference:
        Marczak et al. 2025, No task left behind, algorithm 1 (Iso-C).

    Pitfall:
        A zero sum has arbitrary singular vectors; it merges to the base.
    """
    return leaf.emit(_matrix_rule, alpha, rule=_isotropic)


@operator(layout="whole")
def iso_cts(leaf: Leaf, *, alpha: Shared = 1.0, common: float = 0.8):
    """As `iso_c`, with the least common directions replaced by each task's own.

    Args:
        leaf: base and models.
        alpha: scale of the merged task vector.
        common: share of the directions that is kept from the sum.

    Reference:
        Marczak et al. 2025, No task left behind, algorithm 2 (Iso-CTS).
    """
    if not 0 <= common <= 1:
        raise ValueError(f"common: expected a share in [0, 1], got {common}")
    return leaf.emit(_matrix_rule, alpha, rule=_isotropic_with_tasks, common=common)


@operator(layout="whole")
def tsv_m(leaf: Leaf, *, alpha: Shared = 1.0):
    """The strongest singular triplets of each task, made orthogonal to those of the others.

    Args:
        leaf: base and models.
        alpha: scale of the merged task vector.

    Reference:
        Gargiulo et al. 2025, Task singular vectors, section 4.2 (TSV-Merge).
    """
    return leaf.emit(_matrix_rule, alpha, rule=_task_singular_vectors)


@operator(layout="whole")
def wudi(leaf: Leaf, *, learning_rate: Shared = 1e-5, steps: int = 300):
    """A merged task vector that interferes least with each task's own subspace, by gradient steps.

    Args:
        leaf: base and models.
        learning_rate: of Adam.
        steps: number of steps from the sum of the task vectors.

    Reference:
        Cheng et al. 2025, Whoever started the interference should end it (WUDI-Merging), eq. 12.
    """
    return leaf.emit(_wudi, learning_rate, steps=steps)


def _matrix_rule(block: Block, alpha: Array, *, rule: Callable[..., Array], **static) -> Array:
    deltas = block.deltas
    if deltas.ndim != 3:
        return block.origin + alpha * (model_sum(deltas) / deltas.shape[0])
    return block.origin + alpha * rule(deltas, **static)


def _isotropic(deltas: Float[Array, "M m n"]) -> Float[Array, "m n"]:
    total = model_sum(deltas)
    _, values, _ = thin_svd(total)
    return jnp.mean(values) * polar_factor(total)


def _isotropic_with_tasks(deltas: Float[Array, "M m n"], *, common: float) -> Float[Array, "m n"]:
    count, rank = deltas.shape[0], min(deltas.shape[1:])
    own = int((rank - int(rank * common)) / count)  # directions of each task's own
    shared = rank - own * count
    u, s, vt = thin_svd(model_sum(deltas))
    lefts, values, rights = [u[:, :shared]], [s[:shared]], [vt[:shared]]
    for delta in deltas:
        seen = jnp.matmul(u[:, :shared].T, delta, precision=_PRECISE)
        left, value, right = thin_svd(delta - jnp.matmul(u[:, :shared], seen, precision=_PRECISE))
        lefts.append(left[:, :own])
        values.append(value[:own])
        rights.append(right[:own])
    left = polar_factor(jnp.concatenate(lefts, axis=1))
    right = polar_factor(jnp.concatenate(rights, axis=0))
    return jnp.mean(jnp.concatenate(values)) * jnp.matmul(left, right, precision=_PRECISE)


def _task_singular_vectors(deltas: Float[Array, "M m n"]) -> Float[Array, "m n"]:
    count, rank = deltas.shape[0], min(deltas.shape[1:])
    own = max(rank // count, 1)
    parts = [thin_svd(delta) for delta in deltas]
    left = polar_factor(jnp.concatenate([u[:, :own] for u, _, _ in parts], axis=1))
    right = polar_factor(jnp.concatenate([vt[:own] for _, _, vt in parts], axis=0))
    values = jnp.concatenate([s[:own] for _, s, _ in parts])
    return jnp.matmul(left * values[None], right, precision=_PRECISE)


def _wudi(block: Block, learning_rate: Array, *, steps: int) -> Array:
    deltas = block.deltas
    if deltas.ndim != 3:
        return block.origin + model_sum(deltas) / deltas.shape[0]
    squares = jnp.sum(deltas**2, axis=(1, 2))
    share = safe_divide(jnp.ones_like(squares), squares, squares == 0, 0.0)
    grams = jnp.einsum("mji,mjk->mik", deltas, deltas, precision=_PRECISE)

    def interference(merged: Array) -> Array:
        # ||(D - d) d^T||^2 = <D - d, (D - d) d^T d>
        gap = merged[None] - deltas
        moved = jnp.einsum("mij,mjk->mik", gap, grams, precision=_PRECISE)
        return jnp.sum(share * jnp.sum(gap * moved, axis=(1, 2)))

    # A second moment of zero has an infinite slope under the root without the smaller constant.
    adam = optax.scale_by_adam(eps_root=1e-30)

    def step(state, _):
        merged, moments = state
        with jax.numpy_dtype_promotion("standard"):
            direction, moments = adam.update(jax.grad(interference)(merged), moments)
        return (merged - learning_rate * direction, moments), None

    start = model_sum(deltas)
    (merged, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=steps)
    return block.origin + merged

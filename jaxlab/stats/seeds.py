"""Random keys of paired designs: one per seed and role, whatever else runs beside it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

ROLES = ("data", "env", "eval", "init", "order", "noise")
"""What a key is for. A role's number is its place here: append only, or old results change."""

TUNING_SEEDS = range(0, 100)
"""Seed ids on which hyper-parameters may be chosen, with the same budget for every arm."""

EVALUATION_FIRST = 1000
"""First seed id of evaluation: choosing on the seeds that judge triples the false claims."""


def evaluation_seeds(n: int) -> tuple[int, ...]:
    """The first `n` evaluation seed ids, disjoint from the tuning ones.

    Args:
        n: number of seeds, at least 1.

    Returns:
        Ids from EVALUATION_FIRST on.

    Raises:
        ValueError: `n` below one.
    """
    if n < 1:
        raise ValueError(f"n: expected at least one seed, got {n!r}")
    return tuple(range(EVALUATION_FIRST, EVALUATION_FIRST + n))


def seed_keys(
    root: Array, seed_ids: Sequence[int] | Int[Array, " n"], roles: Sequence[str] = ROLES
) -> dict[str, Array]:
    """Keys of each seed for each role: `fold_in(fold_in(root, seed_id), role number)`.

    Args:
        root: one typed key (`jax.random.key`), the same for all arms.
        seed_ids: non-negative seed ids [n].
        roles: names out of ROLES.

    Returns:
        For each role, keys [n]. Arms share data, env, eval and order; they share init only when
        their architectures are the same.

    Raises:
        ValueError: an untyped or batched root, ids that are not one axis, or an unknown role.

    Pitfall: `split(root, n)` ties a seed's key to its place in the batch; here a seed alone has the
        very key that it has among others.
    """
    if not jnp.issubdtype(root.dtype, jax.dtypes.prng_key) or root.ndim:
        raise ValueError(
            f"root: expected one typed key from jax.random.key, got {root.dtype}{list(root.shape)}"
        )
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"roles: expected names out of {ROLES}, got {unknown}")
    ids = jnp.asarray(seed_ids)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"seed_ids: expected integers [n], got {ids.dtype}{list(ids.shape)}")
    seeds = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, ids)
    return {
        role: jax.vmap(jax.random.fold_in, in_axes=(0, None))(seeds, ROLES.index(role))
        for role in roles
    }

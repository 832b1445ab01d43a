"""When to grow, what training costs, and how much faster a grown model gets somewhere."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def growth_timing(parameters: ArrayLike, compute: ArrayLike) -> Float[Array, "..."]:
    """Tokens to train the small model on before growing.

    Args:
        parameters: of the target model, N.
        compute: of the whole training in FLOPs, 6 N tokens.

    Returns:
        Tokens d, log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74.

    Reference:
        Du et al. 2024, Stacking Your Transformers, eq. 2.
    """
    size, cost = (jnp.log10(jnp.asarray(x, jnp.float32)) for x in (parameters, compute))
    return 10 ** (0.88 * size + 163.27 / cost - 5.74)


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of all matrix products of a function, counted from shapes.

    Args:
        function: for example a training step, gradient included.
        *args: arrays or their shapes.

    Returns:
        Two per multiplied pair. Loops of known length count every turn, others one; of branches
        the most expensive counts.

    Pitfall:
        Six per parameter and token leaves out attention and counts embeddings, which matters below
        some ten million parameters.
    """
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def speedup(
    scratch: tuple[Float[Array, " n"], Float[Array, " n"]],
    grown: tuple[Float[Array, " m"], Float[Array, " m"]],
) -> Float[Array, ""]:
    """How much less compute a grown model needs to get where training from scratch ends.

    Args:
        scratch: FLOPs (rising) and losses.
        grown: FLOPs (rising, the small model's included) and losses.

    Returns:
        C_scratch / C_grown - 1, with C_grown where the lowest loss so far first reaches scratch's
        final loss, interpolated in log FLOPs; NaN if it never does.

    Reference:
        Du et al. 2024, Stacking Your Transformers, section 3.
    """
    target, cost = scratch[1][-1], jnp.log(grown[0])
    best = jax.lax.cummin(grown[1])
    there = best <= target
    first = jnp.argmax(there)
    i = jnp.maximum(first, 1)
    gap = best[i - 1] - best[i]  # positive, unless the very first loss is low enough
    share = jnp.where(first > 0, (best[i - 1] - target) / jnp.where(gap > 0, gap, 1), 0)
    log_cost = cost[i - 1] + share * (cost[i] - cost[i - 1])
    return jnp.where(there.any(), scratch[0][-1] / jnp.exp(log_cost) - 1, jnp.nan)


def _flops(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [_flops(getattr(j, "jaxpr", j)) for j in _jaxprs(equation.params)]
        branches = equation.primitive.name == "cond"
        total += turns * (max(inner, default=0) if branches else sum(inner))
    return total


def _jaxprs(parameters: Any) -> list[Any]:
    leaves = jax.tree.leaves(list(parameters.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")]

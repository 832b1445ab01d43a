"""The backward affine recursion that all multi-step targets share."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.values.arrays import check_same_shape, check_trajectory

Backend = Literal["auto", "scan", "associative"]
_SHORT = 512  # steps up to which a sequential scan is as fast on a CPU


def affine_reverse_scan(
    a: Float[Array, "T *b"],
    b: Float[Array, "T *b"],
    x_last: Float[Array, "*b"],
    *,
    backend: Backend = "auto",
) -> Float[Array, "T *b"]:
    """Solves x_t = b_t + a_t x_{t+1} for t = T-1, ..., 0 from x_T.

    Args:
        a: factors, time first.
        b: summands.
        x_last: x_T.
        backend: "scan" takes T steps; "associative" composes the affine maps in O(log T) depth;
            "auto" is "scan" for short trajectories on a CPU and "associative" otherwise.

    Returns:
        x_0, ..., x_{T-1}.

    Raises:
        ValueError: if the shapes do not fit or the backend is unknown.

    Reference:
        Blelloch 1990, "Prefix sums and their applications", section 1.4.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: expected one of {get_args(Backend)}, got {backend!r}")
    check_trajectory(a=a, b=b)
    check_same_shape(**{"a[0]": a[0], "x_last": x_last})
    if backend == "auto":
        short = jax.default_backend() == "cpu" and a.shape[0] <= _SHORT
        backend = "scan" if short else "associative"
    if backend == "scan":

        def step(x: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
            x = ab[1] + ab[0] * x
            return x, x

        return jax.lax.scan(step, x_last, (a, b), reverse=True)[1]

    def compose(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], earlier[1] + earlier[0] * later[1]

    factor, summand = jax.lax.associative_scan(compose, (a, b), reverse=True)
    return summand + factor * jnp.broadcast_to(x_last, factor.shape)

"""The WKV-7 recurrence as written: one `lax.scan` step per token. The oracle, and fast enough to be
the CPU's inference path. Differentiable to any order; its gradient stores every state.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def step(
    state: jax.Array,
    r: jax.Array,
    logw: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Advance every state by one token.

    Args:
        state: [..., D, K]; its dtype is that of all others.
        r: [..., K].
        logw: [..., K].
        k: [..., K].
        v: [..., D].
        a: [..., K].
        b: [..., K].

    Returns:
        y [..., D] and the new state [..., D, K].

    Reference: Peng et al. 2025, "RWKV-7 Goose", eq. 16-17.

    Pitfalls: `a` reads the state before it decays; reading the decayed state is another model. A
    sum of elementwise products in place of the matrix products is slower, and jax 0.10.2 compiles
    it wrongly for CPUs where the state is broadcast from one row in the same program.
    """
    product = partial(jnp.einsum, "...dk,...k->...d", precision=lax.Precision.HIGHEST)
    sa = product(state, a)
    state = (
        state * jnp.exp(logw)[..., None, :]
        + sa[..., :, None] * b[..., None, :]
        + v[..., :, None] * k[..., None, :]
    )
    return product(state, r), state


def scan(
    r: jax.Array,
    logw: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array,
    reset: jax.Array | None = None,
    reset_state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the recurrence over a sequence.

    Args:
        r: [B, T, H, K].
        logw: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, D].
        a: [B, T, H, K].
        b: [B, T, H, K].
        s0: [B, H, D, K], float32 (or float64); everything is computed in its dtype.
        reset: [B, T] bool; True replaces the state before that token is read.
        reset_state: [B, H, D, K], what it is replaced by; zeros if None.

    Returns:
        y [B, T, H, D] in v's dtype and the last state [B, H, D, K].
    """
    fresh = jnp.zeros_like(s0) if reset_state is None else reset_state.astype(s0.dtype)

    def body(state, token):
        *inputs, is_reset = token
        if is_reset is not None:
            state = jnp.where(is_reset[:, None, None, None], fresh, state)
        y, state = step(state, *(x.astype(s0.dtype) for x in inputs))
        return state, y.astype(v.dtype)

    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (r, logw, k, v, a, b, reset))
    state, y = lax.scan(body, s0, time_first)
    return jnp.moveaxis(y, 0, 1), state

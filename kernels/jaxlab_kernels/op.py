"""The public operator: arguments checked, defaults filled in, an implementation called."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlab_kernels import dispatch
from jaxlab_kernels.checks import check_arguments, check_name


def _vary_alike(arrays: tuple) -> tuple:
    """Inside shard_map: let what is shared by devices vary over the mesh like the rest.

    Loops need it, because the state they carry becomes as varying as the tokens it meets.
    """

    def axes_of(x):
        return jax.typeof(x).manual_axis_type.varying

    axes = frozenset().union(*map(axes_of, jax.tree.leaves(arrays)))

    def vary(x):
        missing = tuple(sorted(axes - axes_of(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, arrays)


def wkv7(
    r: jax.Array,
    logw: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array | None = None,
    *,
    reset: jax.Array | None = None,
    reset_state: jax.Array | None = None,
    impl: str = "auto",
    chunk: int | None = None,
    precision: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """RWKV-7's recurrence (a diagonal plus rank-one linear recurrence) over whole sequences:

        S_t = S_{t-1} diag(exp logw_t) + (S_{t-1} a_t) b_t^T + v_t k_t^T,    y_t = S_t r_t

    for every batch row and head. RWKV-7 sets a = -kk and b = kk * alpha with |kk| = 1.

    Args:
        r: [B, T, H, K]; like all inputs bfloat16 or float32, mixed as you like.
        logw: [B, T, H, K], the log-decay, in (-exp(-1/2), 0]; best kept in float32.
        k: [B, T, H, K].
        v: [B, T, H, D].
        a: [B, T, H, K].
        b: [B, T, H, K].
        s0: state before the first token, [B, H, D, K] (value rows, key columns), or [H, D, K] for
            one that all batch rows share; zeros if None.
        reset: [B, T] bool; True replaces the state before that token is read, and stops gradients
            there.
        reset_state: what a reset puts in place, shaped as s0; zeros if None. Differentiable.
        impl: "scan" (token by token), "xla" (chunks, any platform), "xla_ad" (chunks without the
            custom derivative: forward mode, second order), "pallas_tpu", "pallas_gpu" (either of
            "pallas_triton" and "pallas_mosaic_gpu", as fits), or "auto".
            One token is always a plain step. On a CPU the Pallas kernels are interpreted, slowly.
        chunk: tokens per chunk: 16, 32, 64 or 128; None takes the tuned value.
        precision: what matrix operands may be rounded to, "bf16" or "float32". None: "bf16" if r,
            k, v, a and b all are bfloat16. States, decays, inverses and sums are always float32.

    Returns:
        y [B, T, H, D] in v's dtype, and the state after the last token [B, H, D, K] in float32.
        T = 0 gives an empty y and s0. With any float64 argument (jax_enable_x64) both the state and
        the arithmetic are float64; the Pallas kernels refuse that.

    Raises:
        ValueError: shapes, dtypes (float16 among them) or options that do not fit; it names the
            argument.

    Reference: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", eq. 16-17.

    Pitfall: a decay stronger than exp(-exp(-1/2)) is not refused, because under `jit` its value is
        not known. Chunks are safe while max|logw| * chunk / 2 stays below 80, near the end of
        float32's exp: 128 tokens while |logw| < 1.25, 16 while |logw| < 10. Beyond it use "scan".
        Where decays are that strong, d logw is exact relative to r * dr, not to its own tiny size.
    """
    inputs, s0, reset, reset_state = jax.tree.map(
        jnp.asarray, ((r, logw, k, v, a, b), s0, reset, reset_state)
    )
    check_arguments(inputs, s0, reset, reset_state, chunk, precision)
    check_name("impl", impl, dispatch.IMPLEMENTATIONS)
    inputs, s0, reset, reset_state = _vary_alike((inputs, s0, reset, reset_state))
    r, _, _, v, _, _ = inputs

    floats = jax.tree.leaves((inputs, s0, reset_state))
    wide = jnp.float64 if any(x.dtype == jnp.float64 for x in floats) else jnp.float32
    shape = (r.shape[0], r.shape[2], v.shape[3], r.shape[3])

    def as_state(x):
        x = x.astype(wide)
        return x if x.ndim == 4 else jnp.broadcast_to(x[None], shape)

    if s0 is None:
        s0 = jnp.full_like(r, 0, dtype=wide, shape=shape)
    reset_state = None if reset_state is None else as_state(reset_state)
    return dispatch.run(
        inputs,
        as_state(s0),
        reset,
        reset_state,
        impl=impl,
        chunk=chunk,
        precision=precision,
    )

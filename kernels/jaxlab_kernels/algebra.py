"""One chunk of WKV-7 as matrix products, forward and backward, for one head.

Every function takes two-dimensional tiles and uses only what lowers in Pallas for Triton, Mosaic
GPU and Mosaic TPU as well as in plain XLA: iota, where, exp, broadcasts, sums over one axis and
unbatched `dot_general`. No gather, no row indexing, no `cumsum`, no transpose.

With g the log-decay, c its cumulative sum over the chunk, e = c - g and ref = c_L / 2,

    sa_t = S_{t-1} a_t,   S_t = S_{t-1} diag(exp g_t) + sa_t b_t^T + v_t k_t^T,   y_t = S_t r_t

becomes, with row-scaled factors A = a exp(e - ref), R = r exp(c - ref), B = b exp(ref - c) and
K = k exp(ref - c), and with strictly lower M_ab = A B^T and M_ak = A K^T and lower M_rb = R B^T
and M_rk = R K^T,

    U  = (I - M_ab)^-1 (a exp(e) S0^T + M_ak V)          row t is sa_t
    Y  = r exp(c) S0^T + M_rb U + M_rk V
    S1 = S0 exp(c_L) + U^T (b exp(c_L - c)) + V^T (k exp(c_L - c))

Centring on half of the chunk's decay keeps every factor's exponent below max|g| * L / 2: with
RWKV-7's bound |g| < exp(-1/2) that is 39 at L = 128, finite in float32 and bfloat16 (88.7), not in
float16 (11). Products of rows in the wrong order reach twice that and may overflow for stronger
decays, so they are masked by `where`; multiplying an infinity by a zero would make it NaN.

Resets are masks. `count` is the inclusive count of resets inside the chunk: two tokens know each
other iff their counts are equal, the incoming state reaches rows whose count is 0, and the
`reset_state` reaches the others. Cumulative sums restart at a reset, and each stretch between
resets is centred by itself, so nothing before a reset moves anything after it by a single bit.

Reference: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence
Length" (WY form); Peng et al. 2025, "RWKV-7 Goose".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EXACT = lax.Precision.HIGHEST  # on a TPU the default for float32 is one bfloat16 pass


def dot(
    x: jax.Array,
    y: jax.Array,
    contract: tuple[int, int] = (1, 0),
    *,
    operand_dtype=None,
    precision: lax.PrecisionLike = EXACT,
) -> jax.Array:
    """Multiply two tiles over one axis of each: (1, 0) is x y, (1, 1) x y^T, (0, 0) x^T y.

    Operands are rounded to `operand_dtype` (None: as they are); sums are float32, or float64 if an
    operand is.
    """
    if operand_dtype is not None:
        x, y = x.astype(operand_dtype), y.astype(operand_dtype)
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    return lax.dot_general(
        x,
        y,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=None if x.dtype == jnp.bfloat16 else precision,
        preferred_element_type=wide,
    )


def _indices(n: int) -> tuple[jax.Array, jax.Array]:
    return lax.broadcasted_iota(jnp.int32, (n, n), 0), lax.broadcasted_iota(jnp.int32, (n, n), 1)


def _pick_row(x: jax.Array, index: int) -> jax.Array:
    rows = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.sum(jnp.where(rows == index, x, jnp.zeros_like(x)), axis=0, keepdims=True)


def ladder_inverse(m: jax.Array, precision: lax.PrecisionLike = EXACT) -> jax.Array:
    """Invert I - m for a strictly lower triangular m [L, L], L a power of two.

    Blocks of size 1, 2, 4, ... are joined in pairs: the inverse of [[P, 0], [-N, Q]] is
    [[P', 0], [Q' N P', Q']] with P' and Q' the inverses of P and Q.
    As stable as forward substitution, because no power of m is ever formed.

    Args:
        m: [L, L]; entries on and above the diagonal are ignored.
        precision: of the products; float32 in fact as well as in name.

    Returns:
        (I - m)^-1 [L, L].

    Pitfall: the product (I + m)(I + m^2)(I + m^4)... is the same matrix, but for repeated keys its
    terms reach 1e30 before they cancel.
    """
    size = m.shape[0]
    row, col = _indices(size)
    zero = jnp.zeros_like(m)
    inverse = jnp.where(row == col, jnp.ones_like(m), zero)
    for level in range(size.bit_length() - 1):
        # Row block odd, column block the even one before it, in units of 2**level.
        block_row = lax.shift_right_logical(row, jnp.full_like(row, level))
        block_col = lax.shift_right_logical(col, jnp.full_like(col, level))
        joined = (block_row == block_col + 1) & ((block_row & 1) == 1)
        below = jnp.where(joined, m, zero)
        if level == 0:  # the inverse so far is the identity
            inverse = inverse + below
            continue
        correction = dot(below, inverse, precision=precision)
        inverse = inverse + dot(inverse, correction, precision=precision)
    return inverse


class _Masks(NamedTuple):
    strict: jax.Array  # [L, L] bool: s < t and no reset in between
    inclusive: jax.Array  # [L, L] bool: s <= t and no reset in between
    from_start: jax.Array | None  # [L, 1] bool: rows the incoming state reaches
    to_end: jax.Array | None  # [L, 1] bool: rows that reach the outgoing state
    survives: jax.Array | None  # [1, 1] bool: the incoming state reaches the outgoing one
    same: jax.Array | None  # [L, L] bool: no reset in between


def _masks(size: int, count: jax.Array | None) -> _Masks:
    row, col = _indices(size)
    if count is None:
        return _Masks(row > col, row >= col, None, None, None, None)
    column = count.astype(jnp.float32)
    square = jnp.broadcast_to(column, (size, size))
    as_row = jnp.sum(jnp.where(row == col, square, jnp.zeros_like(square)), axis=0, keepdims=True)
    same = square == jnp.broadcast_to(as_row, (size, size))
    last = _pick_row(column, size - 1)
    return _Masks(
        strict=(row > col) & same,
        inclusive=(row >= col) & same,
        from_start=column == 0,
        to_end=column == last,
        survives=last == 0,
        same=same,
    )


def _keep(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    if mask is None:
        return x
    return jnp.where(jnp.broadcast_to(mask, x.shape), x, jnp.zeros_like(x))


def _drop(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """What `_keep` leaves out."""
    if mask is None:
        return jnp.zeros_like(x)
    return jnp.where(jnp.broadcast_to(mask, x.shape), jnp.zeros_like(x), x)


class _Decays(NamedTuple):  # c and ref of each stretch between resets
    centred_read: jax.Array  # exp(e - ref)
    centred_out: jax.Array  # exp(c - ref)
    centred_write: jax.Array  # exp(ref - c)
    read: jax.Array  # exp(e)
    out: jax.Array  # exp(c)
    write: jax.Array  # exp(c_L - c), 0 in rows that a reset cuts off from the end
    whole: jax.Array  # exp(c_L) [1, K]


def _decays(g: jax.Array, masks: _Masks, precision) -> _Decays:
    size = g.shape[0]
    one, zero = jnp.ones((size, size), g.dtype), jnp.zeros((size, size), g.dtype)
    c = dot(jnp.where(masks.inclusive, one, zero), g, precision=precision)
    c_last = _pick_row(c, size - 1)
    half = 0.5 * c_last
    if masks.same is not None:
        half = 0.5 * dot(jnp.where(masks.same, one, zero), g, precision=precision)
    # Rows of other stretches have no meaningful distance to the end: mask before exp, too.
    write = _keep(masks.to_end, jnp.exp(_keep(masks.to_end, c_last - c)))
    return _Decays(
        centred_read=jnp.exp(c - g - half),
        centred_out=jnp.exp(c - half),
        centred_write=jnp.exp(half - c),
        read=jnp.exp(c - g),
        out=jnp.exp(c),
        write=write,
        whole=jnp.exp(c_last),
    )


class _Terms(NamedTuple):
    """What forward and backward share. Factors are rounded to the operand dtype, once."""

    masks: _Masks
    decays: _Decays
    a_mid: jax.Array
    r_mid: jax.Array
    b_mid: jax.Array
    k_mid: jax.Array
    a_in: jax.Array  # a exp(e): reads the incoming (or reset) state
    r_in: jax.Array
    b_out: jax.Array  # b exp(c_L - c): writes to the outgoing state
    k_out: jax.Array
    inverse: jax.Array
    m_ak: jax.Array
    m_rb: jax.Array
    m_rk: jax.Array
    u: jax.Array


def _read_state(x, s0, reset_state, masks, mm) -> jax.Array:
    """Rows of x [L, K] times the state that each row started from: [L, D]."""
    from_s0 = _keep(masks.from_start, mm(x, s0, (1, 1)))
    if masks.from_start is None or reset_state is None:
        return from_s0
    from_reset = mm(x, reset_state, (1, 1))
    return jnp.where(jnp.broadcast_to(masks.from_start, from_s0.shape), from_s0, from_reset)


def _start_of_last(s0, reset_state, masks) -> jax.Array:
    """The state [D, K] that the chunk's last segment started from."""
    if masks.survives is None:
        return s0
    if reset_state is None:
        return _keep(masks.survives, s0)
    return jnp.where(jnp.broadcast_to(masks.survives, s0.shape), s0, reset_state)


def _terms(r, g, k, v, a, b, s0, count, reset_state, operand_dtype, precision) -> _Terms:
    wide = s0.dtype

    def rounded(x, scale):
        return (x.astype(wide) * scale).astype(operand_dtype)

    def mm(x, y, contract=(1, 0)):
        return dot(x, y, contract, operand_dtype=operand_dtype, precision=precision)

    masks = _masks(g.shape[0], count)
    decays = _decays(g.astype(wide), masks, precision)
    a_mid, r_mid = rounded(a, decays.centred_read), rounded(r, decays.centred_out)
    b_mid, k_mid = rounded(b, decays.centred_write), rounded(k, decays.centred_write)
    a_in, r_in = rounded(a, decays.read), rounded(r, decays.out)
    m_ab = _keep(masks.strict, mm(a_mid, b_mid, (1, 1)))
    m_ak = _keep(masks.strict, mm(a_mid, k_mid, (1, 1)))
    inverse = ladder_inverse(m_ab, precision)
    z = _read_state(a_in, s0, reset_state, masks, mm) + mm(m_ak, v)
    return _Terms(
        masks,
        decays,
        a_mid,
        r_mid,
        b_mid,
        k_mid,
        a_in,
        r_in,
        rounded(b, decays.write),
        rounded(k, decays.write),
        inverse,
        m_ak,
        _keep(masks.inclusive, mm(r_mid, b_mid, (1, 1))),
        _keep(masks.inclusive, mm(r_mid, k_mid, (1, 1))),
        mm(inverse, z),
    )


def chunk_forward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array,
    *,
    count: jax.Array | None = None,
    reset_state: jax.Array | None = None,
    operand_dtype=jnp.float32,
    precision: lax.PrecisionLike = EXACT,
) -> tuple[jax.Array, jax.Array]:
    """Run one chunk.

    Args:
        r: [L, K].
        g: [L, K], the log-decay, <= 0.
        k: [L, K].
        v: [L, D].
        a: [L, K].
        b: [L, K].
        s0: [D, K], float32. Its dtype is that of every sum, exponential and inverse.
        count: [L, 1], any real dtype: resets in the chunk up to and including each row.
        reset_state: [D, K], what a reset puts in place of the state; zeros if None.
        operand_dtype: what matrix operands are rounded to, float32 or bfloat16.
        precision: of products whose operands are float32.

    Returns:
        y [L, D] and the next state [D, K], in s0's dtype.
    """

    def mm(x, y, contract=(1, 0)):
        return dot(x, y, contract, operand_dtype=operand_dtype, precision=precision)

    t = _terms(r, g, k, v, a, b, s0, count, reset_state, operand_dtype, precision)
    y = _read_state(t.r_in, s0, reset_state, t.masks, mm) + mm(t.m_rb, t.u) + mm(t.m_rk, v)
    s1 = _start_of_last(s0, reset_state, t.masks) * t.decays.whole
    return y, s1 + mm(t.u, t.b_out, (0, 0)) + mm(v, t.k_out, (0, 0))


def chunk_backward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array,
    dy: jax.Array,
    ds1: jax.Array,
    *,
    count: jax.Array | None = None,
    reset_state: jax.Array | None = None,
    operand_dtype=jnp.float32,
    precision: lax.PrecisionLike = EXACT,
) -> tuple[jax.Array, ...]:
    """Pull cotangents back through one chunk, recomputing what the forward pass had.

    Args:
        r: [L, K].
        g: [L, K].
        k: [L, K].
        v: [L, D].
        a: [L, K].
        b: [L, K].
        s0: [D, K], the state that entered the chunk.
        dy: [L, D], cotangent of y.
        ds1: [D, K], cotangent of the next state, in s0's dtype.
        count: as in `chunk_forward`.
        reset_state: as in `chunk_forward`.
        operand_dtype: as in `chunk_forward`.
        precision: as in `chunk_forward`.

    Returns:
        dr, dg, dk, dv, da, db, ds0 and, if `reset_state` is given, its cotangent, in s0's dtype.

    Pitfall: d g_t collects pairs of rows on both sides of t; each pair outside must cancel. So both
    sides use the very operands the products used. With r * dr - k * dk - b * db from separately
    rounded operands (bfloat16) the error of dg is four to ten times larger.
    """
    wide = s0.dtype

    def mm(x, y, contract=(1, 0)):
        return dot(x, y, contract, operand_dtype=operand_dtype, precision=precision)

    def times(factor, gradient):
        return factor.astype(wide) * gradient

    t = _terms(r, g, k, v, a, b, s0, count, reset_state, operand_dtype, precision)
    masks, decays = t.masks, t.decays

    du = mm(t.m_rb, dy, (0, 0)) + mm(t.b_out, ds1, (1, 1))
    dz = mm(t.inverse, du, (0, 0))
    dv = mm(t.m_rk, dy, (0, 0)) + mm(t.k_out, ds1, (1, 1)) + mm(t.m_ak, dz, (0, 0))

    dm_ab = _keep(masks.strict, mm(dz, t.u, (1, 1)))
    dm_ak = _keep(masks.strict, mm(dz, v, (1, 1)))
    dm_rb = _keep(masks.inclusive, mm(dy, t.u, (1, 1)))
    dm_rk = _keep(masks.inclusive, mm(dy, v, (1, 1)))
    da_mid = mm(dm_ab, t.b_mid) + mm(dm_ak, t.k_mid)
    dr_mid = mm(dm_rb, t.b_mid) + mm(dm_rk, t.k_mid)
    db_mid = mm(dm_ab, t.a_mid, (0, 0)) + mm(dm_rb, t.r_mid, (0, 0))
    dk_mid = mm(dm_ak, t.a_mid, (0, 0)) + mm(dm_rk, t.r_mid, (0, 0))

    da_in = _pull_read(dz, s0, reset_state, masks, mm)
    dr_in = _pull_read(dy, s0, reset_state, masks, mm)
    db_out, dk_out = mm(t.u, ds1), mm(v, ds1)

    written = times(t.b_out, db_out) + times(t.k_out, dk_out)
    start = _start_of_last(s0, reset_state, masks)
    dc_last = jnp.sum(written, axis=0, keepdims=True)
    dc_last = dc_last + decays.whole * jnp.sum(start * ds1, axis=0, keepdims=True)
    de = times(t.a_mid, da_mid) + times(t.a_in, da_in)
    dc = times(t.r_mid, dr_mid) + times(t.r_in, dr_in) - written
    dc = dc - times(t.b_mid, db_mid) - times(t.k_mid, dk_mid)
    rows = lax.broadcasted_iota(jnp.int32, dc.shape, 0)
    at_end = jnp.where(rows == dc.shape[0] - 1, jnp.broadcast_to(dc_last, dc.shape), 0)
    upto = jnp.where(masks.inclusive, 1, 0).astype(wide)
    dg = dot(upto, dc + de + at_end, (0, 0), precision=precision) - de

    dstart = ds1 * decays.whole
    ds0 = _keep(masks.survives, dstart)
    ds0 = ds0 + mm(dy, _keep(masks.from_start, t.r_in), (0, 0))
    ds0 = ds0 + mm(dz, _keep(masks.from_start, t.a_in), (0, 0))
    gradients = (
        dr_in * decays.out + dr_mid * decays.centred_out,
        dg,
        dk_out * decays.write + dk_mid * decays.centred_write,
        dv,
        da_in * decays.read + da_mid * decays.centred_read,
        db_out * decays.write + db_mid * decays.centred_write,
        ds0,
    )
    if reset_state is None:
        return gradients
    dreset = _drop(masks.survives, dstart)
    dreset = dreset + mm(dy, _drop(masks.from_start, t.r_in), (0, 0))
    return *gradients, dreset + mm(dz, _drop(masks.from_start, t.a_in), (0, 0))


def _pull_read(dx, s0, reset_state, masks, mm) -> jax.Array:
    """Transpose of `_read_state` with respect to its rows: [L, D] to [L, K]."""
    from_s0 = _keep(masks.from_start, mm(dx, s0))
    if masks.from_start is None or reset_state is None:
        return from_s0
    from_reset = mm(dx, reset_state)
    return jnp.where(jnp.broadcast_to(masks.from_start, from_s0.shape), from_s0, from_reset)

"""Singular vectors and polar factors whose derivatives stay finite where they are not unique."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.merging.arrays import safe_divide

_PRECISE = jax.lax.Precision.HIGHEST


@jax.custom_jvp
def thin_svd(a: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Singular value decomposition a = U diag(s) V^T with k = min(m, n).

    Args:
        a: a matrix.

    Returns:
        U [m, k], s [k] falling, V^T [k, n].

    Reference:
        Wan & Zhang 2019, Automatic differentiation for complex valued SVD, real case.

    Pitfall:
        Vectors of equal singular values are not unique and their derivatives infinite; here that
        part of the derivative is zero.
    """
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    return u, s, vt


@thin_svd.defjvp
def _thin_svd_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    u, s, vt = thin_svd(a)
    inner = _mul(u.T, da, vt.T)
    small = _tolerance(a, s)
    row, column = s[:, None] * jnp.ones_like(inner), s[None] * jnp.ones_like(inner)
    # (s_j - s_i)(s_j + s_i), as a product: a difference of squares would lose the small ones.
    gap = (column - row) * (column + row)
    close = (jnp.abs(column - row) <= small) | (column + row <= small)
    share = safe_divide(jnp.ones_like(gap), gap, close, 0.0)
    inverse = safe_divide(jnp.ones_like(s), s, s <= small, 0.0)
    du = _mul(u, share * (inner * column + row * inner.T))
    du = du + _off(u, _mul(da, vt.T)) * inverse[None]
    dv = _mul(vt.T, share * (row * inner + inner.T * column))
    dv = dv + _off(vt.T, _mul(da.T, u)) * inverse[None]
    return (u, s, vt), (du, jnp.diagonal(inner), dv.T)


@jax.custom_jvp
def polar_factor(a: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """The nearest matrix with orthonormal rows or columns: U V^T of a = U S V^T.

    Args:
        a: a matrix.

    Returns:
        A matrix of the same shape. Its derivative is zero along directions that `a` lacks, where
        the factor is not unique.

    Reference:
        Higham 2008, Functions of matrices, theorem 8.1 and section 8.5.
    """
    u, _, vt = jnp.linalg.svd(a, full_matrices=False)
    return _mul(u, vt)


@polar_factor.defjvp
def _polar_factor_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    u, s, vt = thin_svd(a)
    small = _tolerance(a, s)
    inner = _mul(u.T, da, vt.T)
    total = s[:, None] + s[None] * jnp.ones_like(inner)
    turn = safe_divide(inner - inner.T, total, total <= small, 0.0)
    inverse = safe_divide(jnp.ones_like(s), s, s <= small, 0.0)
    left = _mul(_off(u, _mul(da, vt.T)) * inverse[None], vt)
    right = _mul(_off(vt.T, _mul(da.T, u)) * inverse[None], u.T).T
    return _mul(u, vt), _mul(u, turn, vt) + left + right


def _mul(*matrices: Array) -> Array:
    product = matrices[0]
    for matrix in matrices[1:]:
        product = jnp.matmul(product, matrix, precision=_PRECISE)
    return product


def _off(basis: Float[Array, "m k"], a: Float[Array, "m j"]) -> Float[Array, "m j"]:
    """The part of the columns of `a` that the columns of the basis do not span."""
    return a - _mul(basis, _mul(basis.T, a))


def _tolerance(a: Array, s: Array) -> Array:
    return jnp.max(s) * jnp.finfo(s.dtype).eps * 10 * max(a.shape)

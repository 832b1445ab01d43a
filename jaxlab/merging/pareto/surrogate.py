"""A quadratic model of each metric as a function of the merging coefficients."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

Link = Literal["identity", "sigmoid", "softplus"]
_PRECISE = jax.lax.Precision.HIGHEST


@flax.struct.dataclass
class QuadraticSurrogate:
    """Metric t at c is link(offset_t + slope_t . c + c^T curvature_t c / 2)."""

    curvature: Float[Array, "t n n"]
    slope: Float[Array, "t n"]
    offset: Float[Array, " t"]
    low: Float[Array, ""]  # of the sigmoid's range
    high: Float[Array, ""]
    link: Link = flax.struct.field(pytree_node=False, default="identity")

    def __call__(self, c: Float[Array, " n"]) -> Float[Array, " t"]:
        """The predicted metrics at one vector of coefficients."""
        q = self.offset + jnp.matmul(self.slope, c, precision=_PRECISE)
        q = q + jnp.einsum("i,tij,j->t", c, self.curvature, c, precision=_PRECISE) / 2
        return apply_link(self.link, q, self.low, self.high)


class Local(NamedTuple):
    """The exact second-order expansion of a metric at the base."""

    curvature: Float[Array, "n n"]
    slope: Float[Array, " n"]
    offset: Float[Array, ""]


def apply_link(link: Link, q: Array, low: ArrayLike = 0.0, high: ArrayLike = 1.0) -> Array:
    """From a quadratic to a metric: as it is, within bounds, or positive."""
    if link == "sigmoid":
        bottom, top = (jnp.asarray(end).astype(q.dtype) for end in (low, high))
        return bottom + (top - bottom) * jax.nn.sigmoid(q)
    return jax.nn.softplus(q) if link == "softplus" else q


def num_coefficients(n: int) -> int:
    """Unknowns of a quadratic in n variables: (n + 1)(n + 2) / 2."""
    return (n + 1) * (n + 2) // 2


def design_quadratic(points: Float[Array, "k n"]) -> Float[Array, "k p"]:
    """The monomials 1, c_i, c_i c_j (i <= j), with c_i^2 halved.

    Args:
        points: coefficient vectors.

    Returns:
        Regressors, in the order offset, slopes, curvatures of the upper triangle by rows.
    """
    rows, columns = np.triu_indices(points.shape[1])
    half = jnp.asarray(np.where(rows == columns, 0.5, 1.0), points.dtype)
    square = points[:, rows] * points[:, columns] * half[None]
    return jnp.concatenate([jnp.ones_like(points[:, :1]), points, square], axis=1)


def fit_quadratic(
    points: Float[Array, "t k n"] | Float[Array, "k n"],
    values: Float[Array, "k t"],
    link: Link = "identity",
    *,
    bounds: tuple[ArrayLike, ArrayLike] = (0.0, 1.0),
    resolution: ArrayLike = 1e-3,
    ridge: float = 1e-8,
    steps: int = 30,
) -> QuadraticSurrogate:
    """Least-squares fit of one quadratic per metric.

    Args:
        points: coefficient vectors, at least `num_coefficients`, of all metrics or of each.
        values: metrics at the points.
        link: "sigmoid" for a metric within `bounds`, "softplus" for a positive one.
        bounds: range of the sigmoid.
        resolution: how near to the bounds (as a share of their distance) a value is taken to be in
            the start of the fit; 1 / (2 examples) for an accuracy.
        ridge: weight of the squared coefficients, relative to the columns' own squares.
        steps: of Levenberg-Marquardt on the linked model.

    Returns:
        The surrogate.

    Raises:
        ValueError: an unknown link, or fewer points than unknowns.

    Reference:
        Li et al. 2025, MAP: low-compute model merging with amortized Pareto fronts, section 3.

    Pitfall:
        An accuracy is a step function of the coefficients and its logit infinite at 0 and 1; a fit
        of logits alone trusts those points most.
    """
    if link not in get_args(Link):
        raise ValueError(f"link: expected one of {get_args(Link)}, got {link!r}")
    n = points.shape[-1]
    if values.shape[0] < num_coefficients(n):
        raise ValueError(
            f"points: expected at least {num_coefficients(n)} for {n} models, got {len(values)}"
        )
    low, high = (jnp.asarray(b).astype(values.dtype) for b in bounds)
    shared = points.ndim == 2

    def one(c: Float[Array, "k n"], y: Float[Array, " k"]) -> Array:
        phi = design_quadratic(c)
        goal, weight = _linearised(link, y, low, high, jnp.asarray(resolution).astype(y.dtype))
        theta = _least_squares(phi, goal, weight, ridge)
        if link == "identity":
            return theta
        model = lambda t: apply_link(link, jnp.matmul(phi, t, precision=_PRECISE), low, high)  # noqa: E731
        return _levenberg_marquardt(model, theta, y, ridge, steps)

    axes = (None if shared else 0, 1)
    theta = jax.vmap(one, in_axes=axes)(points, values)
    rows, columns = np.triu_indices(n)
    upper = (
        jnp.zeros((theta.shape[0], n, n), theta.dtype).at[:, rows, columns].set(theta[:, 1 + n :])
    )
    curvature = upper + jnp.swapaxes(upper, 1, 2) * (1 - jnp.eye(n, dtype=theta.dtype))[None]
    return QuadraticSurrogate(curvature, theta[:, 1 : 1 + n], theta[:, 0], low, high, link)


def local_quadratic(
    base: PyTree[Float[Array, "..."]],
    vectors: PyTree[Float[Array, "n ..."]],
    loss: Callable[[PyTree], Float[Array, ""]],
) -> Local:
    """The expansion of a loss around the base within the span of task vectors.

    Args:
        base: a model.
        vectors: task vectors, stacked.
        loss: differentiable metric of a model.

    Returns:
        c^T A c / 2 + b . c + e with A = V^T H V and b = V^T g; the Hessian H is never formed.
    """

    def along(c: Float[Array, " n"]) -> Array:
        return loss(
            jax.tree.map(lambda b, v: b + jnp.tensordot(c.astype(v.dtype), v, 1), base, vectors)
        )

    zero = jnp.zeros(jax.tree.leaves(vectors)[0].shape[0])
    offset, slope = jax.value_and_grad(along)(zero)
    return Local(jax.hessian(along)(zero), slope, offset)


def r_squared(predicted: Float[Array, "k t"], actual: Float[Array, "k t"]) -> Float[Array, " t"]:
    """Share of the variance of each metric over points that a prediction explains."""
    rest = jnp.sum((actual - predicted) ** 2, axis=0)
    total = jnp.sum((actual - jnp.mean(actual, axis=0, keepdims=True)) ** 2, axis=0)
    return jnp.where(total > 0, 1 - rest / jnp.where(total > 0, total, 1), 0)


def _linearised(link: Link, y: Array, low: Array, high: Array, resolution: Array) -> Any:
    """The quadratic that would give the metric, and how much to trust it."""
    if link == "sigmoid":
        share = jnp.clip((y - low) / (high - low), resolution, 1 - resolution)
        return jnp.log(share) - jnp.log1p(-share), share * (1 - share)
    if link == "softplus":
        positive = jnp.maximum(y, resolution)
        q = positive + jnp.log(-jnp.expm1(-positive))
        return q, jax.nn.sigmoid(q)
    return y, jnp.ones_like(y)


def _least_squares(phi: Array, y: Array, weight: Array, ridge: float) -> Array:
    """Weighted ridge regression on columns of unit length, by a QR decomposition."""
    phi, y = phi * weight[:, None], y * weight
    scale = jnp.sqrt(jnp.sum(phi**2, axis=0))
    scale = jnp.where(scale > 0, scale, 1)
    unknowns = phi.shape[1]
    padded = jnp.concatenate([phi / scale[None], ridge**0.5 * jnp.eye(unknowns, dtype=phi.dtype)])
    q, r = jnp.linalg.qr(padded)
    right = jnp.matmul(q.T, jnp.concatenate([y, jnp.zeros(unknowns, y.dtype)]), precision=_PRECISE)
    return jax.scipy.linalg.solve_triangular(r, right) / scale


def _levenberg_marquardt(
    model: Callable[[Array], Array], theta: Array, y: Array, ridge: float, steps: int
) -> Array:
    def loss(theta: Array) -> Array:
        return jnp.sum((y - model(theta)) ** 2)

    def step(state: tuple, _: Any) -> tuple[tuple, None]:
        theta, damping, best = state
        jacobian = jax.jacfwd(model)(theta)
        scale = jnp.sqrt(jnp.sum(jacobian**2, axis=0))
        scale = jnp.where(scale > 0, scale, 1)
        unit = jacobian / scale[None]
        normal = jnp.matmul(unit.T, unit, precision=_PRECISE)
        normal = normal + (damping + ridge) * jnp.eye(len(theta), dtype=theta.dtype)
        slope = jnp.matmul(unit.T, y - model(theta), precision=_PRECISE)
        moved = theta + jax.scipy.linalg.solve(normal, slope, assume_a="pos") / scale
        found = loss(moved)
        better = found < best
        return (
            jnp.where(better, moved, theta),
            jnp.clip(jnp.where(better, damping / 4, damping * 8), 1e-7, 1e4),
            jnp.where(better, found, best),
        ), None

    start = (theta, jnp.full((), 1e-2, theta.dtype), loss(theta))
    (theta, _, _), _ = jax.lax.scan(step, start, length=steps)
    return theta

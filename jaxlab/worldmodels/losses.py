"""Losses of one-step dynamics models: likelihood, squared error and value-aware ones."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Metrics = dict[str, Array]
ValueFn = Callable[[Float[Array, " o"]], Float[Array, "*J"]]  # obs[o] -> [] or, for J critics, [J]


def gaussian_nll(
    mean: Float[Array, "*e B d"],
    logvar: Float[Array, "*e B d"],
    target: Float[Array, "B d"],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Gaussian negative log-likelihood without its constants: (mu - y)^2 exp(-l) + l.

    Args:
        mean: predicted means, with any leading member axes.
        logvar: predicted log-variances l.
        target: observed values y, shared by the members.
        mask: rows that count; None for all.

    Returns:
        Sum over members of the mean over rows and dimensions, so that a member's gradient does not
        depend on how many there are; metrics "mse" and "logvar".

    Reference:
        Chua et al. 2018 (PETS), section 3 (twice their loss, less the constant).
    """
    error2 = _error(mean, target, mask) ** 2
    logvar = _counted(logvar, mask)
    nll = jnp.mean(error2 * jnp.exp(-logvar) + logvar, axis=-1)
    per_member = _row_mean(nll, mask)
    metrics = {
        "mse": jnp.mean(_row_mean(jnp.mean(error2, axis=-1), mask)),
        "logvar": jnp.mean(_row_mean(jnp.mean(logvar, axis=-1), mask)),
    }
    return jnp.sum(per_member), metrics


def mse_loss(
    pred: Float[Array, "*e B d"],
    target: Float[Array, "B d"],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Squared Euclidean error, summed over dimensions.

    Args:
        pred: predictions, with any leading member axes.
        target: observed values.
        mask: rows that count; None for all.

    Returns:
        Mean over members and rows; metric "mse", the mean over dimensions too.
    """
    loss = jnp.mean(_row_mean(jnp.sum(_error(pred, target, mask) ** 2, axis=-1), mask))
    return loss, {"mse": loss / target.shape[-1]}


def value_gradients(
    value_fn: ValueFn,
    next_obs: Float[Array, "B o"],
    *,
    clip_quantile: float | None = 0.95,
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, "*J B o"]:
    """Gradients of a value function at real next states, as constants.

    Args:
        value_fn: obs[o] -> scalar, or [J] for J critics.
        next_obs: observed (never predicted) next states.
        clip_quantile: see `clip_gradient_norm`, applied per critic over these rows; None for off.
        mask: rows that count in the quantile; None for all.

    Returns:
        g[B, o], or g[J, B, o] if `value_fn` returns [J].

    Raises:
        ValueError: if `value_fn` returns neither a scalar nor a vector, or the quantile is out of
            range.

    Reference:
        Voelcker et al. 2022 (VaGraM), section 4.

    Pitfall:
        A [J] value function costs J backward passes through all J critics. If the critics are
        stacked parameters, `vmap` this function over them instead: the same [J, B, o], J times
        cheaper. Adding up the critics' gradients in one buffer weights critic j by the sum of the
        gradients 1 to j.
    """
    shape = jax.eval_shape(value_fn, next_obs[0]).shape
    if len(shape) > 1:
        raise ValueError(f"value_fn: expected a scalar or a vector of critics, got shape {shape}")
    g = jax.vmap(jax.jacrev(value_fn))(next_obs)
    if shape:
        g = jnp.moveaxis(g, 1, 0)
    if clip_quantile is not None:
        g = clip_gradient_norm(g, clip_quantile, mask)[0]
    return jax.lax.stop_gradient(g)


def clip_gradient_norm(
    g: Float[Array, "*J B o"],
    quantile: float | Float[Array, ""],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, "*J B o"], Float[Array, ""]]:
    """Shortens the rows whose norm exceeds a quantile of the rows' norms.

    Args:
        g: gradients, rows on the last but one axis.
        quantile: level in [0, 1], traced; linear interpolation between order statistics.
        mask: rows that count in the quantile; None for all.

    Returns:
        g min(1, c / |g|) with c the quantile of |g| over the rows, and the share of rows clipped.

    Raises:
        ValueError: if the level is a number out of range.
    """
    if isinstance(quantile, int | float) and not 0 <= quantile <= 1:
        raise ValueError(f"quantile: expected within [0, 1], got {quantile}")
    norm = jnp.sqrt(jnp.sum(g**2, axis=-1))
    rows = jnp.ones(norm.shape[-1:], bool) if mask is None else mask
    counted = jnp.broadcast_to(rows, norm.shape)
    ordered = jnp.sort(jnp.where(counted, norm, jnp.inf), axis=-1)
    last = jnp.sum(rows) - 1
    position = jnp.asarray(quantile, norm.dtype) * last.astype(norm.dtype)
    low = jnp.clip(jnp.floor(position).astype(last.dtype), 0, last)
    high = jnp.minimum(low + 1, last)
    share = position - low.astype(norm.dtype)
    below, above = jnp.take(ordered, low, axis=-1), jnp.take(ordered, high, axis=-1)
    limit = (below + share * (above - below))[..., None]
    over = norm > limit
    scale = jnp.where(over, limit / jnp.where(over, norm, 1), 1)
    clipped = jnp.sum(over & counted).astype(norm.dtype) / jnp.sum(counted).astype(norm.dtype)
    return g * scale[..., None], clipped


def value_gradient_weighted_loss(
    pred: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    g: Float[Array, "*J B o"],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Squared error, each dimension weighted by the value gradient: mean_j sum_d (g_jd e_d)^2.

    Args:
        pred: predicted next states, with any leading member axes.
        next_obs: observed next states.
        g: from `value_gradients`, at `next_obs`; with a leading critic axis or without.
        mask: rows that count; None for all.

    Returns:
        Mean over members and rows; metrics of `weighted_squared_error`.

    Reference:
        Voelcker et al. 2022 (VaGraM), eq. 6. The authors' program averages over the o dimensions
        where this sums: its scale is this loss divided by o.
    """
    return weighted_squared_error(pred, next_obs, critic_mean_square(g), mask)


def critic_mean_square(g: Float[Array, "*J B o"]) -> Float[Array, "B o"]:
    """Weights mean_j g_jd^2: the mean of the critics' losses is one loss with these weights.

    Args:
        g: gradients, with a leading critic axis or without.

    Returns:
        Weights per row and dimension, as constants.
    """
    weights = g**2 if g.ndim == 2 else jnp.mean(g**2, axis=0)
    return jax.lax.stop_gradient(weights)


def weighted_squared_error(
    pred: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    weights: Float[Array, "B o"],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Squared error with given weights per row and dimension, summed over dimensions.

    Args:
        pred: predictions, with any leading member axes.
        next_obs: observed values.
        weights: non-negative weights.
        mask: rows that count; None for all.

    Returns:
        Mean over members and rows; metrics "weighted_error_per_dim" [o] (adds up to the loss) and
        "effective_dims", (sum w)^2 / sum w^2 of the mean weights: o if all dimensions weigh the
        same, 1 if only one counts, 0 if none does.
    """
    weighted = jnp.broadcast_to(weights, pred.shape) * _error(pred, next_obs, mask) ** 2
    loss = jnp.mean(_row_mean(jnp.sum(weighted, axis=-1), mask))
    leading = tuple(range(pred.ndim - 2))
    mean_weights = _row_mean(weights.T, mask)
    # Relative to the largest one, as squares of small weights underflow.
    top = jnp.max(mean_weights)
    share = mean_weights / jnp.where(top > 0, top, 1)
    total2 = jnp.sum(share**2)
    metrics = {
        "weighted_error_per_dim": _row_mean(jnp.mean(weighted, axis=leading).T, mask),
        "effective_dims": jnp.sum(share) ** 2 / jnp.where(total2 > 0, total2, 1),
    }
    return loss, metrics


def taylor_value_aware_loss(
    pred: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    g: Float[Array, "*J B o"],
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """First-order value error: mean_j (sum_d g_jd e_d)^2.

    Args:
        pred: predicted next states, with any leading member axes.
        next_obs: observed next states.
        g: from `value_gradients`, at `next_obs`; with a leading critic axis or without.
        mask: rows that count; None for all.

    Returns:
        Mean over members and rows; metric "value_error", mean |sum_d g_d e_d|.

    Reference:
        Voelcker et al. 2022 (VaGraM), eq. 5.

    Pitfall:
        Every prediction on a hyperplane through the real next state is optimal.
    """
    error = _error(pred, next_obs, mask)
    gradients = jax.lax.stop_gradient(g if g.ndim == 3 else g[None])  # [J, B, o]
    first_order = jnp.einsum("...bd,jbd->j...b", error, gradients)
    return _squared_value_loss(first_order, mask)


def iter_value_aware_loss(
    pred: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    value_fn: ValueFn,
    mask: Bool[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Squared difference of the values of predicted and real next state.

    Args:
        pred: predicted next states, with any leading member axes.
        next_obs: observed next states.
        value_fn: obs[o] -> scalar, or [J] for J critics; no gradient reaches what it closes over.
        mask: rows that count; None for all.

    Returns:
        Mean over critics, members and rows of (V_j(pred) - V_j(s'))^2; metric "value_error", the
        mean of |V_j(pred) - V_j(s')|.

    Reference:
        Farahmand 2018 (IterVAML); Voelcker et al. 2022, eq. 3.

    Pitfall:
        The gradient is the value's at the predicted state: any point of the same value is optimal.
    """
    difference = _value_difference(value_fn, pred, next_obs, mask)
    return _squared_value_loss(difference, mask)


def value_error(
    value_fn: ValueFn,
    pred: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    mask: Bool[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """Mean absolute difference of the values of predicted and real next state.

    Args:
        value_fn: obs[o] -> scalar, or [J] for J critics.
        pred: predicted next states, with any leading member axes.
        next_obs: observed next states.
        mask: rows that count; None for all.

    Returns:
        Mean over critics, members and rows of |V_j(pred) - V_j(s')|.
    """
    difference = _value_difference(value_fn, pred, next_obs, mask)
    return jnp.mean(_row_mean(jnp.abs(difference), mask))


def _value_difference(value_fn: ValueFn, pred: Array, next_obs: Array, mask: Array | None) -> Array:
    """V_j(pred) - V_j(s') as [J, *e, B], with the value function's own parameters held constant."""
    # Hoists the differentiated arrays that the closure captured, so that they can be frozen.
    frozen, captured = jax.closure_convert(value_fn, next_obs[0])
    captured = jax.lax.stop_gradient(captured)

    def values(obs: Array) -> Array:
        flat = jax.vmap(lambda row: jnp.atleast_1d(frozen(row, *captured)))(
            obs.reshape(math.prod(obs.shape[:-1]), obs.shape[-1])
        )
        return jnp.moveaxis(flat, -1, 0).reshape((flat.shape[-1], *obs.shape[:-1]))

    of_pred, of_real = values(_counted(pred, mask)), values(next_obs)
    real = of_real.reshape((of_real.shape[0],) + (1,) * (pred.ndim - 2) + of_real.shape[1:])
    return of_pred - jnp.broadcast_to(real, of_pred.shape)


def _squared_value_loss(difference: Array, mask: Array | None) -> tuple[Array, Metrics]:
    loss = jnp.mean(_row_mean(difference**2, mask))
    return loss, {"value_error": jnp.mean(_row_mean(jnp.abs(difference), mask))}


def _error(pred: Array, target: Array, mask: Array | None) -> Array:
    return _counted(pred - jnp.broadcast_to(target, pred.shape), mask)


def _counted(x: Float[Array, "*e B d"], mask: Bool[Array, " B"] | None) -> Float[Array, "*e B d"]:
    """Zeros in the rows that do not count.

    Without them a NaN would come back in the gradient, as 0 times the slope of the loss there.
    """
    return x if mask is None else jnp.where(jnp.broadcast_to(mask[:, None], x.shape), x, 0)


def _row_mean(x: Float[Array, "*e B"], mask: Bool[Array, " B"] | None) -> Float[Array, "*e"]:
    if mask is None:
        return jnp.mean(x, axis=-1)
    rows = jnp.broadcast_to(mask, x.shape)
    # An invalid row may hold anything, also a NaN, which a product with 0 would let through.
    count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    return jnp.sum(jnp.where(rows, x, 0), axis=-1) / count

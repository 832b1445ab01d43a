"""Likelihoods that count some transitions more than others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxlab.worldmodels.losses import Metrics


def distance_weights(
    x: Float[Array, "N d"],
    reference: Float[Array, "M d"],
    scale: Float[Array, " d"],
    c: ArrayLike,
    valid: Bool[Array, " N"] | None = None,
) -> Float[Array, " N"]:
    """Weights exp(-c d_i) of mean one, d_i the distance to the nearest reference point.

    Args:
        x: points, for instance [obs, action] of transitions.
        reference: points that matter, for instance those of an expert's trajectory.
        scale: unit of each dimension.
        c: how fast weights fall, at least 0, per unit; 0 weighs all alike, exactly.
        valid: rows that count; the others get weight 0. None for all.

    Returns:
        Weights as constants.

    Reference:
        Lambert et al. 2020, Objective Mismatch in Model-based RL, section 5.

    Pitfall:
        exp(-c d) of all points may underflow; relative to the nearest point it does not.
    """
    gap = (x[:, None, :] - reference[None, :, :]) / scale[None, None, :]
    distance = jnp.sqrt(jnp.min(jnp.sum(gap**2, axis=-1), axis=1))
    rows = jnp.ones(distance.shape, bool) if valid is None else valid
    nearest = jnp.min(jnp.where(rows, distance, jnp.inf))
    raw = jnp.exp(-jnp.asarray(c, distance.dtype) * (distance - nearest))
    raw = jnp.where(rows, raw, 0)
    mean = jnp.sum(raw) / jnp.sum(rows.astype(raw.dtype))
    return jax.lax.stop_gradient(raw / mean)


def weighted_nll(
    mean: Float[Array, "*e B d"],
    logvar: Float[Array, "*e B d"],
    target: Float[Array, "B d"],
    weights: Float[Array, " B"],
) -> tuple[Float[Array, ""], Metrics]:
    """Gaussian negative log-likelihood without its constants, weighted by rows.

    Args:
        mean: predicted means, with any leading member axes.
        logvar: predicted log-variances.
        target: observed values, shared by the members.
        weights: of the rows, of mean one over the data set; ones give `losses.gaussian_nll`.

    Returns:
        Sum over members of the mean over rows of w times the mean over dimensions of
        (mu - y)^2 exp(-l) + l; metric "effective_rows", (sum w)^2 / sum w^2.
    """
    error2 = (mean - jnp.broadcast_to(target, mean.shape)) ** 2
    nll = jnp.mean(error2 * jnp.exp(-logvar) + logvar, axis=-1)
    loss = jnp.sum(jnp.mean(jnp.broadcast_to(weights, nll.shape) * nll, axis=-1))
    return loss, {"effective_rows": jnp.sum(weights) ** 2 / jnp.sum(weights**2)}

"""Numbers that tell how a value network is doing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxlab.values.arrays import at_least_float32, check_same_shape, masked_mean

Metrics = dict[str, Float[Array, ""]]


def td_error_stats(td_error: Num[Array, "*b"], mask: ArrayLike | None = None) -> Metrics:
    """Location, spread and extremes of temporal-difference errors.

    Args:
        td_error: target - prediction.
        mask: errors that count; None for all.

    Returns:
        "mean" (bias), "std" (population), "abs_mean" and "abs_max".
    """
    (error,) = at_least_float32(td_error)
    mean = masked_mean(error, mask)
    magnitude = jnp.abs(error)
    counted = magnitude if mask is None else jnp.where(jnp.asarray(mask) != 0, magnitude, 0)
    return {
        "mean": mean,
        "std": jnp.sqrt(masked_mean((error - mean) ** 2, mask)),
        "abs_mean": masked_mean(magnitude, mask),
        "abs_max": jnp.max(counted),
    }


def effective_rank(features: Num[Array, "n d"], delta: ArrayLike = 0.01) -> Float[Array, ""]:
    """Fewest singular values that make up 1 - delta of their sum.

    Args:
        features: the last hidden layer's outputs of n states.
        delta: share of the sum that may be missing.

    Returns:
        A whole number as float; 0 for features that are all zero.

    Reference:
        Kumar et al. 2021 (Implicit under-parameterization), definition 1.
    """
    features, delta = at_least_float32(features, delta)
    singular = jnp.linalg.svd(features, compute_uv=False)
    total = jnp.sum(singular)
    missing = jnp.cumsum(singular) < (1 - delta) * total
    # With delta = 0 rounding may leave even the sum of all below their total.
    rank = jnp.minimum(jnp.sum(missing) + 1, singular.shape[0])
    return jnp.where(total > 0, rank, 0).astype(features.dtype)


def dormant_ratio(activations: Num[Array, "n h"], tau: ArrayLike = 0.025) -> Float[Array, ""]:
    """Share of a layer's units that hardly ever fire.

    Args:
        activations: outputs of h hidden units for n states.
        tau: a unit is dormant if its mean magnitude is at most tau times the layer's mean.

    Returns:
        A share; 1 if all outputs are zero.

    Reference:
        Sokar et al. 2023 (The dormant neuron phenomenon), definition 3.1.
    """
    activations, tau = at_least_float32(activations, tau)
    score = jnp.mean(jnp.abs(activations), axis=0)
    return jnp.mean((score <= tau * jnp.mean(score)).astype(score.dtype))


def overestimation(
    q_max: Num[Array, "*b"], mc_return: Num[Array, "*b"], mask: ArrayLike | None = None
) -> Metrics:
    """How much a greedy value promises beyond what the greedy policy gets.

    Args:
        q_max: max_a Q(s, a).
        mc_return: discounted return of the greedy policy from s (or its exact value).
        mask: states that count; None for all.

    Returns:
        "bias", the mean difference, and "rms".

    Reference:
        van Hasselt et al. 2016 (Deep RL with double Q-learning), section 3.
    """
    q_max, mc_return = at_least_float32(q_max, mc_return)
    check_same_shape(q_max=q_max, mc_return=mc_return)
    gap = jax.lax.stop_gradient(q_max - mc_return)
    return {
        "bias": masked_mean(gap, mask),
        "rms": jnp.sqrt(masked_mean(gap**2, mask)),
    }

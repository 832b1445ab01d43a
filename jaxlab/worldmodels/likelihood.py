"""How likely a model finds what happened."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def log_likelihood(
    mean: Float[Array, "E *b d"],
    logvar: Float[Array, "E *b d"],
    target: Float[Array, "*b d"],
    *,
    mixture: bool = True,
) -> Float[Array, "*b"]:
    """Log-density of observed values under an ensemble of diagonal Gaussians, in nats.

    Args:
        mean: every member's mean.
        logvar: every member's log-variance.
        target: observed values.
        mixture: the members are equally likely explanations, log mean_e p_e; otherwise the mean of
            their log-densities, which is never more.

    Returns:
        Joint log-densities, constants included and summed over dimensions.

    Reference:
        Lambert et al. 2020, Objective Mismatch in Model-based RL, section 3.
    """
    error2 = (mean - target[None]) ** 2
    per_dim = -0.5 * (error2 * jnp.exp(-logvar) + logvar + math.log(2 * math.pi))
    per_member = jnp.sum(per_dim, axis=-1)
    if mixture:
        return jax.nn.logsumexp(per_member, axis=0) - math.log(mean.shape[0])
    return jnp.mean(per_member, axis=0)

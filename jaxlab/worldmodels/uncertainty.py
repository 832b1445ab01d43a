"""How unsure an ensemble is of a prediction: what penalised rollouts subtract from the reward."""

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.arrays import safe_sqrt

Uncertainty = Literal["aleatoric", "pairwise", "ensemble_std"]


def uncertainty(
    mean: Float[Array, "E *b d"], logvar: Float[Array, "E *b d"] | None, kind: Uncertainty
) -> Float[Array, "*b"]:
    """One number per row from the members' predictions.

    Args:
        mean: every member's mean of [next_obs - obs, reward], in the environment's units.
        logvar: every member's log-variance; None for a deterministic ensemble.
        kind: "aleatoric", max_e |sigma_e|; "pairwise", max_e |mean_e - mean of means|;
            "ensemble_std", the root mean square over outputs of the means' standard deviation.

    Returns:
        Non-negative uncertainties, 0 for "pairwise" and "ensemble_std" where all members agree,
        and then with gradient 0.

    Raises:
        ValueError: if the kind is unknown, or "aleatoric" is asked of a deterministic ensemble.

    Reference:
        Yu et al. 2020 (MOPO), section 4.3 for "aleatoric"; Lu et al. 2022 (Revisiting design
        choices in offline model-based RL), section 3, for all three.
    """
    if kind not in get_args(Uncertainty):
        raise ValueError(f"kind: expected one of {get_args(Uncertainty)}, got {kind!r}")
    if kind == "aleatoric":
        if logvar is None:
            raise ValueError("logvar: expected an array for 'aleatoric', got None")
        return jnp.sqrt(jnp.max(jnp.sum(jnp.exp(logvar), axis=-1), axis=0))
    apart = mean - jnp.mean(mean, axis=0, keepdims=True)
    if kind == "pairwise":
        return safe_sqrt(jnp.max(jnp.sum(apart**2, axis=-1), axis=0))
    return safe_sqrt(jnp.mean(apart**2, axis=(0, -1)))

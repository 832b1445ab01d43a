"""Values as quantiles of the return: regression loss, fractions and their embedding."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, Num

from jaxlab import nets
from jaxlab.values.arrays import at_least_float32, check_same_shape, hide, masked_mean

Metrics = dict[str, Float[Array, ""]]


def quantile_midpoints(count: int) -> Float[Array, " N"]:
    """Fractions (2 i + 1) / (2 N), whose quantiles approximate a distribution best.

    Args:
        count: number of quantiles N.

    Returns:
        Increasing fractions within (0, 1).

    Raises:
        ValueError: if `count` is not positive.

    Reference:
        Dabney et al. 2018 (QR-DQN), lemma 2.
    """
    if count < 1:
        raise ValueError(f"count: expected at least one quantile, got {count}")
    return (2 * jnp.arange(count, dtype=jnp.float32) + 1) / (2 * count)


def quantile_huber_loss_per_example(
    theta: Num[Array, "*b N"],
    tau: Num[Array, "*b N"],
    target: Num[Array, "*b M"],
    kappa: ArrayLike = 1.0,
) -> Float[Array, "*b"]:
    """Asymmetric Huber loss of predicted quantiles against samples or quantiles of the target.

    Args:
        theta: predicted quantiles.
        tau: their fractions.
        target: target values, taken as constants.
        kappa: error up to which the loss is quadratic; 0 gives the plain quantile loss.

    Returns:
        sum_i mean_j |tau_i - 1{u_ij < 0}| huber_kappa(u_ij) with u_ij = target_j - theta_i, where
        huber_kappa(u) is u^2 / 2 within kappa and kappa (|u| - kappa / 2) beyond, not divided by
        kappa; |u| for kappa = 0.

    Raises:
        ValueError: if there is not one fraction per quantile.

    Reference:
        Dabney et al. 2018 (QR-DQN), eq. 9 and 10. Dabney et al. 2018 (IQN), eq. 3, divides by
        kappa; with kappa = 1 both agree.
    """
    theta, tau, target, kappa = at_least_float32(theta, tau, target, kappa)
    check_same_shape(theta=theta, tau=tau)
    error = jax.lax.stop_gradient(target)[..., None, :] - theta[..., :, None]
    magnitude = jnp.abs(error)
    within = jnp.minimum(magnitude, kappa)  # the quadratic part, in one piece with the linear one
    huber = jnp.where(kappa > 0, within * (magnitude - 0.5 * within), magnitude)
    weight = jnp.abs(tau[..., :, None] - (error < 0).astype(error.dtype))
    return jnp.sum(jnp.mean(weight * huber, axis=-1), axis=-1)


def quantile_huber_loss(
    theta: Num[Array, "*b N"],
    tau: Num[Array, "*b N"],
    target: Num[Array, "*b M"],
    kappa: ArrayLike = 1.0,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of `quantile_huber_loss_per_example`.

    Args:
        theta: predicted quantiles.
        tau: their fractions, increasing along the last axis for the metric to mean something.
        target: target values, taken as constants.
        kappa: error up to which the loss is quadratic.
        mask: examples that count; None for all.

    Returns:
        The loss, and "crossing_rate".
    """
    theta, tau, target = hide(mask, theta, tau, target)
    loss = masked_mean(quantile_huber_loss_per_example(theta, tau, target, kappa), mask)
    return loss, {"crossing_rate": masked_mean(crossing_rate(theta), mask)}


def crossing_rate(theta: Num[Array, "*b N"]) -> Float[Array, "*b"]:
    """Share of neighbouring quantiles in the wrong order.

    Args:
        theta: quantiles of increasing fractions.

    Returns:
        0 for a distribution function, and for a single quantile.
    """
    wrong = (theta[..., 1:] < theta[..., :-1]).astype(jnp.float32)
    return jnp.sum(wrong, axis=-1) / max(theta.shape[-1] - 1, 1)


def cosine_embedding_init(
    key: Key[Array, ""], dim: int, *, num_cosines: int = 64
) -> nets.LayerParams:
    """Draws the layer that embeds sampled fractions.

    Args:
        key: random key.
        dim: length of the features that the embedding multiplies.
        num_cosines: cosines per fraction.

    Returns:
        kernel[num_cosines, dim] and bias[dim].
    """
    return nets.mlp_init(key, (num_cosines, dim))[0]


def cosine_embedding(params: nets.LayerParams, tau: Float[Array, "*b N"]) -> Float[Array, "*b N d"]:
    """Embeds fractions: relu(sum_i cos(pi i tau) w_ij + b_j), i from 0.

    Args:
        params: from `cosine_embedding_init`.
        tau: fractions, drawn uniformly from (0, 1) for every example.

    Returns:
        Factors of the state's features.

    Reference:
        Dabney et al. 2018 (IQN), eq. 4.
    """
    frequency = math.pi * jnp.arange(params["kernel"].shape[0], dtype=tau.dtype)
    angle = tau[..., None] * jnp.broadcast_to(frequency, (*tau.shape, frequency.shape[0]))
    return jax.nn.relu(nets.mlp_apply((params,), jnp.cos(angle)))

"""Values as categorical distributions on a fixed grid: projections, means and their loss."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxlab.values.arrays import at_least_float32, check_same_shape, hide, masked_mean
from jaxlab.values.supports import Support

Metrics = dict[str, Float[Array, ""]]


def categorical_mean(logits: Float[Array, "*b m"], support: Support) -> Float[Array, "*b"]:
    """Expected value of a categorical head, in the environment's units.

    Args:
        logits: unnormalised log-probabilities of any float dtype.
        support: the grid.

    Returns:
        float32 values; equal logits give exactly the centre of the support.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return support.value_of(support.expectation(probs))


def two_hot(y: Num[Array, "*b"], support: Support) -> Float[Array, "*b m"]:
    """Splits the mass between the two locations around each value, keeping the mean.

    Args:
        y: values in the environment's units; beyond the ends they count as the ends.
        support: the grid of m locations.

    Returns:
        float32 probabilities.

    Reference:
        Bellemare et al. 2017, eq. 7, for one value; Schrittwieser et al. 2020 (MuZero), appendix F.

    Pitfall:
        A small constant added to the spacing "against division by zero" moves the mean.
    """
    lower, upper_weight = _neighbours(support.project_units(y), support)
    locations = jnp.arange(support.num_bins, dtype=jnp.int32)
    lower, upper_weight = lower[..., None], upper_weight[..., None]
    index = jnp.broadcast_to(locations, (*lower.shape[:-1], support.num_bins))
    return jnp.where(index == lower, 1 - upper_weight, 0) + jnp.where(
        index == lower + 1, upper_weight, 0
    )


def hl_gauss(
    y: Num[Array, "*b"], support: Support, sigma_ratio: ArrayLike = 0.75
) -> Float[Array, "*b m"]:
    """Mass of a normal distribution around each value in each bin, renormalised to the support.

    Args:
        y: values in the environment's units; beyond the ends they count as the ends.
        support: a grid of kind "bins".
        sigma_ratio: standard deviation in bin widths, positive.

    Returns:
        float32 probabilities.

    Raises:
        ValueError: if the support has no bins or the ratio is a number that is not positive.

    Reference:
        Imani & White 2018; Farebrother et al. 2024 (Stop regressing), section 3.1.

    Pitfall:
        A value two bins outside of the support gives 0/0 in float32, hence the clip; and the mean
        is drawn inwards within three standard deviations of an end (see `edge_fraction`).
    """
    sigma = _sigma(support, sigma_ratio)
    z = jnp.clip(support.project_units(y), support.vmin, support.vmax)
    distance = jnp.broadcast_to(support.edges, (*z.shape, support.num_bins + 1)) - z[..., None]
    cdf = jax.scipy.special.erf(distance / (math.sqrt(2) * sigma))
    return (cdf[..., 1:] - cdf[..., :-1]) / (cdf[..., -1:] - cdf[..., :1])


def edge_fraction(
    y: Num[Array, "*b"],
    support: Support,
    sigma_ratio: ArrayLike = 0.75,
    mask: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Share of the targets within three standard deviations of an end of the support, or beyond.

    Args:
        y: values in the environment's units.
        support: a grid of kind "bins".
        sigma_ratio: standard deviation in bin widths.
        mask: values that count; None for all.

    Returns:
        A share in [0, 1]; above 0.01 the support is too narrow for HL-Gauss.
    """
    z, margin = support.project_units(y), 3 * _sigma(support, sigma_ratio)
    near = (z - support.vmin < margin) | (support.vmax - z < margin)
    return masked_mean(near.astype(jnp.float32), mask)


def c51_project(
    z_src: Float[Array, "*b k"], p_src: Float[Array, "*b k"], support: Support
) -> Float[Array, "*b m"]:
    """Moves a discrete distribution onto the grid, keeping its mean where it is inside.

    Args:
        z_src: where the mass is, in the units of `support.locations`; beyond the ends it counts as
            at the ends.
        p_src: how much there is.
        support: the grid of m locations.

    Returns:
        float32 probabilities. Every source atom is split between its two neighbours: O(k), not the
        O(k m) of the dense form.

    Reference:
        Bellemare et al. 2017 (C51), eq. 7 and algorithm 1.
    """
    check_same_shape(z_src=z_src, p_src=p_src)

    def project(z: Float[Array, " k"], p: Float[Array, " k"]) -> Float[Array, " m"]:
        lower, upper_weight = _neighbours(z, support)
        empty = jnp.zeros((support.num_bins,), jnp.float32)
        return empty.at[lower].add(p * (1 - upper_weight)).at[lower + 1].add(p * upper_weight)

    flat = (x.astype(jnp.float32).reshape(-1, x.shape[-1]) for x in (z_src, p_src))
    return jax.vmap(project)(*flat).reshape(*z_src.shape[:-1], support.num_bins)


def c51_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    next_logits_greedy: Float[Array, "*b m"],
    support: Support,
) -> Float[Array, "*b m"]:
    """Distributional target: the law of r + d z', projected.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        next_logits_greedy: logits of the next state's action, which is greedy in the mean.
        support: the grid.

    Returns:
        float32 probabilities, constants of differentiation; a terminal step gives `two_hot(r)`.

    Reference:
        Bellemare et al. 2017 (C51), algorithm 1.
    """
    r, discount = (jnp.asarray(x).astype(jnp.float32)[..., None] for x in (r, discount))
    check_same_shape(r=r, discount=discount)
    probs = jax.nn.softmax(next_logits_greedy.astype(jnp.float32), axis=-1)
    atoms = jnp.broadcast_to(support.value_of(support.locations), probs.shape)
    moved = jnp.broadcast_to(r, probs.shape) + jnp.broadcast_to(discount, probs.shape) * atoms
    return jax.lax.stop_gradient(c51_project(support.project_units(moved), probs, support))


def categorical_value_loss_per_example(
    logits: Float[Array, "*b m"], target_probs: Float[Array, "*b m"]
) -> Float[Array, "*b"]:
    """Cross-entropy -sum_i p_i log softmax(logits)_i of every example.

    Args:
        logits: predictions.
        target_probs: targets, taken as constants.

    Returns:
        At least float32; the gradient with respect to the logits is softmax(logits) - p.
    """
    logits, target_probs = at_least_float32(logits, target_probs)
    check_same_shape(logits=logits, target_probs=target_probs)
    target_probs = jax.lax.stop_gradient(target_probs)
    return -jnp.sum(target_probs * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def categorical_value_loss(
    logits: Float[Array, "*b m"],
    target_probs: Float[Array, "*b m"],
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross-entropy to projected targets.

    Args:
        logits: predictions.
        target_probs: targets, taken as constants.
        mask: examples that count; None for all.

    Returns:
        The loss, and "kl", what is left of it when the targets' own entropy is taken off: targets
        of different widths have different floors.
    """
    logits, target_probs = hide(mask, logits, target_probs)
    loss = masked_mean(categorical_value_loss_per_example(logits, target_probs), mask)
    entropy = jnp.sum(jax.scipy.special.entr(target_probs), axis=-1).astype(loss.dtype)
    return loss, {"kl": loss - masked_mean(entropy, mask)}


def _sigma(support: Support, sigma_ratio: ArrayLike) -> Float[Array, ""]:
    if support.kind != "bins":
        raise ValueError(f"support: expected kind 'bins', got {support.kind!r}")
    if isinstance(sigma_ratio, (int, float)) and not sigma_ratio > 0:
        raise ValueError(f"sigma_ratio: expected a positive number, got {sigma_ratio}")
    return jnp.asarray(sigma_ratio, jnp.float32) * support.spacing


def _neighbours(z: Float[Array, "*b"], support: Support) -> tuple[Array, Array]:
    """Index of the location below each number, and the weight of the one above."""
    locations = support.locations
    z = jnp.clip(z, locations[0], locations[-1])
    if support.unbiased:
        lower = jnp.searchsorted(locations, z, side="right") - 1
    else:
        lower = jnp.floor((z - locations[0]) / support.spacing).astype(jnp.int32)
    lower = jnp.clip(lower, 0, support.num_bins - 2)
    below, above = locations[lower], locations[lower + 1]
    return lower, jnp.clip((z - below) / (above - below), 0, 1)

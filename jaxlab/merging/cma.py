"""CMA-ES as pure functions: a normal distribution that moves, stretches and turns to scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key


@dataclass(frozen=True)
class CMAConfig:
    """Sizes.

    Args:
        population: points of a generation.
        diagonal: keep the axes where they are (sep-CMA-ES): learns faster, but no correlations.
    """

    population: int = 16
    diagonal: bool = False

    def __post_init__(self) -> None:
        """Refuses populations without a better and a worse half."""
        if self.population < 4:
            raise ValueError(f"population: expected at least 4, got {self.population}")


class CMAState(NamedTuple):
    """The distribution N(mean, scale^2 covariance), and the paths that its mean has taken."""

    mean: Float[Array, " d"]
    scale: Float[Array, ""]
    covariance: Float[Array, "d d"]
    basis: Float[Array, "d d"]  # eigenvectors of the covariance, as columns
    lengths: Float[Array, " d"]  # roots of its eigenvalues
    path: Float[Array, " d"]
    whitened_path: Float[Array, " d"]
    generation: Int[Array, ""]


def cma_init(mean: Float[Array, " d"], scale: ArrayLike) -> CMAState:
    """Starts with a sphere.

    Args:
        mean: first centre.
        scale: first standard deviation of every number.

    Returns:
        The state.
    """
    size, zero = mean.shape[0], jnp.zeros_like(mean)
    eye = jnp.eye(size, dtype=mean.dtype)
    start = jnp.asarray(scale, mean.dtype)
    return CMAState(mean, start, eye, eye, jnp.ones_like(mean), zero, zero, jnp.int32(0))


def cma_ask(key: Key[Array, ""], state: CMAState, config: CMAConfig) -> Float[Array, "p d"]:
    """Draws a generation.

    Args:
        key: random key.
        state: the distribution.
        config: sizes.

    Returns:
        Points.
    """
    draw = jax.random.normal(key, (config.population, state.mean.shape[0]), state.mean.dtype)
    return state.mean[None] + state.scale * (draw * state.lengths[None]) @ state.basis.T


def cma_tell(
    state: CMAState, points: Float[Array, "p d"], scores: Float[Array, " p"], config: CMAConfig
) -> CMAState:
    """Moves the distribution towards the better half.

    Args:
        state: the distribution that the points were drawn from.
        points: from `cma_ask`.
        scores: higher is better; only their order counts, and what is not finite comes last.
        config: sizes.

    Returns:
        The new distribution.

    Reference:
        Hansen 2016, The CMA Evolution Strategy: A Tutorial, figure 6; Ros & Hansen 2008 for the
        diagonal variant's learning rates.
    """
    size, parents = state.mean.shape[0], config.population // 2
    raw = np.log(config.population / 2 + 0.5) - np.log(np.arange(1, parents + 1))
    shares = raw / raw.sum()
    mass = 1 / np.sum(shares**2)
    slow = (mass + 2) / (size + mass + 5)
    damping = 1 + 2 * max(0, np.sqrt((mass - 1) / (size + 1)) - 1) + slow
    memory = (4 + mass / size) / (size + 4 + 2 * mass / size)
    faster = (size + 2) / 3 if config.diagonal else 1.0
    rank_one = min(1.0, faster * 2 / ((size + 1.3) ** 2 + mass))
    many = faster * 2 * (mass - 2 + 1 / mass) / ((size + 2) ** 2 + mass)
    rank_many = min(1 - rank_one, many)
    typical = np.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))

    order = jnp.argsort(jnp.where(jnp.isfinite(scores), -scores, jnp.inf))[:parents]
    weights = jnp.asarray(shares, points.dtype)
    steps = (points[order] - state.mean[None]) / state.scale
    step = weights @ steps
    white = state.basis @ ((state.basis.T @ step) / state.lengths)
    whitened_path = (1 - slow) * state.whitened_path + np.sqrt(slow * (2 - slow) * mass) * white
    length = jnp.sqrt(jnp.sum(whitened_path**2))
    age = (state.generation + 1).astype(points.dtype)
    usual = length / jnp.sqrt(1 - (1 - slow) ** (2 * age)) < (1.4 + 2 / (size + 1)) * typical
    going = usual.astype(points.dtype)
    path = (1 - memory) * state.path + going * np.sqrt(memory * (2 - memory) * mass) * step
    kept = 1 - rank_one - rank_many + rank_one * (1 - going) * memory * (2 - memory)
    covariance = (
        kept * state.covariance
        + rank_one * jnp.outer(path, path)
        + rank_many * (steps * weights[:, None]).T @ steps
    )
    if config.diagonal:
        values, basis = jnp.diagonal(covariance), state.basis
        covariance = jnp.diag(values)
    else:
        values, basis = jnp.linalg.eigh((covariance + covariance.T) / 2)
    return CMAState(
        mean=state.mean + state.scale * step,
        scale=state.scale * jnp.exp(slow / damping * (length / typical - 1)),
        covariance=covariance,
        basis=basis,
        lengths=jnp.sqrt(jnp.maximum(values, jnp.finfo(points.dtype).tiny)),
        path=path,
        whitened_path=whitened_path,
        generation=state.generation + 1,
    )


def evolve(
    key: Key[Array, ""],
    score: Callable[[Float[Array, " d"]], Float[Array, ""]],
    mean: Float[Array, " d"],
    scale: ArrayLike,
    generations: int,
    config: CMAConfig = CMAConfig(),
) -> tuple[Float[Array, " d"], Float[Array, " g"]]:
    """Searches the highest score; generations are one loop and their points one batch.

    Args:
        key: random key.
        score: of one point; higher is better.
        mean: first centre.
        scale: first standard deviation.
        generations: how many.
        config: sizes.

    Returns:
        The best point that was tried, and the best score so far after each generation.
    """

    def generation(carry: tuple, key: Array) -> tuple[tuple, Array]:
        state, best, top = carry
        points = cma_ask(key, state, config)
        scores = jax.vmap(score)(points)
        here = jnp.argmax(jnp.where(jnp.isfinite(scores), scores, -jnp.inf))
        better = scores[here] > top
        best, top = jnp.where(better, points[here], best), jnp.where(better, scores[here], top)
        return (cma_tell(state, points, scores, config), best, top), top

    start = (cma_init(mean, scale), mean, jnp.asarray(-jnp.inf, mean.dtype))
    (_, best, _), history = jax.lax.scan(generation, start, jax.random.split(key, generations))
    return best, history

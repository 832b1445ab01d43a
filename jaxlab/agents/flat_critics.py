"""Ways to keep a critic flat in the state: a bound on its kernels, or a penalty on its changes."""

from collections.abc import Callable
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from jaxlab import nets, values

CriticRegulariser = Literal["spectral", "robust", "noise"]
# (parameters of all N critics, obs[B, o]) -> values [N, B]
CriticsFn = Callable[[nets.MLPParams, Float[Array, "B o"]], Float[Array, "N B"]]


@flax.struct.dataclass
class SpectralBound:
    """Bound of every kernel's spectral norm, with the vectors of its estimation.

    The agent keeps and trains unconstrained kernels and evaluates constrained ones.
    """

    beta: Float[Array, ""]
    critics: nets.SpectralState  # every vector [N, ...]
    target_critics: nets.SpectralState  # of their own, as the target kernels are others


def spectral_bound(
    key: Key[Array, ""], critics: nets.MLPParams, beta: Float[Array, ""]
) -> SpectralBound:
    """Draws the vectors.

    Args:
        key: random key.
        critics: parameters with a leading axis N; the target critics start as they are.
        beta: the bound.

    Returns:
        The bound of both.
    """
    keys = jax.random.split(key, critics[0]["kernel"].shape[0])
    vectors = jax.vmap(nets.init_spectral_state)(keys, critics)
    return SpectralBound(beta, vectors, vectors)


def constrain(
    critics: nets.MLPParams, vectors: nets.SpectralState, beta: ArrayLike
) -> tuple[nets.MLPParams, nets.SpectralState]:
    """Constrains every kernel of every critic, by one power iteration.

    Args:
        critics: parameters with a leading axis N.
        vectors: of these parameters, [N, ...].
        beta: the bound.

    Returns:
        Parameters to evaluate, and the vectors for the next call.

    Reference:
        Zheng et al. 2023 (Is model ensemble necessary?), section 4.2.
    """
    return jax.vmap(lambda params, u: nets.constrain_mlp(params, u, beta))(critics, vectors)


def robust_penalty(
    key: Key[Array, ""],
    critics: nets.MLPParams,
    critics_fn: CriticsFn,
    obs: Float[Array, "B o"],
    eps: ArrayLike,
    steps: int,
) -> Float[Array, ""]:
    """Sum over critics of mean_B max_{|delta| <= eps} (Q(s + delta, a) - Q(s, a))^2.

    Args:
        key: random key of the starts.
        critics: parameters with a leading axis N.
        critics_fn: evaluates them; closes over the actions.
        obs: states.
        eps: largest change of every dimension, in standard deviations over the batch.
        steps: of gradient ascent; 0 for a uniform perturbation.

    Returns:
        The penalty; every critic has its own worst case.

    Reference:
        Zheng et al. 2023 (Is model ensemble necessary?), section 4.2.
    """
    scale = jnp.std(obs, axis=0)

    def one(critic: nets.MLPParams, key: Array) -> Array:
        alone = jax.tree.map(lambda x: x[None], critic)
        value = lambda states: critics_fn(alone, states)[0]  # noqa: E731
        return values.robust_penalty(value, obs, key, eps=eps, scale=scale, steps=steps)[0]

    keys = jax.random.split(key, critics[0]["kernel"].shape[0])
    return jnp.sum(jax.vmap(one)(critics, keys))

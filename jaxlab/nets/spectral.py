"""Largest singular values of kernels: estimates, bounds on them, and what follows for a network."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from jaxlab.nets.mlp import MLPParams

SpectralState = tuple[Float[Array, " i"], ...]  # one vector per layer, from update to update


def spectral_norm(
    w: Float[Array, "i o"], u: Float[Array, " i"], steps: int = 1
) -> tuple[Float[Array, ""], Float[Array, " i"]]:
    """Estimates the largest singular value by power iteration.

    Args:
        w: kernel.
        u: left vector, from the last call or any vector not orthogonal to the leading one.
        steps: iterations; one per training step is enough where the kernel moves slowly.

    Returns:
        sigma = u' W v, never above the true norm and differentiable with respect to `w`, and the
        new unit vector.

    Raises:
        ValueError: if `steps` is not positive or the shapes do not fit.

    Reference:
        Miyato et al. 2018 (Spectral normalization), algorithm 1.

    Pitfall:
        The vectors are constants of differentiation, the kernel in u' W v is not.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if w.ndim != 2 or u.shape != w.shape[:1]:
        raise ValueError(f"u: expected one number per row of w {w.shape}, got shape {u.shape}")
    fixed, u = jax.lax.stop_gradient((w, u))

    def iterate(_: int, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        v = _unit(pair[0] @ fixed)
        image = fixed @ v
        # A zero kernel has no leading vector, and zeros would stay for ever: the old one stays.
        return jnp.where(jnp.sum(image**2) > 0, _unit(image), pair[0]), v

    with jax.default_matmul_precision("float32"):
        u, v = jax.lax.fori_loop(0, steps, iterate, (u, jnp.zeros(w.shape[1:], w.dtype)))
        return u @ w @ v, u


def constrain(
    w: Float[Array, "i o"], beta: ArrayLike, u: Float[Array, " i"], steps: int = 1
) -> tuple[Float[Array, "i o"], Float[Array, " i"]]:
    """Shrinks a kernel to a spectral norm of at most beta: W min(1, beta / sigma(W)).

    Args:
        w: kernel.
        beta: bound, positive; infinity leaves the kernel bitwise as it is.
        u: vector of `spectral_norm`.
        steps: its iterations.

    Returns:
        The kernel, and the new vector.

    Reference:
        Gouk et al. 2021 (Regularisation of neural networks by enforcing Lipschitz continuity),
        eq. 9; Zheng et al. 2023 (Is model ensemble necessary?), section 4.2, for critics.

    Pitfall:
        A constraint, not a normalisation: a kernel whose norm is smaller already is not blown up.
    """
    sigma, u = spectral_norm(w, u, steps)
    beta = jnp.asarray(beta, w.dtype)
    above = sigma > beta
    factor = jnp.where(above, beta / jnp.where(above, sigma, 1), 1)
    return w * factor, u


def init_spectral_state(key: Key[Array, ""], params: MLPParams) -> SpectralState:
    """Draws the vectors of `constrain_mlp`.

    Args:
        key: random key.
        params: one perceptron; for an ensemble, `vmap` over keys and parameters.

    Returns:
        One unit vector per layer.
    """
    keys = jax.random.split(key, len(params))
    return tuple(
        _unit(jax.random.normal(k, layer["kernel"].shape[:1], layer["kernel"].dtype))
        for k, layer in zip(keys, params)
    )


def constrain_mlp(
    params: MLPParams, state: SpectralState, beta: ArrayLike, steps: int = 1
) -> tuple[MLPParams, SpectralState]:
    """Constrains every kernel of a perceptron, the last one included.

    Args:
        params: one perceptron; for an ensemble, `vmap`.
        state: vectors, of these parameters alone: a target network has its own.
        beta: bound of every kernel's spectral norm, positive; infinity for none.
        steps: power iterations.

    Returns:
        Parameters to evaluate the network with (differentiable with respect to `params`, which are
        the ones to train and to keep), and the vectors for the next call.
    """
    layers, vectors = [], []
    for layer, u in zip(params, state, strict=True):
        kernel, u = constrain(layer["kernel"], beta, u, steps)
        layers.append({**layer, "kernel": kernel})
        vectors.append(u)
    return tuple(layers), tuple(vectors)


def lipschitz_upper_bound(params: MLPParams, beta: ArrayLike | None = None) -> Float[Array, ""]:
    """Product of the kernels' spectral norms, by singular value decomposition.

    Args:
        params: one perceptron; for an ensemble, `vmap`.
        beta: bound that the kernels are constrained to when the network is evaluated; None if not.

    Returns:
        A Lipschitz constant of the network in the Euclidean norm, if its activation has slope at
        most 1 (ReLU, tanh; SiLU reaches 1.0998 and multiplies the bound by that per hidden layer).

    Raises:
        ValueError: if the network has layer norm, whose slope has no such bound.
    """
    bound: Any = 1.0
    for layer in params:
        if "scale" in layer:
            raise ValueError("params: expected a network without layer norm, got one with it")
        sigma = jnp.linalg.svd(layer["kernel"], compute_uv=False)[0]
        bound = bound * (sigma if beta is None else jnp.minimum(sigma, beta))
    return bound


def _unit(x: Array) -> Array:
    square = jnp.sum(x**2)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))

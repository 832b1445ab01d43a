"""A larger state through a feature map of what it is read and written with.

Two forms. "literal" puts the features into the recurrence as the paper writes it: it is another
model, and one that diverges where features are many and alike. "stable" is our reconstruction [R]:
a second state beside the untouched one, whose features have unit length, so that its transition
stays a contraction and the model at the start is the base model.

Reference: Liu et al. 2025, State Tuning: State-based Test-Time Scaling on RWKV-7, kernel method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxlab.rwkv7.initialization import random_orthogonal
from jaxlab_kernels import wkv7

Mode = Literal["literal", "stable"]
Method = Literal["random", "kmeans"]
UPSCALING = "upscaling"  # name of the branch among the parameters of the blocks


class Upscaling(NamedTuple):
    """The second state of every layer; leaves of a whole model lead with L."""

    support: Float[Array, "*L H M N"]  # support vectors
    gamma: Float[Array, "*L H"]  # sharpness of the kernel
    projection: Float[Array, "*L H N M"]  # Q: orthonormal rows, back to the width of a head
    decorrelation: Float[Array, "*L H M M"]  # R: applied to the initial state, see `upscaled`
    writing: Float[Array, "*L"]  # zeta: how strongly tokens are written into it


class Signals(NamedTuple):
    """What a recurrence is given for every token and head."""

    receptance: Float[Array, "B T H N"]
    log_decay: Float[Array, "B T H N"]
    key: Float[Array, "B T H N"]
    value: Float[Array, "B T H N"]
    removal: Float[Array, "B T H N"]  # kk, of unit length
    rate: Float[Array, "B T H N"]  # alpha, in (0, 1)


Inputs = tuple[Array, Array, Array, Array, Array, Array]  # r, logw, k, v, a, b of `wkv7`
Features = Callable[[Array, Array, Array], Array]


def kernel_features(
    x: Float[Array, "*b H N"], support: Float[Array, "H M N"], gamma: Float[Array, " H"]
) -> Float[Array, "*b H M"]:
    """phi(x)_m = exp(-gamma |x - u_m|^2), in float32.

    Args:
        x: any vectors of the width of a head.
        support: u of each head.
        gamma: of each head.

    Returns:
        Features in (0, 1].
    """
    x = x.astype(jnp.float32)
    return jnp.exp(-_exponent(x, support, gamma))


def _exponent(x: Array, support: Array, gamma: Array) -> Array:
    return jnp.sum((x[..., None, :] - _like(support, x, 1)) ** 2, axis=-1) * _like(
        gamma[..., None], x
    )


def _like(leaf: Array, x: Array, more: int = 0) -> Array:
    """Leading axes of one, so that a leaf of heads meets batches of them."""
    return leaf.reshape((1,) * (x.ndim + more - leaf.ndim) + leaf.shape)


def support_vectors(
    key: Key[Array, ""], samples: Float[Array, "S N"], count: int, method: Method = "random"
) -> Float[Array, "M N"]:
    """Chooses support vectors among or near the vectors that a head meets.

    Args:
        key: random key.
        samples: keys of one head.
        count: M, at most S.
        method: "random": different samples; "kmeans": ten rounds of Lloyd's algorithm from there.

    Returns:
        The vectors.

    Raises:
        ValueError: an unknown method, or more vectors than samples.
    """
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    if count > samples.shape[0]:
        raise ValueError(f"count: expected at most {samples.shape[0]}, got {count}")
    centres = samples[jax.random.permutation(key, samples.shape[0])[:count]].astype(jnp.float32)
    if method == "random":
        return centres

    def round_(centres: Array, _: None) -> tuple[Array, None]:
        distance = jnp.sum((samples[:, None] - centres[None]) ** 2, axis=-1)
        member = jax.nn.one_hot(jnp.argmin(distance, axis=1), count)
        size = jnp.sum(member, axis=0)[:, None]
        means = member.T @ samples.astype(jnp.float32) / jnp.maximum(size, 1)
        return jnp.where(size > 0, means, centres), None

    return jax.lax.scan(round_, centres, None, length=10)[0]


def init_upscaling(
    key: Key[Array, ""],
    samples: Float[Array, "L S H N"],
    count: int,
    method: Method = "random",
) -> Upscaling:
    """A second state for every layer that as yet says nothing.

    Args:
        key: random key.
        samples: keys that the model was seen to write, from `receptances_and_keys`.
        count: M, at least the width of a head and at most S.
        method: see `support_vectors`.

    Returns:
        With gamma = 1 / (2 median |u_i - u_j|^2) [R], R = I and zeta = 0.

    Raises:
        ValueError: a count below the width of a head, or what `support_vectors` refuses.
    """
    layers, _, heads, width = samples.shape
    if count < width:
        raise ValueError(f"count: expected at least the width {width} of a head, got {count}")

    def one(key: Array, x: Array) -> tuple[Array, Array, Array]:
        choosing, turning = jax.random.split(key)
        u = support_vectors(choosing, x, count, method)
        square = jnp.sum((u[:, None] - u[None]) ** 2, axis=-1)
        apart = square[jnp.triu_indices(count, 1)]
        gamma = 1 / (2 * jnp.maximum(jnp.median(apart), 1e-12))
        basis = random_orthogonal(turning, width, count)
        return u, gamma, basis

    keys = jax.random.split(key, (layers, heads))
    support, gamma, basis = jax.vmap(jax.vmap(one))(keys, jnp.swapaxes(samples, 1, 2))
    eye = jnp.broadcast_to(jnp.eye(count), (layers, heads, count, count))
    return Upscaling(support, gamma, basis, eye, jnp.zeros(layers))


def upscaled(params: Any, upscaling: Upscaling) -> Any:
    """A model with the second state; every function of a model takes it.

    Args:
        params: from `init` or `load`; not changed.
        upscaling: leaves lead with L.

    Returns:
        Parameters. With the zero state and zeta = 0 the model is the base model exactly. A learned
        initial state has a further leaf `enlarged` [L, H, M, M].

    Pitfall: R says how a learned state is parametrised (S0_eff = S0 R) and is applied by whoever
        makes the initial state; the recurrence itself does not know it.
    """
    return params | {"blocks": params["blocks"] | {UPSCALING: upscaling}}


def _length(x: Array) -> Array:
    """Never zero: features are positive, but far from all support they underflow."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))


def stable_inputs(
    upscaling: Upscaling, signals: Signals, features: Features = kernel_features
) -> Inputs:
    """Inputs of the second recurrence [R].

    Directions are those of the features, lengths those of the originals; decay and rate of each
    feature are convex combinations of the originals, weighted by where its support vector lies, so
    that their bounds hold on.

    Args:
        upscaling: of one layer.
        signals: of the first recurrence.
        features: the feature map.

    Returns:
        r, logw, k, v, a and b for `wkv7`, of width M, in the receptance's dtype but logw.
    """
    r, log_decay, k, v, kk, rate = (x.astype(jnp.float32) for x in signals)

    def direction(x: Array) -> Array:
        phi = features(x, upscaling.support, upscaling.gamma)
        return phi / _length(phi)

    square = upscaling.support**2
    mixing = square / jnp.maximum(jnp.sum(square, axis=-1, keepdims=True), 1e-24)

    def mixed(x: Array) -> Array:
        return jnp.einsum("bthn,hmn->bthm", x, mixing)

    removal = direction(kk)
    values = jnp.einsum("bthn,hnm->bthm", v, upscaling.projection)
    dtype = signals.receptance.dtype
    r, k, v, read, write = (
        x.astype(dtype)
        for x in (
            direction(r) * _length(r),
            direction(k) * _length(k),
            upscaling.writing * values,
            -removal,
            removal * mixed(rate),
        )
    )
    return r, mixed(log_decay), k, v, read, write


def literal_inputs(upscaling: Upscaling, signals: Signals) -> Inputs:
    """Inputs of the recurrence with every signal replaced by its features, as the paper writes it.

    Args:
        upscaling: of one layer.
        signals: of the base recurrence.

    Returns:
        r, logw, k, v, a and b for `wkv7`, of width M, in float32.
    """

    def phi(x: Array) -> Array:
        return kernel_features(x, upscaling.support, upscaling.gamma)

    decay = jnp.exp(signals.log_decay.astype(jnp.float32))
    # The logarithm of exp(-gamma |w - u|^2), without a detour that may underflow.
    log_decay = -_exponent(decay, upscaling.support, upscaling.gamma)
    removal = phi(signals.removal)
    return (
        phi(signals.receptance), log_decay, phi(signals.key), phi(signals.value), -removal,
        removal * phi(signals.rate),
    )  # fmt: skip


def project(upscaling: Upscaling, y: Float[Array, "B T H M"]) -> Float[Array, "B T H N"]:
    """Q y: what was read, back to the width of a head."""
    return jnp.einsum("bthm,hnm->bthn", y, upscaling.projection.astype(y.dtype))


def literal_radius(
    upscaling: Upscaling, removal: Float[Array, "B T H N"], rate: Float[Array, "B T H N"]
) -> Float[Array, "B T H"]:
    """|1 - sum_m phi(alpha)_m phi(kk)_m^2|: how much a transition without decay stretches.

    Args:
        upscaling: of one layer.
        removal: kk.
        rate: alpha.

    Returns:
        Along its own direction; above 1 the literal recurrence grows wherever the decay does not
        make up for it.
    """
    phi = kernel_features(removal, upscaling.support, upscaling.gamma)
    write = kernel_features(rate, upscaling.support, upscaling.gamma)
    return jnp.abs(1 - jnp.sum(phi**2 * write, axis=-1))


def upscaled_wkv(
    upscaling: Upscaling,
    signals: Signals,
    state: Float[Array, "B H M M"],
    mode: Mode = "stable",
    features: Features = kernel_features,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H M M"]]:
    """The enlarged recurrence by itself.

    Args:
        upscaling: of one layer.
        signals: of the base recurrence.
        state: before the first token.
        mode: "stable", whose output is added to the base's, or "literal", which replaces it.
        features: the feature map of "stable".

    Returns:
        Q (S r) at every token, and the state after the last.

    Raises:
        ValueError: an unknown mode.

    Pitfall: "literal" is there for the record: see `literal_radius`.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
    if mode == "literal":
        # Its decays know no bound, and chunks are safe for RWKV's alone.
        y, state = wkv7(*literal_inputs(upscaling, signals), state, impl="scan")
    else:
        y, state = wkv7(*stable_inputs(upscaling, signals, features), state)
    return project(upscaling, y), state

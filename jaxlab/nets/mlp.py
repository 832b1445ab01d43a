"""Multilayer perceptrons, alone and as ensembles along a leading axis."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LayerParams = dict[str, Array]  # kernel[i, o], bias[o]; with layer norm also scale[o], offset[o]
MLPParams = tuple[LayerParams, ...]

# Kernels are truncated normal, cut at two scales, of scale `kernel_scale` / sqrt(fan_in).
LECUN_SCALE = 1.0 / 0.8796256610342398  # unit variance of the pre-activation, despite the cut
PETS_SCALE = 0.5  # Chua et al. 2018: small initial outputs, standard deviation 0.44 / sqrt(fan_in)
_LAYER_NORM_EPS = 1e-6


def mlp_init(
    key: Key[Array, ""],
    sizes: Sequence[int],
    *,
    kernel_scale: float = LECUN_SCALE,
    layer_norm: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> MLPParams:
    """Draws the parameters of a perceptron; biases start at zero.

    Args:
        key: random key.
        sizes: widths (input, hidden..., output); at least two.
        kernel_scale: kernels are truncated normal, cut at two scales, with scale
            kernel_scale / sqrt(fan_in): `LECUN_SCALE` or `PETS_SCALE`.
        layer_norm: normalise every hidden layer's pre-activation, with a learned scale and offset.
        dtype: floating dtype of the parameters.

    Returns:
        One dict per layer.

    Raises:
        ValueError: if `sizes` has fewer than two entries or a non-positive one.
    """
    if len(sizes) < 2 or any(size < 1 for size in sizes):
        raise ValueError(f"sizes: expected at least two positive widths, got {tuple(sizes)}")
    shapes = list(itertools.pairwise(sizes))
    # One draw for all layers: compiling the inverse error function per layer takes seconds.
    unit = jax.random.truncated_normal(key, -2.0, 2.0, (sum(i * o for i, o in shapes),), dtype)
    layers = []
    for index, (fan_in, fan_out) in enumerate(shapes):
        draw, unit = unit[: fan_in * fan_out], unit[fan_in * fan_out :]
        layer = {
            "kernel": kernel_scale / math.sqrt(fan_in) * draw.reshape(fan_in, fan_out),
            "bias": jnp.zeros((fan_out,), dtype),
        }
        if layer_norm and index < len(shapes) - 1:
            layer |= {"scale": jnp.ones((fan_out,), dtype), "offset": jnp.zeros((fan_out,), dtype)}
        layers.append(layer)
    return tuple(layers)


def mlp_apply(
    params: MLPParams,
    x: Float[Array, "*b i"],
    activation: Callable[[Array], Array] = jax.nn.silu,
) -> Float[Array, "*b o"]:
    """Evaluates a perceptron; the last layer is linear.

    Args:
        params: from `mlp_init`.
        x: inputs with any leading axes.
        activation: applied after every hidden layer.

    Returns:
        The last layer's outputs.
    """
    *hidden, last = params
    for layer in hidden:
        x = _affine(layer, x)
        if "scale" in layer:
            x = _layer_norm(layer, x)
        x = activation(x)
    return _affine(last, x)


def ensemble_init(
    key: Key[Array, ""],
    members: int,
    sizes: Sequence[int],
    *,
    kernel_scale: float = LECUN_SCALE,
    layer_norm: bool = False,
    dtype: jnp.dtype = jnp.float32,
) -> MLPParams:
    """Draws independent perceptrons; every leaf gets a leading axis of length `members`.

    Member m is `mlp_init(jax.random.fold_in(key, m), ...)`, so that adding members leaves the
    earlier ones as they were.

    Args:
        key: random key.
        members: number of networks E.
        sizes: widths, as in `mlp_init`.
        kernel_scale: see `mlp_init`.
        layer_norm: see `mlp_init`.
        dtype: floating dtype of the parameters.

    Returns:
        Stacked parameters.

    Raises:
        ValueError: if `members` is not positive or `sizes` is bad.
    """
    if members < 1:
        raise ValueError(f"members: expected at least one, got {members}")

    def init_one(member: Array) -> MLPParams:
        member_key = jax.random.fold_in(key, member)
        return mlp_init(
            member_key, sizes, kernel_scale=kernel_scale, layer_norm=layer_norm, dtype=dtype
        )

    return jax.vmap(init_one)(jnp.arange(members))


def ensemble_apply(
    params: MLPParams,
    x: Float[Array, "E *b i"],
    activation: Callable[[Array], Array] = jax.nn.silu,
    *,
    shared_inputs: bool = False,
) -> Float[Array, "E *b o"]:
    """Evaluates member m on its own inputs x[m], or every member on the same x.

    Args:
        params: from `ensemble_init`.
        x: inputs with a leading member axis; without it if `shared_inputs`.
        activation: applied after every hidden layer.
        shared_inputs: all members see the same x[*b, i].

    Returns:
        Outputs with a leading member axis.
    """
    in_axes = (0, None if shared_inputs else 0)
    return jax.vmap(lambda p, y: mlp_apply(p, y, activation), in_axes=in_axes)(params, x)


def _affine(layer: LayerParams, x: Array) -> Array:
    y = x @ layer["kernel"]
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def _layer_norm(layer: LayerParams, x: Array) -> Array:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(variance + _LAYER_NORM_EPS)
    scale = jnp.broadcast_to(layer["scale"], x.shape)
    return unit * scale + jnp.broadcast_to(layer["offset"], x.shape)

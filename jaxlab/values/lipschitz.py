"""How steep a value function is, and a penalty that makes it flatter."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key

from jaxlab.values.arrays import check_same_shape, hide, masked_mean

Ball = Literal["linf", "l2"]
Metrics = dict[str, Float[Array, ""]]
ValueFn = Callable[[Float[Array, "B o"]], Float[Array, " B"]]  # row by row


def robust_penalty(
    value_fn: ValueFn,
    obs: Float[Array, "B o"],
    key: Key[Array, ""],
    *,
    eps: ArrayLike,
    scale: Float[Array, " o"] | None = None,
    ball: Ball = "linf",
    steps: int = 1,
    step_size: ArrayLike = 0.75,
    detach_clean: bool = False,
    mask: ArrayLike | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean of max_{|delta| <= eps} (V(s + delta) - V(s))^2, the maximum found by gradient ascent.

    For an ensemble, `vmap` over the members with one key each: every critic has its own worst case.

    Args:
        value_fn: values of a batch of states, row by row; closes over the parameters to be trained,
            and over the actions if it is a critic.
        obs: states.
        key: of the random starts.
        eps: radius of the ball, in units of `scale`.
        scale: length of each dimension's unit, such as a normaliser's standard deviation; None for
            ones.
        ball: "linf" (every dimension) or "l2" (Euclidean).
        steps: ascent steps; 0 leaves the random start, the cheap noise penalty.
        step_size: length of a step in units of `eps`.
        detach_clean: differentiate V(s + delta) alone.
        mask: rows that count; None for all.

    Returns:
        The penalty, differentiable with respect to what `value_fn` closes over (the perturbation is
        a constant), and "perturbation", its mean size in units of `eps`.

    Raises:
        ValueError: if the ball is unknown or `steps` negative.

    Reference:
        Zheng et al. 2023 (Is model ensemble necessary?), section 4.2; Madry et al. 2018 for the
        ascent.

    Pitfall:
        From delta = 0 the ascent never starts where V is stationary, hence the random start.
        Without `scale` the dimension with the smallest numbers is moved out of all proportion.
    """
    if ball not in get_args(Ball):
        raise ValueError(f"ball: expected one of {get_args(Ball)}, got {ball!r}")
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    eps, step_size = jnp.asarray(eps, obs.dtype), jnp.asarray(step_size, obs.dtype)
    unit = jnp.broadcast_to(jnp.ones_like(obs) if scale is None else scale, obs.shape)
    obs, unit = jax.lax.stop_gradient((*hide(mask, obs), unit))
    clean = value_fn(obs)

    def total(delta: Float[Array, "B o"]) -> Float[Array, ""]:
        return jnp.sum((value_fn(obs + eps * unit * delta) - clean) ** 2)

    def ascend(_: int, delta: Array) -> Array:
        gradient = jax.grad(total)(delta)
        direction = jnp.sign(gradient) if ball == "linf" else _normalise(gradient)
        return _project(delta + step_size * direction, ball)

    # In units of eps throughout, so that an eps of zero divides nothing.
    delta = jax.lax.fori_loop(0, steps, ascend, _random_start(key, obs, ball))
    delta = jax.lax.stop_gradient(delta)
    reference = jax.lax.stop_gradient(clean) if detach_clean else clean
    penalty = masked_mean((value_fn(obs + eps * unit * delta) - reference) ** 2, mask)
    size = jnp.max(jnp.abs(delta), axis=-1) if ball == "linf" else jnp.sqrt(_square(delta)[..., 0])
    return penalty, {"perturbation": masked_mean(size, mask)}


def local_lipschitz(
    value_fn: ValueFn,
    obs: Float[Array, "B o"],
    scale: Float[Array, " o"] | None = None,
) -> Metrics:
    """Euclidean norm of a value function's gradient over states.

    Args:
        value_fn: values of a batch of states, row by row.
        obs: states.
        scale: length of each dimension's unit; None for ones.

    Returns:
        "lipschitz_mean", "lipschitz_p95" and "lipschitz_max", in value per unit of `scale`.

    Pitfall:
        In raw units the norm says mostly which dimension has the smallest numbers.
    """
    gradient = jax.grad(lambda s: jnp.sum(value_fn(s)))(obs)
    if scale is not None:
        gradient = gradient * jnp.broadcast_to(scale, gradient.shape)
    norm = jnp.sqrt(_square(gradient)[..., 0])
    return {
        "lipschitz_mean": jnp.mean(norm),
        "lipschitz_p95": jnp.quantile(norm, 0.95),
        "lipschitz_max": jnp.max(norm),
    }


def pairwise_lipschitz(
    values: Float[Array, " n"],
    obs: Float[Array, "n o"],
    radius: ArrayLike,
    scale: Float[Array, " o"] | None = None,
) -> Float[Array, ""]:
    """Largest slope |V(s) - V(s')| / |s - s'| between two states of a sample near each other.

    Args:
        values: values of the states.
        obs: states; the n^2 pairs are formed.
        radius: largest distance of a pair, in units of `scale`.
        scale: length of each dimension's unit; None for ones.

    Returns:
        The slope, 0 if there is no such pair.
    """
    check_same_shape(**{"obs[:, 0]": obs[:, 0], "values": values})
    if scale is not None:
        obs = obs / jnp.broadcast_to(scale, obs.shape)
    distance2 = _square(obs[:, None] - obs[None])[..., 0]
    radius = jnp.asarray(radius, obs.dtype)
    near = (distance2 > 0) & (distance2 <= radius**2)
    rise = jnp.abs(values[:, None] - values[None])
    return jnp.max(jnp.where(near, rise / jnp.sqrt(jnp.where(near, distance2, 1)), 0))


def value_aware_model_error(
    value_fn: ValueFn,
    next_obs: Float[Array, "B o"],
    model_samples: Float[Array, "M B o"],
    mask: ArrayLike | None = None,
) -> Float[Array, ""]:
    """Mean |E_model V(s') - V(s'_real)|, what a model's errors cost the Bellman backup.

    Args:
        value_fn: values of a batch of states, row by row.
        next_obs: the next states that were observed.
        model_samples: M next states per row, drawn from the model.
        mask: rows that count; None for all.

    Returns:
        The error; at most the Lipschitz constant times the Wasserstein distance of the two laws.

    Reference:
        Zheng et al. 2023, section 3; Farahmand et al. 2017 (Value-aware loss function).

    Pitfall:
        The absolute value is outside of the mean over samples: inside, a model with the right noise
        would be charged for it.
    """
    check_same_shape(**{"next_obs": next_obs, "model_samples[0]": model_samples[0]})
    (next_obs,) = hide(mask, next_obs)
    model_samples = jax.vmap(lambda sample: hide(mask, sample)[0])(model_samples)
    imagined = jnp.mean(jax.vmap(value_fn)(model_samples), axis=0)
    return masked_mean(jnp.abs(imagined - value_fn(next_obs)), mask)


def _random_start(key: Key[Array, ""], like: Float[Array, "B o"], ball: Ball) -> Array:
    if ball == "linf":
        return jax.random.uniform(key, like.shape, like.dtype, -1.0, 1.0)
    direction_key, radius_key = jax.random.split(key)
    direction = _normalise(jax.random.normal(direction_key, like.shape, like.dtype))
    radius = jax.random.uniform(radius_key, (like.shape[0], 1), like.dtype)
    return direction * radius ** (1 / like.shape[-1])


def _project(delta: Array, ball: Ball) -> Array:
    if ball == "linf":
        return jnp.clip(delta, -1, 1)
    return delta * jax.lax.rsqrt(jnp.maximum(_square(delta), 1))


def _normalise(x: Array) -> Array:
    # A zero row stays zero.
    square = _square(x)
    return jnp.where(square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def _square(x: Array) -> Array:
    return jnp.sum(x**2, axis=-1, keepdims=True)

"""Off-policy temporal differences with linear values: the smallest setting that explodes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from jaxlab.values.arrays import at_least_float32, check_same_shape


def linear_td(
    weights: Num[Array, " d"],
    features: Num[Array, "n d"],
    next_features: Num[Array, "n d"],
    rewards: Num[Array, " n"],
    discount: ArrayLike,
    lr: ArrayLike,
    steps: int,
) -> Float[Array, "T+1 d"]:
    """Semi-gradient TD(0) on a fixed set of transitions, w += lr sum_i delta_i phi_i per step.

    Args:
        weights: first weights w of the value w . phi.
        features: phi of the states that are updated.
        next_features: phi of the states bootstrapped from; all zero where the episode ended.
        rewards: rewards.
        discount: gamma.
        lr: step size.
        steps: number of updates T, each with all transitions.

    Returns:
        The weights before the first and after every update.

    Raises:
        ValueError: if the shapes differ.

    Reference:
        Tsitsiklis & Van Roy 1996, Feature-based methods for large scale dynamic programming; Sutton
        & Barto 2018, section 11.2: one transition from feature 1 to feature 2, whose own value is
        never updated, multiplies w by 1 + lr (2 gamma - 1), which diverges for gamma > 1/2.

    Pitfall:
        The fixed point may exist and be right while the updates run away from it: it is the
        weighting of the updated states that decides.
    """
    weights, features, next_features, rewards, discount, lr = at_least_float32(
        weights, features, next_features, rewards, discount, lr
    )
    check_same_shape(features=features, next_features=next_features)
    if features.shape[1:] != weights.shape:
        raise ValueError(f"weights: expected shape {features.shape[1:]}, got {weights.shape}")
    check_same_shape(features=features[:, 0], rewards=rewards)

    def step(w: Array, _: None) -> tuple[Array, Array]:
        delta = rewards + discount * (next_features @ w) - features @ w
        w = w + lr * (delta @ features)
        return w, w

    _, later = jax.lax.scan(step, weights, None, length=steps)
    return jnp.concatenate([weights[None], later])

"""Which value functions are left by data: through consistent models, or by Bellman's equation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def deterministic_optimal_values(
    model: Int[Array, "S A"], reward: Float[Array, "S A"], gamma: float, iterations: int = 200
) -> Float[Array, "S A"]:
    """Optimal action values of a deterministic model by value iteration.

    Args:
        model: next state of every state and action.
        reward: of every state and action.
        gamma: discount factor per step, in [0, 1).
        iterations: backups; the error is at most gamma^iterations max |reward| / (1 - gamma).

    Returns:
        Action values, in the dtype of the rewards.
    """
    rate = jnp.asarray(gamma, reward.dtype)
    following = model.reshape(-1)

    def backup(_: Array, q: Array) -> Array:
        return reward + rate * jnp.max(q, axis=-1)[following].reshape(reward.shape)

    return jax.lax.fori_loop(0, iterations, backup, jnp.zeros_like(reward))


def consistent_value_sets(
    models: Int[Array, "M S A"],
    q: Float[Array, "M S A"],
    reward: Float[Array, "S A"],
    gamma: float,
    data: Int[Array, "k 3"],
    atol: float,
) -> tuple[Bool[Array, " M"], Bool[Array, " M"]]:
    """Models of a class whose optimal values two ways of learning leave over.

    Args:
        models: a class of deterministic models.
        q: `deterministic_optimal_values` of each.
        reward: known rewards.
        gamma: discount factor per step.
        data: transitions (state, action, next state).
        atol: largest residual of Bellman's equation that counts as none.

    Returns:
        Masks: model-based, the model agrees with all transitions; model-free, its optimal values
        satisfy Bellman's optimality equation on all of them. The first implies the second.

    Reference:
        Young et al. 2023, The Benefits of Model-Based Generalization in RL, section 3.

    Pitfall:
        Compare the sets of values, not of models: a model that is inconsistent with the data may
        have the values of one that is not. If every deterministic model is in the class, both sets
        of values are the same.
    """
    state, action, following = data.T
    consistent = jnp.all(models[:, state, action] == following[None], axis=-1)
    rate = jnp.asarray(gamma, q.dtype)
    backup = reward[state, action][None] + rate * jnp.max(q[:, following], axis=-1)
    residual = jnp.abs(q[:, state, action] - backup)
    return consistent, jnp.all(residual <= atol, axis=-1)


def value_labels(q: Float[Array, "M S A"], denominator: float) -> Int[Array, " M"]:
    """Numbers the distinct value functions of a class.

    Args:
        q: action values of every model.
        denominator: a common one of all values, so that rounding decides nothing. With a discount
            of 1/2 and integer rewards, 2^S lcm(2^1 - 1, ..., 2^S - 1) is one.

    Returns:
        A label below M per model; models have equal labels if their values are equal.
    """
    rows = jnp.round(q.reshape(q.shape[0], -1) * jnp.asarray(denominator, q.dtype))
    order = jnp.lexsort(rows.T)
    ordered = rows[order]
    changes = jnp.any(ordered[1:] != ordered[:-1], axis=-1).astype(jnp.int32)
    rank = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(changes)])
    return jnp.zeros(len(order), jnp.int32).at[order].set(rank)


def count_distinct(labels: Int[Array, " M"], mask: Bool[Array, " M"]) -> Int[Array, ""]:
    """Number of distinct value functions among some models.

    Args:
        labels: of `value_labels`.
        mask: models that count.

    Returns:
        The number.
    """
    return jnp.sum(label_set(labels, mask).astype(jnp.int32))


def label_set(labels: Int[Array, " M"], mask: Bool[Array, " M"]) -> Bool[Array, " M"]:
    """The value functions of some models, as a mask over labels.

    Args:
        labels: of `value_labels`.
        mask: models that count.

    Returns:
        Whether a label occurs among them.
    """
    return jnp.zeros(len(labels), bool).at[labels].max(mask)

"""Q-learning on imagined steps, which may or may not be reached and may or may not end a task."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num, PyTree

from jaxlab.values.action_targets import double_q_target, q_target, take_action
from jaxlab.values.arrays import at_least_float32, check_same_shape

QFn = Callable[[PyTree, Float[Array, "*b o"]], Float[Array, "*b A"]]


def imagined_q_loss(
    q_fn: QFn,
    params: PyTree,
    target_params: PyTree,
    obs: Float[Array, "*b o"],
    action: Int[Array, "*b"],
    reward: Num[Array, "*b"],
    continues: Num[Array, "*b"],
    next_obs: Float[Array, "*b o"],
    weight: Num[Array, "*b"],
    gamma: ArrayLike,
    double: bool = False,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """mean_i w_i (Q(s_i, a_i) - r_i - gamma c_i max_a Q'(s'_i, a))^2.

    Args:
        q_fn: (params, obs) -> values of all actions.
        params: the network that is trained.
        target_params: the one that values the next states.
        obs: observations s.
        action: indices.
        reward: rewards r.
        continues: probability c that the task goes on after the step; 0 or 1 for real steps.
        next_obs: observations s'.
        weight: probability w that the step is reached at all; 1 for real steps.
        gamma: discount factor per step.
        double: the trained network chooses the next action, the target network values it.

    Returns:
        The loss, and "td_error" (weighted root mean square) and "q" (mean of the actions taken).

    Raises:
        ValueError: if the shapes do not fit.

    Reference:
        Young et al. 2023, The Benefits of Model-Based Generalization in RL, section 4.

    Pitfall:
        The weights do not average to one, and are not made to: steps beyond a likely end shall
        count less in the batch, not more of the others.
    """
    q = take_action(q_fn(params, obs), action)
    reward, continues, weight = at_least_float32(reward, continues, weight)
    check_same_shape(q=q, reward=reward, continues=continues, weight=weight)
    q_next = q_fn(target_params, next_obs)
    discount = jnp.asarray(gamma, continues.dtype) * continues
    if double:
        target = double_q_target(reward, discount, q_next, q_fn(params, next_obs))
    else:
        target = q_target(reward, discount, q_next)
    weight = jax.lax.stop_gradient(weight)
    loss = jnp.mean(weight * (q.astype(target.dtype) - target) ** 2)
    metrics = {"td_error": jnp.sqrt(loss), "q": jnp.mean(q)}
    return loss, jax.lax.stop_gradient(metrics)

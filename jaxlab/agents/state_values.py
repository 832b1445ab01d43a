"""State values of an agent's critics, for losses that ask what a model error costs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab import nets
from jaxlab.agents import sac
from jaxlab.worldmodels import losses


def value_fn(
    state: sac.SACState, config: sac.SACConfig, *, through_policy: bool = False
) -> Callable[[Float[Array, " o"]], Float[Array, " J"]]:
    """State values V_j(s) = Q_j(s, mu(s)) of the online and then the target critics, J = 2N.

    Args:
        state: the agent.
        config: its structure.
        through_policy: differentiate through the policy's mean action too. Off, the action is a
            constant, and a gradient tells what the critics make of the state alone.

    Returns:
        obs[o] -> values[J].

    Reference:
        Voelcker et al. 2022 (VaGraM), section 4 and the authors' program.
    """
    heads = _heads(state)

    def values(obs: Array) -> Array:
        return sac.q_values(heads, config, obs, _action(state, config, obs, through_policy))

    return values


def value_gradients(
    state: sac.SACState,
    config: sac.SACConfig,
    next_obs: Float[Array, "B o"],
    *,
    clip_quantile: float | None = 0.95,
    mask: Bool[Array, " B"] | None = None,
    through_policy: bool = False,
) -> tuple[Float[Array, "J B o"], Float[Array, ""]]:
    """Gradients of `value_fn` at real next states, each critic's clipped at its own quantile.

    The same numbers as `losses.value_gradients` of `value_fn`, J times cheaper: one backward pass
    per critic through that critic alone.

    Args:
        state: the agent.
        config: its structure.
        next_obs: observed next states.
        clip_quantile: level of the rows' norms above which gradients are shortened; None for off.
        mask: rows that count in the quantile; None for all.
        through_policy: see `value_fn`.

    Returns:
        Gradients, as constants, and the share of them that was clipped.
    """

    def head_gradients(head: nets.MLPParams) -> Array:
        def value(obs: Array) -> Array:
            action = _action(state, config, obs, through_policy)
            return sac.q_values(jax.tree.map(lambda x: x[None], head), config, obs, action)[0]

        return losses.value_gradients(value, next_obs, clip_quantile=None)

    g = jax.vmap(head_gradients)(_heads(state))
    if clip_quantile is None:
        return g, jnp.zeros((), g.dtype)
    clipped, fraction = losses.clip_gradient_norm(g, clip_quantile, mask)
    return jax.lax.stop_gradient(clipped), jax.lax.stop_gradient(fraction)


def _heads(state: sac.SACState) -> nets.MLPParams:
    return jax.tree.map(
        lambda online, target: jnp.concatenate([online, target]), *sac.evaluated_critics(state)
    )


def _action(state: sac.SACState, config: sac.SACConfig, obs: Array, through_policy: bool) -> Array:
    action = sac.act(state, config, obs)
    return action if through_policy else jax.lax.stop_gradient(action)

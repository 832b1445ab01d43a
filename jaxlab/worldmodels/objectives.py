"""What a fit minimises: one member's loss on a minibatch, built from the losses."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.types import Transition
from jaxlab.worldmodels import losses


class Prediction(NamedTuple):
    """One member's outputs on a minibatch."""

    mean: Float[Array, "B d"]  # normalised target units
    logvar: Float[Array, "B d"] | None  # normalised target units; None if deterministic
    next_obs: Float[Array, "B o"]  # environment units
    reward: Float[Array, " B"] | None  # environment units; None if not predicted


class Batch(NamedTuple):
    """The data that one member's prediction is compared with."""

    target: Float[Array, "B d"]  # normalised [next_obs - obs, reward]
    transition: Transition  # [B], environment units
    rows: Int[Array, " B"]  # positions in the fit's data set, to look up arrays of one's own
    mask: Bool[Array, " B"] | None  # rows that count; None for all


Objective = Callable[[Prediction, Batch], tuple[Float[Array, ""], losses.Metrics]]


def nll_objective(prediction: Prediction, batch: Batch) -> tuple[Float[Array, ""], losses.Metrics]:
    """Gaussian negative log-likelihood of the normalised target.

    Args:
        prediction: one member's outputs.
        batch: data.

    Returns:
        Loss and metrics of `losses.gaussian_nll`.

    Raises:
        ValueError: if the ensemble is deterministic.
    """
    if prediction.logvar is None:
        raise ValueError("loss_fn: nll_objective expects deterministic=False, got True")
    return losses.gaussian_nll(prediction.mean, prediction.logvar, batch.target, batch.mask)


def mse_objective(prediction: Prediction, batch: Batch) -> tuple[Float[Array, ""], losses.Metrics]:
    """Squared error of the normalised target, summed over dimensions.

    Args:
        prediction: one member's outputs.
        batch: data.

    Returns:
        Loss and metrics of `losses.mse_loss`.
    """
    return losses.mse_loss(prediction.mean, batch.target, batch.mask)


def value_gradient_objective(
    g: Float[Array, "*J C o"],
    *,
    value_coef: float | Float[Array, ""] = 1.0,
    reward_coef: float | Float[Array, ""] = 1.0,
    mse_coef: float | Float[Array, ""] = 0.0,
) -> Objective:
    """Value-gradient weighted error of the next state, plus squared error of the reward.

    Args:
        g: `losses.value_gradients` at the next states of all C rows of the data set, clipped there.
        value_coef: weight of the state part; 0 leaves the other parts alone.
        reward_coef: weight of the squared reward error.
        mse_coef: weight of `mse_objective`: 1 while the critics are untrained and their gradients
            meaningless, 0 afterwards; always positive is a regularised variant.

    Returns:
        An objective; the three coefficients may be traced.

    Reference:
        Voelcker et al. 2022 (VaGraM), section 4.
    """
    weights = losses.critic_mean_square(g)

    def state_loss(prediction: Prediction, batch: Batch) -> tuple[Array, losses.Metrics]:
        return losses.weighted_squared_error(
            prediction.next_obs, batch.transition.next_obs, weights[batch.rows], batch.mask
        )

    return _combine(state_loss, value_coef, reward_coef, mse_coef)


def taylor_value_aware_objective(
    g: Float[Array, "*J C o"],
    *,
    value_coef: float | Float[Array, ""] = 1.0,
    reward_coef: float | Float[Array, ""] = 1.0,
    mse_coef: float | Float[Array, ""] = 0.0,
) -> Objective:
    """First-order value error of the next state, plus squared error of the reward.

    Args:
        g: as in `value_gradient_objective`.
        value_coef: as there.
        reward_coef: as there.
        mse_coef: as there.

    Returns:
        An objective.
    """

    def state_loss(prediction: Prediction, batch: Batch) -> tuple[Array, losses.Metrics]:
        return losses.taylor_value_aware_loss(
            prediction.next_obs, batch.transition.next_obs, g[..., batch.rows, :], batch.mask
        )

    return _combine(state_loss, value_coef, reward_coef, mse_coef)


def iter_value_aware_objective(
    value_fn: losses.ValueFn,
    *,
    value_coef: float | Float[Array, ""] = 1.0,
    reward_coef: float | Float[Array, ""] = 1.0,
    mse_coef: float | Float[Array, ""] = 0.0,
) -> Objective:
    """Squared value difference of the next state, plus squared error of the reward.

    Args:
        value_fn: obs[o] -> scalar, or [J] for J critics.
        value_coef: as in `value_gradient_objective`.
        reward_coef: as there.
        mse_coef: as there.

    Returns:
        An objective.
    """

    def state_loss(prediction: Prediction, batch: Batch) -> tuple[Array, losses.Metrics]:
        return losses.iter_value_aware_loss(
            prediction.next_obs, batch.transition.next_obs, value_fn, batch.mask
        )

    return _combine(state_loss, value_coef, reward_coef, mse_coef)


def _combine(
    state_loss: Objective,
    value_coef: float | Array,
    reward_coef: float | Array,
    mse_coef: float | Array,
) -> Objective:
    def objective(prediction: Prediction, batch: Batch) -> tuple[Array, losses.Metrics]:
        state, metrics = state_loss(prediction, batch)
        mse, _ = mse_objective(prediction, batch)
        dtype = state.dtype
        total = jnp.asarray(value_coef, dtype) * state + jnp.asarray(mse_coef, dtype) * mse
        metrics = metrics | {"state_loss": state}
        if prediction.reward is not None:
            reward, _ = losses.mse_loss(
                prediction.reward[:, None], batch.transition.reward[:, None], batch.mask
            )
            total += jnp.asarray(reward_coef, dtype) * reward
            metrics["reward_loss"] = reward
        return total, metrics

    return objective

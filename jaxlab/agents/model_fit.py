"""Fits of a dynamics model that may look at the agent's critics."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import worldmodels
from jaxlab.agents import sac, state_values
from jaxlab.agents.dyna_config import DynaConfig, DynaHyperparams
from jaxlab.types import Transition
from jaxlab.worldmodels import losses

Metrics = dict[str, Float[Array, ""]]


def fit(
    key: Key[Array, ""],
    model: worldmodels.ModelState,
    agent: sac.SACState,
    data: Transition,
    count: Int[Array, ""],
    block: Int[Array, ""],
    config: DynaConfig,
    hparams: DynaHyperparams,
) -> tuple[worldmodels.ModelState, Metrics]:
    """Trains the model on by the configured loss, with the current critics held fixed.

    Args:
        key: random key.
        model: the model to go on from.
        agent: whose critics a value-aware loss asks.
        data: transitions [C], of which the first `count` count.
        count: number of valid rows.
        block: blocks done before; the warm-up's clock.
        config: the loss, its options, the architecture and the fit's schedule.
        hparams: learning rate and weights.

    Returns:
        The model and the fit's metrics "model_loss", "model_mse" (both on holdout rows, the latter
        in normalised units) and "model_epochs".

    Reference:
        Voelcker et al. 2022 (VaGraM), section 4: refit with the current critics, the MSE added
        while the critics are untrained.
    """
    warming_up = block < config.mse_warmup_blocks
    mse_coef = jnp.where(warming_up, jnp.ones_like(hparams.mse_coef), hparams.mse_coef)
    objective = _objective(agent, data, count, config, hparams, mse_coef)
    model, metrics = worldmodels.fit(
        key,
        model,
        data,
        count,
        config.ensemble,
        objective,
        hparams.model_lr,
        # The likelihood's elites are those of least squared error, as in PETS and MBPO.
        score_fn=worldmodels.mse_objective if config.fit_loss == "nll" else objective,
        fit_config=config.fit,
    )
    return model, {
        "model_loss": metrics["holdout_loss"],
        "model_mse": metrics["holdout_mse"],
        "model_epochs": metrics["epochs"],
    }


def _objective(
    agent: sac.SACState,
    data: Transition,
    count: Array,
    config: DynaConfig,
    hparams: DynaHyperparams,
    mse_coef: Array,
) -> worldmodels.Objective:
    if config.fit_loss == "nll":
        return worldmodels.nll_objective
    if config.fit_loss == "mse":
        return worldmodels.mse_objective
    coefs = {
        "value_coef": hparams.value_coef,
        "reward_coef": hparams.reward_coef,
        "mse_coef": mse_coef,
    }
    if config.fit_loss == "iter_value_aware":
        value = state_values.value_fn(agent, config.sac, through_policy=config.through_policy)
        return worldmodels.iter_value_aware_objective(value, **coefs)
    # Anew at every fit: gradients kept from an earlier one belong to critics that are gone.
    g, _ = state_values.value_gradients(
        agent,
        config.sac,
        data.next_obs,
        clip_quantile=config.clip_quantile,
        mask=jnp.arange(data.reward.shape[0]) < count,
        through_policy=config.through_policy,
    )
    if config.fit_loss == "value_gradient":
        return worldmodels.value_gradient_objective(g, **coefs)
    return worldmodels.taylor_value_aware_objective(g, **coefs)


def value_diagnostics(
    agent: sac.SACState,
    predicted: Float[Array, "*e B o"],
    next_obs: Float[Array, "B o"],
    config: DynaConfig,
) -> Metrics:
    """Measures what a model's errors cost in value; the same numbers whatever the model's loss.

    Args:
        agent: whose critics give the value.
        predicted: predicted next states, with any leading member axes.
        next_obs: the real next states, best of rows that the fit has not seen.
        config: options of the value gradients.

    Returns:
        "value_error", mean |V(pred) - V(s')|; "weighted_error", the value-gradient weighted squared
        error; "effective_dims" of its weights; "clip_fraction" of the gradients; "model_error", the
        squared error summed over dimensions.
    """
    value = state_values.value_fn(agent, config.sac, through_policy=config.through_policy)
    g, clipped = state_values.value_gradients(
        agent,
        config.sac,
        next_obs,
        clip_quantile=config.clip_quantile,
        through_policy=config.through_policy,
    )
    weights = losses.critic_mean_square(g)
    weighted, metrics = losses.weighted_squared_error(predicted, next_obs, weights)
    return {
        "value_error": losses.value_error(value, predicted, next_obs),
        "weighted_error": weighted,
        "effective_dims": metrics["effective_dims"],
        "clip_fraction": clipped,
        "model_error": losses.mse_loss(predicted, next_obs)[0],
    }

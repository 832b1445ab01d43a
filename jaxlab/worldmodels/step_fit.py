"""Training of a dynamics ensemble for a given number of steps, for studies of training itself."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxlab import nets
from jaxlab.types import Transition
from jaxlab.worldmodels.bootstrap import uniform_index
from jaxlab.worldmodels.ensemble import (
    OPTIMIZER,
    EnsembleConfig,
    EnsembleParams,
    ModelState,
    forward,
    regulariser,
)
from jaxlab.worldmodels.weighting import weighted_nll


def fit_normalizers(
    state: ModelState, data: Transition, count: ArrayLike, config: EnsembleConfig
) -> ModelState:
    """Refits the normalisers of inputs and targets to the first `count` rows.

    Args:
        state: the model, which predicts no reward.
        data: transitions [C].
        count: rows that count, may be traced.
        config: architecture.

    Returns:
        The model with new normalisers.
    """
    valid = jnp.arange(data.reward.shape[0]) < count
    inputs = jnp.concatenate([data.obs, data.action], axis=-1)
    state = dataclasses.replace(state, input_normalizer=nets.fit_normalizer(inputs, valid))
    if config.normalize_targets:
        change = data.next_obs - data.obs
        state = dataclasses.replace(state, target_normalizer=nets.fit_normalizer(change, valid))
    return state


def fit_steps(
    key: Key[Array, ""],
    state: ModelState,
    data: Transition,
    config: EnsembleConfig,
    steps: int,
    batch: int,
    lr: ArrayLike,
    *,
    count: ArrayLike | None = None,
    weights: Float[Array, " C"] | None = None,
    active: ArrayLike | None = None,
) -> tuple[ModelState, Float[Array, ""]]:
    """Takes Adam steps on the (weighted) likelihood, without early stopping or holdout.

    Args:
        key: random key.
        state: a probabilistic model that predicts no reward, its normalisers fitted.
        data: transitions with leading axis C.
        config: architecture.
        steps: static number of steps.
        batch: rows per member and step, drawn with replacement.
        lr: learning rate.
        count: rows that count, may be traced; None for all.
        weights: of the rows; None for ones.
        active: steps that count, may be traced: from then on the model stays as it is.

    Returns:
        The trained model and the mean loss of all steps.

    Raises:
        ValueError: if the model is deterministic or predicts rewards.
    """
    if config.deterministic or config.predict_reward:
        raise ValueError(
            "config: expected deterministic=False and predict_reward=False, "
            f"got {config.deterministic} and {config.predict_reward}"
        )
    capacity = data.reward.shape[0]
    rows = jnp.asarray(capacity if count is None else count, jnp.int32)
    last = jnp.asarray(steps if active is None else active, jnp.int32)
    rate = jnp.asarray(lr, jnp.float32)
    weight = jnp.ones(capacity, jnp.float32) if weights is None else weights
    inputs = jnp.concatenate([data.obs, data.action], axis=-1)
    inputs = nets.normalize(state.input_normalizer, inputs)
    targets = nets.normalize(state.target_normalizer, data.next_obs - data.obs)

    def total_loss(params: EnsembleParams, index: Int[Array, "E B"]) -> Float[Array, ""]:
        def one(member: EnsembleParams, index: Int[Array, " B"]) -> Float[Array, ""]:
            mean, logvar = forward(member, config, inputs[index])
            assert logvar is not None  # refused above
            loss, _ = weighted_nll(mean, logvar, targets[index], weight[index])
            return loss + regulariser(member, config)

        return jnp.sum(jax.vmap(one)(params, index))

    def step(carry: tuple, xs: tuple[Array, Array]) -> tuple[tuple, Array]:
        params, opt_state = carry
        t, step_key = xs
        index = uniform_index(step_key, (config.members, batch), rows)
        loss, grads = jax.value_and_grad(total_loss)(params, index)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            direction, moments = OPTIMIZER.update(grads, opt_state)
        moved = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return nets.tree_where(t < last, (moved, moments), carry), loss

    with jax.default_matmul_precision("float32"):
        xs = (jnp.arange(steps, dtype=jnp.int32), jax.random.split(key, steps))
        (params, opt_state), losses = jax.lax.scan(step, (state.params, state.opt_state), xs)
    state = dataclasses.replace(state, params=params, opt_state=opt_state)
    return state, jnp.mean(losses)

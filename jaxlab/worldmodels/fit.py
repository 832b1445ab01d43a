"""Training of a dynamics ensemble on the valid rows of a buffer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import nets
from jaxlab.types import Transition
from jaxlab.worldmodels.bootstrap import split_rows, uniform_index
from jaxlab.worldmodels.ensemble import (
    OPTIMIZER,
    EnsembleConfig,
    EnsembleParams,
    ModelState,
    forward,
    regulariser,
)
from jaxlab.worldmodels.objectives import Batch, Objective, Prediction, mse_objective, nll_objective


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Schedule of one fit; hashable, closed over by jitted code."""

    batch_size: int = 256
    max_epochs: int = 20
    patience: int = 5  # epochs without any member's improvement before it stops
    improvement: float = 0.01  # relative decrease of the score that counts
    holdout_fraction: float = 0.2
    max_holdout: int = 5000

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        for name in ("batch_size", "max_epochs", "patience", "max_holdout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.holdout_fraction < 1:
            raise ValueError(
                f"holdout_fraction: expected within (0, 1), got {self.holdout_fraction}"
            )


class _Carry(NamedTuple):
    params: EnsembleParams  # [E, ...]
    opt_state: optax.OptState
    best_params: EnsembleParams  # [E, ...], every member's own best
    best_score: Float[Array, " E"]
    stale: Int[Array, ""]  # epochs since any member improved
    epoch: Int[Array, ""]
    train_loss: Float[Array, ""]  # mean over members and the last epoch's steps


def fit(
    key: Key[Array, ""],
    state: ModelState,
    data: Transition,
    count: int | Int[Array, ""],
    config: EnsembleConfig,
    loss_fn: Objective = nll_objective,
    lr: float | Float[Array, ""] = 1e-3,
    *,
    score_fn: Objective = mse_objective,
    fit_config: FitConfig = FitConfig(),
) -> tuple[ModelState, dict[str, Float[Array, ""]]]:
    """Refits the normalisers and trains every member on its own bootstrap sample (warm start).

    An epoch is ceil(training rows / batch size) Adam steps on minibatches drawn from the sample.
    After each, members are scored on the holdout rows and keep their best parameters.

    Args:
        key: random key.
        state: the model to go on from.
        data: transitions with leading axis C, of JAX or NumPy; only the first `count` rows count.
        count: number of valid rows, 2 to C; may be traced, and is not checked then.
        config: architecture.
        loss_fn: what a member minimises, see `jaxlab.worldmodels.objectives`.
        lr: learning rate (traced).
        score_fn: holdout score that decides on best parameters, stopping and elites; for a
            value-aware fit, its own loss.
        fit_config: batch size, epochs, early stopping, holdout.

    Returns:
        The new state, and scalar metrics: "epochs", "train_loss", "holdout_mse" (normalised units)
        and the loss's own, "holdout_..."; holdout metrics are means over the elites.

    Raises:
        ValueError: if the data do not have the model's dimensions, or not `count` rows.

    Reference:
        Chua et al. 2018 (PETS); Janner et al. 2019 (MBPO), appendix.

    Pitfall:
        The squared error as score stops improving before the log-variance has converged, and the
        best parameters then overestimate the noise; score by `nll_objective` if calibration counts.
        Under `vmap` a loop lasts as long as its slowest instance, and every instance's carry is
        selected at each turn: the data stay outside of the carry.
    """
    _check(state, data, count)
    data = jax.tree.map(jnp.asarray, data)  # NumPy's arrays know no traced index
    count = jnp.asarray(count, jnp.int32)
    capacity = data.reward.shape[0]
    split_key, train_key = jax.random.split(key)
    split = split_rows(
        split_key,
        config.members,
        capacity,
        count,
        fit_config.holdout_fraction,
        fit_config.max_holdout,
    )
    rate = jnp.asarray(lr, jnp.float32)

    valid = jnp.arange(capacity) < count
    inputs = jnp.concatenate([data.obs, data.action], axis=-1)
    targets = data.next_obs - data.obs
    if config.predict_reward:
        targets = jnp.concatenate([targets, data.reward[:, None]], axis=-1)
    state = dataclasses.replace(state, input_normalizer=nets.fit_normalizer(inputs, valid))
    if config.normalize_targets:
        state = dataclasses.replace(state, target_normalizer=nets.fit_normalizer(targets, valid))
    inputs = nets.normalize(state.input_normalizer, inputs)
    targets = nets.normalize(state.target_normalizer, targets)

    def evaluate(
        params: EnsembleParams, rows: Array, mask: Array | None, objective: Objective
    ) -> tuple[Array, dict[str, Array]]:
        """One member's objective on some rows; XLA drops the gathers that it does not use."""
        mean, logvar = forward(params, config, inputs[rows])
        transition = jax.tree.map(lambda leaf: leaf[rows], data)
        outcome = nets.denormalize(state.target_normalizer, mean)
        prediction = Prediction(
            mean=mean,
            logvar=logvar,
            next_obs=transition.obs + outcome[:, : data.obs.shape[-1]],
            reward=outcome[:, -1] if config.predict_reward else None,
        )
        return objective(prediction, Batch(targets[rows], transition, rows, mask))

    def total_loss(params: EnsembleParams, rows: Int[Array, "E B"]) -> Array:
        def member_loss(member: EnsembleParams, member_rows: Array) -> Array:
            return evaluate(member, member_rows, None, loss_fn)[0] + regulariser(member, config)

        # A sum: a mean would make every member's gradient depend on the ensemble's size.
        return jnp.sum(jax.vmap(member_loss)(params, rows))

    def holdout(params: EnsembleParams, objective: Objective) -> tuple[Array, dict[str, Array]]:
        return jax.vmap(lambda p: evaluate(p, split.holdout, split.holdout_mask, objective))(params)

    def train_step(
        step_key: Array, params: EnsembleParams, opt_state: optax.OptState
    ) -> tuple[EnsembleParams, optax.OptState, Array]:
        shape = (config.members, fit_config.batch_size)
        position = uniform_index(step_key, shape, split.train_count)
        rows = jnp.take_along_axis(split.bootstrap, position, axis=1)
        loss, grads = jax.value_and_grad(total_loss)(params, rows)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an int power
            direction, opt_state = OPTIMIZER.update(grads, opt_state)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return params, opt_state, loss / config.members

    steps = (split.train_count + fit_config.batch_size - 1) // fit_config.batch_size

    def epoch(carry: _Carry) -> _Carry:
        def step(index: Array, inner: tuple) -> tuple:
            params, opt_state, loss_sum = inner
            step_key = jax.random.fold_in(train_key, carry.epoch * steps + index)
            params, opt_state, loss = train_step(step_key, params, opt_state)
            return params, opt_state, loss_sum + loss

        start = (carry.params, carry.opt_state, jnp.zeros((), jnp.float32))
        params, opt_state, loss_sum = jax.lax.fori_loop(0, steps, step, start)
        score, _ = holdout(params, score_fn)
        improved = score < carry.best_score - fit_config.improvement * jnp.abs(carry.best_score)
        return _Carry(
            params=params,
            opt_state=opt_state,
            best_params=nets.tree_where(improved, params, carry.best_params),
            best_score=jnp.where(improved, score, carry.best_score),
            stale=jnp.where(jnp.any(improved), 0, carry.stale + 1),
            epoch=carry.epoch + 1,
            train_loss=loss_sum / steps.astype(jnp.float32),
        )

    def unfinished(carry: _Carry) -> Array:
        return (carry.epoch < fit_config.max_epochs) & (carry.stale < fit_config.patience)

    zero = jnp.zeros((), jnp.int32)
    # The largest finite number: a first score improves on it, a NaN does not.
    worst = jnp.full((config.members,), jnp.finfo(jnp.float32).max)
    start = _Carry(
        state.params, state.opt_state, state.params, worst, zero, zero, jnp.zeros((), jnp.float32)
    )
    with jax.default_matmul_precision("float32"):
        end = jax.lax.while_loop(unfinished, epoch, start)
        elites = jnp.argsort(end.best_score)[: config.elites].astype(jnp.int32)
        final = jax.tree.map(lambda leaf: leaf[elites], end.best_params)
        mse, _ = holdout(final, mse_objective)
        loss, loss_metrics = holdout(final, loss_fn)

    targets_dim = state.target_normalizer.mean.shape[-1]
    metrics = {
        "epochs": end.epoch.astype(jnp.float32),
        "train_loss": end.train_loss,
        "holdout_loss": jnp.mean(loss),
    }
    metrics |= {f"holdout_{k}": jnp.mean(v) for k, v in loss_metrics.items() if v.ndim == 1}
    metrics["holdout_mse"] = jnp.mean(mse) / targets_dim
    state = dataclasses.replace(
        state, params=end.best_params, opt_state=end.opt_state, elites=elites
    )
    return state, metrics


def _check(state: ModelState, data: Transition, count: int | Array) -> None:
    inputs = state.input_normalizer.mean.shape[-1]
    got = data.obs.shape[-1] + data.action.shape[-1]
    if data.reward.ndim != 1:
        raise ValueError(f"data: expected one leading axis, got rewards {data.reward.shape}")
    if got != inputs:
        raise ValueError(f"data: expected obs and action of {inputs} dimensions, got {got}")
    rows = data.reward.shape[0]
    if isinstance(count, int | np.integer) and not 2 <= count <= rows:
        raise ValueError(
            f"count: expected 2 (one row to fit, one to hold out) to {rows} (all), got {count}"
        )

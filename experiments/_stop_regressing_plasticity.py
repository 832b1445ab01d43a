"""Regression on targets that jump: how fast a network that has fitted one level fits the next.

Targets are a fixed, patternless function of the inputs plus a level that rises from phase to phase,
as values do while a policy improves. No bootstrapping is involved.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble
from jaxlab.agents import dqn
from jaxlab.nets import mlp_apply, mlp_init

from . import _stop_regressing_arms as arms_

if TYPE_CHECKING:
    import xarray

LEVELS = (0.0, 8.0, 16.0, 24.0, 32.0)
WORST = -3.5  # minus log10 of a squared error larger than the square of the support
FREQUENCY = 1e5  # of the sine that takes all pattern out of a random network's outputs


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 16
    tuning_seeds: int = 4
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # tried for every arm
    arms: tuple[str, ...] = ("mse", "mse_softmax", "two_hot", "hl_gauss")
    inputs: int = 16
    points: int = 1024
    width: int = 128
    support: tuple[float, float] = (-40.0, 40.0)
    num_bins: int = 101
    batch: int = 128
    phase_steps: int = 1000  # optimiser steps at each level
    block: int = 50  # optimiser steps per update of the engine
    early_steps: int = 250  # of a phase, in which the score is taken
    microbatch: int = 8  # members that one call holds on a device
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses phases that are not whole blocks."""
        for name in ("phase_steps", "early_steps"):
            if getattr(self, name) % self.block:
                raise ValueError(
                    f"{name}: expected a multiple of {self.block}, got {getattr(self, name)}"
                )

    def learner(self, arm: str) -> dqn.DQNConfig:
        """The network of an arm."""
        head = arms_.head(arm, self.support, self.num_bins)
        return dqn.DQNConfig(head=head, hidden=(self.width, self.width))


@flax.struct.dataclass
class State:
    """One network with its points."""

    key: Key[Array, ""]
    params: dqn.QParams
    opt: Any
    learning_rate: Float[Array, ""]
    x: Float[Array, "N i"]
    base: Float[Array, " N"]  # targets at level 0, in [-1, 1]
    block: Int[Array, ""]  # blocks done


def patternless(key: Key[Array, ""], x: Float[Array, "N i"]) -> Float[Array, " N"]:
    """sin(1e5 f(x)) of a random network f: fixed numbers that the inputs do not explain.

    Reference: Farebrother et al. 2024 (Stop regressing), section 5.2; Lyle et al. 2024.
    """
    return jnp.sin(FREQUENCY * mlp_apply(mlp_init(key, (x.shape[-1], 64, 1)), x)[..., 0])


def make(config: Config, arm: str) -> ensemble.Experiment:
    """The study of one arm; an update takes `block` optimiser steps.

    Traced hyper-parameters: "lr".

    Args:
        config: sizes.
        arm: one of `ARMS`.

    Returns:
        An experiment whose update reports "log_error", the mean over the block's steps of log10 of
        the squared error on the batch before the step; and whose evaluation reports "error", the
        squared error on all points.
    """
    learner = config.learner(arm)
    blocks = config.phase_steps // config.block
    levels = jnp.asarray(LEVELS, jnp.float32)
    adam = optax.scale_by_adam()

    def init(key, hparams):
        x_key, base_key, net_key, key = jax.random.split(key, 4)
        x = jax.random.normal(x_key, (config.points, config.inputs))
        params = dqn.init(net_key, learner, config.inputs, 1).params
        return State(
            key=key,
            params=params,
            opt=adam.init(params),
            learning_rate=hparams["lr"],
            x=x,
            base=patternless(base_key, x),
            block=jnp.zeros((), jnp.int32),
        )

    def level(block):
        return levels[jnp.minimum(block // blocks, len(LEVELS) - 1)]

    def update(state):
        key, sub = jax.random.split(state.key)
        index = jax.random.randint(sub, (config.block, config.batch), 0, config.points)
        shift = level(state.block)

        def step(carry, index):
            params, opt = carry
            y = state.base[index] + shift

            def loss_fn(params):
                return learner.head.loss(dqn.outputs(params, learner, state.x[index])[:, 0], y)

            (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            with jax.numpy_dtype_promotion("standard"):  # optax: a float to an integer power
                direction, opt = adam.update(grads, opt)
            params = jax.tree.map(lambda p, d: p - state.learning_rate * d, params, direction)
            return (params, opt), 2 * jnp.log10(metrics["td_error"])

        (params, opt), log_error = jax.lax.scan(step, (state.params, state.opt), index)
        state = state.replace(key=key, params=params, opt=opt, block=state.block + 1)
        return state, {"log_error": jnp.mean(log_error)}

    def evaluate(state, key):
        del key
        predicted = dqn.q_values(state.params, learner, state.x)[:, 0]
        target = state.base + level(state.block - 1)
        return {"error": jnp.mean((predicted - target) ** 2)}

    return ensemble.Experiment(init, update, evaluate)


def early(config: Config, data: "xarray.Dataset") -> np.ndarray:
    """Scores after each level: minus the mean log10 error of its first steps, [..., levels]."""
    curve = -data["log_error"].values
    phases = curve.reshape(*curve.shape[:-1], len(LEVELS), -1)
    return phases[..., : config.early_steps // config.block].mean(axis=-1)


def jumps(config: Config, data: "xarray.Dataset") -> np.ndarray:
    """The mean of `early` over the levels that the network had to jump to."""
    return early(config, data)[..., 1:].mean(axis=-1)


def run(
    config: Config, directory: Path, options: dict[str, Any]
) -> tuple["xarray.Dataset", dict[str, np.ndarray]]:
    """Tunes and runs all arms, with checkpoints below a directory.

    Returns:
        Results, dims (arm, seed, step), and for each arm its scores by level [n_seeds, levels].
    """
    import xarray

    rows = []
    for arm in config.arms:
        data = arms_.tuned_run(
            make(config, arm),
            [{}],
            lambda data: jumps(config, data),
            rates=config.learning_rates,
            tuning_seeds=config.tuning_seeds,
            tuned_settings=[0],
            worst=WORST,
            steps=len(LEVELS) * config.phase_steps // config.block,
            record_every=1,
            seeds=arms_.study_seeds(config.seeds, config.smoke),
            checkpoint=directory / f"plasticity-{arm}",
            microbatch=config.microbatch,
            **options,
        )
        rows.append(data.isel(point=0).reset_coords(drop=False).expand_dims(arm=[arm]))
    data = xarray.concat(rows, "arm", combine_attrs="drop_conflicts")
    return data, {arm: early(config, data.sel(arm=arm)) for arm in config.arms}

"""Fitted value iteration on learned models: what the model's members and the critic's slope do.

A dynamics model of the pendulum is fitted to few transitions, a value network to targets at next
states drawn from the model, and the greedy policy of that value, looking one exact step ahead, has
to swing the pendulum up. The arms differ in where next states come from and in what keeps the value
network flat.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxlab import ensemble, values, worldmodels
from jaxlab.agents import fitted_value
from jaxlab.agents.flat_critics import CriticRegulariser
from jaxlab.envs import exact_step_fn, pendulum
from jaxlab.envs.pendulum import MAX_SPEED, observe
from jaxlab.stats import evaluation_seeds
from jaxlab.types import Transition
from jaxlab.worldmodels.propagation import StepFn

if TYPE_CHECKING:
    import xarray

SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
REWARD_SCALE = 0.1  # of the rewards that the value network sees
WORST_REWARD = -16.28  # per step, hanging at full speed and torque
ACTIONS = 5  # torques that the maximum is taken over
ENV = pendulum()


class Arm(NamedTuple):
    """Where next states come from, and what keeps the value network flat."""

    members: int  # of the model; 0 for the exact dynamics
    deterministic: bool = False
    regulariser: CriticRegulariser | None = None


ARMS = {
    "exact": Arm(0),
    "exact + robust": Arm(0, regulariser="robust"),
    "deterministic": Arm(1, deterministic=True),
    "single": Arm(1),
    "ensemble": Arm(7),
    "deterministic ensemble": Arm(7, deterministic=True),
    "single + spectral": Arm(1, regulariser="spectral"),
    "single + noise": Arm(1, regulariser="noise"),
    "single + robust": Arm(1, regulariser="robust"),
    "ensemble + robust": Arm(7, regulariser="robust"),
}
EXACT, SINGLE, ENSEMBLE, ROBUST = "exact", "single", "ensemble", "single + robust"
Scores = dict[tuple[str, int, str], np.ndarray]  # (arm, transitions, metric) -> [n_seeds]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20  # paired evaluation seeds
    arms: tuple[str, ...] = tuple(name for name in ARMS if name != "single + noise")
    transitions: tuple[int, int] = (200, 60)  # many and few
    only_many: tuple[str, ...] = ("deterministic ensemble", "ensemble + robust")
    model_hidden: tuple[int, ...] = (16, 16)
    model_lr: float = 3e-3
    model_batch: int = 64
    model_epochs: int = 500  # of at most three steps
    elites: int = 5
    hidden: tuple[int, ...] = (64, 64)  # of the value network
    lr: float = 1e-3
    gamma: float = 0.97
    batch: int = 128
    steps: int = 4000  # of the value network's optimiser
    block: int = 100  # of them per update of the engine
    rows: int = 5  # points of the learning curves
    spectral_beta: float = 2.5
    robust_coef: float = 1.0
    robust_eps: float = 0.05
    episode_steps: int = 150
    starts: int = 8  # near hanging
    test_transitions: int = 500
    samples: int = 8  # of the model per test transition
    microbatch: int = 10  # members that one call holds on a device
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses unknown arms and steps that do not divide."""
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown:
            raise ValueError(f"arms: expected some of {tuple(ARMS)}, got {unknown}")
        if self.steps % (self.block * self.rows):
            window = self.block * self.rows
            raise ValueError(f"steps: expected a multiple of {window}, got {self.steps}")
        if not self.transitions[0] > self.transitions[1] >= 2:
            raise ValueError(f"transitions: expected many and few, got {self.transitions}")

    def model(self, arm: Arm) -> worldmodels.EnsembleConfig:
        """The architecture of an arm's model; the reward is known."""
        return worldmodels.EnsembleConfig(
            members=arm.members,
            elites=min(self.elites, arm.members),
            hidden=self.model_hidden,
            deterministic=arm.deterministic,
            predict_reward=False,
        )

    def study_seeds(self) -> tuple[int, ...]:
        """Seed ids: of evaluation, or, for a smoke run, ones that decide nothing ever."""
        return tuple(SMOKE_SEEDS[: self.seeds]) if self.smoke else evaluation_seeds(self.seeds)


def uniform_states(key: Key[Array, ""], count: int) -> Float[Array, "n 3"]:
    """Observations of uniform angles and speeds."""
    angle, speed = jax.random.uniform(key, (2, count), minval=-1.0, maxval=1.0)
    return observe(jnp.pi * angle, MAX_SPEED * speed)


def uniform_transitions(key: Key[Array, ""], count: int) -> Transition:
    """Transitions from uniform states under uniform torques."""
    state_key, action_key = jax.random.split(key)
    obs = uniform_states(state_key, count)
    action = jax.random.uniform(action_key, (count, 1), minval=-1.0, maxval=1.0)
    next_obs, reward, terminated, _ = exact_step_fn(ENV)(key, obs, action)
    return Transition(obs, action, reward, terminated, jnp.zeros_like(terminated), next_obs)


def scaled(step_fn: StepFn) -> StepFn:
    """The same step with rewards as the value network sees them."""

    def step(key, obs, action):
        next_obs, reward, terminated, info = step_fn(key, obs, action)
        return next_obs, REWARD_SCALE * reward, terminated, info

    return step


def swing_up(
    value_fn: fitted_value.ValueFn, gamma: float, steps: int, starts: int
) -> Float[Array, ""]:
    """Mean undiscounted return of the greedy policy that looks one exact step ahead.

    Args:
        value_fn: state values in scaled rewards.
        gamma: discount factor per step.
        steps: of an episode.
        starts: episodes, at rest and evenly spread within 0.3 rad of hanging.

    Returns:
        The return.
    """
    torques = jnp.linspace(-1.0, 1.0, ACTIONS)[:, None]
    exact = exact_step_fn(ENV)
    key = jax.random.key(0)  # the dynamics are deterministic
    angle = jnp.pi + jnp.linspace(-0.3, 0.3, starts)

    def step(obs, _):
        q = fitted_value.lookahead(key, value_fn, scaled(exact), obs, torques, gamma)
        obs, reward, _, _ = exact(key, obs, torques[jnp.argmax(q, axis=-1)])
        return obs, jnp.mean(reward)

    _, rewards = jax.lax.scan(step, observe(angle, jnp.zeros(starts)), None, length=steps)
    return jnp.sum(rewards)


@flax.struct.dataclass
class State:
    """One value network in training, with its model."""

    key: Key[Array, ""]
    learner: fitted_value.FittedValueState
    hparams: fitted_value.FittedValueHyperparams
    model: worldmodels.ModelState | None
    scale: Float[Array, " 3"]  # standard deviation of the observations
    test: Transition


def make(config: Config, name: str) -> ensemble.Experiment:
    """The study of one arm; `init` fits the model, an update takes `block` optimiser steps.

    Traced hyper-parameters: "transitions", how many the model is fitted to, and "stream", which is
    0, or 1 for another value network and other batches on the same data and model.

    Args:
        config: sizes.
        name: one of `ARMS`.

    Returns:
        An experiment whose evaluation reports "return", the slopes "lipschitz_mean",
        "lipschitz_p95" and "pairwise", the "value_aware_error" of the model under the arm's value
        on test transitions, and the model's "model_mse".
    """
    arm = ARMS[name]
    learner = fitted_value.FittedValueConfig(config.hidden, regulariser=arm.regulariser)
    torques = jnp.linspace(-1.0, 1.0, ACTIONS)[:, None]
    model_config = config.model(arm) if arm.members else None
    capacity = config.transitions[0]
    fit_config = worldmodels.FitConfig(
        batch_size=config.model_batch,
        max_epochs=config.model_epochs,
        patience=config.model_epochs,
    )

    def init(key, hparams):
        data_key, test_key, model_key, fit_key, key = jax.random.split(key, 5)
        data = uniform_transitions(data_key, capacity)
        model = None
        if model_config is not None:
            objective = worldmodels.nll_objective
            if arm.deterministic:
                objective = worldmodels.mse_objective
            model, _ = worldmodels.fit(
                fit_key,
                worldmodels.init(model_key, model_config, 3, 1),
                data,
                hparams["transitions"],
                model_config,
                objective,
                config.model_lr,
                fit_config=fit_config,
            )
        net_key, key = jax.random.split(jax.random.fold_in(key, hparams["stream"]))
        scalars = fitted_value.FittedValueHyperparams(
            lr=config.lr,
            gamma=config.gamma,
            spectral_beta=config.spectral_beta,
            robust_coef=config.robust_coef,
            robust_eps=config.robust_eps,
        )
        return State(
            key=key,
            learner=fitted_value.init(net_key, learner, 3),
            hparams=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), scalars),
            model=model,
            scale=jnp.std(data.obs, axis=0),
            test=uniform_transitions(test_key, config.test_transitions),
        )

    def step_fn(model):
        if model_config is None:
            return scaled(exact_step_fn(ENV))
        known = worldmodels.make_step_fn(model, model_config, ENV.termination_fn, ENV.reward_fn)
        return scaled(known)

    def update(state):
        key, state_key, step_key = jax.random.split(state.key, 3)
        obs = uniform_states(state_key, config.block * config.batch)
        obs = obs.reshape(config.block, config.batch, 3)
        model = step_fn(state.model)

        def step(agent, xs):
            key, obs = xs
            return fitted_value.update(
                key, agent, obs, model, torques, learner, state.hparams, state.scale
            )

        keys = jax.random.split(step_key, config.block)
        agent, metrics = jax.lax.scan(step, state.learner, (keys, obs))
        return state.replace(key=key, learner=agent), jax.tree.map(jnp.mean, metrics)

    def evaluate(state, key):
        params, _ = fitted_value.evaluated(state.learner, learner, state.hparams)
        value_fn = lambda s: fitted_value.value(params, learner, s)  # noqa: E731
        test, model = state.test, step_fn(state.model)
        draw = lambda k: model(k, test.obs, test.action)[0]  # noqa: E731
        samples = jax.vmap(draw)(jax.random.split(key, config.samples))
        near = test.obs[:100]
        slopes = values.local_lipschitz(value_fn, test.obs, state.scale)
        return {
            "return": swing_up(value_fn, config.gamma, config.episode_steps, config.starts),
            "lipschitz_mean": slopes["lipschitz_mean"],
            "lipschitz_p95": slopes["lipschitz_p95"],
            "pairwise": values.pairwise_lipschitz(value_fn(near), near, 0.5, state.scale),
            "value_aware_error": values.value_aware_model_error(value_fn, test.next_obs, samples),
            "model_mse": jnp.mean((jnp.mean(samples, axis=0) - test.next_obs) ** 2),
        }

    return ensemble.Experiment(init, update, evaluate)


def make_uniform(config: Config) -> ensemble.Experiment:
    """Uniform torques for the episodes of `swing_up`, the floor of its scale."""
    exact = exact_step_fn(ENV)

    def update(key):
        key, action_key = jax.random.split(key)
        shape = (config.episode_steps, config.starts, 1)
        torques = jax.random.uniform(action_key, shape, minval=-1.0, maxval=1.0)
        angle = jnp.pi + jnp.linspace(-0.3, 0.3, config.starts)

        def step(obs, torque):
            obs, reward, _, _ = exact(action_key, obs, torque)
            return obs, jnp.mean(reward)

        _, rewards = jax.lax.scan(step, observe(angle, jnp.zeros(config.starts)), torques)
        return key, {"return": jnp.sum(rewards)}

    return ensemble.Experiment(lambda key, hparams: key, update)


def run(
    config: Config, directory: Path, options: dict[str, Any]
) -> tuple["xarray.Dataset", Scores]:
    """Runs the arms on many and, but for some, few transitions, with checkpoints in a directory.

    Returns:
        Results, dims (arm, transitions, seed, step), and the last row's scores by (arm,
        transitions, metric): those of `make`, for the ensemble also "other_return" (on another
        random stream), and ("uniform", many, "return").
    """
    import xarray

    rows, scores = [], {}
    many, _ = config.transitions
    updates = config.steps // config.block
    options = options | {"seeds": config.study_seeds()}
    for name in config.arms:
        label = f"fitted-{name.replace(' + ', '-').replace(' ', '-')}"
        # The exact dynamics are fitted to nothing.
        alone = name in config.only_many or not ARMS[name].members
        points = [(count, 0) for count in config.transitions[: 1 if alone else 2]]
        if name == ENSEMBLE:
            points.append((many, 1))
        counts, streams = (jnp.asarray(column, jnp.int32) for column in zip(*points))
        data = ensemble.run(
            make(config, name),
            steps=updates,
            points={"transitions": counts, "stream": streams},
            record_every=updates // config.rows,
            checkpoint=directory / label,
            label=label,
            microbatch=config.microbatch,
            **options,
        ).drop_vars(["point", "transitions", "stream"])
        if name == ENSEMBLE:
            scores[name, many, "other_return"] = data["return"].values[2, :, -1]
        fitted = config.transitions[: 1 if alone else 2]
        data = data.isel(point=slice(len(fitted))).rename(point="transitions")
        data = data.assign_coords(transitions=list(fitted))
        rows.append(data.expand_dims(arm=[name]))
        for i, count in enumerate(fitted):
            for metric, variable in data.data_vars.items():
                if "step" in variable.dims:
                    scores[name, count, str(metric)] = variable.values[i, :, -1]
    floor = ensemble.run(
        make_uniform(config),
        steps=1,
        checkpoint=directory / "fitted-uniform",
        label="uniform",
        **options,
    )
    scores["uniform", many, "return"] = floor["return"].values[:, -1]
    data = xarray.concat(rows, "arm", join="outer", combine_attrs="drop_conflicts")
    return data, scores


SMOKE = replace(
    Config(),
    seeds=2,
    transitions=(40, 20),
    model_epochs=2,
    hidden=(8, 8),
    batch=16,
    steps=20,
    block=5,
    rows=2,
    episode_steps=10,
    test_transitions=120,
    smoke=True,
)

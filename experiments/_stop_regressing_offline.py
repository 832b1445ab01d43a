"""Offline Q-learning on small random processes whose values are known exactly.

A data set of few transitions from a one-sided behaviour leaves most actions to extrapolation, and
bootstrapping on its maximum runs away. Controls: many uniform transitions (nothing to gain), noisy
rewards, and targets without a maximum (SARSA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble
from jaxlab.agents import dqn
from jaxlab.envs import (
    FiniteMDP,
    garnet,
    greedy_policy,
    optimal_value,
    policy_value,
    sample_next,
)
from jaxlab.types import Transition

from . import _stop_regressing_arms as arms_

if TYPE_CHECKING:
    import xarray

WORST = -1.0  # score of a diverged seed: as far below the uniform policy as the best is above


class Regime(NamedTuple):
    """What the learner is given; everything but the rule of the target is traced."""

    transitions: int
    gamma: float
    preference: float  # probability of action s mod A in state s, else uniform
    noise: float  # width of the uniform noise on rewards


REGIMES = {
    "low coverage": Regime(250, 0.95, 0.7, 0.0),
    "full coverage": Regime(1500, 0.9, 0.0, 0.0),
    "noisy rewards": Regime(1500, 0.9, 0.0, 4.0),
}
PRIMARY, COVERED, NOISY = REGIMES
SARSA = "sarsa"  # low coverage again, bootstrapping with the behaviour's own actions


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 32  # paired evaluation seeds of the primary regime
    control_seeds: int = 16  # of the other regimes
    tuning_seeds: int = 4
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # for every arm and regime
    arms: tuple[str, ...] = arms_.ARMS
    control_arms: tuple[str, ...] = (arms_.CONTROL, arms_.TREATMENT)  # of the other regimes
    states: int = 48
    actions: int = 4
    branching: int = 3
    reward_density: float = 0.2
    features: int = 12
    support: tuple[float, float] = (-4.0, 16.0)
    num_bins: int = 51
    width: int = 128
    batch: int = 64
    target_every: int = 50
    steps: int = 2500  # updates
    rows: int = 10  # points of the learning curves
    microbatch: int = 8  # members that one call holds on a device
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses steps that are not whole blocks of the learning curve."""
        if self.steps % (self.target_every * self.rows):
            window = self.target_every * self.rows
            raise ValueError(f"steps: expected a multiple of {window}, got {self.steps}")

    def learner(self, arm: str) -> dqn.DQNConfig:
        """The learner of an arm."""
        return dqn.DQNConfig(
            head=arms_.head(arm, self.support, self.num_bins),
            hidden=(self.width, self.width),
            target_every=self.target_every,
        )


class Data(NamedTuple):
    """Transitions of a finite process by the indices of their states."""

    state: Int[Array, " n"]
    action: Int[Array, " n"]
    reward: Float[Array, " n"]
    next_state: Int[Array, " n"]
    next_action: Int[Array, " n"]  # of the same behaviour


def behave(
    u: Float[Array, "n 2"], state: Int[Array, " n"], actions: int, preference: Float[Array, ""]
) -> Int[Array, " n"]:
    """Takes action s mod A with probability `preference`, else a uniform one.

    Args:
        u: uniform draws in [0, 1), which decide.
        state: where.
        actions: number of actions A.
        preference: the probability.

    Returns:
        Actions.
    """
    uniform = (u[:, 1] * actions).astype(jnp.int32)
    return jnp.where(u[:, 0] < preference, state % actions, uniform)


def collect(
    key: Key[Array, ""],
    mdp: FiniteMDP,
    count: int,
    preference: Float[Array, ""],
    noise: Float[Array, ""],
) -> Data:
    """Draws transitions from uniform states.

    Args:
        key: random key.
        mdp: the process.
        count: how many.
        preference: of the behaviour, see `behave`.
        noise: width of the uniform, centred noise that every stored reward carries.

    Returns:
        The data set.
    """
    next_key, key = jax.random.split(key)
    u = jax.random.uniform(key, (count, 6))
    states, actions = mdp.reward.shape
    state = (u[:, 0] * states).astype(jnp.int32)
    action = behave(u[:, 1:3], state, actions, preference)
    next_state = sample_next(next_key, mdp, state, action)
    reward = mdp.reward[state, action] + noise * (u[:, 3] - 0.5)
    next_action = behave(u[:, 4:], next_state, actions, preference)
    return Data(state, action, reward, next_state, next_action)


@flax.struct.dataclass
class State:
    """One learner with its process and its data."""

    key: Key[Array, ""]
    learner: dqn.DQNState
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    count: Int[Array, ""]  # transitions that it may see
    data: Data
    mdp: FiniteMDP
    features: Float[Array, "S o"]  # what it sees of each state
    best: Float[Array, " S"]  # values of the best policy
    uniform: Float[Array, " S"]  # and of the uniform one


def score(state: State, q: Float[Array, "S A"]) -> Float[Array, ""]:
    """(V_greedy - V_uniform) / (V_best - V_uniform), each the mean over states, exactly."""
    value = policy_value(state.mdp, greedy_policy(q), state.gamma)
    return jnp.mean(value - state.uniform) / jnp.mean(state.best - state.uniform)


def make(config: Config, arm: str, sarsa: bool = False) -> ensemble.Experiment:
    """The study of one arm; an update takes `target_every` optimiser steps.

    Traced hyper-parameters: "lr", "regime" (index into REGIMES) and "stream", which is 0, or 1 for
    another network and other batches on the same process and data.

    Args:
        config: sizes.
        arm: one of `ARMS`.
        sarsa: bootstrap with the behaviour's next actions instead of the best ones.

    Returns:
        An experiment whose evaluation reports "score" and "overestimation", the mean over states of
        max_a Q - V of the best policy.
    """
    learner = config.learner(arm)
    table = {
        name: jnp.asarray([getattr(regime, name) for regime in REGIMES.values()])
        for name in Regime._fields
    }
    capacity = max(regime.transitions for regime in REGIMES.values())

    def init(key, hparams):
        mdp_key, feature_key, data_key, key = jax.random.split(key, 4)
        net_key, key = jax.random.split(jax.random.fold_in(key, hparams["stream"]))
        regime = {name: column[hparams["regime"]] for name, column in table.items()}
        mdp = garnet(
            mdp_key,
            config.states,
            config.actions,
            config.branching,
            reward_density=config.reward_density,
        )
        gamma = regime["gamma"]
        return State(
            key=key,
            learner=dqn.init(net_key, learner, config.features, config.actions),
            learning_rate=hparams["lr"],
            gamma=gamma,
            count=regime["transitions"],
            data=collect(data_key, mdp, capacity, regime["preference"], regime["noise"]),
            mdp=mdp,
            features=jax.random.normal(feature_key, (config.states, config.features)),
            best=optimal_value(mdp, gamma),
            uniform=policy_value(mdp, jnp.full_like(mdp.reward, 1 / config.actions), gamma),
        )

    def update(state):
        key, sub = jax.random.split(state.key)
        uniform = jax.random.uniform(sub, (config.target_every, config.batch))
        scaled = uniform * state.count.astype(uniform.dtype)
        index = jnp.minimum(scaled.astype(jnp.int32), state.count - 1)
        never = jnp.zeros((config.batch,), bool)

        def step(agent, index):
            rows = jax.tree.map(lambda x: x[index], state.data)
            obs, next_obs = state.features[rows.state], state.features[rows.next_state]
            batch = Transition(obs, rows.action, rows.reward, never, never, next_obs)
            following = rows.next_action if sarsa else None
            return dqn.update(agent, batch, learner, state.learning_rate, state.gamma, following)

        agent, metrics = jax.lax.scan(step, state.learner, index)
        return state.replace(key=key, learner=agent), jax.tree.map(jnp.mean, metrics)

    def evaluate(state, key):
        del key
        q = dqn.q_values(state.learner.params, learner, state.features)
        over = jnp.mean(jnp.max(q, axis=-1) - state.best)
        return {"score": score(state, q), "overestimation": over}

    return ensemble.Experiment(init, update, evaluate)


Scores = dict[tuple[str, str, str], np.ndarray]  # (regime, arm, metric) -> [n_seeds]


def run(
    config: Config, directory: Path, options: dict[str, Any]
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Tunes and runs every arm in its regimes, with checkpoints below a directory.

    Args:
        config: sizes.
        directory: where checkpoints go, one folder per run of the engine.
        options: further ones of `ensemble.run`.

    Returns:
        Results by regime, dims (arm, seed, step), and scores by (regime, arm, metric). Metrics are
        those of the last evaluation: "score" (of the control also "other_score", on another random
        stream), "overestimation", and for HL-Gauss "edge_fraction".
    """
    import xarray

    names = list(REGIMES)
    found: dict[str, list[xarray.Dataset]] = {name: [] for name in (*names, SARSA)}
    scores: Scores = {}

    def go(arm: str, settings: Sequence[dict], tuned: Sequence[int], seeds: int, label: str):
        return arms_.tuned_run(
            make(config, arm, sarsa=label == SARSA),
            settings,
            lambda data: data["score"].values[..., -1],
            rates=config.learning_rates,
            tuning_seeds=config.tuning_seeds,
            tuned_settings=tuned,
            worst=WORST,
            steps=config.steps // config.target_every,
            record_every=config.steps // config.target_every // config.rows,
            seeds=arms_.study_seeds(seeds, config.smoke),
            checkpoint=directory / f"offline-{label}-{arm}",
            microbatch=config.microbatch,
            **options,
        )

    def keep(regime: str, arm: str, data: "xarray.Dataset") -> None:
        found[regime].append(data.reset_coords().expand_dims(arm=[arm]))
        for metric in ("score", "overestimation", "edge_fraction"):
            if metric in data:
                scores[regime, arm, metric] = data[metric].values[:, -1]

    for arm in config.arms:
        settings = [{"regime": names.index(PRIMARY), "stream": 0}]
        if arm == arms_.CONTROL:
            settings.append({"regime": names.index(PRIMARY), "stream": 1})
        data = go(arm, settings, [0] * len(settings), config.seeds, "primary")
        keep(PRIMARY, arm, data.isel(point=0))
        if arm == arms_.CONTROL:
            scores[PRIMARY, arm, "other_score"] = data["score"].values[1, :, -1]
    for arm in config.control_arms:
        controls = [COVERED, NOISY]
        settings = [{"regime": names.index(name), "stream": 0} for name in controls]
        data = go(arm, settings, range(len(settings)), config.control_seeds, "controls")
        for point, regime in enumerate(controls):
            keep(regime, arm, data.isel(point=point))
        settings = [{"regime": names.index(PRIMARY), "stream": 0}]
        data = go(arm, settings, [0], config.control_seeds, SARSA)
        keep(SARSA, arm, data.isel(point=0))
    results = {
        name: xarray.concat(rows, "arm", join="outer", combine_attrs="drop_conflicts")
        for name, rows in found.items()
    }
    return results, scores

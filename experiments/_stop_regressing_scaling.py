"""Online Q-learning with networks of several widths: whose score grows faster with the width.

One network learns six small random processes at once, whose rewards differ by two orders of
magnitude, or one control problem with a handful of torques.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, envs
from jaxlab.agents import buffers, dqn, interaction
from jaxlab.types import Transition

from . import _stop_regressing_arms as arms_

if TYPE_CHECKING:
    import xarray

STREAMS = 6  # processes, or copies of a control problem, that are acted on side by side
WORST = -1.0  # score of a diverged seed: as far below uniform actions as the best is above


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 16
    tuning_seeds: int = 2
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)  # per arm, task and width
    tasks: tuple[str, ...] = ("garnets", "pendulum")
    arms: tuple[str, ...] = (arms_.CONTROL, arms_.TREATMENT)
    widths: tuple[int, ...] = (16, 64, 256)
    num_bins: int = 101
    batch: int = 64
    epsilon: float = 0.1
    block: int = 50  # steps of every stream, and updates, between two copies of the network
    blocks: int = 30
    rows: int = 10  # points of the learning curves
    episodes: int = 4  # of an evaluation on a control problem
    microbatch: int = 4  # members that one call holds on a device
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses unknown tasks, blocks that do not divide and a slope through one point."""
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise ValueError(f"tasks: expected some of {tuple(TASKS)}, got {unknown}")
        if self.blocks % self.rows:
            raise ValueError(f"blocks: expected a multiple of {self.rows}, got {self.blocks}")
        if len(self.widths) < 2:
            raise ValueError(f"widths: expected at least two, got {self.widths}")


class Task(NamedTuple):
    """What is learned, as pure functions; the world `w` is drawn once per seed."""

    obs_dim: int
    actions: int
    gamma: float
    support: tuple[float, float]  # of the values
    world: Callable[[Key[Array, ""]], Any]
    reset: Callable[[Key[Array, ""], Any], Any]  # key, w -> state of all streams
    observe: Callable[[Any, Any], Float[Array, "n o"]]  # w, state
    step: Callable[[Key[Array, ""], Any, Any, Int[Array, " n"]], tuple[Any, Transition]]
    score: Callable[[Key[Array, ""], Any, Callable], Float[Array, ""]]  # key, w, obs -> Q


@flax.struct.dataclass
class Garnets:
    """Processes [6], what is seen of their states, and their values."""

    mdp: envs.FiniteMDP
    features: Float[Array, "n S o"]
    best: Float[Array, "n S"]
    uniform: Float[Array, "n S"]


def garnets(states: int = 48, actions: int = 4, branching: int = 3, features: int = 12) -> Task:
    """Six random processes with rewards scaled by 0.1 to 10, told apart by a one-hot code."""
    gamma = 0.9
    scales = jnp.logspace(-1, 1, STREAMS)

    def world(key):
        mdp_key, feature_key = jax.random.split(key)
        draw = lambda k: envs.garnet(k, states, actions, branching, reward_density=0.2)  # noqa: E731
        mdp = jax.vmap(draw)(jax.random.split(mdp_key, STREAMS))
        mdp = replace(mdp, reward=mdp.reward * scales[:, None, None])
        seen = jax.random.normal(feature_key, (STREAMS, states, features))
        code = jnp.broadcast_to(jnp.eye(STREAMS)[:, None], (STREAMS, states, STREAMS))
        even = jnp.full((states, actions), 1 / actions)
        return Garnets(
            mdp=mdp,
            features=jnp.concatenate([seen, code], axis=-1),
            best=jax.vmap(lambda m: envs.optimal_value(m, gamma))(mdp),
            uniform=jax.vmap(lambda m: envs.policy_value(m, even, gamma))(mdp),
        )

    def reset(key, w):
        return (jax.random.uniform(key, (STREAMS,)) * states).astype(jnp.int32)

    def observe(w, state):
        return w.features[jnp.arange(STREAMS), state]

    def step(key, w, state, action):
        keys = jax.random.split(key, STREAMS)
        following = jax.vmap(envs.sample_next)(keys, w.mdp, state, action)
        reward = w.mdp.reward[jnp.arange(STREAMS), state, action]
        never = jnp.zeros((STREAMS,), bool)
        obs, next_obs = observe(w, state), observe(w, following)
        return following, Transition(obs, action, reward, never, never, next_obs)

    def score(key, w, q_fn):
        def one(mdp, best, uniform, q):
            value = envs.policy_value(mdp, envs.greedy_policy(q), gamma)
            return jnp.mean(value - uniform) / jnp.mean(best - uniform)

        return jnp.mean(jax.vmap(one)(w.mdp, w.best, w.uniform, q_fn(w.features)))

    obs_dim = features + STREAMS
    return Task(obs_dim, actions, gamma, (-20.0, 80.0), world, reset, observe, step, score)


def control(
    env: envs.Env, gamma: float, scale: float, support: tuple[float, float], episodes: int
) -> Task:
    """A control problem with five torques.

    Args:
        env: without auto-reset, one action dimension.
        gamma: discount factor per step.
        scale: of the rewards that the learner sees.
        support: of their values.
        episodes: of an evaluation, whose score is the mean return between that of uniform actions
            (0) and of the reference controller (1).
    """
    stepper, torques = envs.auto_reset(env), jnp.linspace(-1.0, 1.0, 5)
    low, high = env.spec.random_return, env.spec.expert_return
    if low is None or high is None:
        raise ValueError(f"env: expected one with reference returns, got {env.spec.name}")

    def step(key, w, state, action):
        env_state, obs = state

        def one(env_state, obs, action, key):
            torque = torques[action][None]
            env_state, obs, seen = interaction.env_step(stepper, env_state, obs, torque, key)
            return (env_state, obs), replace(seen, action=action, reward=scale * seen.reward)

        return jax.vmap(one)(env_state, obs, action, jax.random.split(key, STREAMS))

    def score(key, w, q_fn):
        def policy(memory, obs, key):
            return torques[jnp.argmax(q_fn(obs))][None], memory

        played = interaction.evaluate_policy(key, env, policy, None, episodes)
        return (played["return"] - low) / (high - low)

    return Task(
        env.spec.obs_dim,
        len(torques),
        gamma,
        support,
        lambda key: jnp.zeros(()),
        lambda key, w: jax.vmap(stepper.reset)(jax.random.split(key, STREAMS)),
        lambda w, state: state[1],
        step,
        score,
    )


TASKS: dict[str, Callable[[int], Task]] = {
    "garnets": lambda episodes: garnets(),
    "pendulum": lambda episodes: control(envs.pendulum(), 0.97, 0.1, (-45.0, 5.0), episodes),
    "cartpole_swingup": lambda episodes: control(
        envs.cartpole_swingup(), 0.98, 1.0, (-10.0, 60.0), episodes
    ),
}


@flax.struct.dataclass
class State:
    """One learner in its world."""

    key: Key[Array, ""]
    learner: dqn.DQNState
    learning_rate: Float[Array, ""]
    world: Any
    streams: Any
    replay: buffers.Buffer[Transition]
    block: Int[Array, ""]  # blocks done


def make(config: Config, task_name: str, arm: str, width: int) -> ensemble.Experiment:
    """Online learning of one task by one arm; an update is a block of steps, then of updates.

    The streams act by the network as it was at the start of the block, epsilon-greedily, at first
    uniformly. Traced hyper-parameters: "lr".

    Args:
        config: sizes.
        task_name: one of `TASKS`.
        arm: one of `ARMS`.
        width: units in each of two layers.

    Returns:
        An experiment whose evaluation reports "score", 0 for uniform and 1 for the best actions.
    """
    task = TASKS[task_name](config.episodes)
    learner = dqn.DQNConfig(
        head=arms_.head(arm, task.support, config.num_bins),
        hidden=(width, width),
        target_every=config.block,
    )

    def init(key, hparams):
        world_key, stream_key, net_key, key = jax.random.split(key, 4)
        world = task.world(world_key)
        streams = task.reset(stream_key, world)
        action = jnp.zeros((STREAMS,), jnp.int32)
        _, rows = jax.eval_shape(task.step, key, world, streams, action)
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
        return State(
            key=key,
            learner=dqn.init(net_key, learner, task.obs_dim, task.actions),
            learning_rate=hparams["lr"],
            world=world,
            streams=streams,
            replay=buffers.init(row, STREAMS * config.block * config.blocks),
            block=jnp.zeros((), jnp.int32),
        )

    def update(state):
        key, act_key, sample_key = jax.random.split(state.key, 3)
        epsilon = jnp.where(state.block == 0, 1.0, config.epsilon)

        def interact(streams, key):
            choose_key, step_key = jax.random.split(key)
            obs = task.observe(state.world, streams)
            action = dqn.act(choose_key, state.learner.params, learner, obs, epsilon)
            return task.step(step_key, state.world, streams, action)

        keys = jax.random.split(act_key, config.block)
        streams, seen = jax.lax.scan(interact, state.streams, keys)
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
        replay = buffers.add(state.replay, rows)
        batches = buffers.sample(sample_key, replay, (config.block, config.batch))

        def learn(agent, batch):
            return dqn.update(agent, batch, learner, state.learning_rate, task.gamma)

        agent, metrics = jax.lax.scan(learn, state.learner, batches)
        state = state.replace(
            key=key, learner=agent, streams=streams, replay=replay, block=state.block + 1
        )
        return state, jax.tree.map(jnp.mean, metrics)

    def evaluate(state, key):
        def q_fn(obs):
            return dqn.q_values(state.learner.params, learner, obs)

        return {"score": task.score(key, state.world, q_fn)}

    return ensemble.Experiment(init, update, evaluate)


def final(data: "xarray.Dataset") -> np.ndarray:
    """Mean score of the last fifth of the evaluations, over the last axis."""
    scores = data["score"].values
    return scores[..., -max(1, scores.shape[-1] // 5) :].mean(axis=-1)


def slopes(widths: tuple[int, ...], scores: np.ndarray) -> np.ndarray:
    """Least-squares slope of scores [n, widths] per doubling of the width, for each seed."""
    x = np.log2(np.asarray(widths, np.float64))
    x = x - x.mean()
    return (scores - scores.mean(axis=-1, keepdims=True)) @ x / (x @ x)


def run(
    config: Config, directory: Path, options: dict[str, Any]
) -> tuple[dict[str, "xarray.Dataset"], dict[tuple[str, str], np.ndarray]]:
    """Tunes and runs every arm, task and width, with checkpoints below a directory.

    Returns:
        Results by task, dims (arm, width, seed, step), and final scores [n_seeds, widths] by
        (task, arm).
    """
    import xarray

    results: dict[str, xarray.Dataset] = {}
    scores: dict[tuple[str, str], np.ndarray] = {}
    for task in config.tasks:
        cells = []
        for arm in config.arms:
            row = []
            for width in config.widths:
                data = arms_.tuned_run(
                    make(config, task, arm, width),
                    [{}],
                    final,
                    rates=config.learning_rates,
                    tuning_seeds=config.tuning_seeds,
                    tuned_settings=[0],
                    worst=WORST,
                    steps=config.blocks,
                    record_every=config.blocks // config.rows,
                    seeds=arms_.study_seeds(config.seeds, config.smoke),
                    checkpoint=directory / f"scaling-{task}-{arm}-{width}",
                    microbatch=config.microbatch,
                    **options,
                )
                row.append(data.isel(point=0).reset_coords().expand_dims(arm=[arm], width=[width]))
            cells.append(row)
        data = xarray.combine_nested(cells, ["arm", "width"], combine_attrs="drop_conflicts")
        results[task] = data
        for arm in config.arms:
            scores[task, arm] = final(data.sel(arm=arm)).T
    return results, scores

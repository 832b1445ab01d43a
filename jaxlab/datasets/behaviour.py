"""A soft actor-critic that learns online and leaves policies of every level behind."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import nets
from jaxlab.agents import buffers, interaction, sac
from jaxlab.envs import Env, auto_reset, episode_returns, uniform_policy
from jaxlab.types import Transition


@dataclasses.dataclass(frozen=True)
class BehaviourConfig:
    """Sizes of the training; hashable, closed over by jitted code."""

    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    gamma: float = 0.99
    tau: float = 0.005
    target_entropy: float | None = None  # None for minus the action's dimension
    batch_size: int = 128
    utd: int = 1  # updates per step of all environments together
    lanes: int = 1  # environments side by side
    initial_steps: int = 500  # per environment, with uniform actions
    block: int = 500  # steps per environment between two evaluations
    blocks: int = 40
    eval_episodes: int = 16

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _COUNTS and value < 1:
                raise ValueError(f"{field.name}: expected at least 1, got {value}")

    @property
    def sac(self) -> sac.SACConfig:
        """The agent's structure."""
        return sac.SACConfig(hidden=self.hidden)


_COUNTS = ("batch_size", "utd", "lanes", "initial_steps", "block", "blocks", "eval_episodes")


@flax.struct.dataclass
class Step(Transition):
    """A transition of the training, with how likely its action was."""

    log_prob: Float[Array, "*b"]


@flax.struct.dataclass
class Behaviour:
    """What a training leaves: its policies, how good they are, and all of its transitions."""

    agent: sac.SACState  # after the last block
    actors: nets.MLPParams  # after every block, leaves [blocks, ...]
    returns: Float[Array, " blocks"]  # undiscounted, of the deterministic policy, after every block
    random_return: Float[Array, ""]  # of uniform actions
    history: Step  # [T * lanes], in the order of time, then of lanes
    rows: Int[Array, " blocks"]  # of the history, after every block

    def policy(self, block: int) -> sac.SACState:
        """The agent that acts as after a block (counted from 0)."""
        return dataclasses.replace(self.agent, actor=jax.tree.map(lambda x: x[block], self.actors))


def train(key: Key[Array, ""], env: Env, config: BehaviourConfig = BehaviourConfig()) -> Behaviour:
    """Learns online, keeping every transition and the actor of every block.

    Args:
        key: random key; the same one gives the same bits on the same kind of device.
        env: without auto-reset.
        config: sizes.

    Returns:
        The training's policies and transitions.

    Reference:
        Haarnoja et al. 2018 (Soft Actor-Critic Algorithms and Applications); Fu et al. 2020 (D4RL),
        section 5, for what is made of it.
    """
    return jax.jit(partial(_train, env=env, config=config))(key)


def _train(key: Array, *, env: Env, config: BehaviourConfig) -> Behaviour:
    structure, stepper = config.sac, auto_reset(env)
    hparams = sac.hyperparams(
        env.spec.action_dim,
        actor_lr=config.learning_rate,
        critic_lr=config.learning_rate,
        alpha_lr=config.learning_rate,
        gamma=config.gamma,
        tau=config.tau,
        target_entropy=config.target_entropy,
    )
    init_key, explore_key, random_key, key = jax.random.split(key, 4)
    agent = sac.init(init_key, structure, hparams, env.spec.obs_dim, env.spec.action_dim)

    env_state, obs, seen = jax.vmap(
        lambda k: interaction.explore(k, stepper, config.initial_steps)
    )(jax.random.split(explore_key, config.lanes))
    uniform = jnp.full(seen.reward.shape, -env.spec.action_dim * jnp.log(2.0), jnp.float32)
    first = _with_log_prob(seen, uniform)
    steps = config.initial_steps + config.block * config.blocks
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[2:], x.dtype), first)
    history = buffers.init(row, steps * config.lanes)
    history = buffers.add(history, _in_time_order(first))

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        env_state, obs, agent, history = carry
        act_key, env_key, sample_key, update_key = jax.random.split(key, 4)
        action, log_prob = sac.act_with_log_prob(agent, structure, obs, act_key)
        env_state, obs, seen = jax.vmap(partial(interaction.env_step, stepper))(
            env_state, obs, action, jax.random.split(env_key, config.lanes)
        )
        history = buffers.add(history, _with_log_prob(seen, log_prob))
        batches = buffers.sample(sample_key, history, (config.utd, config.batch_size))
        agent, _ = sac.update_many(update_key, agent, batches, structure, hparams)
        return (env_state, obs, agent, history), None

    def deterministic(agent: sac.SACState, memory: Any, obs: Array, key: Array) -> tuple:
        return sac.act(agent, structure, obs), memory

    def block(carry: tuple, key: Array) -> tuple[tuple, tuple]:
        step_key, eval_key = jax.random.split(key)
        carry, _ = jax.lax.scan(step, carry, jax.random.split(step_key, config.block))
        agent, history = carry[2:]
        played = interaction.evaluate_policy(
            eval_key, env, partial(deterministic, agent), None, config.eval_episodes
        )
        return carry, (agent.actor, played["return"], history.count)

    carry, (actors, returns, rows) = jax.lax.scan(
        block, (env_state, obs, agent, history), jax.random.split(key, config.blocks)
    )
    random = episode_returns(random_key, env, uniform_policy(env), 16 * config.eval_episodes)
    return Behaviour(
        agent=carry[2],
        actors=actors,
        returns=returns,
        random_return=jnp.mean(random),
        history=carry[3].data,
        rows=rows,
    )


def _with_log_prob(rows: Transition, log_prob: Array) -> Step:
    fields = {field.name: getattr(rows, field.name) for field in dataclasses.fields(Transition)}
    return Step(**fields, log_prob=log_prob)


def _in_time_order(rows: Step) -> Step:
    """From [lanes, T] to [T * lanes]."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), rows)

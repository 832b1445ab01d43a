"""Dyna with short model branches: a dynamics model fills the replay of a soft actor-critic."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import worldmodels
from jaxlab.agents import buffers, interaction, model_fit, sac
from jaxlab.agents.dyna_config import DynaConfig, DynaHyperparams, hyperparams
from jaxlab.ensemble import Experiment
from jaxlab.envs import Env, auto_reset, exact_step_fn
from jaxlab.types import Transition
from jaxlab.worldmodels.propagation import StepFn

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class DynaState:
    """One run between two blocks."""

    key: Key[Array, ""]
    hparams: DynaHyperparams
    env_state: Any
    obs: Float[Array, " o"]  # where the next action is due
    agent: sac.SACState
    model: worldmodels.ModelState | None  # None if the environment itself is the model
    real: buffers.Buffer[Transition]  # capacity rows
    imagined: buffers.Buffer[Transition]  # retain_blocks x horizon x rollout_batch rows
    block: Int[Array, ""]  # blocks done


def make(env: Env, config: DynaConfig = DynaConfig()) -> Experiment:
    """Builds the experiment for one environment and one configuration.

    One update is a block: fit the model (warm start), branch from uniformly drawn real states with
    the current policy into the imagined replay, then `model_train_freq` environment steps, each
    followed by `utd` updates of the agent on batches mixed from both replays.

    Args:
        env: without auto-reset.
        config: structure, schedule and arm.

    Returns:
        `init(key, hparams)` with hparams a dict of some of the scalars of `DynaHyperparams` and
        `SACHyperparams` by name (init also takes the `initial_steps` random steps); `update`; and
        `evaluate`, whose "return" is undiscounted, of the deterministic policy.

    Raises:
        ValueError: if neither the model nor the environment can tell the reward, the environment
            resets itself, or it shall be the model and its observation is not its state.

    Reference:
        Janner et al. 2019 (MBPO), algorithm 2; Voelcker et al. 2022 (VaGraM) for the value-aware
        losses.

    Pitfall:
        An imagined replay that is emptied at every fit starves the agent when branches are few; it
        keeps `retain_blocks` blocks, as first in, first out.
    """
    if env.reward_fn is None and not (config.model.predict_reward or config.exact_model):
        raise ValueError(
            "config.model.predict_reward: expected True, for the environment has no reward_fn"
        )
    stepper = auto_reset(env)
    if config.exact_model:
        exact_step_fn(env)  # refuses here, and not at the first update
    obs_dim, action_dim = env.spec.obs_dim, env.spec.action_dim

    def init(key: Array, hparams: Mapping[str, Any] | None = None) -> DynaState:
        key, agent_key, model_key, explore_key = jax.random.split(key, 4)
        scalars = hyperparams(hparams, action_dim)
        env_state, obs, transitions = interaction.explore(
            explore_key, stepper, config.initial_steps
        )
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), transitions)
        model = None
        if not config.exact_model:
            model = worldmodels.init(model_key, config.ensemble, obs_dim, action_dim)
        rows = config.retain_blocks * config.horizon * config.rollout_batch
        return DynaState(
            key=key,
            hparams=scalars,
            env_state=env_state,
            obs=obs,
            agent=sac.init(agent_key, config.sac, scalars.sac, obs_dim, action_dim),
            model=model,
            real=buffers.add(buffers.init(row, config.capacity), transitions),
            imagined=buffers.init(row, rows),
            block=jnp.zeros((), jnp.int32),
        )

    def imagine(
        key: Array, state: DynaState, step_fn: StepFn
    ) -> tuple[buffers.Buffer[Transition], Metrics]:
        start_key, rollout_key = jax.random.split(key)
        start = buffers.sample(start_key, state.real, config.rollout_batch)
        length = _branch_length(config, _env_steps(config, state.block))
        branches = worldmodels.rollout(
            rollout_key,
            step_fn,
            lambda policy_key, obs: sac.act(state.agent, config.sac, obs, policy_key),
            start.obs,
            config.horizon,
            length=length,
        )
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), branches.transition)
        imagined = buffers.add(state.imagined, rows, branches.valid.reshape(-1))
        metrics = {
            "branch_length": length.astype(jnp.float32),
            "imagined_reward": jnp.mean(branches.transition.reward, where=branches.valid),
        }
        if "disagreement" in branches.info:
            metrics["disagreement"] = jnp.mean(branches.info["disagreement"], where=branches.valid)
        return imagined, metrics

    def interact(key: Array, state: DynaState) -> tuple[DynaState, Transition, Metrics]:
        real_ratio = _real_ratio(config, state.hparams, _env_steps(config, state.block))

        def step(carry: tuple, keys: Array) -> tuple[tuple, tuple[Transition, Metrics]]:
            env_state, obs, agent, real = carry
            act_key, env_key, sample_key, update_key = keys
            action = sac.act(agent, config.sac, obs, act_key)
            env_state, obs, transition = interaction.env_step(
                stepper, env_state, obs, action, env_key
            )
            real = buffers.add(real, jax.tree.map(lambda x: x[None], transition))
            batches = buffers.concat_sample(
                sample_key,
                (real, state.imagined),
                (real_ratio, 1 - real_ratio),
                (config.utd, config.batch_size),
            )
            agent, metrics = sac.update_many(
                update_key, agent, batches, config.sac, state.hparams.sac
            )
            return (env_state, obs, agent, real), (transition, metrics)

        carry = (state.env_state, state.obs, state.agent, state.real)
        keys = jax.random.split(key, (config.model_train_freq, 4))
        (env_state, obs, agent, real), (seen, metrics) = jax.lax.scan(step, carry, keys)
        state = dataclasses.replace(state, env_state=env_state, obs=obs, agent=agent, real=real)
        metrics = jax.tree.map(jnp.mean, metrics) | {
            "reward": jnp.mean(seen.reward),
            "terminations": jnp.sum(seen.terminated).astype(jnp.float32),
            "real_ratio": real_ratio,
        }
        return state, seen, metrics

    def update(state: DynaState) -> tuple[DynaState, Metrics]:
        key, fit_key, imagine_key, interact_key = jax.random.split(state.key, 4)
        metrics: Metrics = {}
        if state.model is None:
            step_fn: StepFn = exact_step_fn(env)
        else:
            model, metrics = model_fit.fit(
                fit_key,
                state.model,
                state.agent,
                state.real.data,
                state.real.count,
                state.block,
                config,
                state.hparams,
            )
            state = dataclasses.replace(state, model=model)
            reward_fn = None if config.model.predict_reward else env.reward_fn
            step_fn = worldmodels.make_step_fn(
                model, config.ensemble, env.termination_fn, reward_fn
            )
        imagined, imagine_metrics = imagine(imagine_key, state, step_fn)
        before = dataclasses.replace(state, imagined=imagined)
        state, seen, interact_metrics = interact(interact_key, before)
        metrics |= imagine_metrics | interact_metrics
        if before.model is not None:
            # On the block's own steps, which the fit has not seen, with the critics it did see.
            mean, _ = worldmodels.apply(before.model, config.ensemble, seen.obs, seen.action)
            change = mean[before.model.elites, :, :obs_dim]
            predicted = change + jnp.broadcast_to(seen.obs, change.shape)
            metrics |= model_fit.value_diagnostics(before.agent, predicted, seen.next_obs, config)
        state = dataclasses.replace(state, key=key, block=state.block + 1)
        metrics["env_steps"] = _env_steps(config, state.block).astype(jnp.float32)
        return state, metrics

    def evaluate(state: DynaState, key: Array) -> Metrics:
        def policy(memory: None, obs: Array, key: Array) -> tuple[Array, None]:
            return sac.act(state.agent, config.sac, obs), memory

        return interaction.evaluate_policy(key, env, policy, None, config.eval_episodes)

    return Experiment(init, update, evaluate)


def _env_steps(config: DynaConfig, block: Array) -> Int[Array, ""]:
    return config.initial_steps + block * config.model_train_freq


def _branch_length(config: DynaConfig, env_steps: Array) -> Int[Array, ""]:
    start, end, first, last = config.rollout_schedule
    share = jnp.clip((env_steps - start).astype(jnp.float32) / (end - start), 0.0, 1.0)
    # Twice the same rounding error would turn a whole number into the one below.
    return jnp.floor(first + share * (last - first) + 1e-4).astype(jnp.int32)


def _real_ratio(config: DynaConfig, hparams: DynaHyperparams, env_steps: Array) -> Array:
    if config.real_ratio_anneal == 0:
        return hparams.real_ratio
    share = jnp.clip(env_steps.astype(jnp.float32) / config.real_ratio_anneal, 0.0, 1.0)
    return 1 - share * (1 - hparams.real_ratio)

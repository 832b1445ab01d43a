"""Offline model-based learning: a soft actor-critic that never acts, on branches of a model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import nets, values, worldmodels
from jaxlab.agents import buffers, interaction, sac
from jaxlab.agents.offline_config import OfflineConfig, OfflineHyperparams, hyperparams
from jaxlab.ensemble import Experiment
from jaxlab.envs import Env, exact_step_fn
from jaxlab.types import Transition
from jaxlab.worldmodels.propagation import StepFn

Metrics = dict[str, Float[Array, ""]]
EdgeFn = Callable[[Int[Array, " B"], Float[Array, "B o"]], Bool[Array, " B"]]
# (key, agent, obs[B, o]) -> values [B]
ValueFn = Callable[[Key[Array, ""], sac.SACState, Float[Array, "B o"]], Float[Array, " B"]]
_DIAGNOSED = 256  # imagined rows that the metrics of an epoch look at


@flax.struct.dataclass
class BranchRow(Transition):
    """A transition that knows where in its branch it ends."""

    t: Int[Array, "*b"]  # steps from the branch's start to `next_obs`; 0 for the data set's rows
    value: Float[Array, "*b"] | None = None  # true one of `next_obs`, if somebody knows it


@flax.struct.dataclass
class OfflineState:
    """One run between two epochs."""

    key: Key[Array, ""]
    hparams: OfflineHyperparams
    agent: sac.SACState
    model: worldmodels.ModelState | None  # None if the environment itself is the model
    imagined: buffers.Buffer[BranchRow]
    epoch: Int[Array, ""]


class _Branches(NamedTuple):
    rows: BranchRow  # [k * B]
    valid: Bool[Array, " kB"]
    uncertainty: Float[Array, " kB"]


def make(
    env: Env,
    config: OfflineConfig = OfflineConfig(),
    data: Transition | None = None,
    *,
    step_fn: StepFn | None = None,
    edge_of_reach: EdgeFn | None = None,
    true_value: ValueFn | None = None,
) -> Experiment:
    """Builds the experiment for one data set and one configuration.

    `init` fits the model to the data set; one update is an epoch: branches of k steps with the
    current stochastic policy into the imagined rows, then `updates` updates of the agent on batches
    mixed from both. A branch's end is a truncation: its last state is bootstrapped from, although
    no row may ever start there.

    Args:
        env: without auto-reset; its initial states, rewards if known, and terminations are used,
            and it evaluates the policy. It is never stepped to learn, unless it is the model.
        config: structure, schedule and arm.
        data: transitions [n] of JAX or NumPy, the same for every member; None for none.
        step_fn: the exact model, if `env` is not one whose observation is its whole state.
        edge_of_reach: (t, next_obs) -> whether a next state, reached after t steps, is one that
            branches only end in; for the metrics and for `true_value`.
        true_value: what those states are bootstrapped from instead of the critics' minimum (the
            oracle patch), asked when a branch is stored, with the agent of that moment.

    Returns:
        `init(key, hparams)` with hparams a dict of some of the scalars of `OfflineHyperparams` and
        `SACHyperparams` by name; `update`; and `evaluate`, whose "return" is undiscounted, of the
        deterministic policy, and whose "start_value" is the critics' least value of it at resets.

    Raises:
        ValueError: if something that the configuration asks for is not given: data, a reward, an
            exact model, the edge to patch.

    Reference:
        Sims et al. 2024 (The Edge-of-Reach Problem in Offline Model-Based RL), RAVL and the oracle
        patch; Yu et al. 2020 (MOPO) for the penalty; An et al. 2021 (EDAC) for the diversity.

    Pitfall:
        Going on from a predicted terminal state stores transitions that cannot happen; such a
        branch begins anew from a start state instead.
    """
    _check(env, config, data)
    data = jax.tree.map(jnp.asarray, data)  # NumPy's arrays know no traced index
    if true_value is not None and edge_of_reach is None:
        raise ValueError("edge_of_reach: expected a function together with true_value, got None")
    exact = (step_fn or exact_step_fn(env)) if config.exact_model else None
    obs_dim, action_dim = env.spec.obs_dim, env.spec.action_dim
    recorded = None if data is None else _as_buffer(data, valued=true_value is not None)

    def init(key: Array, hparams: Mapping[str, Any] | None = None) -> OfflineState:
        key, agent_key, model_key, fit_key = jax.random.split(key, 4)
        scalars = hyperparams(hparams, action_dim)
        model = None
        if exact is None and data is not None:
            model = worldmodels.init(model_key, config.model, obs_dim, action_dim)
            model, _ = worldmodels.fit(
                fit_key,
                model,
                data,
                data.reward.shape[0],
                config.model,
                worldmodels.mse_objective
                if config.model.deterministic
                else worldmodels.nll_objective,
                scalars.model_lr,
                fit_config=config.fit,
            )
        return OfflineState(
            key=key,
            hparams=scalars,
            agent=sac.init(agent_key, config.sac, scalars.sac, obs_dim, action_dim),
            model=model,
            imagined=buffers.init(
                _row(obs_dim, action_dim, valued=true_value is not None), config.capacity
            ),
            epoch=jnp.zeros((), jnp.int32),
        )

    def start_states(key: Array) -> Float[Array, "B o"]:
        if config.start == "data" and recorded is not None:
            return buffers.sample(key, recorded, config.rollout_batch).obs
        return jax.vmap(env.reset)(jax.random.split(key, config.rollout_batch))[1]

    def imagine(key: Array, state: OfflineState) -> _Branches:
        start_key, rollout_key, value_key = jax.random.split(key, 3)
        if state.model is None:
            model_step = exact
        else:
            model_step = worldmodels.make_step_fn(
                state.model,
                config.model,
                env.termination_fn,
                None if config.model.predict_reward else env.reward_fn,
                penalty=None if config.penalty == "none" else config.penalty,
            )
        assert model_step is not None  # _check saw to it
        branches = worldmodels.rollout(
            rollout_key,
            model_step,
            lambda policy_key, obs: sac.act(state.agent, config.sac, obs, policy_key),
            start_states(start_key),
            config.horizon,
        )
        steps = branches.transition
        uncertainty = branches.info.get("uncertainty", jnp.zeros_like(steps.reward))
        reward = steps.reward - state.hparams.penalty_coef * uncertainty
        rows = BranchRow(**_fields(steps) | {"reward": reward, "t": branches.t + 1})
        flat = jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), _Branches(rows, branches.valid, uncertainty)
        )
        if true_value is None:
            return flat
        value = true_value(value_key, state.agent, flat.rows.next_obs)
        return flat._replace(rows=dataclasses.replace(flat.rows, value=value))

    def hooks(hparams: OfflineHyperparams) -> sac.CriticHooks:
        bootstrap = penalty = None
        if true_value is not None and edge_of_reach is not None:
            at_edge = edge_of_reach

            def bootstrap(batch, value):
                return jnp.where(at_edge(batch.t, batch.next_obs), batch.value, value)

        if config.diversity:

            def penalty(critics, batch):
                diversity = critic_diversity(critics, config.sac, batch.obs, batch.action)
                return hparams.diversity_coef * diversity

        return sac.CriticHooks(bootstrap, penalty)

    def update(state: OfflineState) -> tuple[OfflineState, Metrics]:
        key, imagine_key, sample_key, update_key, look_key = jax.random.split(state.key, 5)
        branches = imagine(imagine_key, state)
        imagined = buffers.add(state.imagined, branches.rows, branches.valid)
        shape, ratio = (config.updates, config.batch_size), state.hparams.real_ratio
        if recorded is None:
            batches = buffers.sample(sample_key, imagined, shape)
        else:
            batches = buffers.concat_sample(
                sample_key, (recorded, imagined), (ratio, 1 - ratio), shape
            )
        agent, metrics = sac.update_many(
            update_key, state.agent, batches, config.sac, state.hparams.sac, hooks(state.hparams)
        )
        state = dataclasses.replace(
            state, key=key, agent=agent, imagined=imagined, epoch=state.epoch + 1
        )
        seen = buffers.sample(look_key, imagined, _DIAGNOSED)
        metrics |= _ensemble_spread(agent, config, seen)
        metrics |= {
            "imagined_reward": jnp.mean(branches.rows.reward, where=branches.valid),
            "uncertainty": jnp.mean(branches.uncertainty, where=branches.valid),
        }
        if edge_of_reach is not None:
            edge = edge_of_reach(branches.rows.t, branches.rows.next_obs)
            metrics["edge_fraction"] = jnp.mean(
                edge.astype(jnp.float32), where=branches.valid & branches.rows.truncated
            )
        return state, metrics

    def evaluate(state: OfflineState, key: Array) -> Metrics:
        def policy(memory: None, obs: Array, key: Array) -> tuple[Array, None]:
            return sac.act(state.agent, config.sac, obs), memory

        play_key, start_key = jax.random.split(key)
        played = interaction.evaluate_policy(play_key, env, policy, None, config.eval_episodes)
        start = jax.vmap(env.reset)(jax.random.split(start_key, _DIAGNOSED))[1]
        action = sac.act(state.agent, config.sac, start)
        critics, _ = sac.evaluated_critics(state.agent)
        value = jnp.min(sac.q_values(critics, config.sac, start, action), axis=0)
        return played | {"start_value": jnp.mean(value)}

    return Experiment(init, update, evaluate)


def critic_diversity(
    critics: nets.MLPParams,
    config: sac.SACConfig,
    obs: Float[Array, "B o"],
    action: Float[Array, "B a"],
) -> Float[Array, ""]:
    """Mean over rows of how much the critics' action gradients point the same way.

    Equals `values.diversity_penalty` of the critics, N times cheaper: one backward pass through
    each critic alone.

    Args:
        critics: parameters with a leading axis N.
        config: their structure.
        obs: states.
        action: the actions that were taken.

    Returns:
        From -N / (N - 1) to N, which is the value of N identical critics.

    Reference:
        An et al. 2021 (EDAC), eq. 5.
    """

    def gradient(critic: nets.MLPParams) -> Float[Array, "B a"]:
        alone = jax.tree.map(lambda x: x[None], critic)
        return jax.grad(lambda a: jnp.sum(sac.q_values(alone, config, obs, a)))(action)

    return jnp.mean(values.gradient_diversity(jax.vmap(gradient)(critics)))


def _ensemble_spread(agent: sac.SACState, config: OfflineConfig, rows: BranchRow) -> Metrics:
    """How much critics differ where rows start, and where branches end."""
    action = sac.act(agent, config.sac, rows.next_obs)
    critics, _ = sac.evaluated_critics(agent)
    inside = sac.q_values(critics, config.sac, rows.obs, rows.action)
    end = sac.q_values(critics, config.sac, rows.next_obs, action)
    metrics = {}
    for name, q, mask in (("inside", inside, None), ("end", end, rows.truncated)):
        pessimism = jnp.mean(q, axis=0) - jnp.min(q, axis=0)
        metrics[f"std_{name}"] = values.masked_mean(jnp.std(q, axis=0), mask)
        metrics[f"pessimism_{name}"] = values.masked_mean(pessimism, mask)
    return metrics


def _as_buffer(data: Transition, *, valued: bool) -> buffers.Buffer[BranchRow]:
    count = data.reward.shape[0]
    rows = BranchRow(
        **_fields(data),
        t=jnp.zeros((count,), jnp.int32),
        value=jnp.zeros((count,), jnp.float32) if valued else None,
    )
    return buffers.Buffer(rows, jnp.zeros((), jnp.int32), jnp.asarray(count, jnp.int32))


def _fields(rows: Transition) -> dict[str, Array]:
    return {field.name: getattr(rows, field.name) for field in dataclasses.fields(Transition)}


def _row(obs_dim: int, action_dim: int, *, valued: bool) -> BranchRow:
    def shape(size: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(size, dtype)

    return BranchRow(
        obs=shape((obs_dim,), jnp.float32),
        action=shape((action_dim,), jnp.float32),
        reward=shape((), jnp.float32),
        terminated=shape((), jnp.bool_),
        truncated=shape((), jnp.bool_),
        next_obs=shape((obs_dim,), jnp.float32),
        t=shape((), jnp.int32),
        value=shape((), jnp.float32) if valued else None,
    )


def _check(env: Env, config: OfflineConfig, data: Transition | None) -> None:
    if data is None and not config.exact_model:
        raise ValueError("data: expected transitions to fit the model to, got None")
    if data is None and config.start == "data":
        raise ValueError("data: expected transitions to start branches from, got None")
    if not config.exact_model and env.reward_fn is None and not config.model.predict_reward:
        raise ValueError(
            "config.model.predict_reward: expected True, for the environment has no reward_fn"
        )

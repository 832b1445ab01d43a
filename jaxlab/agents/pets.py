"""Model-predictive control with a learned ensemble: fit, plan by trajectory sampling, act."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import search, worldmodels
from jaxlab.agents import buffers, interaction
from jaxlab.agents.pets_config import PETSConfig, PETSHyperparams, hyperparams
from jaxlab.ensemble import Experiment
from jaxlab.envs import Env, auto_reset, exact_step_fn
from jaxlab.types import Transition
from jaxlab.worldmodels.propagation import StepFn

Metrics = dict[str, Float[Array, ""]]


@flax.struct.dataclass
class PETSState:
    """One run between two blocks."""

    key: Key[Array, ""]
    hparams: PETSHyperparams
    env_state: Any
    obs: Float[Array, " o"]  # where the next action is due
    plan: search.PlannerState  # warm start of the next search
    model: worldmodels.ModelState | None  # None if the environment itself is the model
    real: buffers.Buffer[Transition]  # capacity rows
    block: Int[Array, ""]  # blocks done


def make(env: Env, config: PETSConfig) -> Experiment:
    """Builds the experiment for one environment and one configuration.

    One update is a block: fit the model on all transitions (warm start), then `model_train_freq`
    environment steps, each of which plans anew and takes the first action of the plan.

    Args:
        env: without auto-reset.
        config: structure and schedule.

    Returns:
        `init(key, hparams)` with hparams a dict of some of "model_lr" and the planner's scalars
        (init also takes the `initial_steps` random steps); `update`; and `evaluate`, whose
        "return" is undiscounted.

    Raises:
        ValueError: if the planner's actions are not the environment's, neither the model nor the
            environment can tell the reward, the environment resets itself, or it shall be the model
            and its observation is not its state.

    Reference:
        Chua et al. 2018 (PETS), algorithm 1.

    Pitfall:
        The warm start of an episode's last plan is no start for the next episode: it is reset with
        the environment.
    """
    action_dim = env.spec.action_dim
    if config.planner.action_dim != action_dim:
        raise ValueError(
            f"config.planner.action_dim: expected {action_dim}, got {config.planner.action_dim}"
        )
    if env.reward_fn is None and not (config.model.predict_reward or config.exact_model):
        raise ValueError(
            "config.model.predict_reward: expected True, for the environment has no reward_fn"
        )
    stepper = auto_reset(env)
    if config.exact_model:
        exact_step_fn(env)  # refuses here, and not at the first update
    planner = search.make_planner(config.planner)
    particles = 1 if config.exact_model else config.particles

    def init(key: Array, hparams: Mapping[str, Any] | None = None) -> PETSState:
        key, model_key, explore_key = jax.random.split(key, 3)
        env_state, obs, transitions = interaction.explore(
            explore_key, stepper, config.initial_steps
        )
        row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), transitions)
        model = None
        if not config.exact_model:
            model = worldmodels.init(model_key, config.model, env.spec.obs_dim, action_dim)
        return PETSState(
            key=key,
            hparams=hyperparams(hparams, config),
            env_state=env_state,
            obs=obs,
            plan=planner.init(),
            model=model,
            real=buffers.add(buffers.init(row, config.capacity), transitions),
            block=jnp.zeros((), jnp.int32),
        )

    def model_step_fn(model: worldmodels.ModelState | None) -> StepFn:
        if model is None:
            return exact_step_fn(env)
        return worldmodels.make_particle_step_fn(
            model,
            config.model,
            env.termination_fn,
            None if config.model.predict_reward else env.reward_fn,
            mode=config.propagation,
        )

    def controller(state: PETSState) -> Callable[..., tuple[Array, Any, Metrics]]:
        step_fn = model_step_fn(state.model)

        def control(
            plan_state: search.PlannerState, obs: Array, key: Array
        ) -> tuple[Array, search.PlannerState, Metrics]:
            plan_key, score_key = jax.random.split(key)

            def evaluate(plans: Float[Array, "P H a"]) -> Float[Array, "P"]:
                # The noise is that of the row, which holds another plan in every iteration.
                return search.score_plans(score_key, step_fn, obs, plans, particles)

            plan, plan_state, report = planner.plan(
                plan_key, evaluate, plan_state, state.hparams.planner
            )
            return plan[0], plan_state, report

        return control

    def interact(key: Array, state: PETSState) -> tuple[PETSState, Transition, Metrics]:
        control = controller(state)

        def step(carry: tuple, key: Array) -> tuple[tuple, tuple[Transition, Metrics]]:
            env_state, obs, plan_state, real = carry
            plan_key, env_key = jax.random.split(key)
            action, plan_state, report = control(plan_state, obs, plan_key)
            env_state, obs, transition = interaction.env_step(
                stepper, env_state, obs, action, env_key
            )
            done = transition.terminated | transition.truncated
            plan_state = jax.tree.map(
                lambda fresh, old: jnp.where(done, fresh, old), planner.init(), plan_state
            )
            real = buffers.add(real, jax.tree.map(lambda x: x[None], transition))
            return (env_state, obs, plan_state, real), (transition, report)

        carry = (state.env_state, state.obs, state.plan, state.real)
        (env_state, obs, plan_state, real), (seen, report) = jax.lax.scan(
            step, carry, jax.random.split(key, config.model_train_freq)
        )
        state = dataclasses.replace(
            state, env_state=env_state, obs=obs, plan=plan_state, real=real, block=state.block + 1
        )
        return state, seen, jax.tree.map(jnp.mean, report)

    def update(state: PETSState) -> tuple[PETSState, Metrics]:
        key, fit_key, interact_key = jax.random.split(state.key, 3)
        metrics: Metrics = {}
        if state.model is not None:
            model, fitted = worldmodels.fit(
                fit_key,
                state.model,
                state.real.data,
                state.real.count,
                config.model,
                worldmodels.mse_objective
                if config.model.deterministic
                else worldmodels.nll_objective,
                state.hparams.model_lr,
                fit_config=config.fit,
            )
            state = dataclasses.replace(state, model=model)
            metrics = {
                "model_loss": fitted["holdout_loss"],
                "model_mse": fitted["holdout_mse"],
                "model_epochs": fitted["epochs"],
            }
        state, seen, report = interact(interact_key, state)
        if state.model is not None:
            metrics["model_error"] = _one_step_error(state.model, config, seen)
        metrics |= report | {
            "reward": jnp.mean(seen.reward),
            "terminations": jnp.sum(seen.terminated).astype(jnp.float32),
            "env_steps": (config.initial_steps + state.block * config.model_train_freq).astype(
                jnp.float32
            ),
        }
        return dataclasses.replace(state, key=key), metrics

    def evaluate(state: PETSState, key: Array) -> Metrics:
        control = controller(state)

        def policy(plan_state: Any, obs: Array, key: Array) -> tuple[Array, Any]:
            return control(plan_state, obs, key)[:2]

        return interaction.evaluate_policy(key, env, policy, planner.init(), config.eval_episodes)

    return Experiment(init, update, evaluate)


def _one_step_error(
    model: worldmodels.ModelState, config: PETSConfig, seen: Transition
) -> Float[Array, ""]:
    """The elites' squared error, summed over dimensions, on steps that the fit has not seen."""
    mean, _ = worldmodels.apply(model, config.model, seen.obs, seen.action)
    change = mean[model.elites, :, : seen.obs.shape[-1]]
    error = change - jnp.broadcast_to(seen.next_obs - seen.obs, change.shape)
    return jnp.mean(jnp.sum(error**2, axis=-1))

"""Q-learning from real or imagined steps: the same updates from replay, a model, or a simulator."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxlab import nets, values
from jaxlab.agents import buffers
from jaxlab.ensemble import Experiment
from jaxlab.envs.discrete import DiscreteEnv
from jaxlab.types import Transition
from jaxlab.worldmodels import bernoulli
from jaxlab.worldmodels.soft_rollout import SoftSteps, soft_rollout

Source = Literal["replay", "model", "simulator"]
Metrics = dict[str, Float[Array, ""]]

# eps and the second decay rate are those of the reference experiments.
_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-5)
_WEIGHT_DECAY = 1e-6  # per update, whatever the learning rate


@dataclasses.dataclass(frozen=True)
class DynaQConfig:
    """What fixes shapes and structure; hashable, closed over by jitted code."""

    source: Source  # where the steps come from that the values are learned from
    hidden: tuple[int, ...] = (64, 64)  # of the Q-network and of each of the model's networks
    batch: int = 16  # branches per update, and rows of a model update
    horizon: int = 5  # steps of a branch; an update has batch * horizon steps from any source
    sampling: bernoulli.Sampling = "bernoulli"
    gamma: float = 0.9
    double: bool = False
    initial_steps: int = 160  # of the uniform policy, without learning
    block: int = 384  # environment steps per update of the experiment
    updates_per_step: int = 1
    target_every: int = 25  # updates between two copies of the Q-network
    capacity: int = 4000  # rows of the replay buffer
    eval_lanes: int = 16
    eval_steps: int = 250

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        if self.source not in get_args(Source):
            raise ValueError(f"source: expected one of {get_args(Source)}, got {self.source!r}")
        positive = ("batch", "horizon", "initial_steps", "block", "updates_per_step")
        for name in (*positive, "target_every", "capacity", "eval_lanes", "eval_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class EnvFamily(NamedTuple):
    """Environments that one program serves, because they differ in arrays alone."""

    draw: Callable[[Key[Array, ""], Mapping[str, Any]], PyTree]  # (key, hparams) -> arrays
    build: Callable[[PyTree], DiscreteEnv]


def single(env: DiscreteEnv) -> EnvFamily:
    """The family of one environment."""
    return EnvFamily(lambda key, hparams: (), lambda arrays: env)


class Row(NamedTuple):
    """What the replay buffer holds."""

    step: Transition  # actions are indices
    state: PyTree  # of the environment before the step; empty where nobody starts from it


class Learned(NamedTuple):
    """A network with its optimiser."""

    params: PyTree
    opt: optax.OptState


@flax.struct.dataclass
class DynaQState:
    """One run between two blocks."""

    key: Key[Array, ""]
    hparams: Mapping[str, Array]
    env_arrays: PyTree
    env_state: PyTree
    q: Learned
    target: nets.MLPParams
    model: Learned | None
    replay: buffers.Buffer[Row]
    updates: Int[Array, ""]  # done


def q_values(params: nets.MLPParams, obs: Float[Array, "*b o"]) -> Float[Array, "*b A"]:
    """Values of all actions."""
    return nets.mlp_apply(params, obs, jax.nn.elu)


def softmax_policy(
    key: Key[Array, ""],
    params: nets.MLPParams,
    obs: Float[Array, "*b o"],
    temperature: Float[Array, ""],
) -> Int[Array, "*b"]:
    """Draws actions with probabilities proportional to exp(Q / temperature)."""
    return jax.random.categorical(key, q_values(params, obs) / temperature)


def env_transition(
    env: DiscreteEnv, state: PyTree, action: Int[Array, ""], key: Key[Array, ""]
) -> tuple[PyTree, Transition]:
    """Takes one step, and starts afresh if it ended an episode.

    Args:
        env: the environment.
        state: where it is.
        action: an index.
        key: random key of dynamics and reset.

    Returns:
        The state to act on next and the transition, whose `next_obs` is from before a reset.

    Pitfall:
        An observation kept from before the reset as the one to act on makes the first step of every
        episode a jump that no dynamics produce.
    """
    step_key, reset_key = jax.random.split(key)
    following, reward, terminated = env.step(state, action, step_key)
    transition = Transition(
        obs=env.observe(state),
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=jnp.zeros((), bool),
        next_obs=env.observe(following),
    )
    if env.episodic:
        fresh = env.reset(reset_key)
        following = jax.tree.map(lambda x, y: jnp.where(terminated, x, y), fresh, following)
    return following, transition


def simulator_step(env: DiscreteEnv) -> Callable[..., tuple[PyTree, Array, Array]]:
    """The environment itself as a step for `soft_rollout`, over a batch of its states."""

    def step(key: Key[Array, ""], states: PyTree, actions: Array) -> tuple[PyTree, Array, Array]:
        keys = jax.random.split(key, actions.shape[0])
        states, reward, terminated = jax.vmap(env.step)(states, actions, keys)
        return states, reward, 1.0 - terminated.astype(jnp.float32)

    return step


def replayed_steps(rows: Transition) -> SoftSteps:
    """Real steps in the form of imagined ones."""
    return SoftSteps(
        obs=rows.obs,
        action=rows.action,
        reward=rows.reward,
        continues=1.0 - rows.terminated.astype(jnp.float32),
        next_obs=rows.next_obs,
        weight=jnp.ones_like(rows.reward),
    )


def make(family: EnvFamily | DiscreteEnv, config: DynaQConfig) -> Experiment:
    """Builds the experiment.

    One update is a block of environment steps with a softmax policy, each followed by
    `updates_per_step` updates of the values (and of the model, if there is one).

    Args:
        family: the environments, or a single one.
        config: structure and schedule.

    Returns:
        `init(key, hparams)` with the traced scalars "lr", "temperature" and "model_lr" (and what
        the family asks for); `update`; and `evaluate`, which plays greedily: "score" is the mean
        undiscounted return of an episode, or the mean reward per step of a continuing task.

    Reference:
        Young et al. 2023, The Benefits of Model-Based Generalization in RL, section 4; Sutton 1990
        (Dyna).
    """
    family = single(family) if isinstance(family, DiscreteEnv) else family
    keep_states = config.source == "simulator"

    def row_of(state: PyTree, transition: Transition) -> Row:
        return Row(transition, state if keep_states else ())

    def play(
        env: DiscreteEnv, state: PyTree, replay: buffers.Buffer[Row], action: Array, key: Array
    ) -> tuple[PyTree, buffers.Buffer[Row], Array]:
        following, transition = env_transition(env, state, action, key)
        row = jax.tree.map(lambda x: x[None], row_of(state, transition))
        return following, buffers.add(replay, row), transition.reward

    def init(key: Array, hparams: Mapping[str, Any]) -> DynaQState:
        key, draw_key, q_key, model_key, reset_key, explore_key = jax.random.split(key, 6)
        arrays = family.draw(draw_key, hparams)
        env = family.build(arrays)
        params = nets.mlp_init(q_key, (env.obs_dim, *config.hidden, env.num_actions))
        model = None
        if config.source == "model":
            drawn = bernoulli.init(
                model_key, env.obs_dim, env.num_actions, config.hidden, env.episodic
            )
            model = Learned(drawn, _ADAM.init(drawn))
        start = env.reset(reset_key)
        action = jnp.zeros((), jnp.int32)
        shapes = jax.eval_shape(
            lambda s, a, k: row_of(s, env_transition(env, s, a, k)[1]), start, action, key
        )

        def explore(carry: tuple, key: Array) -> tuple[tuple, None]:
            act_key, env_key = jax.random.split(key)
            action = jax.random.randint(act_key, (), 0, env.num_actions)
            env_state, replay = carry
            return play(env, env_state, replay, action, env_key)[:2], None

        carry = (start, buffers.init(shapes, config.capacity))
        keys = jax.random.split(explore_key, config.initial_steps)
        (env_state, replay), _ = jax.lax.scan(explore, carry, keys)
        return DynaQState(
            key=key,
            hparams={
                name: jnp.float32(hparams[name]) for name in ("lr", "temperature", "model_lr")
            },
            env_arrays=arrays,
            env_state=env_state,
            q=Learned(params, _ADAM.init(params)),
            target=params,
            model=model,
            replay=replay,
            updates=jnp.zeros((), jnp.int32),
        )

    def imagine(
        key: Array, env: DiscreteEnv, state: DynaQState, model: Learned | None, rows: Row
    ) -> SoftSteps:
        """batch * horizon steps to learn values from, on one or two leading axes."""
        if config.source == "replay":
            return replayed_steps(rows.step)

        def policy(key: Array, obs: Array) -> Array:
            return softmax_policy(key, state.q.params, obs, state.hparams["temperature"])

        if model is None:
            states = simulator_step(env)
            return soft_rollout(
                key, states, policy, rows.state, config.horizon, jax.vmap(env.observe)
            )
        step = bernoulli.make_soft_step(model.params, config.sampling)
        return soft_rollout(key, step, policy, rows.step.obs, config.horizon)

    def learn(env: DiscreteEnv, state: DynaQState, key: Array) -> tuple[DynaQState, Metrics]:
        sample_key, imagine_key = jax.random.split(key)
        count = config.batch * (config.horizon if config.source == "replay" else 1)
        rows = buffers.sample(sample_key, state.replay, count)
        metrics: Metrics = {}
        model = state.model
        if model is not None:

            def model_loss(params: PyTree) -> tuple[Array, Metrics]:
                prediction = bernoulli.apply(params, rows.step.obs, rows.step.action)
                return bernoulli.negative_log_likelihood(
                    prediction, rows.step.next_obs, rows.step.reward, rows.step.terminated
                )

            grads, metrics = jax.grad(model_loss, has_aux=True)(model.params)
            model = _descend(model, grads, state.hparams["model_lr"])
        steps = imagine(imagine_key, env, state, model, rows)

        def q_loss(params: nets.MLPParams) -> tuple[Array, Metrics]:
            return values.imagined_q_loss(
                q_values,
                params,
                state.target,
                steps.obs,
                steps.action,
                steps.reward,
                steps.continues,
                steps.next_obs,
                steps.weight,
                config.gamma,
                config.double,
            )

        grads, q_metrics = jax.grad(q_loss, has_aux=True)(state.q.params)
        q = _descend(state.q, grads, state.hparams["lr"])
        updates = state.updates + 1
        target = values.periodic_update(state.target, q.params, updates, config.target_every)
        state = dataclasses.replace(state, q=q, target=target, model=model, updates=updates)
        return state, metrics | q_metrics

    def update(state: DynaQState) -> tuple[DynaQState, Metrics]:
        env = family.build(state.env_arrays)

        def step(state: DynaQState, key: Array) -> tuple[DynaQState, Metrics]:
            act_key, env_key, learn_key = jax.random.split(key, 3)
            obs = env.observe(state.env_state)
            action = softmax_policy(act_key, state.q.params, obs, state.hparams["temperature"])
            env_state, replay, reward = play(env, state.env_state, state.replay, action, env_key)
            state = dataclasses.replace(state, env_state=env_state, replay=replay)
            keys = jax.random.split(learn_key, config.updates_per_step)
            state, metrics = jax.lax.scan(lambda s, k: learn(env, s, k), state, keys)
            return state, jax.tree.map(jnp.mean, metrics) | {"reward": reward}

        key, sub = jax.random.split(state.key)
        keys = jax.random.split(sub, config.block)
        state, metrics = jax.lax.scan(step, dataclasses.replace(state, key=key), keys)
        return state, jax.tree.map(jnp.mean, metrics)

    def evaluate(state: DynaQState, key: Array) -> Metrics:
        env = family.build(state.env_arrays)
        return {"score": greedy_score(key, env, state.q.params, config)}

    return Experiment(init, update, evaluate)


def greedy_score(
    key: Key[Array, ""], env: DiscreteEnv, params: nets.MLPParams, config: DynaQConfig
) -> Float[Array, ""]:
    """Mean return of an episode, or mean reward per step of a continuing task, played greedily.

    Args:
        key: random key.
        env: the environment.
        params: of the Q-network.
        config: numbers of lanes and steps.

    Returns:
        The mean over lanes.
    """

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        states, alive, total = carry
        action = jnp.argmax(q_values(params, jax.vmap(env.observe)(states)), axis=-1)
        keys = jax.random.split(key, config.eval_lanes)
        states, reward, terminated = jax.vmap(env.step)(states, action.astype(jnp.int32), keys)
        return (states, alive & ~terminated, total + jnp.where(alive, reward, 0.0)), None

    reset_key, key = jax.random.split(key)
    states = jax.vmap(env.reset)(jax.random.split(reset_key, config.eval_lanes))
    carry = (states, jnp.ones(config.eval_lanes, bool), jnp.zeros(config.eval_lanes))
    (_, _, total), _ = jax.lax.scan(step, carry, jax.random.split(key, config.eval_steps))
    return jnp.mean(total) if env.episodic else jnp.mean(total) / config.eval_steps


def _descend(learned: Learned, grads: PyTree, lr: Float[Array, ""]) -> Learned:
    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
        direction, opt = _ADAM.update(grads, learned.opt)
    params = jax.tree.map(lambda p, d: (1 - _WEIGHT_DECAY) * p - lr * d, learned.params, direction)
    return Learned(params, opt)

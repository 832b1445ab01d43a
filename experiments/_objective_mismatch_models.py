"""What the studies share: two swing-ups, data of three kinds, and fleets of small models.

A fleet is many models of one architecture that are trained side by side, each on data, with weights
and for a number of steps of its own, and then used by one planner with the same random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import envs, search, worldmodels
from jaxlab.agents.mpc import mpc_episode
from jaxlab.envs import exact_step_fn
from jaxlab.envs.cartpole import observe as observe_cart
from jaxlab.envs.pendulum import MAX_SPEED, observe
from jaxlab.stats import evaluation_seeds
from jaxlab.types import Transition
from jaxlab.worldmodels import ModelState

SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
PUBLISHABLE = 16  # seeds below which no verdict is given, whatever a configuration asks for
_CART_BOX = (2.0, 3.0, jnp.pi, 8.0)  # position m, speed m/s, angle rad, angular speed rad/s


@dataclass(frozen=True)
class Control:
    """A task and the planner that solves it with exact dynamics; the task starts at rest."""

    world: Literal["pendulum", "cartpole"] = "pendulum"
    steps: int = 100  # of an episode
    planner: Literal["cem", "icem", "mppi"] = "cem"
    horizon: int = 20
    plans: int = 96
    elites: int = 10
    iterations: int = 3  # ignored by mppi, which has one
    exact_return: float = -369.0  # with exact dynamics, mean of episodes on tuning seeds
    random_return: float = -880.0  # of uniform actions

    def normalised(self, value: Any) -> Any:
        """0 for uniform actions, 1 for planning with exact dynamics."""
        return (value - self.random_return) / (self.exact_return - self.random_return)


@dataclass(frozen=True)
class Training:
    """Architecture and training of a model."""

    hidden: tuple[int, ...] = (32, 32)
    steps: int = 1500
    block: int = 100  # steps per update of the engine
    batch: int = 64
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        """Refuses steps that are not whole blocks."""
        if self.steps % self.block:
            raise ValueError(f"steps: expected a multiple of {self.block}, got {self.steps}")

    @property
    def model(self) -> worldmodels.EnsembleConfig:
        """One Gaussian network with normalised targets and fixed bounds of its log-variance."""
        return worldmodels.EnsembleConfig(
            members=1,
            elites=1,
            hidden=self.hidden,
            learn_bounds=False,
            predict_reward=False,
            weight_decay=0.0,
        )


def study_seeds(config: Any) -> tuple[int, ...]:
    """Seed ids of a run: of evaluation, or, for a smoke run, ones that decide nothing ever."""
    return tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)


def make_env(control: Control) -> envs.Env:
    """The task's environment."""
    return {"pendulum": envs.pendulum, "cartpole": envs.cartpole_swingup}[control.world](
        control.steps
    )


def at_rest(control: Control) -> Float[Array, " o"]:
    """The observation that every episode starts with: hanging still."""
    zero, down = jnp.float32(0), jnp.float32(jnp.pi)
    if control.world == "pendulum":
        return observe(down, zero)
    return observe_cart(zero, zero, down, zero)


def units(control: Control) -> Float[Array, " i"]:
    """Units of the observation's and the action's dimensions: half the width of the box."""
    if control.world == "pendulum":
        return jnp.ones(4)
    x, x_speed, _, speed = _CART_BOX
    return jnp.array([x, x_speed, 1.0, 1.0, speed, 1.0])


def planner_of(control: Control) -> search.Planner:
    """The planner. The cross-entropy method clips its plans, for a swing-up is full throttle."""
    sizes = (control.horizon, 1, control.plans)
    if control.planner == "mppi":
        return search.make_planner(search.MPPIConfig(*sizes))
    searched = (control.elites, control.iterations)
    if control.planner == "icem":
        return search.make_planner(search.ICEMConfig(*sizes, *searched))
    return search.make_planner(search.CEMConfig(*sizes, *searched, bounds="clip"))


def planner_text(control: Control) -> str:
    """The planner in words."""
    text = f"{control.planner}, horizon {control.horizon}, {control.plans} plans"
    if control.planner == "mppi":
        return text
    return f"{text}, {control.elites} elites, {control.iterations} iterations"


def episode(
    key: Key[Array, ""], control: Control, step_fn: Any
) -> tuple[Float[Array, ""], Transition]:
    """Return and transitions of one episode from rest, planned with a step function."""
    env = make_env(control)
    total, seen = mpc_episode(
        key, env, step_fn, planner_of(control), {"sigma": 1.0}, at_rest(control), control.steps
    )
    never = jnp.zeros(control.steps, bool)
    return total, Transition(seen.obs, seen.action, seen.reward, never, never, seen.next_obs)


def uniform_data(key: Key[Array, ""], control: Control, count: int) -> Transition:
    """Transitions [count] that cover the box of states and actions uniformly."""
    unit = jax.random.uniform(key, (count, 5), minval=-1.0, maxval=1.0)
    if control.world == "pendulum":
        obs = observe(jnp.pi * unit[:, 0], MAX_SPEED * unit[:, 1])
    else:
        obs = observe_cart(*(half * unit[:, i] for i, half in enumerate(_CART_BOX)))
    return _step(key, control, obs, unit[:, 4:])


def random_data(key: Key[Array, ""], control: Control, episodes: int) -> Transition:
    """Transitions of episodes from rest with uniform actions, [episodes * steps]."""
    exact = exact_step_fn(make_env(control))
    shape = (control.steps, episodes, 1)
    actions = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    def step(obs: Array, action: Array) -> tuple[Array, Array]:
        return exact(key, obs, action)[0], obs

    start = jnp.broadcast_to(at_rest(control), (episodes, at_rest(control).size))
    _, obs = jax.lax.scan(step, start, actions)
    rows = (jnp.swapaxes(x, 0, 1).reshape(episodes * control.steps, -1) for x in (obs, actions))
    return _step(key, control, *rows)


def expert_data(
    key: Key[Array, ""], control: Control, episodes: int
) -> tuple[Float[Array, " n"], Transition]:
    """Returns, and transitions [episodes * steps], of planning with exact dynamics."""
    exact = exact_step_fn(make_env(control))
    keys = jax.random.split(key, episodes)
    totals, seen = jax.vmap(lambda k: episode(k, control, exact))(keys)
    return totals, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)


def _step(key: Key[Array, ""], control: Control, obs: Array, action: Array) -> Transition:
    next_obs, reward, terminated, _ = exact_step_fn(make_env(control))(key, obs, action)
    return Transition(obs, action, reward, terminated, jnp.zeros_like(terminated), next_obs)


def model_step(control: Control, training: Training, model: ModelState) -> Callable[..., Any]:
    """A model's mean as a step function, with the task's own reward and termination."""
    env = make_env(control)
    return worldmodels.make_step_fn(
        model, training.model, env.termination_fn, env.reward_fn, mode="expectation"
    )


def log_likelihood(training: Training, model: ModelState, data: Transition) -> Float[Array, ""]:
    """Mean joint log-density of the observations' changes, in nats per transition."""
    mean, logvar = worldmodels.apply(model, training.model, data.obs, data.action)
    assert logvar is not None  # these models are probabilistic
    change = data.next_obs - data.obs
    return jnp.mean(worldmodels.log_likelihood(mean, logvar, change))


@flax.struct.dataclass
class Fleet:
    """M models in training; each learns from one of D data sets of C rows."""

    models: ModelState  # [M, ...]
    data: Transition  # [D, C]
    source: Int[Array, " M"]  # data set of each model
    count: Int[Array, " M"]  # the first rows of it that count
    weights: Float[Array, "M C"]
    active: Int[Array, " M"]  # steps that each model is trained for
    done: Int[Array, ""]  # steps


def make_fleet(
    key: Key[Array, ""],
    training: Training,
    data: Transition,
    source: Int[Array, " M"],
    active: Int[Array, " M"],
    count: Int[Array, " M"] | None = None,
    weights: Float[Array, "M C"] | None = None,
) -> Fleet:
    """Draws untrained models, each with its own numbers, and fits their normalisers.

    Args:
        key: random key.
        training: architecture.
        data: data sets.
        source: data set of each model.
        active: steps that each model is trained for.
        count: first rows of its data set that a model may see; None for all.
        weights: of the rows; None for ones.

    Returns:
        The fleet.
    """
    size, rows = source.shape[0], data.reward.shape[1]
    if count is None:
        count = jnp.full(size, rows, jnp.int32)
    if weights is None:
        weights = jnp.ones((size, rows))

    def one(key: Array, source: Array, count: Array) -> ModelState:
        model = worldmodels.init(key, training.model, data.obs.shape[-1], data.action.shape[-1])
        own = jax.tree.map(lambda x: x[source], data)
        return worldmodels.fit_normalizers(model, own, count, training.model)

    models = jax.vmap(one)(jax.random.split(key, size), source, count)
    zero = jnp.zeros((), jnp.int32)
    return Fleet(models, data, source, count, weights, active, zero)


def train(key: Key[Array, ""], fleet: Fleet, training: Training) -> tuple[Fleet, Float[Array, ""]]:
    """Takes a block of steps with every model; the fleet and the mean loss."""

    def one(key, model, source, count, weights, active):
        own = jax.tree.map(lambda x: x[source], fleet.data)
        return worldmodels.fit_steps(
            key,
            model,
            own,
            training.model,
            training.block,
            training.batch,
            training.learning_rate,
            count=count,
            weights=weights,
            active=active - fleet.done,
        )

    keys = jax.random.split(key, fleet.source.shape[0])
    models, loss = jax.vmap(one)(
        keys, fleet.models, fleet.source, fleet.count, fleet.weights, fleet.active
    )
    return replace(fleet, models=models, done=fleet.done + training.block), jnp.mean(loss)


def fleet_returns(
    key: Key[Array, ""], fleet: Fleet, control: Control, training: Training, episodes: int
) -> Float[Array, " M"]:
    """Mean return of planning with each model; all models meet the same random numbers."""

    def one(model: ModelState, key: Array) -> Array:
        return episode(key, control, model_step(control, training, model))[0]

    keys = jax.random.split(key, episodes)
    each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(fleet.models, keys)
    return jnp.mean(each, axis=1)

"""Whether value-gradient weighting helps a planner: the same pendulum, swung up by a learned model.

A value network is fitted to a fixed set of uniform transitions, a one-step model to the same
transitions with the network's gradients as weights (or none), and a cross-entropy planner with the
known reward uses the model to swing the pendulum up from rest. The value function that the weights
come from is thus learned from the data that the model has, errors included; weights from a value
function made by hand show, as a positive control, what a good one would bring.

The planner draws its plans from unbounded normals and clips them: swinging up takes full torque,
which a distribution truncated to the range does not reach in a few iterations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble
from jaxlab.envs import Env, exact_step_fn
from jaxlab.envs.pendulum import observe
from jaxlab.nets import MLPParams, mlp_apply, mlp_init, polyak
from jaxlab.search import CEMConfig, init_cem, plan_cem, score_plans
from jaxlab.search.scoring import StepFn
from jaxlab.stats import Claim, Guard, GuardOutcome, Verdict, guards
from jaxlab.types import Transition
from jaxlab.worldmodels import losses

from . import _vagram_e1 as e1

if TYPE_CHECKING:
    import xarray

ARMS = MSE, VALUE_GRADIENT, KNOWN_VALUE = "mse", "value_gradient", "known_value"  # by index
REWARD_SCALE = 0.1  # of the rewards that the value network sees
VALUE_SCALE = 10.0  # of the value network's output
WORST_RETURN_PER_STEP = -16.28  # reward hanging at full speed and torque

Scores = e1.Scores


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20  # paired evaluation seeds
    tuning_seeds: int = 4
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # tried for every arm and setting
    distractors: int = 15  # D of the distracted setting
    hidden: int = 32  # units in each of two layers of the model
    small_hidden: int = 8  # of the model in the setting of small capacity alone
    transitions: int = 1000
    validation_transitions: int = 1000
    steps: int = 2000  # optimiser steps of the model
    block: int = 100  # of them per update of the engine
    batch: int = 128
    value_hidden: int = 32
    value_steps: int = 4000
    value_learning_rate: float = 1e-3
    value_decay: float = 0.5  # decoupled; near the least held-out Bellman error at D = 0 and at D
    discount: float = 0.97
    target_rate: float = 0.01
    horizon: int = 20
    plans: int = 96
    elites: int = 10
    iterations: int = 3
    episode_steps: int = 100
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.steps % self.block:
            raise ValueError(f"steps: expected a multiple of block {self.block}, got {self.steps}")


SMOKE = Config(
    seeds=4,
    learning_rates=(3e-3,),
    steps=200,
    block=20,
    value_steps=200,
    episode_steps=10,
    smoke=True,
)


class Heads(NamedTuple):
    """A quadratic action-value function Q(s, a) = value - curvature (a - best)^2."""

    value: Float[Array, "*b"]  # max over actions
    best: Float[Array, "*b"]  # in (-1, 1)
    curvature: Float[Array, "*b"]  # positive


def heads(params: MLPParams, obs: Float[Array, "*b o"]) -> Heads:
    """Evaluates the value network; as its maximum over actions is a head, no search is needed.

    Reference: Gu et al. 2016, Continuous Deep Q-Learning with Model-based Acceleration, section 4.
    """
    out = mlp_apply(params, obs)
    return Heads(VALUE_SCALE * out[..., 0], jnp.tanh(out[..., 1]), jax.nn.softplus(out[..., 2]))


def bellman_error(
    params: MLPParams, target: MLPParams, data: Transition, discount: float
) -> Float[Array, "n"]:
    """Q(s, a) minus reward plus discounted value of the next observation (scaled rewards)."""
    now = heads(params, data.obs)
    q = now.value - now.curvature * (data.action[..., 0] - now.best) ** 2
    goal = REWARD_SCALE * data.reward + discount * heads(target, data.next_obs).value
    return q - jax.lax.stop_gradient(goal)


def fit_value(key: Key[Array, ""], train: Transition, config: Config) -> MLPParams:
    """Fitted value iteration on a fixed data set.

    Args:
        key: random key.
        train: transitions [n].
        config: sizes and rates.

    Returns:
        Parameters of the slowly moving target network.

    Pitfall:
        Without strong weight decay, the network fits the distractors of its few transitions, and
        bootstrapping on its own errors makes the values grow without bound.
    """
    net_key, batch_key = jax.random.split(key)
    rows, obs_dim = train.obs.shape
    params = mlp_init(net_key, (obs_dim, config.value_hidden, config.value_hidden, 3))
    adam = optax.adamw(config.value_learning_rate, weight_decay=config.value_decay)
    uniform = jax.random.uniform(batch_key, (config.value_steps, config.batch))
    index = jnp.minimum((uniform * rows).astype(jnp.int32), rows - 1)

    def step(carry, index):
        params, target, optimizer = carry
        sample = jax.tree.map(lambda x: x[index], train)
        grad = jax.grad(lambda p: jnp.mean(bellman_error(p, target, sample, config.discount) ** 2))(
            params
        )
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            delta, optimizer = adam.update(grad, optimizer, params)
        params = optax.apply_updates(params, delta)
        return (params, polyak(target, params, config.target_rate), optimizer), None

    (_, target, _), _ = jax.lax.scan(step, (params, params, adam.init(params)), index)
    return target


def swing_up(
    key: Key[Array, ""], env: Env, model: StepFn | None, config: Config
) -> Float[Array, ""]:
    """Return of one episode from rest.

    Args:
        key: random key of the planner and of the distractors' start.
        env: the pendulum that is acted on.
        model: the step function that the planner searches in; None for uniform actions.
        config: sizes.

    Returns:
        Undiscounted return.
    """
    start_key, key = jax.random.split(key)
    size = (env.spec.obs_dim - 3,)
    distractors = jax.random.uniform(start_key, size, minval=-2.0, maxval=2.0)
    obs = jnp.concatenate([observe(jnp.float32(jnp.pi), jnp.float32(0)), distractors])
    cem = CEMConfig(
        config.horizon, 1, config.plans, config.elites, config.iterations, bounds="clip"
    )
    exact = exact_step_fn(env)

    def step(carry, key):
        obs, warm = carry
        plan_key, step_key = jax.random.split(key)
        if model is None:
            action = jax.random.uniform(plan_key, (1,), minval=-1.0, maxval=1.0)
        else:
            plan, warm, _ = plan_cem(
                plan_key,
                lambda plans: score_plans(step_key, model, obs, plans),
                warm,
                cem,
                sigma=1.0,
            )
            action = plan[0]
        next_obs, reward, _, _ = exact(step_key, obs, action)
        return (next_obs, warm), reward

    keys = jax.random.split(key, config.episode_steps)
    _, rewards = jax.lax.scan(step, (obs, init_cem(cem)), keys)
    return jnp.sum(rewards)


@flax.struct.dataclass
class State:
    """One model in training, with its data and the value function behind its weights."""

    key: Key[Array, ""]
    env_key: Key[Array, ""]
    params: MLPParams
    optimizer: Any
    stream: Int[Array, ""]
    learning_rate: Float[Array, ""]
    value: MLPParams
    train: Transition  # [n]
    validation: Transition
    gradients: Float[Array, "n o"]  # weights of the errors at the training next observations


def make(config: Config, distractors: int, hidden: int) -> ensemble.Experiment:
    """The study with D distractors and a model of two layers of `hidden` units.

    Its `init` fits the value network, its update takes `config.block` optimiser steps of the model,
    and its evaluation plays one episode. Traced hyper-parameters: `arm` (index into ARMS), `lr` and
    `stream`, as in the study of models.
    """

    def init(key, hparams):
        key = jax.random.fold_in(key, hparams["stream"])
        env_key, data_key, value_key, net_key, key = jax.random.split(key, 5)
        env = e1.distracted_pendulum(env_key, distractors)
        counts = (config.transitions, config.validation_transitions)
        data = e1.uniform_transitions(data_key, env, sum(counts))
        train, validation = e1.split_rows(data, *counts)
        value = fit_value(value_key, train, config)
        gradients = jnp.stack(
            [
                jnp.ones_like(train.next_obs),  # weights of one: the squared error
                losses.value_gradients(lambda obs: heads(value, obs).value, train.next_obs),
                losses.value_gradients(e1.value, train.next_obs),
            ]
        )
        params = mlp_init(net_key, (env.spec.obs_dim + 1, hidden, hidden, env.spec.obs_dim))
        return State(
            key=key,
            env_key=env_key,
            params=params,
            optimizer=optax.scale_by_adam().init(params),
            stream=hparams["stream"],
            learning_rate=hparams["lr"],
            value=value,
            train=train,
            validation=validation,
            gradients=gradients[hparams["arm"]],
        )

    def update(state):
        def loss_fn(params, sample, gradients):
            predicted = e1.predict(params, sample.obs, sample.action)
            return losses.value_gradient_weighted_loss(predicted, sample.next_obs, gradients)[0]

        state, loss = e1.fit_block(state, loss_fn, config.block, config.batch)

        def error(value_fn):
            return e1.rmse(e1.value_errors(state.params, state.validation, value_fn)[0])

        learned = error(lambda obs: heads(state.value, obs).value)
        return state, {
            "loss": loss,
            "validation_value_error": learned,
            "validation_known_value_error": error(e1.value),
        }

    def evaluate(state, key):
        env = e1.distracted_pendulum(state.env_key, distractors)
        reward_fn = env.reward_fn
        assert reward_fn is not None  # the pendulum's is known

        def model(key, obs, action):
            del key
            next_obs = e1.predict(state.params, obs, action)
            return next_obs, reward_fn(obs, action, next_obs), jnp.zeros(len(obs), bool), {}

        values = heads(state.value, state.validation.next_obs).value
        mean_obs = jnp.mean(state.train.next_obs, axis=0)
        residual = bellman_error(state.value, state.value, state.validation, config.discount)
        return {
            "return": swing_up(jax.random.fold_in(key, state.stream), env, model, config),
            "constant_value_error": e1.rmse(heads(state.value, mean_obs).value - values),
            "bellman_error": e1.rmse(residual) / jnp.std(values),
        }

    return ensemble.Experiment(init, update, evaluate)


def make_references(config: Config) -> ensemble.Experiment:
    """The planner with exact dynamics and the uniform policy, one episode each per update.

    Without distractors, which change neither.
    """
    env = e1.distracted_pendulum(jax.random.key(0), 0)

    def update(key):
        key, exact_key, uniform_key = jax.random.split(key, 3)
        return key, {
            "exact": swing_up(exact_key, env, exact_step_fn(env), config),
            "uniform": swing_up(uniform_key, env, None, config),
        }

    return ensemble.Experiment(lambda key, hparams: key, update)


class Setting(NamedTuple):
    """One width of the model on one number of distractors."""

    label: str
    distractors: int
    hidden: int
    arms: tuple[str, ...]
    metric: str  # name of its returns in the scores


def settings(config: Config) -> tuple[Setting, ...]:
    """What the study runs, in the order of its claims."""
    d, small = config.distractors, config.small_hidden
    return (
        Setting(f"e2-d{d}", d, config.hidden, (MSE, VALUE_GRADIENT, KNOWN_VALUE), "return"),
        Setting("e2-d0", 0, config.hidden, (MSE, VALUE_GRADIENT), "return"),
        Setting(f"e2-d0-hidden{small}", 0, small, (MSE, VALUE_GRADIENT), "return_small"),
    )


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Tunes and runs every setting, with checkpoints below a directory.

    Returns:
        Results by label, dims (arm, seed, step), and scores by (arm, D, metric). Metrics are
        "return" (with the prefix "other_block_" for the control on another random stream), and
        "value", "constant", "bellman": minus log10 of the validation value error, of that of
        predicting the training mean, and of the held-out Bellman error in standard deviations of
        the value. All carry the suffix "_small" for the small model. The reference returns are
        ("exact", 0, "return") and ("uniform", 0, "return").
    """
    options: dict[str, Any] = {"resume": resume, "progress": progress}
    results: dict[str, xarray.Dataset] = {}
    scores: Scores = {}
    results["e2-references"] = references = ensemble.run(
        make_references(config),
        steps=1,
        seeds=e1.study_seeds(config),
        checkpoint=directory / "e2-references",
        label="e2-references",
        **options,
    )
    for name in ("exact", "uniform"):
        scores[name, 0, "return"] = references[name].values[:, -1]
    for label, distractors, hidden, arms, metric in settings(config):
        errors = dict.fromkeys(arms, "validation_value_error")
        if KNOWN_VALUE in arms:
            errors[KNOWN_VALUE] = "validation_known_value_error"
        experiment = make(config, distractors, hidden)
        data, again = e1.tune_and_run(
            config, experiment, directory / label, ARMS, errors, (MSE,), **options
        )
        results |= {label: data, f"{label}-other-block": again}
        suffix = metric.removeprefix("return")
        scores[MSE, distractors, f"other_block_{metric}"] = again["return"].values[0, :, -1]
        columns = (
            ("value", "validation_value_error"),
            ("constant", "constant_value_error"),
            ("bellman", "bellman_error"),
        )
        for arm, last in ((arm, data.isel(step=-1).sel(arm=arm)) for arm in arms):
            scores[arm, distractors, metric] = last["return"].values
            for name, variable in columns:
                scores[arm, distractors, name + suffix] = e1.log_error(last[variable].values)
    return results, scores


EXACT_RETURN = -450.0  # that the planner must reach with exact dynamics
RANDOM_MARGIN = 200.0  # by which uniform actions must be worse than that

_GUARDS = (
    Guard("planner_works", f"with exact dynamics the mean return is {EXACT_RETURN:g} or more"),
    Guard("random_is_worse", f"uniform actions return {RANDOM_MARGIN:g} less, or worse"),
    Guard("control_learns", "its value error is 0.3 decades below that of the training mean"),
    Guard("value_is_learned", "the held-out Bellman error is at most half the values' deviation"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard("equal_parameters", "the arms' networks have the same number of parameters"),
    Guard("control_against_itself", "negative control: the control on two random streams ties"),
)
_ROOM_GUARD = Guard(
    "control_has_room", "the control's mean return leaves the claimed gain below exact dynamics"
)
_KNOWN_VALUE_GUARD = Guard(
    "known_value_helps",
    "positive control: weights from a value function made by hand bring the claimed mean gain",
)


def _claims(config: Config) -> dict[Claim, tuple[int, str]]:
    """Claims with (distractors, metric) of the scores that they compare."""
    protocol = dict(e1.protocol(config)) | {
        "value network": f"{config.value_steps} steps, weight decay {config.value_decay:g}",
        "planner": f"horizon {config.horizon}, {config.plans} plans, {config.elites} elites, "
        f"{config.iterations} iterations",
    }
    claim = partial(
        Claim,
        metric=f"return of {config.episode_steps} steps from rest",
        treatment=VALUE_GRADIENT,
        control=MSE,
        threshold=100.0,
        worst=WORST_RETURN_PER_STEP * config.episode_steps,
        n_seeds=max(config.seeds, e1.PUBLISHABLE),
        protocol=tuple(protocol.items()),
    )
    found = (
        claim(
            name="return with distractors",
            statement=f"With {config.distractors} distractors, planning with a model weighted by "
            "the gradients of a learned value function returns at least 100 more than with one "
            "fitted by squared error.",
            guards=(*_GUARDS, _ROOM_GUARD, _KNOWN_VALUE_GUARD),
        ),
        claim(
            name="return without distractors",
            statement="Without distractors, the weighted model returns at most 80 less.",
            threshold=-80.0,
            guards=_GUARDS,
        ),
        claim(
            name="return of a small model without distractors",
            statement=f"Small capacity alone ({config.small_hidden} hidden units, no distractors) "
            "is enough for the weighted model to return at least 100 more.",
            required=False,
            guards=(*_GUARDS, _ROOM_GUARD),
            protocol=tuple((protocol | {"hidden": config.small_hidden}).items()),
        ),
    )
    where = ((setting.distractors, setting.metric) for setting in settings(config))
    return dict(zip(found, where))


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    return tuple(_claims(config))


def compared(config: Config) -> dict[str, tuple[int, str]]:
    """Claim name -> (distractors, metric) of its scores."""
    return {claim.name: where for claim, where in _claims(config).items()}


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str] | None = None
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges every claim by the scores of `run`, see `judge_all` of the study of models."""
    return e1.judge_all(config, _claims(config), scores, _check, registered or {})


def _check(config: Config, claim: Claim, scores: Scores) -> dict[str, GuardOutcome]:
    distractors, metric = compared(config)[claim.name]
    suffix = metric.removeprefix("return")

    def score(arm, metric):
        return scores[arm, distractors, metric]

    def mean_return(arm):
        values = score(arm, metric)
        return float(np.where(np.isfinite(values), values, claim.worst).mean())

    exact, uniform = (float(scores[name, 0, "return"].mean()) for name in ("exact", "uniform"))
    itself = guards.decide_known(claim, score(MSE, f"other_block_{metric}"), score(MSE, metric))
    # A control is never inferior to itself by a margin, and never better by one.
    wanted = "reproduced" if claim.threshold < 0 else "not_reproduced"
    experiment = make(config, distractors, config.small_hidden if suffix else config.hidden)
    room = exact - mean_return(MSE)
    outcomes: dict[str, GuardOutcome] = {
        "planner_works": (exact >= EXACT_RETURN, f"{exact:.0f}"),
        "random_is_worse": (uniform <= exact - RANDOM_MARGIN, f"{uniform:.0f}"),
        "control_learns": e1.learns(score(MSE, f"value{suffix}"), score(MSE, f"constant{suffix}")),
        "value_is_learned": e1.learns(
            score(VALUE_GRADIENT, f"bellman{suffix}"), np.zeros(1), float(np.log10(2))
        ),
        "finite": guards.mostly_finite(score(VALUE_GRADIENT, metric), score(MSE, metric)),
        "equal_parameters": e1.same_parameters(experiment, (0, 1)),
        "control_against_itself": (
            itself.status == wanted,
            f"control against itself came out {itself.status}",
        ),
    }
    if _ROOM_GUARD in claim.guards:
        outcomes[_ROOM_GUARD.name] = room >= claim.threshold, f"{room:.0f} below exact dynamics"
    if _KNOWN_VALUE_GUARD in claim.guards:
        gain = mean_return(KNOWN_VALUE) - mean_return(MSE)
        outcomes[_KNOWN_VALUE_GUARD.name] = gain >= claim.threshold, f"gain {gain:.0f}"
    return outcomes

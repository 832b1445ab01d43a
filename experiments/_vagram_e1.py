"""Which errors a model makes when its value function is known: losses compared without control.

A pendulum's observation carries D further dimensions with dynamics of their own that are as hard
to predict as they are irrelevant. Small networks are fitted to the same uniform transitions by
squared error, value-gradient weighting, first-order (Taylor) and exact value-aware loss, and judged
by the value of what they predict on held-out transitions, under the value function of the loss and
under another one that no loss has seen.

The arm is a traced index into the stack of losses, so that one compiled program trains all arms and
learning rates; the network, the data and the order of the batches are the same for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, stats
from jaxlab.envs import Env, exact_step_fn, pendulum, with_distractors
from jaxlab.envs.pendulum import MAX_SPEED, observe
from jaxlab.nets import MLPParams, mlp_apply, mlp_init
from jaxlab.stats import Claim, Guard, GuardOutcome, Verdict, evaluation_seeds, guards
from jaxlab.types import Transition
from jaxlab.worldmodels import losses

if TYPE_CHECKING:
    import xarray

ARMS = ("mse", "value_gradient", "taylor", "iter_value_aware")  # order of the stacked losses
DIVERGED_LOG_ERROR = 2.0  # log10 of a value error that no finite model in range comes near
SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
PUBLISHABLE = 16  # seeds below which no verdict is given, whatever a configuration asks for

Scores = dict[tuple[str, int, str], np.ndarray]  # (arm, distractors, metric) -> [n_seeds]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20  # paired evaluation seeds
    tuning_seeds: int = 4
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)  # tried for every arm and D
    distractors: int = 10  # D of the distracted setting
    hidden: int = 8  # units in each of two layers
    transitions: int = 2000
    validation_transitions: int = 1000
    test_transitions: int = 2000
    steps: int = 4000  # optimiser steps
    block: int = 100  # optimiser steps per update of the engine
    batch: int = 256
    rows: int = 10  # points of the learning curves
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.steps % (self.block * self.rows):
            window = self.block * self.rows
            raise ValueError(f"steps: expected a multiple of {window}, got {self.steps}")


SMOKE = Config(seeds=4, learning_rates=(3e-3,), steps=400, block=20, rows=5, smoke=True)


def value(obs: Float[Array, "o"]) -> Float[Array, ""]:
    """The value function that the losses know; it ignores the distractors."""
    return 10 * obs[0] - 8 * obs[2] ** 2 - 6 * obs[1] * obs[2]


def other_value(obs: Float[Array, "o"]) -> Float[Array, ""]:
    """A value function that no loss knows, as after a change of the policy."""
    return 10 * obs[1] + 4 * obs[2] - 5 * obs[0] ** 2


def distracted_pendulum(key: Key[Array, ""], distractors: int) -> Env:
    """The pendulum with nonlinear distractors d' = 2 sin(A d), A drawn from the key."""
    return with_distractors(pendulum(), distractors, "nonlinear", key=key)


def uniform_transitions(key: Key[Array, ""], env: Env, count: int) -> Transition:
    """Transitions [count] of the exact dynamics; states and actions cover their ranges uniformly,
    distractors [-2, 2], which is where their dynamics keep them.
    """
    unit = jax.random.uniform(key, (count, env.spec.obs_dim), minval=-1.0, maxval=1.0)
    angle, speed, action, distractors = unit[:, 0], unit[:, 1], unit[:, 2:3], unit[:, 3:]
    obs = jnp.concatenate([observe(jnp.pi * angle, MAX_SPEED * speed), 2 * distractors], axis=-1)
    next_obs, reward, terminated, _ = exact_step_fn(env)(key, obs, action)
    return Transition(obs, action, reward, terminated, jnp.zeros_like(terminated), next_obs)


def split_rows(data: Transition, *counts: int) -> list[Transition]:
    """Cuts transitions into disjoint sets of the given sizes.

    One draw for all sets, cut afterwards, compiles several times faster than a draw per set.
    """
    ends = np.cumsum(counts)
    return [jax.tree.map(lambda x, a=end - n, b=end: x[a:b], data) for n, end in zip(counts, ends)]


def predict(
    params: MLPParams, obs: Float[Array, "*b o"], action: Float[Array, "*b a"]
) -> Float[Array, "*b o"]:
    """Deterministic one-step model: the network predicts the change of the observation."""
    with jax.default_matmul_precision("float32"):
        return obs + mlp_apply(params, jnp.concatenate([obs, action], axis=-1))


def rmse(error: Float[Array, "n"]) -> Float[Array, ""]:
    """Root mean square."""
    return jnp.sqrt(jnp.mean(error**2))


@flax.struct.dataclass
class State:
    """One model in training, with its data."""

    key: Key[Array, ""]
    params: MLPParams
    optimizer: Any
    arm: Int[Array, ""]
    learning_rate: Float[Array, ""]
    train: Transition  # [n]
    validation: Transition
    test: Transition
    gradients: Float[Array, "n o"]  # clipped value gradients at the real next states


def fit_block(
    state: Any,
    loss_fn: Callable[[MLPParams, Transition, Float[Array, "b o"]], Float[Array, ""]],
    steps: int,
    batch: int,
) -> tuple[Any, Float[Array, ""]]:
    """Takes optimiser steps on batches drawn with replacement; the new state and the mean loss.

    The state has key, params, optimizer, learning_rate, train [n] and gradients [n, o]; `loss_fn`
    gets a batch of `train` with the rows of `gradients` that belong to it.
    """
    key, sub = jax.random.split(state.key)
    rows = state.gradients.shape[0]
    uniform = jax.random.uniform(sub, (steps, batch))
    index = jnp.minimum((uniform * rows).astype(jnp.int32), rows - 1)

    def step(carry, index):
        params, optimizer = carry
        sample, gradients = jax.tree.map(lambda x: x[index], (state.train, state.gradients))
        loss, grad = jax.value_and_grad(loss_fn)(params, sample, gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            direction, optimizer = optax.scale_by_adam().update(grad, optimizer)
        params = jax.tree.map(lambda p, d: p - state.learning_rate * d, params, direction)
        return (params, optimizer), loss

    (params, optimizer), loss = jax.lax.scan(step, (state.params, state.optimizer), index)
    return state.replace(key=key, params=params, optimizer=optimizer), jnp.mean(loss)


def value_errors(
    params: MLPParams, data: Transition, value_fn: losses.ValueFn
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Value of predicted minus value of real next observations, and the latter."""
    real = jax.vmap(value_fn)(data.next_obs)
    return jax.vmap(value_fn)(predict(params, data.obs, data.action)) - real, real


def make(config: Config, distractors: int) -> ensemble.Experiment:
    """The study with D distractors; an update takes `config.block` optimiser steps.

    Traced hyper-parameters: `arm` (index into ARMS), `lr`, and `stream`, which is 0, or 1 for other
    random numbers altogether under the same seed.
    """

    def init(key, hparams):
        key = jax.random.fold_in(key, hparams["stream"])
        env_key, data_key, net_key, key = jax.random.split(key, 4)
        env = distracted_pendulum(env_key, distractors)
        counts = (config.transitions, config.validation_transitions, config.test_transitions)
        data = uniform_transitions(data_key, env, sum(counts))
        train, validation, test = split_rows(data, *counts)
        sizes = (env.spec.obs_dim + 1, config.hidden, config.hidden, env.spec.obs_dim)
        params = mlp_init(net_key, sizes)
        return State(
            key=key,
            params=params,
            optimizer=optax.scale_by_adam().init(params),
            arm=hparams["arm"],
            learning_rate=hparams["lr"],
            train=train,
            validation=validation,
            test=test,
            gradients=losses.value_gradients(value, train.next_obs),
        )

    def update(state):
        def loss_fn(params, sample, gradients):
            predicted, real = predict(params, sample.obs, sample.action), sample.next_obs
            every = (
                losses.mse_loss(predicted, real)[0],
                losses.value_gradient_weighted_loss(predicted, real, gradients)[0],
                losses.taylor_value_aware_loss(predicted, real, gradients)[0],
                losses.iter_value_aware_loss(predicted, real, value)[0],
            )
            return jnp.stack(every)[state.arm]

        state, loss = fit_block(state, loss_fn, config.block, config.batch)
        error, _ = value_errors(state.params, state.validation, value)
        return state, {"loss": loss, "validation_value_error": rmse(error)}

    def evaluate(state, key):
        del key
        constant = jnp.mean(state.train.next_obs, axis=0)
        error, real = value_errors(state.params, state.test, value)
        return {
            "value_error": rmse(error),
            "other_value_error": rmse(value_errors(state.params, state.test, other_value)[0]),
            "constant_value_error": rmse(value(constant) - real),
        }

    return ensemble.Experiment(init, update, evaluate)


def tune_and_run(
    config: Any,
    experiment: ensemble.Experiment,
    directory: Path,
    arms: tuple[str, ...],
    errors: Mapping[str, str],
    controls: tuple[str, ...],
    rows: int = 1,
    **options: Any,
) -> tuple["xarray.Dataset", "xarray.Dataset"]:
    """Chooses a learning rate per arm, with the same budget for each, and runs the arms with it.

    Args:
        config: sizes of the study.
        experiment: with the traced hyper-parameters `arm`, `lr` and `stream`.
        directory: folder for checkpoints, whose name is the label; tuning goes beside it.
        arms: names of all arms by index.
        errors: arms to run, each with its validation error, an update metric; the rate with the
            lowest mean log10 is taken, and a diverged seed counts as worst.
        controls: arms that also run on another random stream, as if on another block of seeds.
        rows: points of the learning curves.
        **options: of `ensemble.run`.

    Returns:
        Results, and those of the controls on the other stream; dims (arm, seed, step).
    """
    updates, label = config.steps // config.block, directory.name
    index = {arm: arms.index(arm) for arm in errors}
    rates = dict.fromkeys(errors, config.learning_rates[0])
    if len(config.learning_rates) > 1:
        tuning = ensemble.run(
            experiment._replace(evaluate=None),
            steps=updates,
            seeds=range(config.tuning_seeds),
            grid={"arm": list(index.values()), "lr": config.learning_rates, "stream": [0]},
            record_every=updates,
            checkpoint=directory.with_name(f"{label}-tuning"),
            label=f"{label} tuning",
            **options,
        )
        for row, (arm, error) in enumerate(errors.items()):
            score = log_error(tuning[error].values[row, :, 0, :, -1])
            score = np.where(np.isfinite(score), score, -DIVERGED_LOG_ERROR)
            rates[arm] = config.learning_rates[int(np.argmax(score.mean(axis=-1)))]
    runs = [(arm, 0) for arm in errors] + [(arm, 1) for arm in controls]
    data = ensemble.run(
        experiment,
        steps=updates,
        seeds=study_seeds(config),
        points={
            "arm": jnp.asarray([index[arm] for arm, _ in runs], jnp.int32),
            "lr": jnp.asarray([rates[arm] for arm, _ in runs], jnp.float32),
            "stream": jnp.asarray([stream for _, stream in runs], jnp.int32),
        },
        record_every=updates // rows,
        checkpoint=directory,
        label=label,
        **options,
    )
    data = data.drop_vars(["point", "arm", "stream"]).rename(point="arm")
    data = data.assign_coords(arm=[arm for arm, _ in runs])
    return data.isel(arm=slice(len(errors))), data.isel(arm=slice(len(errors), None))


def study_seeds(config: Any) -> tuple[int, ...]:
    """Seed ids of a run: of evaluation, or, for a smoke run, ones that decide nothing ever."""
    return tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)


def other_block(count: int) -> tuple[int, ...]:
    """Seed ids for a negative control, disjoint from tuning and evaluation."""
    return tuple(range(2000, 2000 + count))


def log_error(error: np.ndarray) -> np.ndarray:
    """Score of a positive error: -log10, higher is better; zero and NaN stay non-finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log10(np.asarray(error, np.float64))


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Tunes and runs all arms without and with distractors, with checkpoints below a directory.

    Returns:
        Results by label, dims (arm, seed, step), and scores by (arm, D, metric). Metrics are minus
        log10 of test errors: "value" and "other_value" under either value function, the same with
        the prefix "other_block_" for the controls on another random stream, "early" (value after
        the first row of the curve) and "constant" (value of predicting the training mean).
    """
    options: dict[str, Any] = {"resume": resume, "progress": progress}
    results: dict[str, xarray.Dataset] = {}
    scores: Scores = {}
    for distractors, controls in {0: ARMS[:1], config.distractors: (ARMS[0], ARMS[3])}.items():
        label, errors = f"e1-d{distractors}", dict.fromkeys(ARMS, "validation_value_error")
        experiment = make(config, distractors)
        data, again = tune_and_run(
            config, experiment, directory / label, ARMS, errors, controls, config.rows, **options
        )
        results |= {label: data, f"{label}-other-block": again}
        columns = (
            ("value", data, "value_error", -1),
            ("other_value", data, "other_value_error", -1),
            ("early", data, "value_error", 0),
            ("constant", data, "constant_value_error", -1),
            ("other_block_value", again, "value_error", -1),
            ("other_block_other_value", again, "other_value_error", -1),
        )
        for metric, dataset, variable, row in columns:
            for arm, values in zip(dataset["arm"].values, dataset[variable].values):
                scores[str(arm), distractors, metric] = log_error(values[:, row])
    return results, scores


LEARNS_MARGIN = 0.3  # decades below the error of predicting the training mean
TRAINING_MARGIN = 0.1  # decades that the last nine tenths of the training must bring

_GUARDS = (
    Guard("control_learns", "its value error is 0.3 decades below that of the training mean"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard("equal_parameters", "the arms' networks have the same number of parameters"),
    Guard("training_helps", "positive control: 10 times the steps bring the treatment 0.1 decades"),
    Guard("control_against_itself", "negative control: the control on two random streams ties"),
)
_DIFFERENCE_GUARD = Guard(
    "difference_is_seen", "the Taylor loss, known to be worse, is not found equivalent to squared"
)


def protocol(config: Any) -> tuple[tuple[str, str | int | float], ...]:
    """How the learning rates were chosen, for the claims of either study."""
    return (
        ("tuning grid of lr", ", ".join(f"{rate:g}" for rate in config.learning_rates)),
        ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
        ("tuning criterion", "mean log10 value RMSE on validation transitions, per arm and D"),
        ("evaluation seeds", f"from {evaluation_seeds(1)[0]}"),
        ("negative control", "another random stream of each seed"),
        ("hidden", config.hidden),
        ("transitions", config.transitions),
        ("optimiser steps", config.steps),
        ("batch", config.batch),
    )


def _claims(config: Config) -> dict[Claim, tuple[int, str]]:
    """Claims with (distractors, metric) of the scores that they compare."""
    d = config.distractors
    metric = "minus log10 of the value RMSE of predicted next observations on test transitions"
    claim = partial(
        Claim,
        metric=metric,
        treatment="value_gradient",
        control="mse",
        threshold=0.5,
        worst=-DIVERGED_LOG_ERROR,
        n_seeds=max(config.seeds, PUBLISHABLE),
        protocol=protocol(config),
        guards=_GUARDS,
    )
    with_distractors = claim(
        name="value error with distractors",
        statement=f"With {d} distractors, a small model weighted by value gradients predicts "
        "values at least 0.5 decades better than one fitted by squared error.",
    )
    without = claim(
        name="value error without distractors",
        statement="Without distractors, both predict values equally well, within 0.15 decades.",
        threshold=0.15,
        kind="equivalence",
        guards=(*_GUARDS, _DIFFERENCE_GUARD),
    )
    other = claim(
        name="value error under another value function",
        statement=f"With {d} distractors and under a value function that no loss has seen, the "
        "model weighted by value gradients is at least 0.5 decades better than the one of the "
        "exact value-aware loss.",
        metric=f"{metric}, under the other value function",
        control="iter_value_aware",
    )
    return {with_distractors: (d, "value"), without: (0, "value"), other: (d, "other_value")}


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    return tuple(_claims(config))


def compared(config: Config) -> dict[str, tuple[int, str]]:
    """Claim name -> (distractors, metric) of its scores."""
    return {claim.name: where for claim, where in _claims(config).items()}


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str] | None = None
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges every claim by the scores of `run`, see `judge_all`."""
    return judge_all(config, _claims(config), scores, _check, registered or {})


def judge_all(
    config: Any,
    claims: Mapping[Claim, tuple[int, str]],
    scores: Scores,
    check: Callable[[Any, Claim, Scores], Mapping[str, GuardOutcome]],
    registered: Mapping[str, str],
) -> tuple[tuple[Claim, Verdict], ...]:
    """Decides claims, given with (distractors, metric) of the scores that each compares.

    `check` gives the outcomes of a claim's guards, `registered` the digests of the claims written
    down before the run, by name.
    """
    parts = []
    for claim, where in claims.items():
        treatment, control = (scores[arm, *where] for arm in (claim.treatment, claim.control))
        outcomes, digest = check(config, claim, scores), registered.get(claim.name)
        evidence = stats.Evidence(
            treatment, control, study_seeds(config), outcomes, config.smoke, digest
        )
        parts.append((claim, stats.decide(claim, evidence)))
    return tuple(parts)


def same_parameters(experiment: ensemble.Experiment, arms: tuple[int, ...]) -> GuardOutcome:
    """Whether arms train networks of one size."""

    def count(arm):
        hparams = {"arm": jnp.int32(arm), "lr": jnp.float32(0), "stream": jnp.int32(0)}
        state = jax.eval_shape(experiment.init, jax.random.key(0), hparams)
        return sum(leaf.size for leaf in jax.tree.leaves(state.params))

    return guards.same_budget(count(arms[0]), count(arms[1]), tolerance=0.0)


def learns(score: Any, trivial: Any, margin: float = LEARNS_MARGIN) -> GuardOutcome:
    """Whether scores of errors are clearly better than those of a trivial prediction."""
    known = trivial[np.isfinite(trivial)]
    baseline = float(known.mean()) if known.size else float("nan")
    return guards.learns(np.where(np.isfinite(score), score, -DIVERGED_LOG_ERROR), baseline, margin)


def _check(config: Config, claim: Claim, scores: Scores) -> dict[str, GuardOutcome]:
    distractors, metric = compared(config)[claim.name]

    def score(arm, metric):
        return scores[arm, distractors, metric]

    treatment, control = score(claim.treatment, metric), score(claim.control, metric)
    late, early = (score(claim.treatment, name) for name in ("value", "early"))
    training = guards.decide_known(
        claim, late, early, kind="superiority", threshold=TRAINING_MARGIN
    )
    itself = guards.decide_known(claim, score(claim.control, f"other_block_{metric}"), control)
    arms = (ARMS.index(claim.treatment), ARMS.index(claim.control))
    outcomes: dict[str, GuardOutcome] = {
        "control_learns": learns(score(claim.control, "value"), score(claim.control, "constant")),
        "finite": guards.mostly_finite(treatment, control),
        "equal_parameters": same_parameters(make(config, distractors), arms),
        "training_helps": guards.positive_control(training),
        "control_against_itself": guards.negative_control(claim, itself),
    }
    if claim.kind == "equivalence":
        known = guards.decide_known(claim, score("taylor", metric), control)
        seen = known.status == "not_reproduced"
        outcomes["difference_is_seen"] = seen, f"Taylor against squared came out {known.status}"
    return outcomes

"""A model changed so that its likelihood stays and the return of planning with it collapses.

The last layer of a trained model is searched for the change that costs the planner most while the
mean log-likelihood on held-out uniform transitions falls by no more than a slack. The search moves
in coordinates in which the likelihood has unit curvature, so that a step of norm r costs about
r^2 / 2 nats in every direction; in plain coordinates hardly any step keeps within the slack. The
control is a random change of the same norm in these coordinates (shortened where it would violate
the slack).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from jaxlab import ensemble, search
from jaxlab.stats import Claim, Evidence, Guard, GuardOutcome, Verdict, decide, guards
from jaxlab.types import Transition
from jaxlab.worldmodels import ModelState

from . import _objective_mismatch_models as models

if TYPE_CHECKING:
    import xarray

TOLERANCE = 1e-3  # nats by which two compiled programs may differ on one likelihood
SHORTER = 12  # halvings of a random change until it keeps within the slack

Scores = dict[str, np.ndarray]  # see `run`


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claim."""

    seeds: int = 20
    transitions: int = 400  # uniform, to train on
    held_out: int = 1000  # uniform, for the constraint; as many fresh ones for the judgement
    slacks: tuple[float, ...] = (
        1e-3,
        0.01,
        0.05,
        0.2,
    )  # nats; the first one is as good as none
    searched: int = 2  # which slack steers the search and is judged
    population: int = 32
    elites: int = 6
    iterations: int = 40
    flattest: float = 1e-4  # least curvature taken seriously, in units of the largest one
    searched_episodes: int = 2  # per candidate; with one, the search finds a planner's bad luck
    episodes: int = 4  # per return that is judged
    random_changes: int = 4  # of the control
    control: models.Control = models.Control(
        planner="mppi", horizon=15, plans=32, exact_return=-391.0
    )
    training: models.Training = models.Training(steps=300)  # by then planning is near its best
    claimed: bool = True
    smoke: bool = False  # too short to judge


SMOKE = Config(
    seeds=4,
    transitions=50,
    held_out=50,
    population=6,
    elites=2,
    iterations=3,
    searched_episodes=1,
    episodes=1,
    random_changes=2,
    control=models.Control(planner="mppi", steps=10, horizon=5, plans=8),
    training=models.Training(hidden=(8,), steps=20, block=10),
    smoke=True,
)


def get_last_layer(model: ModelState) -> Float[Array, " p"]:
    """Kernel and bias of the last layer as a vector."""
    return ravel_pytree(model.params.net[-1])[0]


def with_last_layer(model: ModelState, vector: Float[Array, " p"]) -> ModelState:
    """The model with another last layer."""
    *hidden, last = model.params.net
    layer = ravel_pytree(last)[1](vector)
    return replace(model, params=model.params._replace(net=(*hidden, layer)))


def unit_curvature(curvature: Float[Array, "p p"], flattest: float) -> Float[Array, "p p"]:
    """Coordinates B with B' C B = 1, but for directions flatter than a share of the largest one.

    Args:
        curvature: C, symmetric; negative curvature counts as flat.
        flattest: least curvature, in units of the largest one.

    Returns:
        B, whose columns are eigenvectors of C over the square roots of their eigenvalues, the
        flattest direction first.
    """
    values, vectors = jnp.linalg.eigh(0.5 * (curvature + curvature.T))
    return vectors / jnp.sqrt(jnp.maximum(values, flattest * values[-1]))[None, :]


@flax.struct.dataclass
class State:
    """One seed: a trained model under attack."""

    key: Key[Array, ""]
    model: ModelState
    basis: Float[Array, "p p"]  # from coordinates of unit curvature to changes of the layer
    held_out: Transition
    likelihood: Array  # of the model before the attack
    search: search.ConstrainedState


def make(config: Config) -> ensemble.Experiment:
    """The attack on one seed's model: `init` trains it, an update is one iteration."""
    control, training = config.control, config.training
    slacks = jnp.asarray(config.slacks)
    sizes = search.ConstrainedConfig(config.population, config.elites)

    def likelihood(model, vector, data):
        return models.log_likelihood(training, with_last_layer(model, vector), data)

    def changed(state, step):
        return get_last_layer(state.model) + state.basis @ step

    def returns(key, state, step, episodes):
        model = with_last_layer(state.model, changed(state, step))
        step_fn = models.model_step(control, training, model)
        keys = jax.random.split(key, episodes)
        return jnp.mean(jax.vmap(lambda k: models.episode(k, control, step_fn)[0])(keys))

    def drop(state, step):
        """How far the likelihood on the searched rows falls."""
        return state.likelihood - likelihood(state.model, changed(state, step), state.held_out)

    def evaluate_points(state):
        def evaluate(key, points):
            damage = jax.vmap(lambda p: -returns(key, state, p, config.searched_episodes))(points)
            return damage, -jax.vmap(lambda p: drop(state, p))(points)

        return evaluate

    def init(key, hparams):
        del hparams
        data_key, held_key, fleet_key, train_key, first_key, key = jax.random.split(key, 6)
        data = models.uniform_data(data_key, control, config.transitions)
        held_out = models.uniform_data(held_key, control, config.held_out)
        data = jax.tree.map(lambda x: x[None], data)
        zero = jnp.zeros(1, jnp.int32)
        fleet = models.make_fleet(fleet_key, training, data, zero, zero + training.steps)

        def block(fleet, key):
            return models.train(key, fleet, training)

        keys = jax.random.split(train_key, training.steps // training.block)
        fleet, _ = jax.lax.scan(block, fleet, keys)
        model = jax.tree.map(lambda x: x[0], fleet.models)
        layer = get_last_layer(model)
        curvature = -jax.hessian(lambda vector: likelihood(model, vector, held_out))(layer)
        state = State(
            key=key,
            model=model,
            basis=unit_curvature(curvature, config.flattest),
            held_out=held_out,
            likelihood=likelihood(model, layer, held_out),
            search=None,  # type: ignore[arg-type]
        )
        start = jnp.zeros_like(layer)
        std = (2 * slacks[config.searched] / start.size) ** 0.5
        found = search.init_constrained(first_key, evaluate_points(state), start, slacks, std)
        return replace(state, search=found)

    def update(state):
        key, sub = jax.random.split(state.key)
        found = search.step_constrained(
            sub, evaluate_points(state), state.search, slacks, config.searched, sizes
        )
        names = [f"searched_return_{slack:g}" for slack in config.slacks]
        return replace(state, key=key, search=found), dict(zip(names, -found.objective))

    def evaluate(state, key):
        return_key, row_key, noise_key = jax.random.split(key, 3)
        rows = models.uniform_data(row_key, control, config.held_out)
        before = likelihood(state.model, get_last_layer(state.model), rows)

        def judged(step):
            """Fresh return, drop of the likelihood on fresh rows, and on the searched ones."""
            value = returns(return_key, state, step, config.episodes)
            fresh = before - likelihood(state.model, changed(state, step), rows)
            return value, fresh, drop(state, step)

        attacked = jax.vmap(judged)(state.search.best)
        norm = jnp.linalg.norm(state.search.best[config.searched])
        noise = jax.random.normal(noise_key, (config.random_changes, state.search.mean.size))
        noise = norm * noise / jnp.linalg.norm(noise, axis=1, keepdims=True)

        def shortened(step):
            scaled = step[None] * 0.5 ** jnp.arange(SHORTER, dtype=step.dtype)[:, None]
            drops = jax.vmap(lambda z: drop(state, z))(scaled)
            return scaled[jnp.argmax(drops <= slacks[config.searched])]

        steps = jax.vmap(shortened)(noise)
        at_random = jax.vmap(judged)(steps)
        found = {
            "return_before": judged(jnp.zeros_like(state.search.mean))[0],
            "likelihood_before": before,
            "return_random_change": jnp.mean(at_random[0]),
            "drop_random_change": jnp.mean(at_random[2]),
            "norm": norm,
            "norm_random_change": jnp.mean(jnp.linalg.norm(steps, axis=1)),
        }
        for i, slack in enumerate(config.slacks):
            for name, values in zip(("return", "fresh_drop", "drop"), attacked):
                found[f"{name}_{slack:g}"] = values[i]
        return found

    return ensemble.Experiment(init, update, evaluate)


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> "tuple[dict[str, xarray.Dataset], Scores]":
    """Trains and attacks one model per seed.

    Returns:
        The dataset "attack-WORLD", and scores by name [n]: "attack" and "random" (share of the
        model's advantage over uniform actions that is lost), "before" (normalised return before),
        "drop" and "fresh_drop" (of the likelihood within the judged slack).
    """
    label = f"attack-{config.control.world}"
    data = ensemble.run(
        make(config),
        steps=config.iterations,
        seeds=models.study_seeds(config),
        record_every=config.iterations,
        checkpoint=directory / label,
        resume=resume,
        progress=progress,
        label=label,
    ).isel(step=-1)
    slack = f"{config.slacks[config.searched]:g}"
    before, random = data["return_before"].values, config.control.random_return

    def lost(name: str) -> np.ndarray:
        return (before - data[name].values) / (before - random)

    scores = {
        "attack": lost(f"return_{slack}"),
        "random": lost("return_random_change"),
        "before": config.control.normalised(before),
        "drop": data[f"drop_{slack}"].values,
        "fresh_drop": data[f"fresh_drop_{slack}"].values,
    }
    return {label: data}, scores


_GUARDS = (
    Guard("model_is_good", "before the attack, planning with the model is worth half of the range "
          "between uniform actions and exact dynamics in every seed"),
    Guard("constraint_holds", "the likelihood on the searched rows falls by the slack at most",
          on_fail="invalid"),
    Guard("constraint_generalises", "on fresh rows it falls by at most twice the slack on average"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)  # fmt: skip


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    if not config.claimed:
        return ()
    slack = config.slacks[config.searched]
    return (
        Claim(
            name=f"attack on a {config.control.world} model",
            statement=f"A model can be changed so that its log-likelihood falls by {slack:g} nats "
            "at most, and planning with it loses 30 % more of its advantage over uniform actions "
            "than with a random change of the same size.",
            metric="share of the return's advantage over uniform actions that is lost",
            treatment="attack",
            control="random change",
            threshold=0.3,
            worst=0.0,
            n_seeds=max(config.seeds, models.PUBLISHABLE),
            guards=_GUARDS,
            protocol=(
                (
                    "search",
                    f"{config.population} points, {config.iterations} iterations, "
                    f"{config.searched_episodes} episodes each",
                ),
                ("model", "x".join(map(str, config.training.hidden))),
                ("transitions", config.transitions),
                ("training steps", config.training.steps),
                ("rows of the constraint", config.held_out),
                ("planner", models.planner_text(config.control)),
                ("uniform actions return", config.control.random_return),
                ("evaluation seeds", "from 1000"),
            ),
        ),
    )


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges the claim by the scores of `run`."""
    parts = []
    for claim in claims(config):
        evidence = Evidence(
            scores["attack"],
            scores["random"],
            models.study_seeds(config),
            _check(config, scores),
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)


def _check(config: Config, scores: Scores) -> dict[str, GuardOutcome]:
    slack = config.slacks[config.searched]
    drop, fresh = float(np.max(scores["drop"])), float(np.mean(scores["fresh_drop"]))
    worst = float(np.min(scores["before"]))
    return {
        "model_is_good": (worst >= 0.5, f"least {worst:.2f} of the range"),
        "constraint_holds": (drop <= slack + TOLERANCE, f"largest drop {drop:.4f} nats"),
        "constraint_generalises": (fresh <= 2 * slack, f"mean drop on fresh rows {fresh:.3f}"),
        "finite": guards.mostly_finite(scores["attack"], scores["random"]),
    }

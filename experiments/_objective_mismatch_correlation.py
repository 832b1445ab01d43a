"""Is the more likely model the better one to plan with? Models of three kinds of data, two ways.

On the pendulum, models are fitted to uniform transitions, to those of a random policy from rest, or
to those of a planner with exact dynamics, for few steps or many. Each is judged by its likelihood
on held-out data of every kind, and by the return of planning with it. The answer depends on the
data: correlations are reported for every cell, never pooled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxlab import ensemble
from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    Verdict,
    association,
    decide,
    guards,
    proportion_interval,
)

from . import _objective_mismatch_models as models

if TYPE_CHECKING:
    import xarray

GRID, RANDOM, EXPERT = KINDS = ("grid", "random", "expert")
NEAR = 0.05  # share of the exact model's return within which a model counts as as good
LOCAL_RETURN = "accurate where it was trained, useless for planning"
LOCAL_LIKELIHOOD = "and yet the more likely model there"
NEEDLESS = "good plans without a likely model everywhere"
WEAK = "likelihood everywhere does not tell good models from bad"

Scores = dict[str, np.ndarray]  # see `run`


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20
    per_kind: int = 16  # models of every kind of data, their steps evenly spaced in the logarithm
    first_steps: int = 50  # of the model that is trained least
    data_episodes: int = 4  # of every kind; as many uniform transitions
    held_out_episodes: int = 2
    episodes: int = 2  # per return
    control: models.Control = models.Control()
    training: models.Training = models.Training()
    smoke: bool = False  # too short to judge


SMOKE = Config(
    seeds=4,
    per_kind=3,
    first_steps=10,
    episodes=1,
    control=models.Control(steps=10, horizon=5, plans=8, elites=2, iterations=1),
    training=models.Training(hidden=(8,), steps=20, block=10),
    smoke=True,
)


def training_steps(config: Config) -> np.ndarray:
    """Numbers of steps [models], evenly spaced in the logarithm."""
    ends = config.first_steps, config.training.steps
    return np.geomspace(*ends, config.per_kind).round().astype(np.int32)


@flax.struct.dataclass
class State:
    """One seed: data of three kinds and a fleet of models per kind."""

    key: Key[Array, ""]
    fleet: models.Fleet  # kind after kind
    held_out: Any  # Transition [kinds, rows]
    exact: Array  # mean return with exact dynamics


def make(config: Config) -> ensemble.Experiment:
    """The study for one seed: an update trains, the evaluation plays and computes likelihoods."""
    control, training, count = config.control, config.training, config.per_kind

    def data_of(key, episodes):
        uniform_key, random_key, expert_key = jax.random.split(key, 3)
        totals, expert = models.expert_data(expert_key, control, episodes)
        kinds = (
            models.uniform_data(uniform_key, control, episodes * control.steps),
            models.random_data(random_key, control, episodes),
            expert,
        )
        return jnp.mean(totals), jax.tree.map(lambda *x: jnp.stack(x), *kinds)

    def init(key, hparams):
        del hparams
        data_key, held_key, fleet_key, key = jax.random.split(key, 4)
        exact, data = data_of(data_key, config.data_episodes)
        _, held_out = data_of(held_key, config.held_out_episodes)
        source = jnp.repeat(jnp.arange(len(KINDS)), count)
        steps = jnp.tile(jnp.asarray(training_steps(config)), len(KINDS))
        fleet = models.make_fleet(fleet_key, training, data, source, steps)
        return State(key, fleet, held_out, exact)

    def update(state):
        key, sub = jax.random.split(state.key)
        fleet, loss = models.train(sub, state.fleet, training)
        return state.replace(key=key, fleet=fleet), {"loss": loss}

    def evaluate(state, key):
        returns = models.fleet_returns(key, state.fleet, control, training, config.episodes)

        def likelihoods(model):
            return jax.vmap(lambda d: models.log_likelihood(training, model, d))(state.held_out)

        likely = jax.vmap(likelihoods)(state.fleet.models)  # [kinds * models, held-out kinds]
        found = {"exact_return": state.exact}
        for k, kind in enumerate(KINDS):
            for i in range(count):
                row = k * count + i
                found[f"{kind}_return_{i}"] = returns[row]
                found |= {f"{kind}_ll_{on}_{i}": likely[row, j] for j, on in enumerate(KINDS)}
        return found

    return ensemble.Experiment(init, update, evaluate)


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> "tuple[dict[str, xarray.Dataset], Scores]":
    """Trains and judges all models.

    Returns:
        The dataset "correlation", dims (trained_on, seed, model) and held_out, with correlations
        per cell; and scores: "return" [kinds, n, models], "ll" [kinds, held-out kinds, n, models]
        and "exact" [n].
    """
    import xarray

    updates = config.training.steps // config.training.block
    data = ensemble.run(
        make(config),
        steps=updates,
        seeds=models.study_seeds(config),
        record_every=updates,
        checkpoint=directory / "correlation",
        resume=resume,
        progress=progress,
        label="correlation",
    ).isel(step=-1)

    def stack(name):
        return np.stack([data[f"{name}_{i}"].values for i in range(config.per_kind)], axis=-1)

    scores: Scores = {
        "return": np.stack([stack(f"{kind}_return") for kind in KINDS]),
        "ll": np.stack([np.stack([stack(f"{kind}_ll_{on}") for on in KINDS]) for kind in KINDS]),
        "exact": data["exact_return"].values,
    }
    dims, cell = ("trained_on", "seed", "model"), ("trained_on", "held_out")
    table = xarray.Dataset(
        {
            "return": (dims, scores["return"]),
            "log_likelihood": ((*cell, *dims[1:]), scores["ll"]),
            "exact_return": (("seed",), scores["exact"]),
        },
        {"trained_on": list(KINDS), "held_out": list(KINDS), "seed": data["seed"].values},
    )
    key = jax.random.key(0)
    for kind in ("pearson", "spearman", "kendall"):
        for limit in ("estimate", "low", "high"):
            table[f"{kind}_{limit}"] = (cell, np.zeros((len(KINDS), len(KINDS))))
        for i in range(len(KINDS)):
            for j in range(len(KINDS)):
                statistic = partial(association.correlation, kind=kind)
                found = association.cluster_bootstrap(
                    key, scores["ll"][i, j], scores["return"][i], statistic, 1000
                )
                for limit in ("estimate", "low", "high"):
                    table[f"{kind}_{limit}"][i, j] = float(getattr(found, limit))
    return {"correlation": table}, scores


_GUARDS = (
    Guard("planner_works", "planning with exact dynamics is better than uniform actions by half "
          "of the known range"),
    Guard("likelihood_is_useful", "of models of uniform data, rank correlation of uniform "
          "likelihood and return is 0.5 or more on average"),
    Guard("good_experts", "in 90 % of the seeds some model of expert data is nearly as good as "
          "exact dynamics"),
    Guard("finite", "at least 90 % of the seeds stay finite"),
)  # fmt: skip


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    control = config.control
    claim = partial(
        Claim,
        n_seeds=max(config.seeds, models.PUBLISHABLE),
        guards=_GUARDS,
        protocol=(
            ("models per kind of data", config.per_kind),
            ("training steps", f"{config.first_steps} to {config.training.steps}, log-spaced"),
            ("transitions per kind", config.data_episodes * control.steps),
            ("model", "x".join(map(str, config.training.hidden))),
            ("learning rate", config.training.learning_rate),
            ("planner", models.planner_text(control)),
            ("evaluation seeds", "from 1000"),
        ),
    )  # fmt: skip
    compared: dict[str, Any] = {
        "treatment": "a model of uniform data",
        "control": "the likeliest model of random-policy data",
    }
    return (
        claim(
            name=LOCAL_RETURN,
            statement="The model of random-policy data that is likeliest on held-out data of that "
            "policy returns at least 100 less than the median model of uniform data.",
            metric=f"return of {control.steps} steps from rest",
            threshold=100.0,
            worst=-1628.0,
            **compared,
        ),
        claim(
            name=LOCAL_LIKELIHOOD,
            statement="On the same held-out data of the random policy, it is more likely than the "
            "median model of uniform data.",
            metric="log-likelihood, nats per transition, likeliest model minus median",
            treatment=compared["control"],
            control=compared["treatment"],
            threshold=0.0,
            worst=-1e6,
            estimator="iqm",  # one unlikely row can outweigh all others of a mean likelihood
        ),
        claim(
            name=NEEDLESS,
            statement="Of the models of expert data that return as much as exact dynamics within "
            "5 %, more than half are less likely on uniform data than every model of such data.",
            metric="share of these models",
            treatment=EXPERT,
            control=GRID,
            kind="ordering",
            threshold=0.5,
            worst=0.0,
        ),
        claim(
            name=WEAK,
            statement="Over models of expert data, the likelihood on uniform data and the return "
            "have a rank correlation of at most 0.3.",
            metric="Spearman's correlation over the models of a seed",
            treatment=EXPERT,
            control=GRID,
            kind="bound",
            threshold=0.3,
            worst=1.0,
        ),
    )


def rank_correlation(scores: Scores, trained_on: int, held_out: int) -> np.ndarray:
    """Spearman's correlation of likelihood and return over the models of each seed, [n]."""
    likely, returns = scores["ll"][trained_on, held_out], scores["return"][trained_on]
    return np.asarray(association.correlation(likely, returns, "spearman"), np.float64)


def near_exact(scores: Scores) -> np.ndarray:
    """Which models of expert data return as much as exact dynamics within 5 %, [n, models]."""
    slack = NEAR * np.abs(scores["exact"])[:, None]
    return scores["return"][2] >= scores["exact"][:, None] - slack


def needless(scores: Scores) -> np.ndarray:
    """Which models of expert data are less likely on uniform data than all of uniform data."""
    return scores["ll"][2, 0] < scores["ll"][0, 0].min(axis=-1, keepdims=True)


def statistics(scores: Scores) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Claim name -> scores per seed, of treatment and control or alone."""
    best = np.argmax(scores["ll"][1, 1], axis=-1)[:, None]  # likeliest on its own kind of data
    median = np.argsort(scores["ll"][0, 1], axis=-1)[:, [scores["ll"].shape[-1] // 2]]

    def pick(values, index):
        return np.take_along_axis(values, index, axis=-1)[:, 0]

    near = near_exact(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (near & needless(scores)).sum(axis=-1) / near.sum(axis=-1)
    return {
        LOCAL_RETURN: (np.median(scores["return"][0], axis=-1), pick(scores["return"][1], best)),
        LOCAL_LIKELIHOOD: (pick(scores["ll"][1, 1], best), pick(scores["ll"][0, 1], median)),
        NEEDLESS: (share, None),
        WEAK: (rank_correlation(scores, 2, 0), None),
    }


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges the claims by the scores of `run`."""
    found, outcomes = statistics(scores), _check(config, scores)
    parts = []
    for claim in claims(config):
        evidence = Evidence(
            *found[claim.name],
            models.study_seeds(config),
            outcomes,
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)


def _check(config: Config, scores: Scores) -> dict[str, GuardOutcome]:
    control = config.control
    half = 0.5 * (control.exact_return - control.random_return)
    useful = rank_correlation(scores, 0, 0)
    good = near_exact(scores).any(axis=-1)
    return {
        "planner_works": guards.learns(scores["exact"], control.random_return, half),
        "likelihood_is_useful": guards.learns(np.nan_to_num(useful), 0.0, 0.5),
        "good_experts": (float(good.mean()) >= 0.9, f"{good.mean():.0%} of the seeds"),
        "finite": guards.mostly_finite(
            np.moveaxis(scores["return"], 1, 0), np.moveaxis(scores["ll"], 2, 0)
        ),
    }


def notes(scores: Scores) -> tuple[str, ...]:
    """What stands beside the verdicts: the pooled share of claim (b) with Wilson's interval."""
    near = near_exact(scores)
    if not near.any():
        return ()
    hits, total = int((near & needless(scores)).sum()), int(near.sum())
    share = proportion_interval(hits, total)
    return (
        f"Models of expert data nearly as good as exact dynamics: {total}; of these "
        f"{float(share.estimate):.0%} [{float(share.low):.0%}, {float(share.high):.0%}] (Wilson, "
        "as if they were independent) are less likely on uniform data than every model of it.",
    )

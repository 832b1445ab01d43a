"""What the comparison of models and flat critics claims, and its guards."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    Verdict,
    decide,
    evaluation_seeds,
    guards,
)

from . import _lipschitz_value_cost as cost_
from . import _lipschitz_value_fitted as fitted_
from . import _lipschitz_value_loop as loop_

PUBLISHABLE = 16  # seeds below which no verdict is given, whatever a configuration asks for
BEST_RETURN = -250.0  # about the best that has been seen
LEARNS = 300.0  # return above uniform torques that the control must reach
STEEPER = 1.05  # smallest ratio of slopes that counts
FASTER = 1.2  # smallest ratio of speeds that counts

FINITE = Guard("finite", "at least 90 % of the seeds of each arm stay finite")
SAME_MODEL = Guard("same_model", "the single models of both critics have the same error")
MORE_DATA = Guard(
    "more_data_helps",
    "positive control: more transitions lower the value-aware error of the single model",
)
RETURN_GUARDS = (
    Guard("control_learns", f"the ensemble returns {LEARNS:g} more than uniform torques"),
    Guard("control_has_room", "the ensemble is neither at the ceiling nor at the floor"),
    FINITE,
    SAME_MODEL,
    Guard("control_against_itself", "negative control: two streams of the ensemble tie"),
)

Pair = tuple[np.ndarray, np.ndarray]  # scores of treatment and control [n]


def of_fitted(config: fitted_.Config) -> tuple[Claim, ...]:
    """The claims about fitted value iteration."""
    many, few = config.transitions
    common: dict[str, Any] = {
        "treatment": fitted_.ROBUST,
        "control": fitted_.ENSEMBLE,
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "protocol": (
            ("evaluation seeds", f"from {evaluation_seeds(1)[0]}"),
            ("tuning", "none: every arm has the same rates, from the pilot"),
            ("model", "x".join(map(str, config.model_hidden))),
            ("value network", "x".join(map(str, config.hidden))),
            ("value updates", config.steps),
            ("robust", f"weight {config.robust_coef:g}, eps {config.robust_eps:g}"),
            ("spectral", f"beta {config.spectral_beta:g}"),
        ),
    }
    returns = common | {
        "metric": f"return of {config.episode_steps} steps from near hanging, greedy in the value, "
        f"model of {many} transitions",
        "worst": fitted_.WORST_REWARD * config.episode_steps,
        "guards": RETURN_GUARDS,
    }
    slopes = common | {
        "metric": f"log of the mean slope of the value, model of {few} transitions",
        "worst": 0.0,
        "threshold": round(math.log(STEEPER), 4),
        "guards": (FINITE, MORE_DATA),
    }
    return (
        Claim(
            name="return, not inferior",
            statement="A single model with a robust value returns at most 50 less than an ensemble "
            "with a plain one.",
            threshold=-50.0,
            **returns,
        ),
        Claim(
            name="return, superior",
            statement="It returns at least 50 more.",
            threshold=50.0,
            required=False,
            **returns,
        ),
        Claim(
            name="value-aware error",
            statement="Under its own value, the errors of the regularised single model cost at "
            "most two thirds of what those of the ensemble cost.",
            metric=f"minus log of the value-aware error, model of {many} transitions",
            worst=-math.log(1e3),
            threshold=round(math.log(1.5), 4),
            guards=(FINITE, SAME_MODEL, MORE_DATA),
            **common,
        ),
        Claim(
            name="ensembles flatten the value",
            statement=f"The value on a single model is at least {STEEPER - 1:.0%} steeper than on "
            "an ensemble.",
            **slopes | {"treatment": fitted_.SINGLE},
        ),
        Claim(
            name="the penalty flattens more",
            statement=f"The value on an ensemble is at least {STEEPER - 1:.0%} steeper than the "
            "robust one on a single model.",
            **slopes | {"treatment": fitted_.ENSEMBLE, "control": fitted_.ROBUST},
        ),
    )


def of_cost(config: cost_.Config) -> tuple[Claim, ...]:
    """The claim about wall-clock time."""
    return (
        Claim(
            name="cost",
            statement=f"A round of fitting and learning with one member and robust critics is "
            f"{FASTER:g} times as fast as with {config.members} members and plain ones.",
            metric="minus log of the seconds of a round, repeats in turn",
            treatment=fitted_.ROBUST,
            control=fitted_.ENSEMBLE,
            threshold=round(math.log(FASTER), 4),
            worst=-math.log(1e3),
            n_seeds=max(config.repeats, PUBLISHABLE),
            required=False,
            guards=(Guard("finite", "every round was timed"),),
            protocol=(
                ("model", "x".join(map(str, config.model_hidden))),
                ("critics", "x".join(map(str, config.agent_hidden))),
                ("steps of either", config.steps),
                ("batch", config.batch),
            ),
        ),
    )


def of_loop(config: loop_.Config) -> tuple[Claim, ...]:
    """The claims about the whole loop, one per environment."""
    found = []
    for env, (low, high) in zip(config.envs, config.ranges):
        found.append(
            Claim(
                name=f"loop return, {env}",
                statement="In the whole loop, too, the regularised single model returns at most a "
                "tenth of the range less than the ensemble.",
                metric="mean return of the last fifth of the evaluations (uniform actions "
                f"{low:g}, a good controller {high:g})",
                treatment=fitted_.ROBUST,
                control=fitted_.ENSEMBLE,
                threshold=round(-0.1 * (high - low), 2),
                worst=low - (high - low),
                n_seeds=max(config.seeds, PUBLISHABLE),
                required=False,
                guards=(
                    Guard("control_learns", "the control ends a tenth of the range above uniform"),
                    FINITE,
                ),
                protocol=(
                    ("evaluation seeds", f"from {evaluation_seeds(1)[0]}"),
                    ("environment steps", config.initial_steps + config.block * config.blocks),
                    ("updates per step", config.utd),
                    ("model", "x".join(map(str, config.model_hidden))),
                ),
            )
        )
    return tuple(found)


def fitted_pairs(config: fitted_.Config, scores: fitted_.Scores) -> dict[str, Pair]:
    """Claim name -> the scores that it compares."""
    many, few = config.transitions
    robust, plain, single = fitted_.ROBUST, fitted_.ENSEMBLE, fitted_.SINGLE

    def log(arm: str, count: int, metric: str) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(np.asarray(scores[arm, count, metric], np.float64))

    returns = scores[robust, many, "return"], scores[plain, many, "return"]
    slope = {arm: log(arm, few, "lipschitz_mean") for arm in (robust, plain, single)}
    return {
        "return, not inferior": returns,
        "return, superior": returns,
        "value-aware error": (
            -log(robust, many, "value_aware_error"),
            -log(plain, many, "value_aware_error"),
        ),
        "ensembles flatten the value": (slope[single], slope[plain]),
        "the penalty flattens more": (slope[plain], slope[robust]),
    }


def check_fitted(
    config: fitted_.Config, claim: Claim, pair: Pair, scores: fitted_.Scores
) -> dict[str, GuardOutcome]:
    """Outcomes of the guards of one claim about fitted value iteration."""
    many, few = config.transitions
    control = scores[fitted_.ENSEMBLE, many, "return"]
    floor = float(np.mean(scores["uniform", many, "return"]))
    itself = guards.decide_known(
        claim, scores[fitted_.ENSEMBLE, many, "other_return"], control, threshold=0.0
    )
    errors = [-scores[fitted_.SINGLE, count, "value_aware_error"] for count in (many, few)]
    more = guards.decide_known(claim, *errors, threshold=0.0, worst=-1e3)
    plain, robust = (scores[arm, many, "model_mse"] for arm in (fitted_.SINGLE, fitted_.ROBUST))
    outcomes: dict[str, GuardOutcome] = {
        "control_learns": guards.learns(control, floor, LEARNS),
        "control_has_room": guards.has_room(control, floor, BEST_RETURN),
        "finite": guards.mostly_finite(*pair),
        "same_model": (bool(np.allclose(plain, robust, rtol=1e-2)), "errors of the models by seed"),
        "control_against_itself": (
            itself.low is not None and itself.high is not None and itself.low <= 0 <= itself.high,
            f"another random stream of the control is better by {itself.estimate}",
        ),
        "more_data_helps": (more.direction_supported, f"lower by {more.estimate}"),
    }
    return {guard.name: outcomes[guard.name] for guard in claim.guards}


def cost_pairs(seconds: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """Claim name -> the scores that it compares."""
    return {"cost": (-np.log(seconds[fitted_.ROBUST]), -np.log(seconds[fitted_.ENSEMBLE]))}


def loop_pairs(config: loop_.Config, scores: loop_.Scores) -> dict[str, Pair]:
    """Claim name -> the scores that it compares."""
    return {
        f"loop return, {env}": (scores[env, fitted_.ROBUST], scores[env, fitted_.ENSEMBLE])
        for env in config.envs
    }


def check_loop(span: tuple[float, float], pair: Pair) -> dict[str, GuardOutcome]:
    """Outcomes of the guards of the claim about an environment with this range of returns."""
    low, high = span
    return {
        "control_learns": guards.learns(pair[1], low, 0.1 * (high - low)),
        "finite": guards.mostly_finite(*pair),
    }


def judge(
    claim: Claim,
    pair: Pair,
    seeds: tuple[int, ...],
    outcomes: Mapping[str, GuardOutcome],
    smoke: bool,
    registered: Mapping[str, str],
) -> tuple[Claim, Verdict]:
    """Decides one claim; `registered` holds the digests of the claims written before the run."""
    evidence = Evidence(*pair, seeds, {} if smoke else outcomes, smoke, registered.get(claim.name))
    return claim, decide(claim, evidence)

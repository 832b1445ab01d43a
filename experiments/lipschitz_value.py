"""A single model with a flat value function against an ensemble of models.

Claim: the probabilistic ensemble of model-based policy optimisation helps mainly because its varied
next states bound the Lipschitz constant of the value function; regularising the value function
directly lets a single model match or beat the ensemble at a fraction of the cost.

Three studies test it: fitted value iteration on models of few transitions, what a round of fitting
and learning costs, and the whole loop on an easy environment, where little is expected.

Reference: Zheng, Wang, Xu, Huang (2023), Is Model Ensemble Necessary? Model-based RL via a Single
Model with Lipschitz Regularized Value Function, ICLR.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim, evaluation_seeds

from . import _lipschitz_value_claims as claims_
from . import _lipschitz_value_cost as cost_
from . import _lipschitz_value_fitted as fitted_
from . import _lipschitz_value_loop as loop_

if TYPE_CHECKING:
    import xarray

PAPER = Paper(
    number="19",
    title="Is Model Ensemble Necessary? Model-based RL via a Single Model with Lipschitz "
    "Regularized Value Function",
    authors="Zheng, Wang, Xu, Huang",
    venue="ICLR",
    year=2023,
)
SUMMARY = "a single model with a flat value function against an ensemble of models"


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below."""

    preset: str
    seeds: int = 20  # paired evaluation seeds; of every study at most its own number
    fitted: fitted_.Config = fitted_.Config()
    cost: cost_.Config = cost_.Config()
    loop: loop_.Config = loop_.Config()


PRESETS = {
    # As short as everything can be run, mostly compilation; never a verdict.
    "smoke": Config(
        preset="smoke",
        seeds=2,
        fitted=fitted_.SMOKE,
        cost=cost_.Config(repeats=2, model_hidden=(8,), agent_hidden=(8,), batch=16),
        loop=loop_.Config(
            seeds=2,
            model_hidden=(8,),
            agent_hidden=(8,),
            agent_batch=16,
            utd=1,
            initial_steps=40,
            block=10,
            blocks=2,
            rollout_batch=20,
            eval_episodes=1,
            smoke=True,
        ),
    ),
    # Minutes on two cores.
    "small": Config(preset="small"),
    # The loop at the paper's scale; needs an accelerator.
    "paper": Config(
        preset="paper",
        fitted=fitted_.Config(arms=tuple(fitted_.ARMS), microbatch=512),
        loop=loop_.Config(
            seeds=16,
            envs=("brax/hopper",),
            ranges=((17.9, 3000.0),),  # what the loop reaches on MuJoCo's hopper
            arms=tuple(name for name in loop_.ARMS if name != "exact"),
            model_hidden=(200, 200, 200, 200),
            model_batch=256,
            agent_hidden=(256, 256),
            agent_batch=256,
            gamma=0.99,
            rate=3e-4,
            utd=20,
            initial_steps=5000,
            block=250,
            blocks=1200,
            rollout_batch=100_000,
            microbatch=16,
        ),
    ),
}


def _studies(config: Config) -> tuple[fitted_.Config, cost_.Config, loop_.Config]:
    """The configurations of the studies for the seeds asked for."""
    return (
        replace(config.fitted, seeds=min(config.seeds, config.fitted.seeds)),
        config.cost,
        replace(config.loop, seeds=min(config.seeds, config.loop.seeds)),
    )


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies."""
    fitted, cost, loop = _studies(config)
    return (*claims_.of_fitted(fitted), *claims_.of_cost(cost), *claims_.of_loop(loop))


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Runs the three studies and judges their claims."""
    registered = registered_digests(directory)
    fitted, cost, loop = _studies(config)
    folder, options = directory / "checkpoints", {"resume": resume, "progress": progress}
    # The cost first, before the machine is warm from anything else.
    seconds = cost_.measure(cost)
    data, scores = fitted_.run(fitted, folder, options)
    loops, returns = loop_.run(loop, folder, options)

    pairs = claims_.fitted_pairs(fitted, scores) | claims_.cost_pairs(seconds)
    pairs |= claims_.loop_pairs(loop, returns)
    parts = []
    for claim in claims_.of_fitted(fitted):
        seeds, pair = fitted.study_seeds(), pairs[claim.name]
        outcomes = {} if fitted.smoke else claims_.check_fitted(fitted, claim, pair, scores)
        parts.append(claims_.judge(claim, pair, seeds, outcomes, fitted.smoke, registered))
    for claim in claims_.of_cost(cost):
        repeats, pair = evaluation_seeds(cost.repeats), pairs[claim.name]
        timed = {"finite": bool(np.isfinite(pair).all())}
        parts.append(claims_.judge(claim, pair, repeats, timed, fitted.smoke, registered))
    for span, claim in zip(loop.ranges, claims_.of_loop(loop)):
        seeds, pair = loop.study_seeds(), pairs[claim.name]
        outcomes = claims_.check_loop(span, pair)
        parts.append(claims_.judge(claim, pair, seeds, outcomes, loop.smoke, registered))
    return Outcome(
        parts=tuple(parts),
        paired={claim.name: pairs[claim.name] for claim, _ in parts},
        datasets={"fitted": data} | {f"loop-{env.replace('/', '-')}": loops[env] for env in loops},
        curves=_curves(config, data, loops),
        notes=_notes(fitted, scores),
    )


def _curves(
    config: Config, data: "xarray.Dataset", loops: dict[str, "xarray.Dataset"]
) -> tuple[Curves, ...]:
    """Returns and slopes of fitted value iteration, returns of the loop."""
    curves = []
    steps = data["step"].values * config.fitted.block
    for count in config.fitted.transitions:
        for metric, label in (
            ("return", "return of the greedy policy"),
            ("lipschitz_mean", "mean slope of the value"),
        ):
            chosen = data[metric].sel(transitions=count).dropna("arm", how="all")
            curves.append(
                Curves(
                    f"{metric.replace('_', '-')}-{count}",
                    f"Fitted value iteration, model of {count} transitions",
                    "updates",
                    label,
                    steps,
                    {str(arm): chosen.sel(arm=arm).values for arm in chosen["arm"].values},
                )
            )
    for env, result in loops.items():
        first, block = config.loop.initial_steps, config.loop.block
        curves.append(
            Curves(
                f"loop-{env.replace('/', '-')}",
                f"The whole loop, {env}",
                "environment steps",
                "return of the deterministic policy",
                first + result["step"].values * block,
                {str(a): result["return"].sel(arm=a).values for a in result["arm"].values},
            )
        )
    return tuple(curves)


def _notes(config: fitted_.Config, scores: fitted_.Scores) -> tuple[str, ...]:
    """Means of all arms, for what the verdicts do not compare."""
    notes = []
    for count in config.transitions:
        means = (
            f"{arm} {np.nanmean(scores[arm, count, 'return']):.0f} "
            f"({np.nanmean(scores[arm, count, 'lipschitz_mean']):.1f}, "
            f"{np.nanmean(scores[arm, count, 'value_aware_error']):.3f})"
            for arm in config.arms
            if (arm, count, "return") in scores
        )
        notes.append(
            f"Model of {count} transitions, mean return (slope, value-aware error): "
            + ", ".join(means)
            + "."
        )
    notes.append(
        "Where the penalty also helps on the exact dynamics, a flat value is not only a remedy for "
        "model errors."
    )
    return tuple(notes)

"""What the comparison claims, and the guards without which it would mean nothing."""

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

from . import _stop_regressing_arms as arms_
from . import _stop_regressing_offline as offline
from . import _stop_regressing_plasticity as plasticity
from . import _stop_regressing_scaling as scaling

PUBLISHABLE = 16  # seeds below which no verdict is given, whatever a configuration asks for
WORKS = 0.8  # score that the control must reach where nothing is hard
LEARNS = 0.1  # score that the widest control must reach online

FINITE = Guard("finite", "at least 90 % of the seeds of each arm stay finite")
OFFLINE = (
    Guard("learner_works", f"with full coverage the control scores {WORKS:g} or more"),
    Guard("control_has_room", "the control is neither at the ceiling nor at the floor"),
    FINITE,
    Guard("control_against_itself", "negative control: the control is not better than itself"),
)
ONLINE = (Guard("control_learns", f"the widest control scores {LEARNS:g} or more"), FINITE)
JUMPS = (
    Guard("control_fits", "the control fits the first level to a tenth of its variance"),
    FINITE,
)

Pair = tuple[np.ndarray, np.ndarray]  # scores of treatment and control [n]


def _rates(config: Any) -> tuple[tuple[str, str | int | float], ...]:
    return (
        ("tuning grid of lr", ", ".join(f"{rate:g}" for rate in config.learning_rates)),
        ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
        ("evaluation seeds", f"from {evaluation_seeds(1)[0]}"),
    )


def of_offline(config: offline.Config) -> tuple[Claim, ...]:
    """The primary claim, its attribution, and the controls."""
    common: dict[str, Any] = {
        "treatment": arms_.TREATMENT,
        "control": arms_.CONTROL,
        "worst": offline.WORST,
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "metric": "exact value of the greedy policy, mean over states: 0 for the uniform policy, "
        "1 for the best",
        "guards": OFFLINE,
        "required": False,
        "protocol": (
            *_rates(config),
            ("tuning criterion", "the same score, per arm and regime"),
            ("network", f"{config.features}-{config.width}-{config.width}"),
            ("support", f"{config.num_bins} on [{config.support[0]:g}, {config.support[1]:g}]"),
            ("updates", config.steps),
            ("batch", config.batch),
        ),
    }
    few = common | {"n_seeds": max(config.control_seeds, PUBLISHABLE)}
    return (
        Claim(
            name="offline score",
            statement="From few transitions of a one-sided behaviour, Q-learning with HL-Gauss "
            "scores at least 0.05 more than with the squared error.",
            threshold=0.05,
            **common | {"required": True},
        ),
        Claim(
            name="against two-hot",
            statement="There HL-Gauss scores more than two-hot targets.",
            threshold=0.0,
            **common | {"control": "two_hot"},
        ),
        Claim(
            name="attribution to the cross-entropy",
            statement="There HL-Gauss scores more than the squared error of the same softmax head.",
            threshold=0.0,
            **common | {"control": "mse_softmax"},
        ),
        Claim(
            name="against C51",
            statement="There HL-Gauss scores at most 0.05 less than C51.",
            threshold=-0.05,
            **common | {"control": "c51"},
        ),
        Claim(
            name="full coverage",
            statement="With many uniform transitions both score alike, within 0.03.",
            threshold=0.03,
            kind="equivalence",
            **few | {"guards": (OFFLINE[0], FINITE)},
        ),
        Claim(
            name="overestimation under noise",
            statement="With noisy rewards, HL-Gauss overestimates less than the squared error.",
            threshold=0.0,
            **few
            | {
                "metric": "minus the mean over states of max_a Q - V of the best policy",
                "worst": -100.0,
                "guards": (OFFLINE[0], FINITE),
            },
        ),
        Claim(
            name="score under noise",
            statement="With noisy rewards, HL-Gauss scores at least 0.05 more.",
            threshold=0.05,
            **few | {"guards": (OFFLINE[0], FINITE)},
        ),
        Claim(
            name="gain without a maximum",
            statement="The gain of HL-Gauss over the squared error is smaller where targets "
            "bootstrap with the behaviour's own actions.",
            threshold=0.0,
            **few | {"treatment": "gain, Q-learning", "control": "gain, SARSA"},
        ),
    )


def offline_pairs(scores: offline.Scores) -> dict[str, Pair]:
    """Claim name -> the scores that it compares."""
    treatment, control = arms_.TREATMENT, arms_.CONTROL

    def pair(regime: str, other: str = control) -> Pair:
        return scores[regime, treatment, "score"], scores[regime, other, "score"]

    def gain(regime: str, count: int) -> np.ndarray:
        ours, theirs = (np.where(np.isfinite(x), x, offline.WORST)[:count] for x in pair(regime))
        return ours - theirs

    few = len(scores[offline.SARSA, control, "score"])
    noisy = (-scores[offline.NOISY, arm, "overestimation"] for arm in (treatment, control))
    return {
        "offline score": pair(offline.PRIMARY),
        "against two-hot": pair(offline.PRIMARY, "two_hot"),
        "attribution to the cross-entropy": pair(offline.PRIMARY, "mse_softmax"),
        "against C51": pair(offline.PRIMARY, "c51"),
        "full coverage": pair(offline.COVERED),
        "overestimation under noise": tuple(noisy),  # type: ignore[dict-item]
        "score under noise": pair(offline.NOISY),
        "gain without a maximum": (gain(offline.PRIMARY, few), gain(offline.SARSA, few)),
    }


def check_offline(claim: Claim, pair: Pair, scores: offline.Scores) -> dict[str, GuardOutcome]:
    """Outcomes of the guards of one offline claim."""
    covered = scores[offline.COVERED, arms_.CONTROL, "score"]
    control = scores[offline.PRIMARY, arms_.CONTROL, "score"]
    other = scores[offline.PRIMARY, arms_.CONTROL, "other_score"]
    itself = guards.decide_known(claim, other, control, kind="superiority", threshold=0.05)
    outcomes: dict[str, GuardOutcome] = {
        "learner_works": guards.learns(covered, WORKS, 0.0),
        "control_has_room": guards.has_room(control, 0.0, 1.0),
        "finite": guards.mostly_finite(*pair),
        # The interval is too wide to ask for more, such as a difference below the threshold.
        "control_against_itself": (
            itself.status != "reproduced" and not itself.direction_supported,
            f"another random stream of the control is better by {itself.estimate}",
        ),
    }
    return {guard.name: outcomes[guard.name] for guard in claim.guards}


def of_plasticity(config: plasticity.Config) -> tuple[Claim, ...]:
    """How fast the next level is fitted, after the first jump and after all."""
    first, last = plasticity.LEVELS[1], plasticity.LEVELS[-1]
    common: dict[str, Any] = {
        "metric": f"minus the mean log10 squared error of the first {config.early_steps} steps",
        "treatment": arms_.TREATMENT,
        "control": arms_.CONTROL,
        "threshold": 0.1,
        "worst": plasticity.WORST,
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "required": False,
        "guards": JUMPS,
        "protocol": (
            *_rates(config),
            ("tuning criterion", "the mean of the score over all jumps, per arm"),
            ("network", f"{config.inputs}-{config.width}-{config.width}"),
            ("points", config.points),
            ("steps per level", config.phase_steps),
            ("batch", config.batch),
        ),
    }
    return (
        Claim(
            name="plasticity, first jump",
            statement=f"After the first jump of the targets, to {first:g}, HL-Gauss is 0.1 decades "
            "closer than the squared error.",
            **common,
        ),
        Claim(
            name="plasticity, all jumps",
            statement=f"So it is in the mean over the jumps to {first:g} ... {last:g}.",
            **common,
        ),
    )


def plasticity_pairs(scores: Mapping[str, np.ndarray]) -> dict[str, Pair]:
    """Claim name -> the scores that it compares, from scores by level [n, levels]."""
    ours, theirs = (scores[arm] for arm in (arms_.TREATMENT, arms_.CONTROL))
    return {
        "plasticity, first jump": (ours[:, 1], theirs[:, 1]),
        "plasticity, all jumps": (ours[:, 1:].mean(axis=-1), theirs[:, 1:].mean(axis=-1)),
    }


def check_plasticity(pair: Pair, fitted: np.ndarray) -> dict[str, GuardOutcome]:
    """Outcomes of the guards; `fitted` are the control's errors at the end of the first level."""
    variance = 0.5  # of a sine of patternless phase
    return {
        "control_fits": guards.learns(-fitted, -variance / 10, 0.0),
        "finite": guards.mostly_finite(*pair),
    }


def of_scaling(config: scaling.Config) -> tuple[Claim, ...]:
    """Whose score grows faster with the width."""
    return (
        Claim(
            name="scaling with width",
            statement="The score of HL-Gauss grows faster with the network's width than that of "
            "the squared error.",
            metric="least-squares slope of the score per doubling of the width, mean over tasks; "
            "0 is the score of uniform actions and 1 that of the best",
            treatment=arms_.TREATMENT,
            control=arms_.CONTROL,
            threshold=0.0,
            worst=scaling.WORST,
            n_seeds=max(config.seeds, PUBLISHABLE),
            required=False,
            guards=ONLINE,
            protocol=(
                *_rates(config),
                ("tuning criterion", "the same score, per arm, task and width"),
                ("tasks", ", ".join(config.tasks)),
                ("widths", ", ".join(map(str, config.widths))),
                ("updates", config.block * config.blocks),
                ("batch", config.batch),
            ),
        ),
    )


def scaling_pairs(
    config: scaling.Config, scores: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, Pair]:
    """Claim name -> the slopes that it compares, from scores [n, widths] by (task, arm)."""

    def slope(arm: str) -> np.ndarray:
        each = [
            scaling.slopes(
                config.widths,
                np.where(np.isfinite(scores[task, arm]), scores[task, arm], scaling.WORST),
            )
            for task in config.tasks
        ]
        return np.mean(each, axis=0)

    return {"scaling with width": (slope(arms_.TREATMENT), slope(arms_.CONTROL))}


def check_scaling(
    config: scaling.Config, scores: Mapping[tuple[str, str], np.ndarray]
) -> dict[str, GuardOutcome]:
    """Outcomes of the guards."""
    widest = np.mean([scores[task, arms_.CONTROL][:, -1] for task in config.tasks], axis=0)
    ours, theirs = (
        np.concatenate([scores[task, arm] for task in config.tasks], axis=1)
        for arm in (arms_.TREATMENT, arms_.CONTROL)
    )
    return {
        "control_learns": guards.learns(widest, 0.0, LEARNS),
        "finite": guards.mostly_finite(ours, theirs),
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
    evidence = Evidence(
        *pair, seeds[: len(pair[0])], {} if smoke else outcomes, smoke, registered.get(claim.name)
    )
    return claim, decide(claim, evidence)

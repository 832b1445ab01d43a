"""Stop Regressing: value functions trained by classification against squared errors.

Claim: replacing the squared error of temporal-difference learning by the cross-entropy to a
categorical projection of the same scalar target, best a histogram of a Gaussian (HL-Gauss),
improves performance and scaling of value-based reinforcement learning; the gain is due to the
cross-entropy and comes from noise and non-stationarity.

Three studies test it: offline Q-learning on random processes whose values are known exactly, with
controls in which there should be nothing to gain; regression on targets that jump; and online
Q-learning with networks of several widths. Every arm gets its own learning rate, with one budget.

Reference: Farebrother et al. (2024), Stop Regressing: Training Value Functions via Classification
for Scalable Deep RL, ICML.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlab.report import Curves, Outcome, Paper, registered_digests
from jaxlab.stats import Claim

from . import _stop_regressing_arms as arms_
from . import _stop_regressing_claims as claims_
from . import _stop_regressing_offline as offline_
from . import _stop_regressing_plasticity as plasticity_
from . import _stop_regressing_scaling as scaling_

if TYPE_CHECKING:
    import xarray

PAPER = Paper(
    number="23",
    title="Stop Regressing: Training Value Functions via Classification for Scalable Deep RL",
    authors="Farebrother et al.",
    venue="ICML",
    year=2024,
)
SUMMARY = "value learning by cross-entropy to a histogram against the squared error"
EDGE = 0.01  # share of the targets near an end of the support above which a run is flagged


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment; the studies' own are below."""

    preset: str
    seeds: int = 32  # paired evaluation seeds; of every study at most its own number
    offline: offline_.Config = offline_.Config()
    plasticity: plasticity_.Config = plasticity_.Config()
    scaling: scaling_.Config = scaling_.Config()


PRESETS = {
    # As short as everything can be run, mostly compilation; never a verdict.
    "smoke": Config(
        preset="smoke",
        seeds=2,
        offline=offline_.Config(
            seeds=2,
            control_seeds=2,
            learning_rates=(1e-3,),
            width=16,
            target_every=5,
            steps=20,
            rows=2,
            smoke=True,
        ),
        plasticity=plasticity_.Config(
            seeds=2,
            learning_rates=(1e-3,),
            width=16,
            points=64,
            batch=16,
            phase_steps=10,
            block=5,
            early_steps=5,
            smoke=True,
        ),
        scaling=scaling_.Config(
            seeds=2,
            learning_rates=(1e-3,),
            tasks=("garnets",),
            widths=(8, 16),
            block=5,
            blocks=4,
            rows=2,
            smoke=True,
        ),
    ),
    # Minutes on two cores.
    "small": Config(preset="small"),
    # The widths of the paper's question; needs an accelerator.
    "paper": Config(
        preset="paper",
        seeds=128,
        offline=offline_.Config(
            seeds=128, control_seeds=128, control_arms=arms_.ARMS, microbatch=512
        ),
        plasticity=plasticity_.Config(
            seeds=30, width=512, batch=512, phase_steps=5000, microbatch=128
        ),
        scaling=scaling_.Config(
            seeds=128,
            tasks=("garnets", "pendulum", "cartpole_swingup"),
            arms=("mse", "hl_gauss", "c51", "two_hot"),
            widths=(64, 256, 1024),
            blocks=400,
            batch=256,
            microbatch=128,
        ),
    ),
}


def _studies(config: Config) -> tuple[offline_.Config, plasticity_.Config, scaling_.Config]:
    """The configurations of the studies for the seeds asked for."""
    few = replace(
        config.offline,
        seeds=min(config.seeds, config.offline.seeds),
        control_seeds=min(config.seeds, config.offline.control_seeds),
    )
    jumps = replace(config.plasticity, seeds=min(config.seeds, config.plasticity.seeds))
    widths = replace(config.scaling, seeds=min(config.seeds, config.scaling.seeds))
    return few, jumps, widths


def claims(config: Config) -> tuple[Claim, ...]:
    """The claims of all studies; the first one is the paper's, the others are secondary."""
    few, jumps, widths = _studies(config)
    return (
        *claims_.of_offline(few),
        *claims_.of_plasticity(jumps),
        *claims_.of_scaling(widths),
    )


def run(config: Config, *, directory: Path, resume: bool, progress: bool) -> Outcome:
    """Runs the three studies and judges their claims."""
    registered = registered_digests(directory)
    few, jumps, widths = _studies(config)
    folder, options = directory / "checkpoints", {"resume": resume, "progress": progress}

    offline_data, offline_scores = offline_.run(few, folder, options)
    jump_data, early = plasticity_.run(jumps, folder, options)
    width_data, final = scaling_.run(widths, folder, options)

    pairs = (
        claims_.offline_pairs(offline_scores)
        | claims_.plasticity_pairs(early)
        | claims_.scaling_pairs(widths, final)
    )
    fitted = jump_data["error"].sel(arm=arms_.CONTROL).values
    fitted = fitted[:, fitted.shape[1] // len(plasticity_.LEVELS) - 1]
    parts = []
    for study, of in (
        (few, claims_.of_offline(few)),
        (jumps, claims_.of_plasticity(jumps)),
        (widths, claims_.of_scaling(widths)),
    ):
        for claim in of:
            pair = pairs[claim.name]
            if study is few:
                outcomes = claims_.check_offline(claim, pair, offline_scores)
            elif study is jumps:
                outcomes = claims_.check_plasticity(pair, fitted)
            else:
                outcomes = claims_.check_scaling(widths, final)
            seeds = arms_.study_seeds(len(pair[0]), study.smoke)
            parts.append(claims_.judge(claim, pair, seeds, outcomes, study.smoke, registered))
    datasets = {f"offline-{name.replace(' ', '-')}": data for name, data in offline_data.items()}
    datasets |= {"plasticity": jump_data}
    datasets |= {f"scaling-{task}": data for task, data in width_data.items()}
    return Outcome(
        parts=tuple(parts),
        paired={claim.name: pairs[claim.name] for claim, _ in parts},
        datasets=datasets,
        curves=_curves(config, offline_data, jump_data, final),
        notes=_notes(few, offline_scores),
    )


def _curves(
    config: Config,
    offline_data: dict[str, "xarray.Dataset"],
    jump_data: "xarray.Dataset",
    final: dict[tuple[str, str], np.ndarray],
) -> tuple[Curves, ...]:
    """Scores and overestimation while learning offline, errors after jumps, scores by width."""
    curves = []
    for regime, data in offline_data.items():
        names = [str(arm) for arm in data["arm"].values]
        steps = data["step"].values * config.offline.target_every
        for metric, label in (
            ("score", "value of the greedy policy (uniform 0, best 1)"),
            ("overestimation", "mean of max Q - best value"),
        ):
            curves.append(
                Curves(
                    f"{metric}-{regime.replace(' ', '-')}",
                    f"Offline, {regime}",
                    "updates",
                    label,
                    steps,
                    {arm: data[metric].sel(arm=arm).values for arm in names},
                    {"exact": 0.0} if metric == "overestimation" else {"best": 1.0},
                )
            )
    errors = jump_data["log_error"]
    curves.append(
        Curves(
            "plasticity",
            f"Targets that rise by 8 every {config.plasticity.phase_steps} steps",
            "optimiser steps",
            "log10 squared error on the batch",
            jump_data["step"].values * config.plasticity.block,
            {str(arm): errors.sel(arm=arm).values for arm in errors["arm"].values},
        )
    )
    for task in config.scaling.tasks:
        curves.append(
            Curves(
                f"width-{task}",
                f"Online, {task}",
                "log2 of the width",
                "score (uniform actions 0, best 1)",
                np.log2(np.asarray(config.scaling.widths, np.float64)),
                {arm: final[task, arm] for arm in config.scaling.arms},
            )
        )
    return tuple(curves)


def _notes(config: offline_.Config, scores: offline_.Scores) -> tuple[str, ...]:
    """What the verdicts do not say by themselves."""
    share = float(np.nanmean(scores[offline_.PRIMARY, arms_.TREATMENT, "edge_fraction"]))
    flag = "above" if share > EDGE else "below"
    means = ", ".join(
        f"{arm} {np.nanmean(scores[offline_.PRIMARY, arm, 'score']):.3f} "
        f"({np.nanmean(scores[offline_.PRIMARY, arm, 'overestimation']):+.2f})"
        for arm in config.arms
    )
    return (
        f"Offline, low coverage: mean score (overestimation) of every arm: {means}.",
        f"{share:.2%} of HL-Gauss's targets lie within three standard deviations of an end of the "
        f"support, {flag} the {EDGE:.0%} at which it is too narrow.",
        "At this scale a bounded head alone may carry a gain; the attribution claim and the arms "
        "mse_clip and mse_softmax say how much of it is the cross-entropy's.",
    )

"""What the learngene experiment claims, and how its results decide it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from jaxlab.report import Curves, Outcome
from jaxlab.stats import (
    Claim,
    Evidence,
    Guard,
    GuardOutcome,
    decide,
    guards,
)

from . import _growth_models as gm
from . import _learngene_runs as runs

WORST = -10.0  # a uniform guess has -4.4, and untrained models of many layers have less
MARGIN = 0.02  # nats per token that count as no worse


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    tuning_seeds: int = 2
    tuning_depths: tuple[int, ...] = (4, 8)
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)  # of the rate, tried by every arm
    study: runs.Config = field(default_factory=runs.Config)
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses to tune at depths that the padded models have no room for."""
        if not self.factors:
            raise ValueError("factors: expected at least one")
        if len(self.factors) > 1 and max(self.tuning_depths, default=0) > self.study.room:
            raise ValueError(
                f"tuning_depths: expected at most {self.study.room}, the deepest of study.depths, "
                f"got {self.tuning_depths}"
            )


Results = dict[str, np.ndarray]  # "what/arm/depth" or the name of a fact -> [seeds]

_GUARDS = (
    Guard("teacher_learns", "the teacher ends 0.3 nats below the entropy of token frequencies"),
    Guard("longer_is_better", "positive control: five times as many steps beat scratch"),
    Guard("control_against_itself", "negative control: scratch on other data is not better"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)
_COST = Guard("half_the_cost", "all depths by the gene cost less than half", "not_reproduced")


def claims(config: Config) -> tuple[Claim, ...]:
    """What is claimed, fixed before the run."""
    study = config.study
    depths = ", ".join(str(depth) for depth in study.depths)
    claim = partial(
        Claim,
        metric="minus the held-out loss in nats per token, mean over depths",
        treatment=runs.GENE,
        threshold=0.0,
        worst=WORST,
        n_seeds=max(config.seeds, 16),
        guards=_GUARDS,
        protocol=(
            ("tuning grid of the rate", ", ".join(f"{study.rate * f:g}" for f in config.factors)),
            ("tuning", "each arm, by the loss at depths "
             + ", ".join(str(d) for d in config.tuning_depths)),
            ("tuning seeds", f"0-{config.tuning_seeds - 1}"),
            ("evaluation seeds", "from 1000"),
            ("depths", depths),
            ("model", f"{study.kind} of width {study.width}"),
            ("teacher", f"{study.teacher_depth} layers, {study.teacher_steps} steps"),
            ("auxiliary model", f"{study.aux_depth} layers, {study.aux_steps} steps"),
            ("steps of a short run", study.short),
        ),
    )  # fmt: skip
    beyond = [depth for depth in study.depths if depth > study.aux_depth]
    return (
        claim(
            name="as good as five times as long",
            statement=f"Short training from the gene is at most {MARGIN:g} nats behind training "
            "from scratch for five times as long.",
            control=runs.LONG,
            threshold=-MARGIN,
            guards=(*_GUARDS, _COST),
        ),
        claim(
            name="at most depths",
            statement="At most depths it is no worse than training from scratch for five times "
            "as long.",
            metric="share of depths whose loss is at most that of the control",
            control=runs.LONG,
            kind="ordering",
            threshold=0.5,
            worst=0.0,
        ),
        claim(
            name="the slope matters",
            statement="Short training from the gene beats short training from a gene without slope "
            "that was distilled as long.",
            control=runs.CONSTANT,
        ),
        *(
            claim(
                name=f"against {control}",
                statement=f"Short training from the gene beats short training from: {control}.",
                control=control,
                required=False,
            )
            for control in (runs.SCRATCH, runs.PERMUTED, runs.FITTED, runs.STACK)
        ),
        claim(
            name="before any training",
            statement="Expanded models are better before any training than those of a gene "
            "without slope.",
            control=runs.CONSTANT,
            required=False,
        ),
        *(
            claim(
                name=f"beyond the auxiliary depth, {depth} layers",
                statement=f"With {depth} layers, more than the auxiliary model has, it is at most "
                f"{MARGIN:g} nats behind training from scratch for five times as long.",
                metric="minus the held-out loss in nats per token",
                control=runs.LONG,
                threshold=-MARGIN,
                required=False,
            )
            for depth in beyond
        ),
        claim(
            name="observation: ordered layers",
            statement="A line in the depth explains more of the teacher's layers than of 95 % of "
            "their permutations.",
            metric="R^2 of a line minus the null's 95th percentile",
            control="random orders",
            kind="ordering",
            worst=-1.0,
            required=False,
        ),
        claim(
            name="observation: layers on a line",
            statement="A line in the depth explains at least half of the variance of the teacher's "
            "layers.",
            metric="R^2 of a line",
            control="none",
            kind="ordering",
            threshold=0.5,
            worst=0.0,
            required=False,
        ),
    )


def _scores(config: Config, results: Results, arm: str, what: str = "loss") -> np.ndarray:
    """Minus the losses [seeds, depths] of an arm."""
    return -np.stack([results[f"{what}/{arm}/{d}"] for d in config.study.depths], axis=1)


def compared(config: Config, results: Results) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Treatment and control of every claim, in the order of `claims`."""
    of = partial(_scores, config, results)
    gene, longer = of(runs.GENE), of(runs.LONG)
    found: list[tuple[np.ndarray, np.ndarray | None]] = [
        (gene, longer),
        (np.mean(gene >= longer, axis=1), None),
        *(
            (gene, of(arm))
            for arm in (runs.CONSTANT, runs.SCRATCH, runs.PERMUTED, runs.FITTED, runs.STACK)
        ),
        (of(runs.GENE, "zero_shot"), of(runs.CONSTANT, "zero_shot")),
    ]
    for place, depth in enumerate(config.study.depths):
        if depth > config.study.aux_depth:
            found.append((gene[:, place], longer[:, place]))
    linear = results["linear"]
    return [*found, (linear - results["null_95"], None), (linear, None)]


def facts(config: Config) -> dict[str, float]:
    """What guards need besides the results.

    Args:
        config: sizes.

    Returns:
        "token_entropy" of what the solver writes, in nats; "cost_ratio": FLOPs of all depths by the
        gene, the auxiliary model's included, over those from scratch for five times as long; and
        "teacher_ratio": the teacher's over the same.
    """
    cost = runs.total_costs(config.study)
    return {
        "token_entropy": gm.token_entropy(),
        "cost_ratio": cost[runs.GENE] / cost[runs.LONG],
        "teacher_ratio": cost["teacher"] / cost[runs.LONG],
    }


def check(config: Config, results: Results, known: Mapping[str, float]) -> dict[str, GuardOutcome]:
    """Outcomes of the guards; `known` is from `facts`."""
    scratch, longer, again = (
        _scores(config, results, arm) for arm in (runs.SCRATCH, runs.LONG, runs.AGAIN)
    )
    decided = partial(guards.decide_known, claims(config)[0], threshold=0.0)
    against = decided(again, scratch)
    arms = [_scores(config, results, arm) for arm in runs.ARMS]
    return {
        "teacher_learns": guards.learns(-results["teacher"], -known["token_entropy"], 0.3),
        "longer_is_better": guards.positive_control(decided(longer, scratch)),
        "control_against_itself": (
            against.status != "reproduced",
            f"scratch against itself came out {against.status}",
        ),
        "finite": guards.mostly_finite(*arms),
        "half_the_cost": (
            known["cost_ratio"] < 0.5,
            f"{known['cost_ratio']:.2f} of the cost from scratch for five times as long",
        ),
    }


def judge(
    config: Config,
    results: Results,
    known: Mapping[str, float],
    seeds: tuple[int, ...],
    registered: Mapping[str, str],
) -> Outcome:
    """Decides all claims by the results of a run; `known` is from `facts`."""
    outcomes = {} if config.smoke else check(config, results, known)
    parts, paired = [], {}
    for claim, (treatment, control) in zip(claims(config), compared(config, results), strict=True):
        needed = {g.name: outcomes[g.name] for g in claim.guards if g.name in outcomes}
        evidence = Evidence(
            treatment, control, seeds, needed, config.smoke, registered.get(claim.name)
        )
        parts.append((claim, decide(claim, evidence)))
        if control is not None:
            first, second = (x.reshape(len(x), -1).mean(axis=1) for x in (treatment, control))
            paired[claim.name] = first, second
    mean = {name: float(np.mean(results[name])) for name in ("linear", "quadratic", "component")}
    notes = (
        f"All depths by the gene cost {known['cost_ratio']:.2f} of training each from scratch for "
        f"five times as long; the teacher, which is not counted, {known['teacher_ratio']:.2f}.",
        f"Teacher's layers: R^2 of a line {mean['linear']:.3f} (random orders "
        f"{float(np.mean(results['null'])):.3f}), of a parabola {mean['quadratic']:.3f}; "
        f"|correlation| of the first component with the depth {mean['component']:.2f}.",
        "Models and text are small and synthetic; the paper trains on ImageNet.",
    )
    return Outcome(tuple(parts), paired, curves=_curves(config, results), notes=notes)


def _curves(config: Config, results: Results) -> tuple[Curves, ...]:
    """Held-out loss against depth, after short training and before any."""
    shown = [arm for arm in runs.ARMS if arm != runs.AGAIN]
    titles = {"loss": "After training", "zero_shot": "Before any training"}
    label = "held-out loss, nats per token"
    return tuple(
        Curves(
            what,
            title,
            "layers",
            label,
            np.array(config.study.depths),
            {
                arm: -_scores(config, results, arm, what)
                for arm in shown
                if what == "loss" or arm not in (runs.SCRATCH, runs.LONG)
            },
        )
        for what, title in titles.items()
    )

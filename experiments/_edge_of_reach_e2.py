"""What branches of one step do to a soft actor-critic, although their model is exact.

A point moves in 8 dimensions towards the origin, at most half a unit per axis and step. Branches
start uniformly in a box, so that after one step of any policy the box of starts is grown by half a
unit: states in that margin are bootstrapped from and never updated. The best policy stays inside,
so that an arm's return tells what became of its values, and not how it acts where it never learned.

The patch bootstraps there from the true discounted return of the policy at hand, followed in the
exact dynamics. The optimal value instead, which is known in closed form, ends the explosion of the
values as well, but not the failure: it takes away the minimum's pessimism in the margin alone, and
so makes the margin look better than the inside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxlab import agents, ensemble, envs, worldmodels
from jaxlab.agents import offline, sac
from jaxlab.envs import point_mass
from jaxlab.stats import Claim, Guard, GuardOutcome, guards

from . import _edge_of_reach_e1 as e1

if TYPE_CHECKING:
    import xarray

BASE, PATCH, RAVL, FULL, MOPO = "base", "oracle_patch", "ravl", "full_horizon", "mopo"
Scores = e1.Scores


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20
    dims: int = 8
    episode_length: int = 30
    horizon: int = 1  # steps of a truncated branch
    discount: float = 0.96
    critics: int = 10  # of RAVL; the others have 2
    diversity: float = 0.0  # weight of RAVL's gradient diversity
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3
    target_rate: float = 0.01
    batch: int = 256
    rows: int = 1200  # imagined per epoch, whatever the length of a branch
    retain_epochs: int = 5
    updates: int = 100  # of the agent per epoch
    epochs: int = 80
    mopo_epochs: int = 8  # enough to see whether a single bit differs
    penalty: float = 5.0  # MOPO's weight of the model's uncertainty
    patch_steps: int = 130  # of the patch's discounted return; gamma^130 = 0.5 %
    evaluate_every: int = 2  # epochs
    eval_episodes: int = 64
    others: tuple[str, ...] = ("optimal_patch",)  # further arms, to show
    smoke: bool = False  # decides nothing

    def __post_init__(self) -> None:
        """Refuses epochs that are not whole evaluations, and unknown arms."""
        for name in ("epochs", "mopo_epochs"):
            if getattr(self, name) % self.evaluate_every:
                raise ValueError(
                    f"{name}: expected a multiple of {self.evaluate_every} (evaluate_every), "
                    f"got {getattr(self, name)}"
                )
        unknown = set(self.others) - {"optimal_patch", "diverse"}
        if unknown:
            raise ValueError(f"others: expected optimal_patch or diverse, got {sorted(unknown)}")

    @property
    def best_value(self) -> float:
        """V_max: a reward of 1 for ever."""
        return 1 / (1 - self.discount)


def make(config: Config, arm: str) -> ensemble.Experiment:
    """One arm; an update is an epoch. The traced hyper-parameter is `penalty_coef`."""
    env = envs.make("point_mass", episode_length=config.episode_length, dims=config.dims)
    horizon = config.episode_length if arm == FULL else config.horizon
    many = arm in (RAVL, "diverse")
    structure = agents.OfflineConfig(
        sac=agents.SACConfig(critics=config.critics if many else 2, hidden=config.hidden),
        diversity=arm == "diverse" or (arm == RAVL and config.diversity > 0),
        exact_model=True,
        start="initial",
        horizon=horizon,
        rollout_batch=config.rows // horizon,
        retain_epochs=config.retain_epochs,
        updates=config.updates,
        batch_size=config.batch,
        eval_episodes=config.eval_episodes,
    )

    def edge(t, obs):
        width, step = point_mass.HALF_WIDTH, point_mass.STEP
        return worldmodels.box_edge_of_reach(obs, t, horizon, width, step)

    exact = envs.exact_step_fn(env)

    def followed(key, agent, obs):
        def policy(key, obs):
            return sac.act(agent, structure.sac, obs)

        return worldmodels.discounted_return(
            key, exact, policy, obs, config.patch_steps, config.discount
        )

    def optimal(key, agent, obs):
        return point_mass.optimal_value(obs, config.discount)

    loop = offline.make(
        env,
        structure,
        edge_of_reach=edge,
        true_value={PATCH: followed, "optimal_patch": optimal}.get(arm),
    )

    def init(key, hparams):
        rate = config.learning_rate
        fixed = {
            "gamma": config.discount,
            "tau": config.target_rate,
            "actor_lr": rate,
            "critic_lr": rate,
            "alpha_lr": rate,
            "diversity_coef": config.diversity if arm == RAVL else 1.0,
        }
        return loop.init(key, {**fixed, **hparams})

    return ensemble.Experiment(init, loop.update, loop.evaluate)


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Runs all arms, MOPO only as long as it takes to compare it with the base bit by bit.

    Returns:
        Results, dims (arm, seed, step), step in epochs; and scores by (arm, metric): "return",
        "ratio" (mean of the last tenth of the evaluations; the critics' mean over V_max), "first"
        (first evaluation), and for MOPO "difference" (the largest of any metric from the base).
    """
    import xarray

    results: dict[str, xarray.Dataset] = {}
    scores: Scores = {}

    def go(arm, epochs, penalty):
        label = f"e2-{arm}"
        data = ensemble.run(
            make(config, arm),
            steps=epochs,
            seeds=e1.study_seeds(config),
            grid={"penalty_coef": [penalty]},
            record_every=config.evaluate_every,
            checkpoint=directory / label,
            resume=resume,
            progress=progress,
            label=label,
        )
        return data.isel(penalty_coef=0, drop=True).expand_dims(arm=[arm])

    arms = (BASE, PATCH, RAVL, FULL, *config.others)
    data = xarray.concat(
        [go(arm, config.epochs, 0.0) for arm in arms],
        "arm",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    mopo = go(MOPO, config.mopo_epochs, config.penalty)
    results |= {"e2": data, "e2-mopo": mopo}
    for arm in arms:
        one = data.sel(arm=arm)
        scores[arm, "return"] = _last(one["return"].values)
        scores[arm, "ratio"] = _last(one["q_mean"].values) / config.best_value
        scores[arm, "first"] = one["return"].values[:, 0]
    scores[MOPO, "difference"] = _difference(mopo.isel(arm=0), data.sel(arm=BASE))
    return results, scores


def _last(values: np.ndarray) -> np.ndarray:
    """Mean of the last tenth along the last axis."""
    return values[..., -max(1, values.shape[-1] // 10) :].mean(axis=-1)


def _difference(short: "xarray.Dataset", long: "xarray.Dataset") -> np.ndarray:
    """Largest difference of any metric, per seed; where both are NaN there is none."""
    largest = np.zeros(short.sizes["seed"])
    for name in short.data_vars:
        a = np.asarray(short[name].values, np.float64)
        b = np.asarray(long[name].values, np.float64)
        if a.ndim > 1:
            b = b[:, : a.shape[1]]
            gap = np.where(np.isnan(a) & np.isnan(b), 0.0, np.abs(a - b))
            largest = np.maximum(largest, gap.max(axis=1))
    return largest


def idle_return(config: Config) -> float:
    """Return of standing still, from uniform starts."""
    s = np.linspace(0, point_mass.HALF_WIDTH, 20001)
    return float(config.episode_length * np.trapezoid(np.exp(-0.5 * s**2), s) / s[-1])


def best_return(config: Config) -> float:
    """Return of moving straight to the origin, from uniform starts."""
    s = np.linspace(0, point_mass.HALF_WIDTH, 20001)
    t = np.arange(1, config.episode_length + 1)[:, None]
    left = np.maximum(s - point_mass.STEP * t, 0)
    return float(np.trapezoid(np.exp(-0.5 * left**2), s, axis=-1).sum() / s[-1])


_LEARNED_MARGIN = 5.0
_GUARDS = (
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
    Guard(
        "treatment_learns",
        f"it earns {_LEARNED_MARGIN:g} more than standing still, or it is no cure",
        on_fail="not_reproduced",
    ),
    Guard("base_has_room", "the base's mean return leaves twice the claimed gain to the optimum"),
    Guard("same_budget", "the arms take equally many imagined rows and updates"),
    Guard("base_against_itself", "negative control: the base on two halves of the seeds ties"),
)
_FINITE = _GUARDS[:1]


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    protocol = (
        ("dimensions", config.dims),
        ("branch", config.horizon),
        ("discount", config.discount),
        ("networks", "x".join(map(str, config.hidden))),
        ("learning rate", config.learning_rate),
        ("rows per epoch", config.rows),
        ("updates", config.updates * config.epochs),
        ("diversity", config.diversity),
        ("tuning", "none"),
        ("evaluation seeds", "from 1000"),
    )
    n_seeds = max(config.seeds, e1.PUBLISHABLE)

    def better(name: str, statement: str, treatment: str) -> Claim:
        return Claim(
            name=f"networks: {name}",
            statement=statement,
            metric=f"return of {config.episode_length} steps of the mean action, mean of the last "
            f"tenth of the evaluations (still {idle_return(config):.1f}, best "
            f"{best_return(config):.1f})",
            treatment=treatment,
            control=BASE,
            threshold=10.0,
            worst=0.0,
            n_seeds=n_seeds,
            guards=_GUARDS,
            protocol=protocol,
        )

    def bound(name: str, statement: str, metric: str, arm: str, threshold: float) -> Claim:
        return Claim(
            name=f"networks: {name}",
            statement=statement,
            metric=metric,
            treatment=arm,
            control=arm,
            threshold=threshold,
            worst=1e3,
            kind="bound",
            n_seeds=n_seeds,
            guards=_FINITE,
            protocol=protocol,
        )

    many = f"the minimum of {config.critics} critics"
    return (
        better("RAVL", f"With exact dynamics, {many} earns at least 10 more than that of 2.", RAVL),
        better(
            "oracle patch",
            "True values of the policy at hand at just the states at the edge of reach bring at "
            "least 10.",
            PATCH,
        ),
        better(
            "full horizon",
            "Branches as long as episodes, with as many rows, bring at least 10: truncation is "
            "the cause, for the model is exact.",
            FULL,
        ),
        bound(
            "values of the base",
            "The base's values end at twice the largest possible one or more.",
            "-log2 of the critics' mean over V_max, mean of the last tenth of the evaluations",
            BASE,
            -1.0,
        ),
        bound(
            "values of RAVL",
            "RAVL's values end at 1.3 times the largest possible one or less.",
            "critics' mean over V_max, mean of the last tenth of the evaluations",
            RAVL,
            1.3,
        ),
        bound(
            "MOPO",
            "On exact dynamics a penalty for model uncertainty changes not a single bit.",
            f"largest difference of any metric from the base in {config.mopo_epochs} epochs",
            MOPO,
            0.0,
        ),
    )


def evidence(claim: Claim, scores: Scores) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of treatment and control; a bound has no control."""
    if claim.kind != "bound":
        return scores[claim.treatment, "return"], scores[claim.control, "return"]
    if claim.treatment == MOPO:
        return scores[MOPO, "difference"], None
    if claim.treatment == RAVL:
        return scores[RAVL, "ratio"], None
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.log2(scores[BASE, "ratio"]), None


def check(
    config: Config, claim: Claim, scores: Scores, results: Mapping[str, "xarray.Dataset"]
) -> dict[str, GuardOutcome]:
    """Outcomes of a claim's guards."""
    treatment, control = evidence(claim, scores)
    if control is None:
        return {"finite": guards.mostly_finite(treatment)}
    room = best_return(config) - float(np.nan_to_num(control).mean())
    rows = {
        arm: config.rows // k * k
        for arm, k in ((BASE, config.horizon), (FULL, config.episode_length))
    }
    taken = rows[FULL] if claim.treatment == FULL else rows[BASE]
    return {
        "finite": guards.mostly_finite(treatment, control),
        "treatment_learns": guards.learns(
            np.nan_to_num(treatment), idle_return(config), _LEARNED_MARGIN
        ),
        "base_has_room": (room >= 2 * claim.threshold, f"{room:.1f} below the optimum"),
        "same_budget": guards.same_budget(taken, rows[BASE]),
        "base_against_itself": e1.against_itself(claim, control),
    }


def value_curves(data: "xarray.Dataset") -> dict[str, np.ndarray]:
    """log10 of every arm's critics' mean, [n_seeds, rows]."""
    curves = {}
    for arm in data["arm"].values:
        values = data["q_mean"].sel(arm=arm).values
        curves[str(arm)] = np.log10(np.maximum(values, 1e-2))
    return curves

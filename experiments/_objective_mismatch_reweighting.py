"""Does it help to count transitions near an expert's more, when data are few and uniform?

Models are fitted to n uniform transitions by a likelihood whose rows are weighted by exp(-c d), d
the distance to the nearest state and action of one expert trajectory. c = 0 is the plain
likelihood. Judged by the return of planning, averaged over the logarithm of n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from jaxlab import ensemble
from jaxlab.stats import Claim, Evidence, Guard, GuardOutcome, Verdict, decide, guards
from jaxlab.worldmodels import distance_weights

from . import _objective_mismatch_models as models

if TYPE_CHECKING:
    import xarray

Scores = dict[str, np.ndarray]  # see `run`


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claim."""

    seeds: int = 20
    tuning_seeds: int = 4
    counts: tuple[int, ...] = (100, 200, 500, 1000, 2000)  # uniform transitions n
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)  # c; the first one is the control
    episodes: int = 1  # per return
    control: models.Control = models.Control(
        world="cartpole", steps=150, horizon=50, exact_return=49.0, random_return=2.6
    )
    training: models.Training = models.Training()
    required: bool = True
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses a list of strengths without the plain likelihood."""
        if not self.strengths or self.strengths[0] != 0:
            raise ValueError(f"strengths: expected 0 as the first one, got {self.strengths}")


SMOKE = Config(
    seeds=4,
    tuning_seeds=2,
    counts=(20, 40),
    strengths=(0.0, 1.0),
    episodes=1,
    control=models.Control(world="cartpole", steps=10, horizon=5, plans=8, elites=2, iterations=1),
    training=models.Training(hidden=(8,), steps=20, block=10),
    smoke=True,
)
PENDULUM = Config(
    counts=(100, 300, 1000), strengths=(0.0, 1.0, 3.0), control=models.Control(), required=False
)


@flax.struct.dataclass
class State:
    """One seed: nested data sets, one model per n and c."""

    key: Key[Array, ""]
    fleet: models.Fleet  # all c of the first n, then of the next
    exact: Array  # return of the expert's trajectory


def make(config: Config) -> ensemble.Experiment:
    """The study for one seed: an update trains, the evaluation plays."""
    control, training = config.control, config.training
    most = max(config.counts)

    def init(key, hparams):
        del hparams
        data_key, expert_key, fleet_key, key = jax.random.split(key, 4)
        data = models.uniform_data(data_key, control, most)
        totals, expert = models.expert_data(expert_key, control, 1)
        points, reference = (jnp.concatenate([d.obs, d.action], axis=-1) for d in (data, expert))
        pairs = [(n, c) for n in config.counts for c in config.strengths]
        count = jnp.asarray([n for n, _ in pairs], jnp.int32)
        strength = jnp.asarray([c for _, c in pairs])

        def weights(count, c):
            valid = jnp.arange(most) < count
            return distance_weights(points, reference, models.units(control), c, valid)

        fleet = models.make_fleet(
            fleet_key,
            training,
            jax.tree.map(lambda x: x[None], data),
            jnp.zeros(len(pairs), jnp.int32),
            jnp.full(len(pairs), training.steps, jnp.int32),
            count,
            jax.vmap(weights)(count, strength),
        )
        return State(key, fleet, totals[0])

    def update(state):
        key, sub = jax.random.split(state.key)
        fleet, loss = models.train(sub, state.fleet, training)
        return state.replace(key=key, fleet=fleet), {"loss": loss}

    def evaluate(state, key):
        returns = models.fleet_returns(key, state.fleet, control, training, config.episodes)
        table = returns.reshape(len(config.counts), len(config.strengths))
        found = {"exact_return": state.exact}
        for i, n in enumerate(config.counts):
            found |= {f"return_{n}_{c:g}": table[i, j] for j, c in enumerate(config.strengths)}
        return found

    return ensemble.Experiment(init, update, evaluate)


def area(config: Config, values: np.ndarray) -> np.ndarray:
    """Mean of values [..., counts] over the logarithm of the count, by trapezoids."""
    x = np.log(config.counts)
    return np.trapezoid(values, x, axis=-1) / (x[-1] - x[0])


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> "tuple[dict[str, xarray.Dataset], Scores]":
    """Chooses c on tuning seeds, then trains and judges all models on the seeds of the study.

    Returns:
        The dataset "reweighting-WORLD", dims (seed, strength, count); and scores: "return"
        [n, strengths, counts], normalised, "exact" [n] and "chosen", index of the treatment's c.
    """
    import xarray

    label = f"reweighting-{config.control.world}"
    updates = config.training.steps // config.training.block

    def go(name, seeds):
        data = ensemble.run(
            make(config),
            steps=updates,
            seeds=seeds,
            record_every=updates,
            checkpoint=directory / name,
            resume=resume,
            progress=progress,
            label=name,
        ).isel(step=-1)
        rows = [[data[f"return_{n}_{c:g}"].values for n in config.counts] for c in config.strengths]
        return np.moveaxis(np.array(rows), -1, 0), data

    chosen = 1
    if len(config.strengths) > 2:
        tuned, _ = go(f"{label}-tuning", range(config.tuning_seeds))
        worst = config.control.random_return
        tuned = np.where(np.isfinite(tuned), tuned, worst)
        chosen += int(np.argmax(area(config, tuned).mean(axis=0)[1:]))
    found, data = go(label, models.study_seeds(config))
    scores = {
        "return": config.control.normalised(found),
        "exact": config.control.normalised(data["exact_return"].values),
        "chosen": np.asarray(chosen),
    }
    table = xarray.Dataset(
        {"return": (("seed", "strength", "count"), found), "exact_return": data["exact_return"]},
        {"strength": list(config.strengths), "count": list(config.counts)},
        {"chosen": config.strengths[chosen]},
    )
    return {label: table.drop_vars("step")}, scores


_GUARDS = (
    Guard("planner_works", "the expert's trajectories are worth 0.7 or more of the known range"),
    Guard("control_has_room", "the plain likelihood is neither at the ceiling nor at the floor"),
    Guard("data_help", "positive control: with the plain likelihood, most data beat fewest by 0.1"),
    Guard("finite", "at least 90 % of the seeds of each arm stay finite"),
)


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    control = config.control
    return (
        Claim(
            name=f"re-weighting on the {control.world}",
            statement="Counting transitions near one expert trajectory more, a model of few "
            "uniform transitions is worth at least a tenth of the range more to a planner.",
            metric="return (uniform actions 0, exact dynamics 1), mean over the logarithm of the "
            "number of transitions",
            treatment="weighted",
            control="plain",
            threshold=0.1,
            worst=0.0,
            n_seeds=max(config.seeds, models.PUBLISHABLE),
            required=config.required,
            guards=_GUARDS,
            protocol=(
                ("transitions", ", ".join(map(str, config.counts))),
                ("c", ", ".join(f"{c:g}" for c in config.strengths)),
                ("tuning", f"the best c > 0 on seeds 0-{config.tuning_seeds - 1}"),
                ("training steps", config.training.steps),
                ("model", "x".join(map(str, config.training.hidden))),
                ("planner", models.planner_text(control)),
                ("range", f"{control.random_return:g} to {control.exact_return:g}"),
                ("evaluation seeds", "from 1000"),
            ),
        ),
    )


def compared(config: Config, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Areas under the curve of the chosen weighting and of the plain likelihood, [n]."""
    areas = area(config, scores["return"])
    return areas[:, int(scores["chosen"])], areas[:, 0]


def judge(
    config: Config, scores: Scores, registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges the claim by the scores of `run`."""
    parts = []
    for claim in claims(config):
        evidence = Evidence(
            *compared(config, scores),
            models.study_seeds(config),
            _check(config, scores),
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)


def _check(config: Config, scores: Scores) -> dict[str, GuardOutcome]:
    treatment, control = compared(config, scores)
    plain = np.nan_to_num(scores["return"][:, 0])
    return {
        "planner_works": guards.learns(scores["exact"], 0.0, 0.7),
        "control_has_room": guards.has_room(control, 0.0, 1.0),
        "data_help": guards.learns(plain[:, -1], float(plain[:, 0].mean()), 0.1),
        "finite": guards.mostly_finite(treatment, control),
    }

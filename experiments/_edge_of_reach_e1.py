"""What states that are bootstrapped from and never updated do to exact values, on a lattice.

A king walks on a square lattice towards a reward. Branches of k steps start in a box; exact backups
update the states in which some stored row may start, and those that branches only end in keep what
their tables were drawn with ("the void"). The greedy policy is then followed from every start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab import ensemble, stats
from jaxlab.stats import Claim, Guard, GuardOutcome, evaluation_seeds, guards
from jaxlab.values import partial_value_iteration, pessimistic
from jaxlab.worldmodels import edge_of_reach, level_sets

if TYPE_CHECKING:
    import xarray

SMOKE_SEEDS = range(50, 100)  # of the tuning range, so that a smoke run shows nothing of evaluation
PUBLISHABLE = 16  # seeds without which there is no verdict
FAR = 200  # steps after which nothing counts in a discounted return

Scores = dict[tuple[str, str], np.ndarray]  # (arm, metric) -> [n_seeds]


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20
    half_width: int = 12  # the lattice is {-12..12}^2
    start: int = 2  # branches and evaluations start where |s|_inf is at most this
    goal: tuple[int, int] = (3, 3)
    horizon: int = 2  # steps k of a branch
    discount: float = 0.9
    void: float = 10.0  # standard deviation of the tables before the first backup
    small_void: float = 1.0  # the same below the true values
    voids: tuple[float, ...] = (3.0, 6.0, 20.0)  # further ones, to show
    sweeps: int = 150
    steps: int = 30  # of an evaluation
    smoke: bool = False  # decides nothing


class Arm(NamedTuple):
    """Traced choices of one arm."""

    critics: int  # tables in the minimum
    horizon: int  # index into `_horizons`
    patch: bool  # bootstrap from the true value at the edge


ARMS = {
    "single": Arm(1, 0, False),
    "base": Arm(2, 0, False),
    "oracle_patch": Arm(2, 0, True),
    "ravl5": Arm(5, 0, False),
    "ravl": Arm(10, 0, False),
    "full_horizon": Arm(2, 1, False),
}
CRITICS = 10  # tables that are drawn


class World(NamedTuple):
    """The lattice as tables; S states, 9 moves."""

    following: Int[Array, "S 9"]
    reward: Float[Array, "S 9"]
    start: Bool[Array, " S"]
    updated: Bool[Array, "2 S"]  # states in which a row may start, by horizon
    edge: Bool[Array, "2 S"]  # states that branches only end in, by horizon
    value: Float[Array, " S"]  # optimal


@cache
def world(config: Config) -> World:
    """Builds the lattice.

    Args:
        config: sizes.

    Returns:
        Tables; the second horizon is an episode's, with which nothing is out of reach.
    """
    side = np.arange(-config.half_width, config.half_width + 1)
    place = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    moves = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1).reshape(-1, 2)
    moved = np.clip(place[:, None] + moves[None], -config.half_width, config.half_width)
    index = (moved + config.half_width) @ np.array([len(side), 1])
    distance = np.sum((moved - np.array(config.goal)) ** 2, axis=-1)
    following = jnp.asarray(index, jnp.int32)
    reward = jnp.asarray(np.exp(-distance / 4.5), jnp.float32)
    start = jnp.asarray(np.max(np.abs(place), axis=-1) <= config.start)
    horizons = (config.horizon, config.steps)
    levels = [level_sets(following, start, k) for k in horizons]
    everything = jnp.ones(start.shape, bool)
    zero = jnp.zeros((1, *reward.shape), jnp.float32)
    # gamma^400 is far below rounding.
    optimal = partial_value_iteration(zero, following, reward, config.discount, everything, 400)
    return World(
        following=following,
        reward=reward,
        start=start,
        updated=jnp.stack([jnp.any(level[:-1], axis=0) for level in levels]),
        edge=jnp.stack([edge_of_reach(following, start, k) for k in horizons]),
        value=jnp.max(optimal[0], axis=-1),
    )


@flax.struct.dataclass
class State:
    """Tables of all critics, and the arm."""

    q: Float[Array, "N S 9"]
    hparams: dict[str, Array]


def make(config: Config) -> ensemble.Experiment:
    """Value iteration of one arm; an update is a tenth of the sweeps.

    Traced hyper-parameters: `void`, and the fields of `Arm`.
    """
    tables = world(config)

    def init(key, hparams):
        shape = (CRITICS, *tables.reward.shape)
        return State(hparams["void"] * jax.random.normal(key, shape), hparams)

    def update(state):
        horizon = state.hparams["horizon"]
        q = partial_value_iteration(
            state.q,
            tables.following,
            tables.reward,
            config.discount,
            tables.updated[horizon],
            config.sweeps // 10,
            critics=state.hparams["critics"],
            known_value=tables.value,
            known=tables.edge[horizon] & state.hparams["patch"],
        )
        return State(q, state.hparams), {"change": jnp.max(jnp.abs(q - state.q))}

    def evaluate(state, key):
        value = pessimistic(state.q, state.hparams["critics"])
        total, discounted = follow(config, tables, jnp.argmax(value, axis=-1))
        counts = jnp.arange(CRITICS) < state.hparams["critics"]
        std = jnp.std(state.q, axis=0, where=counts[:, None, None])
        inside, edge = tables.updated[0][:, None], tables.edge[0][:, None]
        at_start = tables.start
        return {
            "return": jnp.mean(total, where=at_start),
            "overestimation": jnp.mean(jnp.max(value, axis=-1) - discounted, where=at_start),
            "std_inside": jnp.mean(std, where=jnp.broadcast_to(inside, std.shape)),
            "std_edge": jnp.mean(std, where=jnp.broadcast_to(edge, std.shape)),
        }

    return ensemble.Experiment(init, update, evaluate)


def follow(
    config: Config, tables: World, action: Int[Array, " S"]
) -> tuple[Float[Array, " S"], Float[Array, " S"]]:
    """A policy's return over the evaluation's steps, and its discounted one, from every state."""

    def step(carry, t):
        state, total, discounted = carry
        earned = tables.reward[state, action[state]]
        weight = jnp.float32(config.discount) ** t.astype(jnp.float32)
        carry = (
            tables.following[state, action[state]],
            total + jnp.where(t < config.steps, earned, 0),
            discounted + weight * earned,
        )
        return carry, None

    zero = jnp.zeros(action.shape, jnp.float32)
    start = (jnp.arange(len(action), dtype=jnp.int32), zero, zero)
    (_, total, discounted), _ = jax.lax.scan(step, start, jnp.arange(FAR))
    return total, discounted


def study_seeds(config: Any) -> tuple[int, ...]:
    """Seed ids of a run: of evaluation, or, for a smoke run, ones that decide nothing ever."""
    return tuple(SMOKE_SEEDS[: config.seeds]) if config.smoke else evaluation_seeds(config.seeds)


def points(config: Config) -> dict[tuple[str, float], Arm]:
    """What is run, by name of the arm and size of the void."""
    swept = ("base", "oracle_patch", "ravl", "full_horizon")
    others = (config.small_void, *config.voids)
    return {(name, config.void): arm for name, arm in ARMS.items()} | {
        (name, void): ARMS[name] for void in others for name in swept
    }


def run(
    config: Config, directory: Path, resume: bool, progress: bool
) -> tuple[dict[str, "xarray.Dataset"], Scores]:
    """Runs all arms on all voids as one program.

    Returns:
        Results, dims (point, seed, step); and scores by (arm, metric), where the arm's name ends in
        "@void" unless it is the claims' own, and the metrics are those of the evaluation.
    """
    planned = points(config)
    data = ensemble.run(
        make(config),
        steps=10,
        seeds=study_seeds(config),
        points={
            "void": jnp.asarray([void for _, void in planned], jnp.float32),
            "critics": jnp.asarray([arm.critics for arm in planned.values()], jnp.int32),
            "horizon": jnp.asarray([arm.horizon for arm in planned.values()], jnp.int32),
            "patch": jnp.asarray([arm.patch for arm in planned.values()]),
        },
        record_every=10,
        checkpoint=directory / "e1",
        resume=resume,
        progress=progress,
        label="e1",
    )
    data = data.assign_coords(point=[f"{name}@{void:g}" for name, void in planned])
    scores: Scores = {}
    for row, (name, void) in enumerate(planned):
        label = name if void == config.void else f"{name}@{void:g}"
        for metric in ("return", "overestimation", "std_inside", "std_edge"):
            scores[label, metric] = data[metric].values[row, :, -1]
    return {"e1": data}, scores


_GUARDS = (
    Guard("full_horizon_is_optimal", "with nothing out of reach, the policy earns the optimum"),
    Guard("converged", "the last tenth of the sweeps changes no value by more than 1e-3"),
    Guard("finite", "all seeds of each arm stay finite"),
)
_ROOM = Guard("base_has_room", "the base's mean return is neither at the optimum nor at nothing")
_ITSELF = Guard("base_against_itself", "negative control: the base on two halves of the seeds ties")


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    common: dict[str, Any] = {
        "metric": f"return of {config.steps} steps, mean over all starts",
        "worst": 0.0,
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "protocol": (
            ("lattice", f"{2 * config.half_width + 1} x {2 * config.half_width + 1}"),
            ("branch", config.horizon),
            ("discount", config.discount),
            ("void", config.void),
            ("sweeps", config.sweeps),
            ("tuning", "none"),
            ("evaluation seeds", "from 1000"),
        ),
    }
    return (
        Claim(
            name="tables: RAVL",
            statement="With exact backups and a void of states that are never updated, the minimum "
            "of 10 critics earns at least 15 more than that of 2.",
            treatment="ravl",
            control="base",
            threshold=15.0,
            guards=(*_GUARDS, _ROOM, _ITSELF),
            **common,
        ),
        Claim(
            name="tables: oracle patch",
            statement="The true value at just the states at the edge of reach is as good as "
            "branches without an end.",
            treatment="oracle_patch",
            control="full_horizon",
            threshold=0.1,
            kind="equivalence",
            guards=_GUARDS,
            **common,
        ),
        Claim(
            name="tables: small void",
            statement=f"A void of deviation {config.small_void:g}, below the true values, does the "
            "base no harm.",
            treatment=f"base@{config.small_void:g}",
            control="full_horizon",
            threshold=0.1,
            kind="equivalence",
            guards=_GUARDS,
            **common,
        ),
    )


def against_itself(claim: Claim, control: np.ndarray) -> GuardOutcome:
    """Whether the control on two blocks of seeds ties, by the claim's own rule."""
    half = len(control) // 2
    bare = replace(claim, guards=(), n_seeds=max(half, 2))
    evidence = stats.Evidence(control[:half], control[half : 2 * half], evaluation_seeds(half))
    return guards.negative_control(bare, stats.decide(bare, evidence))


def evidence(claim: Claim, scores: Scores) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of treatment and control."""
    return scores[claim.treatment, "return"], scores[claim.control, "return"]


def check(
    config: Config, claim: Claim, scores: Scores, results: Mapping[str, "xarray.Dataset"]
) -> dict[str, GuardOutcome]:
    """Outcomes of a claim's guards."""
    tables = world(config)
    value = tables.reward + config.discount * tables.value[tables.following]
    total, _ = follow(config, tables, jnp.argmax(value, axis=-1))
    best = float(jnp.mean(total, where=tables.start))
    full, base = scores["full_horizon", "return"], scores["base", "return"]
    change = float(results["e1"]["change"].values[..., -1].max())
    outcomes: dict[str, GuardOutcome] = {
        "full_horizon_is_optimal": (
            bool(np.max(np.abs(full - best)) < 1e-3),
            f"{full.mean():.3f} of {best:.3f}",
        ),
        "converged": (change < 1e-3, f"largest change {change:.2g}"),
        "finite": guards.mostly_finite(
            scores[claim.treatment, "return"], scores[claim.control, "return"], share=1.0
        ),
    }
    if _ROOM in claim.guards:
        outcomes[_ROOM.name] = guards.has_room(base, 0.0, best)
    if _ITSELF in claim.guards:
        outcomes[_ITSELF.name] = against_itself(claim, base)
    return outcomes


def void_curves(config: Config, data: "xarray.Dataset") -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Sizes of the void [V], and returns of the arms run with all of them [n_seeds, V]."""
    planned = list(points(config))
    voids = sorted({void for _, void in planned})
    values = data["return"].values[..., -1]
    curves = {}
    for name in dict.fromkeys(name for name, _ in planned):
        rows = [planned.index((name, void)) for void in voids if (name, void) in planned]
        if len(rows) == len(voids):
            curves[name] = values[rows].T
    return np.array(voids), curves

"""How many value functions data leave, through a model or through Bellman's equation: exact counts.

A class of deterministic models holds the true one. Model-based learning keeps the optimal values of
the models that agree with the data; model-free learning keeps the optimal values, of any model of
the class, that satisfy Bellman's optimality equation on the data. The former are always among the
latter, and both are the same if the class holds every deterministic model; structure in the class
is what makes the former fewer.

Rewards are integers and the discount is 1/2, so that all values are fractions with a known common
denominator, and float64 decides every comparison exactly. They are either sparse, 1 in a single
goal state, or dense, random for every state and action, where equal values are rare.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.stats import Claim, Evidence, Verdict, decide
from jaxlab.worldmodels import (
    consistent_value_sets,
    deterministic_optimal_values,
    label_set,
    value_labels,
)

from ._model_generalization_factorial import PUBLISHABLE, study_seeds

if TYPE_CHECKING:
    import xarray

GAMMA = 0.5
ATOL = 1e-11  # far below 1 / (common denominator), far above the rounding of float64
CLASSES = ("tabular", "two bits", "three bits")
GOAL, DENSE = REWARDS = ("goal", "dense")
INCLUSION = "fewer value functions, never others"
STRICT = {kind: f"structure leaves fewer value functions, {kind} rewards" for kind in REWARDS}


@dataclass(frozen=True)
class Config:
    """Sizes of the study; the defaults are those of its claims."""

    seeds: int = 20  # each a true model per class, and rewards
    largest_data: int = 5  # transitions of a data set
    data_sets: int = 200  # of every size at most; all of them if there are fewer
    dense_rewards: int = 16  # dense rewards are integers below this
    smoke: bool = False


SMOKE = Config(seeds=4, largest_data=2, data_sets=20, smoke=True)


def model_class(name: str) -> np.ndarray:
    """Next states [M, S, A] of all models of a class, with two actions.

    "tabular": every deterministic model of 4 states; "two bits": 4 states of two bits, each of
    which follows itself and the action; "three bits": 8 states, the first bit follows itself and
    the action, each further bit itself and the bit before.
    """
    if name == "tabular":
        codes = np.arange(4**8)
        return (codes[:, None] // 4 ** np.arange(8) % 4).reshape(-1, 4, 2)
    count = {"two bits": 2, "three bits": 3}[name]
    state, action = np.meshgrid(np.arange(2**count), np.arange(2), indexing="ij")
    bits = [state >> i & 1 for i in range(count)]
    drivers = [action] + [action if count == 2 else bits[i - 1] for i in range(1, count)]
    models = []
    for functions in itertools.product(range(16), repeat=count):
        following = [f >> (bit + 2 * by) & 1 for f, bit, by in zip(functions, bits, drivers)]
        models.append(sum(bit << i for i, bit in enumerate(following)))
    return np.stack(models)


def denominator(states: int) -> float:
    """A common denominator of all values: a path of at most S steps, then a cycle of at most S."""
    return float(2**states * math.lcm(*(2**length - 1 for length in range(1, states + 1))))


def draw_rewards(kind: str, shape: tuple[int, int], below: int, rng: np.random.Generator) -> Any:
    """Integer rewards [S, A]: 1 in one state, or random ones below a number everywhere."""
    if kind == DENSE:
        return rng.integers(below, size=shape)
    return np.eye(shape[0], dtype=int)[rng.integers(shape[0])][:, None].repeat(shape[1], axis=1)


def data_sets(pairs: int, size: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    """Sets of state-action pairs [n, size]: all of a size, or `limit` distinct random ones."""
    if math.comb(pairs, size) <= limit:
        return np.array(list(itertools.combinations(range(pairs), size)))
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < limit:
        chosen.add(tuple(sorted(rng.choice(pairs, size, replace=False).tolist())))
    return np.array(sorted(chosen))


@jax.jit
def _prepare(models, reward, true, scale):
    """Masks of every single transition [P, M], model-based and model-free, and value labels [M]."""
    q = jax.vmap(lambda m: deterministic_optimal_values(m, reward, GAMMA, 60))(models)
    states, actions = reward.shape
    pairs = jnp.arange(states * actions, dtype=models.dtype)
    rows = jnp.stack([pairs // actions, pairs % actions, models[true].reshape(-1)], axis=-1)
    masks = jax.vmap(lambda row: consistent_value_sets(models, q, reward, GAMMA, row[None], ATOL))(
        rows
    )
    return *masks, value_labels(q, scale)


@jax.jit
def _count(model_based, model_free, labels, sets):
    """Distinct value functions of either kind, and those of the first kind only, per data set."""

    def one(chosen):
        based = label_set(labels, jnp.all(model_based[chosen], axis=0))
        free = label_set(labels, jnp.all(model_free[chosen], axis=0))
        return jnp.stack([jnp.sum(based), jnp.sum(free), jnp.sum(based & ~free)])

    return jax.lax.map(one, sets, batch_size=16)


def count_value_functions(
    models: np.ndarray, true: int, reward: np.ndarray, sets: np.ndarray
) -> np.ndarray:
    """Numbers of value functions that data sets leave.

    Args:
        models: the class.
        true: index of the model that the data come from.
        reward: integers, for every state and action.
        sets: state-action pairs [n, k] of the data sets; a pair may be repeated.

    Returns:
        [n, 3]: value functions left by model-based learning, by model-free learning, and those
        left by the former alone (none, says the theorem).
    """
    with jax.enable_x64(True):
        prepared = _prepare(
            jnp.asarray(models, jnp.int32),
            jnp.asarray(reward, jnp.float64),
            true,
            denominator(models.shape[1]),
        )
        return np.asarray(_count(*prepared, jnp.asarray(sets, jnp.int32)))


def run(config: Config) -> "tuple[xarray.Dataset, dict[str, np.ndarray]]":
    """Counts for every seed.

    Returns:
        Means over data sets, dims (rewards, model_class, seed, size); and per claim one statistic
        per seed: the number of data sets that contradict the theorem, and the share of those with
        fewer value functions, in the factored class where it is smaller.
    """
    import xarray

    seeds = study_seeds(config)
    sizes = range(1, config.largest_data + 1)
    shape = (len(REWARDS), len(CLASSES), len(seeds), len(sizes))
    table = {name: np.zeros(shape) for name in ("model_based", "model_free", "strict", "wrong")}
    for c, name in enumerate(CLASSES):
        models = model_class(name)
        for (r, kind), (s, seed) in itertools.product(enumerate(REWARDS), enumerate(seeds)):
            rng = np.random.default_rng([seed, c, r])
            reward = draw_rewards(kind, models.shape[1:], config.dense_rewards, rng)
            true = int(rng.integers(len(models)))
            sets = [data_sets(reward.size, k, config.data_sets, rng) for k in sizes]
            # Filled up with repetitions, which say nothing new, all sizes are one program.
            filled = [np.pad(x, ((0, 0), (0, sizes[-1] - x.shape[1])), "edge") for x in sets]
            counts = count_value_functions(models, true, reward, np.concatenate(filled))
            ends = np.cumsum([len(x) for x in sets])[:-1]
            for k, found in enumerate(np.split(counts, ends)):
                fewer = found[:, 0] < found[:, 1]
                wrong = (found[:, 2] > 0) | (fewer & (name == "tabular"))
                table["model_based"][r, c, s, k] = found[:, 0].mean()
                table["model_free"][r, c, s, k] = found[:, 1].mean()
                table["strict"][r, c, s, k] = fewer.mean()
                table["wrong"][r, c, s, k] = wrong.sum()
    dims = ("rewards", "model_class", "seed", "size")
    coords = {
        "rewards": list(REWARDS), "model_class": list(CLASSES), "seed": list(seeds),
        "size": list(sizes),
    }  # fmt: skip
    data = xarray.Dataset({name: (dims, values) for name, values in table.items()}, coords)
    statistics = {INCLUSION: table["wrong"].sum(axis=(0, 1, 3))}
    for r, kind in enumerate(REWARDS):
        statistics[STRICT[kind]] = table["strict"][r, 1:].mean(axis=-1).min(axis=0)
    return data, statistics


def claims(config: Config) -> tuple[Claim, ...]:
    """What the study claims under a configuration."""
    common: dict[str, Any] = {
        "treatment": "model-based",
        "control": "model-free",
        "n_seeds": max(config.seeds, PUBLISHABLE),
        "protocol": (
            ("classes", "all models of 4 states; 256 of two bits; 4096 of three bits"),
            ("data", f"1 to {config.largest_data} transitions, at most {config.data_sets} sets"),
            ("rewards", f"1 in one state, or integers below {config.dense_rewards}; discount 1/2"),
        ),
    }
    return (
        Claim(
            name=INCLUSION,
            statement="A value function that model-based learning keeps is kept by model-free "
            "learning too, and without structure in the class both keep the same ones.",
            metric="data sets that contradict it",
            kind="bound",
            threshold=0.0,
            worst=1.0,
            **common,
        ),
        *(
            Claim(
                name=STRICT[kind],
                statement=f"With factored models and {kind} rewards, most data sets leave fewer "
                "value functions to model-based than to model-free learning.",
                metric="share of data sets, in the class where it is smaller",
                kind="ordering",
                threshold=0.5,
                worst=0.0,
                required=kind == GOAL,
                **common,
            )
            for kind in REWARDS
        ),
    )


def judge(
    config: Config, statistics: Mapping[str, np.ndarray], registered: Mapping[str, str]
) -> tuple[tuple[Claim, Verdict], ...]:
    """Judges the claims by the statistics of `run`."""
    parts = []
    for claim in claims(config):
        evidence = Evidence(
            statistics[claim.name],
            None,
            study_seeds(config),
            {},
            config.smoke,
            registered.get(claim.name),
        )
        parts.append((claim, decide(claim, evidence)))
    return tuple(parts)

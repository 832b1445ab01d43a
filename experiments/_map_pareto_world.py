"""One world of the amortised-front experiment: trained, searched by every arm, and tested."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import ensemble
from jaxlab.merging import apply_task_vectors, pareto

from . import _task_vectors as tv

MAP, LINEAR, LOSS = "MAP", "MAP, identity link", "MAP on losses"
BAYESIAN, WIDE = "Bayesian MAP", "MAP, box of [-3, 3]"
DIRECT, AGAIN, RANDOM = "direct search", "direct search, another lattice", "random points"
MORE, FEWER = "direct search, front's size on top", "direct search, a third of the points"
EVOLUTION, ORACLE = "NSGA-II on the models", "oracle"
ARMS = (MAP, LINEAR, LOSS, BAYESIAN, WIDE, DIRECT, AGAIN, RANDOM, MORE, FEWER, EVOLUTION, ORACLE)
DRAWN = (MAP, DIRECT, ORACLE)  # their fronts of two tasks are kept for the plot


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    sizes: tuple[int, ...] = (2, 3, 4)  # numbers of models merged by the plain method
    nested: int = 8  # number of models merged pair by pair
    width: int = 96
    pretrain_steps: int = 400
    finetune_steps: int = 400
    training_updates: int = 4  # updates of the engine for each of the two trainings
    fit_examples: int = 1024  # of each task, to search by
    test_examples: int = 2048
    front: int = 100  # models of a front, at most the population
    held_out: int = 32  # points that judge the surrogate
    population: int = 100
    generations: int = 60
    oracle: tuple[int, ...] = (15, 9)  # grid points per coefficient, for the first sizes
    oracle_front: int = 100
    angles: int = 41  # of the drawn fronts
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses steps that are not whole updates, and sizes that do not fit each other."""
        for name in ("pretrain_steps", "finetune_steps"):
            if getattr(self, name) % self.training_updates:
                raise ValueError(
                    f"{name}: expected a multiple of {self.training_updates}, "
                    f"got {getattr(self, name)}"
                )
        if not self.sizes:
            raise ValueError("sizes: expected at least one")
        if max(self.sizes) > self.nested:
            raise ValueError(f"sizes: expected at most nested={self.nested}, got {self.sizes}")
        pareto.EvolutionConfig(self.population, self.generations)  # refuses odd populations
        if self.front > self.population:
            # Direct search would get more models on top than the front has.
            raise ValueError(
                f"front: expected at most population={self.population}, got {self.front}"
            )
        if any(points < 2 for points in self.oracle):
            raise ValueError(f"oracle: expected at least 2 points each, got {self.oracle}")

    @property
    def world(self) -> tv.World:
        """Sizes of the world of task vectors."""
        return tv.World(
            tasks=self.nested,
            inputs=12,  # subspaces of 8 dimensions overlap, so that tasks are in each other's way
            width=self.width,
            hidden=self.width,
            pretrain_steps=self.pretrain_steps,
            finetune_steps=self.finetune_steps,
        )

    @property
    def search(self) -> pareto.EvolutionConfig:
        """Sizes of the search on a surrogate."""
        return pareto.EvolutionConfig(self.population, self.generations)


def budget(n: int) -> int:
    """Merged models evaluated: twice the unknowns of a quadratic, (n + 1)(n + 2)."""
    return 2 * pareto.num_coefficients(n)


def oracle_grid(config: Config, n: int) -> np.ndarray | None:
    """All coefficient vectors of the oracle, or None if there is none of this size."""
    row = config.sizes.index(n)
    if row >= len(config.oracle):
        return None
    axis = np.linspace(0, 1, config.oracle[row], dtype=np.float32)
    return np.stack(np.meshgrid(*[axis] * n, indexing="ij"), axis=-1).reshape(-1, n)


@flax.struct.dataclass
class State:
    """One world on its way from pretraining to the test."""

    key: Key[Array, ""]
    step: Int[Array, ""]
    base: tv.Fit
    copies: tv.Fit  # leading axis of tasks
    found: dict[str, Float[Array, ""]]
    radii: dict[str, Float[Array, " angles"]]  # fronts of the first size, from the chance level


def result_names(config: Config) -> tuple[str, ...]:
    """What the updates report."""
    names = ["base_accuracy", "fine_tuned_accuracy", "nested/mean", "nested/direct"]
    names += ["nested/evaluations", "nested/uniform"]
    for n in config.sizes:
        arms = [arm for arm in ARMS if arm != ORACLE or oracle_grid(config, n) is not None]
        names += [f"{kind}/{arm}/{n}" for arm in arms for kind in ("volume", "distance")]
        names += [f"wins/{n}", f"trusted/{n}", f"trusted wide/{n}"]
        names += [f"fit/{what}/{n}" for what in ("loss", "accuracy")]
    return tuple(names)


def make(config: Config) -> ensemble.Experiment:
    """The experiment of one world; no hyper-parameters.

    Its updates are, in turn, blocks of pretraining, blocks of fine-tuning, the searches for each
    number of models, and nested merging. Which one it is depends on the step, so that it should run
    in exact mode, where only that one is computed.
    """
    world, updates = config.world, config.training_updates

    def data(state: State, stream: int, count: int) -> tuple[tv.Tasks, tv.Examples]:
        return tv.draw_world(state.key, world, stream, count)

    def init(key, hparams):
        del hparams
        base = tv.fit_init(tv.encoder_init(jax.random.fold_in(key, 1), world))
        return State(
            key=key,
            step=jnp.int32(0),
            base=base,
            copies=tv.fit_copies(base.params, world),
            found={name: jnp.float32(0) for name in result_names(config)},
            radii={arm: jnp.zeros(config.angles) for arm in DRAWN},
        )

    def pretrain(state: State) -> State:
        tasks, train = data(state, 0, world.examples)
        key = jax.random.fold_in(state.key, state.step + 10)
        steps = world.pretrain_steps // updates
        base, _ = tv.pretrain(key, state.base, tasks, train, world, steps)
        return replace(state, base=base, copies=tv.fit_copies(base.params, world))

    def finetune(state: State) -> State:
        tasks, train = data(state, 0, world.examples)
        key = jax.random.fold_in(state.key, state.step + 10)
        steps = world.finetune_steps // updates
        copies, _ = tv.finetune(key, state.copies, tasks, train, world, steps)
        return replace(state, copies=copies)

    def measure(
        state: State, n: int, stream: int, count: int, of: Callable[..., Any] = tv.accuracy
    ):
        """Metrics [n] of the first n tasks at coefficients [n] of their models."""
        tasks, sample = data(state, stream, count)
        part = tasks.heads[:n], jax.tree.map(lambda x: x[:n], sample)
        base = state.base.params
        vectors = jax.tree.map(lambda x, b: x[:n] - b[None], state.copies.params, base)
        return lambda c: of(apply_task_vectors(base, vectors, c), *part)

    def search(n: int, state: State) -> State:
        fit = measure(state, n, 1, config.fit_examples)
        fit_loss = measure(state, n, 1, config.fit_examples, tv.losses)
        test = measure(state, n, 2, config.test_examples)
        fronts, found = search_fronts(
            config, n, jax.random.fold_in(state.key, 100 + n), fit, fit_loss
        )
        tasks, sample = data(state, 2, config.test_examples)
        own = tv.own_accuracy(state.copies.params, tasks, sample)
        found |= {
            "base_accuracy": jnp.mean(tv.accuracy(state.base.params, tasks.heads, sample)),
            "fine_tuned_accuracy": jnp.mean(own),
        }
        # All arms are evaluated, and filled up to one size judged, by one program.
        coefficients, counts = zip(*fronts.values())
        ends = np.cumsum([len(c) for c in coefficients])[:-1]
        real = jnp.split(jax.lax.map(test, jnp.concatenate(coefficients)), ends)
        size = max(len(c) for c in coefficients)
        values = jnp.stack([_fill(x, size) for x in real])
        valid = jnp.stack([_fill(flags, size) for flags in counts])
        chance = 1 / world.classes
        share = (values - chance) / jnp.maximum(own[:n] - chance, 1e-3)[None, None]
        names = list(fronts)
        goal = names.index(ORACLE if ORACLE in fronts else MORE)
        volumes = jax.lax.map(
            lambda x: pareto.hypervolume(x[0], jnp.zeros(n), x[1]), (share, valid)
        )
        distances = front_distances(share, valid, goal)
        for i, arm in enumerate(names):
            found |= {f"volume/{arm}/{n}": volumes[i], f"distance/{arm}/{n}": distances[i]}
        ours, direct = names.index(MAP), names.index(DIRECT)
        wins = pareto.win_rate(share[ours], share[direct], (valid[ours], valid[direct]))
        radii = state.radii
        if n == config.sizes[0]:
            angles = jnp.linspace(0, np.pi / 2, config.angles)
            drawn = {arm: names.index(arm) for arm in DRAWN}
            radii = {arm: front_radii(share[i], valid[i], angles) for arm, i in drawn.items()}
        return replace(state, found=state.found | found | {f"wins/{n}": wins}, radii=radii)

    def nest(state: State) -> State:
        n = config.nested
        fit = measure(state, n, 1, config.fit_examples)
        tasks, sample = data(state, 1, config.fit_examples)
        base = state.base.params
        vectors = jax.tree.map(lambda x, b: x - b[None], state.copies.params, base)

        def metric(c, task):
            params = apply_task_vectors(base, vectors, c)
            inputs, labels = (jnp.take(x, task, axis=0)[None] for x in sample)
            return tv.accuracy(params, jnp.take(tasks.heads, task, axis=0)[None], (inputs, labels))[
                0
            ]

        key = jax.random.fold_in(state.key, 200)
        found = pareto.nested_map(
            key,
            metric,
            n,
            link="sigmoid",
            resolution=0.5 / config.fit_examples,
            evolution=config.search,
        )
        # As many evaluations of a task as pairs can need: those of one cluster that grows.
        count = int(np.ceil((20 * (n * (n + 1) / 2 - 1) + n) / n))
        points = pareto.lattice_points(jax.random.fold_in(key, 1), n, count)
        points = points * jax.random.uniform(jax.random.fold_in(key, 2), (count, 1))
        means = jax.lax.map(lambda c: jnp.mean(fit(c)), points)
        equal = jnp.linspace(0.05, 1, count)
        uniform = jax.lax.map(lambda a: jnp.mean(fit(jnp.full(n, a))), equal)
        test = measure(state, n, 2, config.test_examples)
        values = {
            "nested/mean": jnp.mean(test(found.coefficients)),
            "nested/direct": jnp.mean(test(points[jnp.argmax(means)])),
            "nested/uniform": jnp.mean(test(jnp.full(n, equal[jnp.argmax(uniform)]))),
            "nested/evaluations": found.evaluations.astype(jnp.float32),
        }
        return replace(state, found=state.found | values)

    phases: list[Callable[[State], State]] = [
        pretrain,
        finetune,
        *(partial(search, n) for n in config.sizes),
        nest,
    ]

    return ensemble.Experiment(init, tv.in_phases(phases, updates))


def updates_of(config: Config) -> int:
    """How many updates make up one world."""
    return 2 * config.training_updates + len(config.sizes) + 1


Front = tuple[Float[Array, "f n"], Bool[Array, " f"]]


def search_fronts(
    config: Config,
    n: int,
    key: Key[Array, ""],
    fit: Callable[[Array], Array],
    fit_loss: Callable[[Array], Array],
) -> tuple[dict[str, Front], dict[str, Float[Array, ""]]]:
    """The front that each arm chooses after `budget(n)` evaluations.

    Args:
        config: sizes.
        n: number of models and tasks.
        key: random key.
        fit: accuracies [n] at coefficients [n], on the examples to search by.
        fit_loss: losses in their place.

    Returns:
        Coefficients by arm, with which of them count; and how well the surrogates fit.
    """
    keys = iter(jax.random.split(key, 8))
    count, resolution = budget(n), 0.5 / config.fit_examples
    third = max(count // 3, n)
    lattice = pareto.lattice_points(next(keys), n, count + config.front)
    points = lattice[:count]
    other = pareto.lattice_points(next(keys), n, count)
    random = jax.random.uniform(next(keys), (count + config.held_out, n))
    grid = oracle_grid(config, n)
    given = [lattice, other, random, *([] if grid is None else [jnp.asarray(grid)])]
    ends = np.cumsum([len(x) for x in given])[:-1]
    all_values = jnp.split(jax.lax.map(fit, jnp.concatenate(given)), ends)
    values, other_values, random_values = all_values[:3]
    accuracies, held_out = values[:count], random[count:]
    losses = jax.lax.map(fit_loss, jnp.concatenate([points, held_out]))

    def metric(c: Array, task: Array) -> Array:
        return fit(c)[task]

    added = max(count // 6, 1)
    explored = pareto.bayesian_points(
        next(keys),
        metric,
        points[: count - 2 * added],
        n,
        rounds=2,
        added=added,
        link="sigmoid",
        resolution=resolution,
    )
    limited = partial(pareto.fit_quadratic, link="sigmoid", resolution=resolution)
    of_accuracy = limited(points, accuracies)
    of_loss = pareto.fit_quadratic(points, losses[:count], "softplus")
    searched = {
        MAP: (of_accuracy, 1.0, (0.0, 1.0)),
        WIDE: (of_accuracy, 1.0, (-3.0, 3.0)),
        LINEAR: (pareto.fit_quadratic(points, accuracies), 1.0, (0.0, 1.0)),
        LOSS: (of_loss, -1.0, (0.0, 1.0)),
        BAYESIAN: (limited(*explored), 1.0, (0.0, 1.0)),
    }

    def evolve(key: Array, surrogate: pareto.QuadraticSurrogate, box: Array):
        return pareto.evolve_front(key, surrogate, (box[0], box[1]), config.search)[0]

    # A link is monotone, so that the quadratics themselves have the same non-dominated points.
    bare = [
        jax.tree.map(lambda x, sign=sign: sign * x, replace(q, link="identity"))
        for q, sign, _ in searched.values()
    ]
    boxes = jnp.asarray([bounds for _, _, bounds in searched.values()])[:, :, None]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *bare)
    found = jax.vmap(evolve)(
        jax.random.split(next(keys), len(bare)), stacked, jnp.broadcast_to(boxes, (len(bare), 2, n))
    )[:, : config.front]
    fronts = {arm: (c, jnp.ones(len(c), bool)) for arm, c in zip(searched, found)}
    population = 4 if count % 4 == 0 else 6
    tiny = pareto.EvolutionConfig(population, max(count // population - 1, 1))
    evolved = pareto.evolve_front(next(keys), fit, (jnp.zeros(n), jnp.ones(n)), tiny)
    for arm, c, table in (
        (DIRECT, points, accuracies),
        (AGAIN, other, other_values),
        (RANDOM, random[:count], random_values[:count]),
        (MORE, lattice, values),
        (FEWER, points[:third], accuracies[:third]),
        (EVOLUTION, *evolved),
    ):
        fronts[arm] = c, pareto.non_dominated_mask(table)
    if grid is not None:
        rank = pareto.non_dominated_rank(all_values[3])
        crowd = pareto.crowding_distance(all_values[3], rank)
        best = jnp.lexsort((-crowd, rank))[: config.oracle_front]
        fronts[ORACLE] = jnp.asarray(grid)[best], rank[best] == 0

    def fitted(surrogate: pareto.QuadraticSurrogate, true: Array) -> Array:
        return jnp.mean(pareto.r_squared(jax.vmap(surrogate)(held_out), true))

    def trusted(arm: str) -> Array:
        return jnp.mean((jnp.abs(fronts[arm][0] - 0.5) <= 0.5).all(axis=1), dtype=jnp.float32)

    return fronts, {
        f"fit/loss/{n}": fitted(of_loss, losses[count:]),
        f"fit/accuracy/{n}": fitted(of_accuracy, random_values[count:]),
        f"trusted/{n}": trusted(MAP),
        f"trusted wide/{n}": trusted(WIDE),
    }


def _fill(x: Array, size: int) -> Array:
    """Rows of zeros up to a size."""
    return jnp.concatenate([x, jnp.zeros((size - len(x), *x.shape[1:]), x.dtype)])


def front_distances(
    values: Float[Array, "a f m"], valid: Bool[Array, "a f"], goal: int
) -> Float[Array, " a"]:
    """How far the front of one arm is from the points of each, on average.

    Args:
        values: objectives.
        valid: points that count; the others fill up.
        goal: the arm with the front to cover.

    Returns:
        Inverted generational distances.
    """
    front = pareto.non_dominated_mask(values[goal], valid[goal])
    return jax.vmap(
        lambda x, flags: pareto.inverted_generational_distance(x, values[goal], flags, front)
    )(values, valid)


def front_radii(
    values: Float[Array, "f 2"], valid: Bool[Array, " f"], angles: Float[Array, " a"]
) -> Float[Array, " a"]:
    """How far from the origin a front of two objectives reaches in each direction.

    The farthest point on each ray that some point of the front is at least as good as.
    """
    direction = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    positive = direction > 1e-6
    ratio = values[None] / jnp.where(positive, direction, 1)[:, None]
    reach = jnp.min(jnp.where(positive[:, None], ratio, jnp.inf), axis=-1)
    return jnp.max(jnp.where(valid[None], jnp.maximum(reach, 0), 0), axis=1)

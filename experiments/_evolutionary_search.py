"""Every way to search a merged model, as one program: a generation is one batch of models."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, merging
from jaxlab.merging import cma, recipes

from . import _evolutionary_world as ew
from . import _task_vectors as tv

ONE, LAYERS, PARTS = "evolved", "evolved per layer", "evolved per layer and part"
AGAIN = "evolved per layer, another search"
RANDOM_ONE, RANDOM_PARTS = "random search", "random search per layer and part"
ARITHMETIC, TIES, DARE = "task arithmetic", "TIES", "DARE-TIES"
ROUTED, BOTH = "evolved path", "evolved per layer, then path"
HAND = (ARITHMETIC, TIES, DARE)
ARMS = (ONE, LAYERS, PARTS, AGAIN, RANDOM_ONE, RANDOM_PARTS, *HAND, ROUTED, BOTH)
DIRECTIONS = {ONE: "one", LAYERS: "layers", AGAIN: "layers", PARTS: "parts",
              RANDOM_ONE: "one", RANDOM_PARTS: "parts"}  # fmt: skip
START, SPREAD = 0.5, 1 / 6  # of evolution
SCALES = 32  # tried by hand, with as many densities as the budget has left


@dataclass(frozen=True)
class Config:
    """Sizes of the search."""

    population: int = 16
    generations: int = 40
    repeats: int = 3  # how often the pool of layers is passed
    records: int = 8  # of the best model so far on the test set

    def __post_init__(self) -> None:
        """Refuses records and grids that do not fit, and populations that cannot evolve."""
        cma.CMAConfig(self.population)
        if self.generations % self.records:
            raise ValueError(
                f"generations: expected a multiple of {self.records}, got {self.generations}"
            )
        if self.evaluations % SCALES:
            raise ValueError(
                f"generations: expected a multiple of {SCALES} evaluations, got {self.evaluations}"
            )

    @property
    def evaluations(self) -> int:
        """Models that every arm tries."""
        return self.population * self.generations


class Search(NamedTuple):
    """One arm.

    Attributes:
        start: state of the search.
        ask: (key, state, generation) -> points [population, d].
        tell: (state, points, scores) -> state.
        build: (world, point, key) -> parameters.
    """

    start: Any
    ask: Callable[[Key[Array, ""], Any, Array], Float[Array, "p d"]]
    tell: Callable[[Any, Array, Array], Any]
    build: Callable[[ew.World, Float[Array, " d"], Key[Array, ""]], tv.Encoder]


def groups(kind: str, blocks: int) -> tuple[int, Callable[[str], int]]:
    """How many groups of leaves share coefficients, and the group of each leaf.

    Args:
        kind: "one", "layers" (what reads the input, and every block), or "parts" (both matrices of
            a block apart).
        blocks: of the encoder.
    """
    if kind == "one":
        return 1, lambda path: 0
    parts = 1 if kind == "layers" else 2

    def group_of(path: str) -> int:
        if path == "in":
            return 0
        down = path.startswith("down")
        block = int(path.removeprefix("down" if down else "up"))
        return 1 + parts * block + (parts - 1) * down

    return 1 + parts * blocks, group_of


def _evolution(mean: Float[Array, " d"], config: cma.CMAConfig, build: Any) -> Search:
    return Search(
        cma.cma_init(mean, SPREAD),
        lambda key, state, generation: cma.cma_ask(key, state, config),
        lambda state, points, scores: cma.cma_tell(state, points, scores, config),
        build,
    )


def make_search(arm: str, world: ew.Config, config: Config) -> Search:
    """What an arm proposes, and what it builds.

    Args:
        arm: out of `ARMS`.
        world: sizes of the models.
        config: sizes of the search.
    """
    shape = cma.CMAConfig(config.population)
    if arm in (ROUTED, BOTH):
        return _routing(world, config)
    if arm in DIRECTIONS:
        count, group_of = groups(DIRECTIONS[arm], world.blocks)

        def build(mine: ew.World, point: Array, key: Array) -> tv.Encoder:
            genes = recipes.read_genes(point, count, ew.SOURCES)
            return recipes.merge_genes(
                merging.dare_ties, mine.base, mine.sources, genes, group_of, key=key
            )

        size = 2 * count * ew.SOURCES
        if arm not in (RANDOM_ONE, RANDOM_PARTS):
            return _evolution(jnp.full(size, START), shape, build)
        return Search(
            jnp.zeros(()),
            lambda key, state, generation: jax.random.uniform(key, (config.population, size)),
            lambda state, points, scores: state,
            build,
        )
    table = jnp.asarray(hand_grid(arm, config.evaluations))

    def merged(mine: ew.World, point: Array, key: Array) -> tv.Encoder:
        weight = jnp.full(ew.SOURCES, point[0])
        if arm == ARITHMETIC:
            vectors = merging.task_vectors(mine.base, mine.sources)
            return merging.apply_task_vectors(mine.base, vectors, weight)
        given = {"weight": weight, "density": point[1], "normalize": False}
        operator = merging.ties if arm == TIES else merging.dare_ties
        return merging.merge(operator, mine.base, mine.sources, given, key=key)

    def ask(key: Array, state: Array, generation: Array) -> Array:
        first = generation * config.population
        return jax.lax.dynamic_slice_in_dim(table, first, config.population)

    return Search(jnp.zeros(()), ask, lambda state, points, scores: state, merged)


def hand_grid(arm: str, count: int) -> np.ndarray:
    """All recipes that are tried by hand: scales up to 1.5 and, but for arithmetic, densities."""
    if arm == ARITHMETIC:
        return np.linspace(1.5 / count, 1.5, count, dtype=np.float32)[:, None]
    weight = np.linspace(1.5 / SCALES, 1.5, SCALES)
    density = np.linspace(SCALES / count, 1, count // SCALES)
    grid = np.stack(np.meshgrid(weight, density, indexing="ij"), axis=-1)
    return grid.reshape(-1, 2).astype(np.float32)


def _routing(world: ew.Config, config: Config) -> Search:
    """Starts at the path of the first source; numbers are indicators, then scales."""
    pool = world.blocks * ew.SOURCES
    slots = config.repeats * pool

    def build(mine: ew.World, point: Array, key: Array) -> tv.Encoder:
        del key
        layers = {
            name: jnp.concatenate(
                [
                    jnp.stack([mine.sources[f"{name}{i}"][m] for i in range(world.blocks)])
                    for m in range(ew.SOURCES)
                ]
            )
            for name in ("up", "down")
        }
        scales = point[slots:].reshape(pool, pool)
        path = recipes.route_layers(layers, point[:slots], scales, ("^down$",))
        named = {f"{name}{t}": path[name][t] for name in path for t in range(slots)}
        return {"in": mine.sources["in"][0], **named}

    used = np.where(np.arange(slots) < world.blocks, START, -START)
    mean = jnp.asarray(np.concatenate([used, np.ones(pool * pool)]), jnp.float32)
    return _evolution(mean, cma.CMAConfig(config.population, diagonal=True), build)


@flax.struct.dataclass
class State:
    """A search under way."""

    key: Key[Array, ""]
    base: Int[Array, ""]  # which world
    generation: Int[Array, ""]
    search: Any
    best: Float[Array, " d"]
    top: Float[Array, ""]


def make(arm: str, config: Config, world: ew.Config, worlds: ew.World) -> ensemble.Experiment:
    """A search in one of the stacked worlds; `hparams` has "base".

    Args:
        arm: out of `ARMS`.
        config: sizes of the search.
        world: sizes of the models.
        worlds: leaves [worlds, ...].

    Returns:
        An experiment whose update is a generation, evaluated as one batch of models, and reports
        "search", the best score so far. An evaluation reports "test", that model's score on other
        examples.
    """
    search = make_search(arm, world, config)

    def init(key: Array, hparams: Any) -> State:
        base = jnp.asarray(hparams["base"], jnp.int32)
        key = jax.random.fold_in(jax.random.fold_in(key, base), ARMS.index(arm))
        best = jnp.zeros_like(search.ask(key, search.start, jnp.int32(0))[0])
        return State(key, base, jnp.int32(0), search.start, best, jnp.float32(-1))

    def built(mine: ew.World, point: Array) -> tv.Encoder:
        """All models of a world share the random masks: their noise would swamp the genes."""
        return search.build(mine, point, jax.random.fold_in(mine.key, 3))

    def update(state: State) -> tuple[State, dict[str, Array]]:
        mine = ew.take(worlds, state.base)
        tasks, data = ew.draw(mine.key, world, "search")
        key = jax.random.fold_in(state.key, state.generation)
        points = search.ask(key, state.search, state.generation)
        scores = jax.vmap(lambda p: ew.score(built(mine, p), tasks, data))(points)
        here = jnp.argmax(scores)
        better = scores[here] > state.top
        state = replace(
            state,
            generation=state.generation + 1,
            search=search.tell(state.search, points, scores),
            best=jnp.where(better, points[here], state.best),
            top=jnp.where(better, scores[here], state.top),
        )
        return state, {"search": state.top}

    def evaluate(state: State, key: Array) -> dict[str, Array]:
        del key
        mine = ew.take(worlds, state.base)
        tasks, data = ew.draw(mine.key, world, "test")
        return {"test": ew.score(built(mine, state.best), tasks, data)}

    return ensemble.Experiment(init, update, evaluate)


def build_best(arm: str, config: Config, world: ew.Config, worlds: ew.World, best: Any) -> Any:
    """The models that searches ended with, one per world, leaves [worlds, ...]."""
    build = make_search(arm, world, config).build
    return jax.jit(jax.vmap(lambda mine, p: build(mine, p, jax.random.fold_in(mine.key, 3))))(
        worlds, best
    )


def landscape(world: ew.Config, worlds: ew.World, weights: np.ndarray) -> np.ndarray:
    """Score on the test set of task arithmetic with any two weights.

    Args:
        world: sizes of the models.
        worlds: leaves [worlds, ...].
        weights: of each source [n].

    Returns:
        [worlds, n, n]; rows are weights of the first source.
    """
    grid = jnp.asarray(np.stack(np.meshgrid(weights, weights, indexing="ij"), -1), jnp.float32)

    def one(mine: ew.World) -> Array:
        tasks, data = ew.draw(mine.key, world, "test")
        vectors = merging.task_vectors(mine.base, mine.sources)

        def at(pair: Array) -> Array:
            return ew.score(merging.apply_task_vectors(mine.base, vectors, pair), tasks, data)

        return jax.lax.map(jax.vmap(at), grid)

    return np.asarray(jax.jit(lambda w: jax.lax.map(one, w))(worlds))

"""Verifiers that learn from walks, beside the exact ones, as guides of one search.

Three networks see the same prefixes of the same walks and differ in their labels alone: the final
outcome (OVM), whether the rules were kept so far (PRM), and that the target is still within reach
too (PRM-O). Held-out games are then searched with each of them as the guide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, nets, posttrain, tasks
from jaxlab.search import value_guided_beam
from jaxlab.tasks import countdown

from . import _ovm_game as game

LABELS = ("ovm", "prm", "prm-o")  # places of the networks
SLOTS = game.STEPS  # numbers that remain after a step, at most
_KINDS = game.GAME.cap + 2  # numbers and none


@dataclass(frozen=True)
class Config:
    """Sizes of the data, of the networks and of the search."""

    games: int = 1500  # to learn from
    walks: int = 32  # of the sampler, per game
    steps: int = 3000
    block: int = 100  # steps in one call of the engine
    batch: int = 512
    lr: float = 5e-3  # at its peak; it ends at a twentieth
    embedding: int = 8
    hidden: int = 64
    test_games: int = 200
    candidates: int = 20  # n: next steps in every round, and samples that are reranked
    beams: int = 4  # b

    def __post_init__(self) -> None:
        """Refuses steps that are not whole blocks."""
        if self.steps % self.block:
            raise ValueError(f"steps: expected a multiple of {self.block}, got {self.steps}")


@flax.struct.dataclass
class Examples:
    """Prefixes of walks with what each label says of them."""

    walk: game.Walk  # leaves [M, ...]
    taken: Int[Array, " M"]
    label: Float[Array, "M 3"]


@flax.struct.dataclass
class State:
    """Three networks in training."""

    key: Key[Array, ""]
    params: Any  # leaves [3, ...]
    moments: Any
    step: Int[Array, ""]
    examples: Examples


def sample_games(key: Key[Array, ""], count: int, split: str) -> countdown.Problem:
    """Games of one side of the split."""
    task = countdown.make(game.GAME)
    keys = jax.random.split(key, count)
    return jax.vmap(lambda k: tasks.sample_split(k, task, split))(keys)[0]  # type: ignore[arg-type]


def sample_examples(key: Key[Array, ""], games: countdown.Problem, walks: int) -> Examples:
    """Walks of the sampler, cut into prefixes of one, two and three steps.

    Args:
        key: random key.
        games: leaves [N, ...].
        walks: per game.

    Returns:
        3 N `walks` prefixes.
    """

    def one(key: Array, problem: countdown.Problem) -> Examples:
        def step(walk: game.Walk, place: Array) -> tuple[game.Walk, game.Walk]:
            walk = game.take_step(jax.random.fold_in(key, place), walk, place)
            return walk, walk

        last, prefixes = jax.lax.scan(step, game.start(problem), jnp.arange(game.STEPS))
        taken = jnp.arange(1, game.STEPS + 1)
        outcome = jnp.full(game.STEPS, game.solved(last)).astype(jnp.float32)
        judged = [
            jax.vmap(lambda w, t, name=name: game.exact_guide(name, w, t))(prefixes, taken)
            for name in ("prm", "prm-o")
        ]
        return Examples(prefixes, taken, jnp.stack([outcome, *judged], axis=1))

    count = games.target.shape[0]
    keys = jax.random.split(key, (count, walks))
    each = jax.vmap(jax.vmap(one, (0, None)))(keys, games)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[3:]), each)


def init_network(key: Key[Array, ""], config: Config) -> dict[str, Any]:
    """An embedding of numbers and a perceptron."""
    table, rest = jax.random.split(key)
    width = (SLOTS + 1) * config.embedding + 3 * SLOTS + 1 + game.STEPS
    return {
        "embedding": jax.random.normal(table, (_KINDS, config.embedding)),
        "mlp": nets.mlp_init(rest, (width, config.hidden, config.hidden, 1)),
    }


def judge(params: dict[str, Any], walk: game.Walk, taken: Int[Array, ""]) -> Float[Array, ""]:
    """A network's opinion of one prefix."""
    numbers = -jnp.sort(-walk.numbers[:SLOTS])  # the order of the numbers says nothing
    there = numbers != game.GONE
    kinds = jnp.where(there, numbers, _KINDS - 1)
    embedded = params["embedding"][jnp.concatenate([kinds, walk.target[None]])].reshape(-1)
    size, gap = (
        jnp.where(there, x, 0).astype(jnp.float32) / 20 for x in (numbers, numbers - walk.target)
    )
    hit = (there & (numbers == walk.target)).astype(jnp.float32)
    flags = jnp.concatenate(
        [walk.broken[None].astype(jnp.float32), jax.nn.one_hot(taken - 1, game.STEPS)]
    )
    return nets.mlp_apply(params["mlp"], jnp.concatenate([embedded, size, gap, hit, flags]))[0]


def make(config: Config) -> ensemble.Experiment:
    """Training of the three networks; an evaluation searches held-out games with every guide.

    Args:
        config: sizes.

    Returns:
        An experiment without hyper-parameters. An evaluation reports "solved_GUIDE" for the three
        networks, "solved_rerank" (as many whole walks, reranked by the OVM network),
        "solved_exact_GUIDE" for the exact guides and the perfect reranking, "sampler" (share of
        walks that are right), and "auc_GUIDE" (order of first steps within a game by their exact
        value).
    """

    def init(key: Array, hparams: Any) -> State:
        del hparams
        key, drawing, walking, networks = jax.random.split(key, 4)
        games = sample_games(drawing, config.games, "train")
        examples = sample_examples(walking, games, config.walks)
        # The same first weights for all three, so that the labels are the only difference.
        one = init_network(networks, config)
        params = jax.tree.map(lambda x: jnp.stack([x] * len(LABELS)), one)
        moments = optax.scale_by_adam().init(params)
        return State(key, params, moments, jnp.int32(0), examples)

    def loss_of(params: Any, sample: Examples) -> Array:
        one = jax.vmap(judge, (None, 0, 0))
        values = jax.vmap(one, (0, None, None))(params, sample.walk, sample.taken)
        mask = jnp.ones_like(sample.label.T)
        # A sum over the networks: each has the gradient of its own error.
        return len(LABELS) * posttrain.verifier_loss(values, sample.label.T, mask, "token_mean")[0]

    def step(state: State, key: Array) -> tuple[State, Array]:
        rows = state.examples.taken.shape[0]
        index = jax.random.randint(key, (config.batch,), 0, rows)
        sample = jax.tree.map(lambda leaf: leaf[index], state.examples)
        loss, grads = jax.value_and_grad(loss_of)(state.params, sample)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            direction, moments = optax.scale_by_adam().update(grads, state.moments)
        progress = state.step.astype(jnp.float32) / config.steps
        rate = config.lr * (0.05 + 0.95 * 0.5 * (1 + jnp.cos(jnp.pi * progress)))
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
        return replace(state, params=params, moments=moments, step=state.step + 1), loss

    def update(state: State) -> tuple[State, dict[str, Array]]:
        key, *keys = jax.random.split(state.key, config.block + 1)
        state, loss = jax.lax.scan(step, replace(state, key=key), jnp.stack(keys))
        return state, {"loss": jnp.mean(loss) / len(LABELS)}

    def evaluate(state: State, key: Array) -> dict[str, Array]:
        drawing, searching, ranking = jax.random.split(key, 3)
        games = sample_games(drawing, config.test_games, "test")
        keys = jax.random.split(searching, config.test_games)

        def search(value: Callable[[game.Walk, Array], Array], beams: int) -> tuple[Array, Array]:
            def one(key: Array, problem: countdown.Problem) -> tuple[Array, Array]:
                found = value_guided_beam(
                    key, game.start(problem), game.functions(value), config.candidates, beams,
                    game.STEPS,
                )  # fmt: skip
                right = jax.vmap(game.solved)(found.states)
                return right[found.best], jnp.mean(right.astype(jnp.float32))

            best, mean = jax.vmap(one)(keys, games)
            return jnp.mean(best.astype(jnp.float32)), jnp.mean(mean)

        told: dict[str, Array] = {}
        learned = {
            name: (lambda w, t, i=i: judge(jax.tree.map(lambda x: x[i], state.params), w, t))
            for i, name in enumerate(LABELS)
        }
        exact = {name: (lambda w, t, n=name: game.exact_guide(n, w, t)) for name in game.GUIDES}
        for name, value in learned.items():
            told[f"solved_{name}"], _ = search(value, config.beams)
        told["solved_rerank"], told["sampler"] = search(learned["ovm"], config.candidates)
        for name, value in exact.items():
            told[f"solved_exact_{name}"], _ = search(value, config.beams)
        told["solved_exact_rerank"], _ = search(exact["prm"], config.candidates)

        first = jnp.int32(1)
        firsts = jax.vmap(
            lambda k, p: jax.vmap(lambda i: game.take_step(i, game.start(p), jnp.int32(0)))(
                jax.random.split(k, config.candidates)
            )
        )(jax.random.split(ranking, config.test_games), games)

        def scores(value: Callable[[game.Walk, Array], Array]) -> Array:
            return jax.vmap(jax.vmap(lambda w: value(w, first)))(firsts)

        truth = scores(exact["value"])
        for name, value in learned.items():
            told[f"auc_{name}"] = posttrain.within_problem_auc(
                scores(value), truth, jnp.ones_like(truth)
            )
        return told

    return ensemble.Experiment(init, update, evaluate)

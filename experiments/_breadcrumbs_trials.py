"""One world of the breadcrumbs experiment: trained, every arm tuned, and tested."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble

from . import _task_vectors as tv
from ._breadcrumbs_arms import (
    AGAIN,
    ARITHMETIC,
    ARMS,
    BREADCRUMBS,
    SCALES,
    SETTINGS,
    add_scaled,
    alpha,
    directions,
    matched_globally,
    matched_per_leaf,
)

PER_LEAF, GLOBAL = "task arithmetic, norms of layers", "task arithmetic, norm of the whole"


@dataclass(frozen=True)
class Config:
    """All numbers of the experiment."""

    preset: str
    seeds: int = 16
    counts: tuple[int, ...] = (4, 8, 16)  # tasks merged; tuned per count, or at the first for all
    width: int = 256
    hidden: int = 128
    pretrain_steps: int = 400
    finetune_steps: int = 200  # short, so that task vectors are small
    training_updates: int = 4  # updates of the engine for each of the two trainings
    validation: int = 128  # examples of each task to choose by
    test: int = 512
    smoke: bool = False  # too short to judge

    def __post_init__(self) -> None:
        """Refuses steps that are not whole updates, and fewer than two counts."""
        for name in ("pretrain_steps", "finetune_steps"):
            if getattr(self, name) % self.training_updates:
                raise ValueError(
                    f"{name}: expected a multiple of {self.training_updates}, "
                    f"got {getattr(self, name)}"
                )
        if len(self.counts) < 2 or list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"counts: expected two or more, rising, got {self.counts}")

    @property
    def world(self) -> tv.World:
        """Sizes of the world of task vectors."""
        return tv.World(
            tasks=self.counts[-1],
            width=self.width,
            hidden=self.hidden,
            pretrain_steps=self.pretrain_steps,
            finetune_steps=self.finetune_steps,
        )


@flax.struct.dataclass
class State:
    """One world on its way from pretraining to the test."""

    key: Key[Array, ""]
    step: Int[Array, ""]
    base: tv.Fit
    copies: tv.Fit  # leading axis of tasks
    best: Int[Array, "A n"]  # trial of each arm and count with the best validation accuracy
    found: dict[str, Float[Array, ""]]  # results of the test


def result_names(config: Config) -> tuple[str, ...]:
    """What the test reports: normalised accuracies, and facts about the world."""
    names = []
    for arm in (*ARMS, PER_LEAF, GLOBAL):
        for n in config.counts:
            names += [f"tuned/{arm}/{n}", f"frozen/{arm}/{n}"]
            if n < config.world.tasks:
                names += [f"unseen/{arm}/{n}"]
    facts = ("base", "fine_tuned_accuracy", "base_accuracy", "cosine", "relative_norm")
    return (*names, *facts)


def make(config: Config) -> ensemble.Experiment:
    """The experiment of one world; no hyper-parameters.

    Its updates are, in turn, blocks of pretraining, blocks of fine-tuning, the tuning of each arm,
    and the test. Which one it is depends on the step, so that it should run in exact mode, where
    only that one is computed.
    """
    world, counts, updates = config.world, config.counts, config.training_updates
    validation, test = 1, 2  # streams of examples

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
            best=jnp.zeros((len(ARMS), len(counts)), jnp.int32),
            found={name: jnp.float32(0) for name in result_names(config)},
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

    def vectors(state: State):
        return jax.tree.map(lambda x, b: x - b[None], state.copies.params, state.base.params)

    def merged_vectors(state: State, arm: str):
        """All settings at once would not fit a cache: `directions` is called setting by setting."""
        return directions(jax.random.fold_in(state.key, 2), arm, vectors(state), counts)

    def tune(arm: str, state: State) -> State:
        stream = validation + (2 if arm == AGAIN else 0)
        tasks, sample = data(state, stream, config.validation)
        reference = tv.own_accuracy(state.copies.params, tasks, sample)

        def trials(direction, row: int) -> Callable[[Array], Array]:
            n = counts[row]
            part = tasks.heads[:n], jax.tree.map(lambda x: x[:n], sample)

            def one(trial):
                params = add_scaled(state.base.params, direction, alpha(arm, trial))
                return jnp.mean(tv.accuracy(params, *part) / reference[:n])

            return one

        merged = merged_vectors(state, arm)

        def setting(i):
            moved = merged(i)
            scores = []
            for row in range(len(counts)):
                one = trials(jax.tree.map(lambda x: x[row], moved), row)
                scores.append(jax.lax.map(one, i * SCALES + jnp.arange(SCALES)))
            return jnp.stack(scores)

        scores = jax.lax.map(setting, jnp.arange(SETTINGS))  # [settings, counts, scales]
        table = jnp.swapaxes(scores, 0, 1).reshape(len(counts), -1)
        best = jnp.argmax(table, axis=-1).astype(jnp.int32)
        return replace(state, best=state.best.at[ARMS.index(arm)].set(best))

    def judge(state: State) -> State:
        tasks, sample = data(state, test, config.test)
        _, other = data(state, test + 2, config.test)
        reference, other_reference = (
            tv.own_accuracy(state.copies.params, tasks, x) for x in (sample, other)
        )
        base = tv.accuracy(state.base.params, tasks.heads, sample)
        found = {
            "base": jnp.mean(base / reference),
            "fine_tuned_accuracy": jnp.mean(reference),
            "base_accuracy": jnp.mean(base),
        } | _geometry(vectors(state), state.base.params)
        plain = merged_vectors(state, ARITHMETIC)(jnp.int32(0))

        def tested(arm: str, trial: Array) -> dict[str, Float[Array, "n T"]]:
            """Normalised accuracies on every task after merging so many tasks by one trial."""
            moved, scale = merged_vectors(state, arm)(trial // SCALES), alpha(arm, trial)
            steps = {arm: moved}
            if arm == BREADCRUMBS:
                steps |= {PER_LEAF: jax.vmap(matched_per_leaf)(plain, moved)}
                steps |= {GLOBAL: jax.vmap(matched_globally)(plain, moved)}
            used, against = (other, other_reference) if arm == AGAIN else (sample, reference)

            def share(direction):
                params = add_scaled(state.base.params, direction, scale)
                return tv.accuracy(params, tasks.heads, used) / against

            return {name: jax.lax.map(share, step) for name, step in steps.items()}

        for number, arm in enumerate(ARMS):
            tables = jax.lax.map(partial(tested, arm), state.best[number])
            for name, table in tables.items():  # [tuned for, merged, tasks]
                for row, n in enumerate(counts):
                    found[f"tuned/{name}/{n}"] = jnp.mean(table[row, row, :n])
                    found[f"frozen/{name}/{n}"] = jnp.mean(table[0, row, :n])
                    if n < world.tasks:
                        found[f"unseen/{name}/{n}"] = jnp.mean(table[row, row, n:])
        return replace(state, found=found)

    phases: list[Callable[[State], State]] = [
        pretrain,
        finetune,
        *(partial(tune, arm) for arm in ARMS),
        judge,
    ]

    return ensemble.Experiment(init, tv.in_phases(phases, updates))


def updates_of(config: Config) -> int:
    """How many updates make up one world."""
    return 2 * config.training_updates + len(ARMS) + 1


def _geometry(vectors, base) -> dict[str, Array]:
    """Mean |cosine| of pairs of task vectors, and their length against the base's."""
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(vectors)], axis=1)
    gram = flat @ flat.T
    norms = jnp.sqrt(jnp.diagonal(gram))
    cosines = jnp.abs(gram / (norms[:, None] * norms[None]))
    count = gram.shape[0]
    size = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(base)))
    return {
        "cosine": (jnp.sum(cosines) - jnp.trace(cosines)) / (count * (count - 1)),
        "relative_norm": jnp.mean(norms) / size,
    }

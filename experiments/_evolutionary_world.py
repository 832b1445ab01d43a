"""One world of evolutionary merging: a base, two skills, and a target that needs both at once.

An example of the target is a pair of inputs, one of each task, and counts if both are right: as a
sum in a foreign language counts if the number and the language are. Inputs of the tasks lie in
subspaces that overlap, so that the skills are in each other's way.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble

from . import _task_vectors as tv

SOURCES = 2
STREAMS = {"train": 0, "search": 1, "test": 2}


@dataclass(frozen=True)
class Config:
    """Sizes of tasks and networks."""

    inputs: int = 12  # the tasks' subspaces have 8 dimensions each
    width: int = 96
    blocks: int = 4
    pretrain_steps: int = 400
    finetune_steps: int = 400
    search_rows: int = 256
    test_rows: int = 1024

    @property
    def world(self) -> tv.World:
        """As the library of task vectors wants them."""
        return tv.World(
            tasks=SOURCES,
            inputs=self.inputs,
            width=self.width,
            hidden=self.width,
            blocks=self.blocks,
            pretrain_steps=self.pretrain_steps,
            finetune_steps=self.finetune_steps,
        )


@flax.struct.dataclass
class World:
    """Trained models; all else follows from the key."""

    key: Key[Array, ""]
    base: tv.Encoder
    sources: tv.Encoder  # leaves [2, ...]
    both: tv.Encoder  # the upper bound, which was trained on both tasks


def draw(
    key: Key[Array, ""], config: Config, part: Literal["train", "search", "test"]
) -> tuple[tv.Tasks, tv.Examples]:
    """Tasks of a world, and examples to train, to search or to judge by."""
    count = {"train": config.world.examples, "search": config.search_rows, "test": config.test_rows}
    return tv.draw_world(key, config.world, STREAMS[part], count[part])


def score(params: tv.Encoder, tasks: tv.Tasks, data: tv.Examples) -> Float[Array, ""]:
    """Share of pairs that are right in both tasks.

    Args:
        params: an encoder.
        tasks: both tasks.
        data: as many examples of each.
    """
    inputs, labels = data
    right = jnp.argmax(tv.logits(params, tasks.heads, inputs), axis=-1) == labels
    return jnp.mean(jnp.all(right, axis=0).astype(jnp.float32))


def make(config: Config) -> ensemble.Experiment:
    """Trains a world in one update; no hyper-parameters.

    Args:
        config: sizes.

    Returns:
        An experiment. An evaluation reports the pairs that are right by "base", "source 1",
        "source 2", "uniform" (their average) and "upper bound", and "own", the accuracy of the
        sources on their own tasks.
    """
    world = config.world

    def init(key: Array, hparams: Any) -> World:
        del hparams
        base = tv.encoder_init(jax.random.fold_in(key, 1), world)
        return World(key, base, jax.tree.map(lambda x: jnp.stack([x] * SOURCES), base), base)

    def update(state: World) -> tuple[World, dict[str, Array]]:
        tasks, train = draw(state.key, config, "train")
        keys = jax.random.split(jax.random.fold_in(state.key, 2), 3)
        base, _ = tv.pretrain(
            keys[0], tv.fit_init(state.base), tasks, train, world, world.pretrain_steps
        )
        copies = tv.fit_copies(base.params, world)
        copies, _ = tv.finetune(keys[1], copies, tasks, train, world, world.finetune_steps)
        clean = replace(world, label_noise=0.0, batch=4 * world.batch)
        both = tv.fit_init(base.params)
        both, _ = tv.pretrain(keys[2], both, tasks, train, clean, world.finetune_steps)
        return replace(state, base=base.params, sources=copies.params, both=both.params), {}

    def evaluate(state: World, key: Array) -> dict[str, Array]:
        del key
        tasks, data = draw(state.key, config, "test")
        judged = partial(score, tasks=tasks, data=data)
        source = [jax.tree.map(lambda x: x[i], state.sources) for i in range(SOURCES)]
        return {
            "base": judged(state.base),
            **{f"source {i + 1}": judged(params) for i, params in enumerate(source)},
            "uniform": judged(jax.tree.map(lambda x: jnp.mean(x, axis=0), state.sources)),
            "upper bound": judged(state.both),
            "own": jnp.mean(tv.own_accuracy(state.sources, tasks, data)),
        }

    return ensemble.Experiment(init, update, evaluate)


def take(worlds: World, index: Int[Array, ""]) -> World:
    """One of the stacked worlds."""
    return jax.tree.map(lambda x: x[index], worlds)

"""A world of task vectors: one encoder, many small tasks, and fine-tuned copies to merge.

Each task classifies inputs of its own random subspace by a random network, and has a frozen random
head. A base encoder is trained on all tasks with half of the labels noisy; each fine-tuned copy
starts there and sees one task's clean labels. What a copy has moved is its task vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

Encoder = dict[str, Array]  # "in" [I, W], and per block "up{i}" [W, H], "down{i}" [H, W]
TEMPERATURE = 4.0  # of the frozen heads: their logits have about this deviation


@dataclass(frozen=True)
class World:
    """Sizes of tasks and networks, and how they are trained."""

    tasks: int
    inputs: int = 32
    latent: int = 8  # dimensions of a task's subspace
    classes: int = 8
    width: int = 96
    hidden: int = 96
    blocks: int = 2
    examples: int = 2048  # training examples of each task
    label_noise: float = 0.5  # share of labels that are uniform in pretraining
    pretrain_steps: int = 400
    finetune_steps: int = 400
    batch: int = 64  # examples of each task and step; a quarter of it in pretraining
    pretrain_rate: float = 1e-3
    finetune_rate: float = 1e-3


class Tasks(NamedTuple):
    """What defines the tasks; leading axis T."""

    basis: Float[Array, "T k i"]
    first: Float[Array, "T k m"]
    second: Float[Array, "T m c"]
    heads: Float[Array, "T w c"]


Examples = tuple[Float[Array, "T n i"], Int[Array, "T n"]]  # inputs and labels


class Fit(NamedTuple):
    """An encoder in training."""

    params: Encoder
    moments: optax.ScaleByAdamState


def make_tasks(key: Key[Array, ""], world: World) -> Tasks:
    """Draws tasks and their frozen heads."""
    count, k, m = world.tasks, world.latent, 4 * world.latent
    keys = jax.random.split(key, 4)
    draw = lambda i, *shape: jax.random.normal(keys[i], (count, *shape))  # noqa: E731
    return Tasks(
        draw(0, k, world.inputs) / jnp.sqrt(k),
        2 * draw(1, k, m) / jnp.sqrt(k),
        draw(2, m, world.classes),
        TEMPERATURE * draw(3, world.width, world.classes) / jnp.sqrt(world.width),
    )


def examples(key: Key[Array, ""], tasks: Tasks, count: int) -> Examples:
    """Inputs with clean labels, `count` of each task."""
    shape = (tasks.basis.shape[0], count, tasks.basis.shape[1])
    latent = jax.random.normal(key, shape)
    noise = jax.random.normal(jax.random.fold_in(key, 1), (*shape[:2], tasks.basis.shape[2]))
    inputs = jnp.matmul(latent, tasks.basis) + 0.1 * noise
    teacher = jnp.matmul(jnp.tanh(jnp.matmul(latent, tasks.first)), tasks.second)
    return inputs, jnp.argmax(teacher, axis=-1)


def draw_world(
    key: Key[Array, ""], world: World, stream: int, count: int
) -> tuple[Tasks, Examples]:
    """Tasks, and `count` examples of each that belong to a stream; all follow from the key."""
    tasks, data = jax.random.split(jax.random.fold_in(key, 0))
    made = make_tasks(tasks, world)
    return made, examples(jax.random.fold_in(data, stream), made, count)


def encoder_init(key: Key[Array, ""], world: World) -> Encoder:
    """Draws an encoder."""
    shapes = {"in": (world.inputs, world.width)}
    for i in range(world.blocks):
        shapes |= {f"up{i}": (world.width, world.hidden), f"down{i}": (world.hidden, world.width)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / jnp.sqrt(shape[0])
        for k, (name, shape) in zip(keys, shapes.items())
    }


def encode(params: Encoder, inputs: Float[Array, "*b i"]) -> Float[Array, "*b w"]:
    """Features: a residual network with root-mean-square norms and no biases."""
    h = inputs @ params["in"]
    for i in range((len(params) - 1) // 2):
        h = h + jax.nn.relu(_norm(h) @ params[f"up{i}"]) @ params[f"down{i}"]
    return _norm(h)


def _norm(h: Array) -> Array:
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 1e-6)


def logits(
    params: Encoder, heads: Float[Array, "T w c"], inputs: Float[Array, "T n i"]
) -> Float[Array, "T n c"]:
    """Logits of one encoder for all tasks: the encoder runs once over all inputs."""
    features = encode(params, inputs.reshape(-1, inputs.shape[-1]))
    return jnp.matmul(features.reshape(*inputs.shape[:2], -1), heads)


def accuracy(params: Encoder, heads: Float[Array, "T w c"], data: Examples) -> Float[Array, " T"]:
    """Share of right predictions of each task."""
    inputs, labels = data
    right = jnp.argmax(logits(params, heads, inputs), axis=-1) == labels
    return jnp.mean(right.astype(jnp.float32), axis=-1)


def own_accuracy(copies: Encoder, tasks: Tasks, data: Examples) -> Float[Array, " T"]:
    """Accuracy of each task's own model, a hundredth at least: other accuracies are divided by it.

    Args:
        copies: fine-tuned encoders, stacked.
        tasks: their tasks.
        data: examples of each task.
    """

    def one(task):
        params, heads, inputs, labels = task
        return accuracy(params, heads[None], (inputs[None], labels[None]))[0]

    return jnp.maximum(jax.lax.map(one, (copies, tasks.heads, *data)), 0.01)


def losses(params: Encoder, heads: Float[Array, "T w c"], data: Examples) -> Float[Array, " T"]:
    """Mean cross-entropy of each task."""
    inputs, labels = data
    each = optax.softmax_cross_entropy_with_integer_labels(logits(params, heads, inputs), labels)
    return jnp.mean(each, axis=-1)


def in_phases(
    phases: Sequence[Callable[[Any], Any]], updates: int
) -> Callable[[Any], tuple[Any, Any]]:
    """The update of an experiment: two trainings of some updates each, then other phases in turn.

    Args:
        phases: functions of the state, a dataclass with `step` and with `found`, what is reported.
        updates: how often each of the first two is called; the others are called once.
    """

    def update(state):
        late = state.step - 2 * updates
        phase = jnp.where(late < 0, (state.step >= updates).astype(jnp.int32), late + 2)
        state = jax.lax.switch(phase, phases, state)
        return replace(state, step=state.step + 1), state.found

    return update


def fit_init(params: Encoder) -> Fit:
    """Starts a training."""
    return Fit(params, optax.scale_by_adam().init(params))


def fit_copies(base: Encoder, world: World) -> Fit:
    """Starts a training of one copy per task."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (world.tasks, *x.shape)), fit_init(base))


def pretrain(
    key: Key[Array, ""], fit: Fit, tasks: Tasks, train: Examples, world: World, steps: int
) -> tuple[Fit, Float[Array, ""]]:
    """Takes steps of the base on all tasks with noisy labels; the last mean loss."""
    inputs, labels = train

    def loss(params: Encoder, key: Array) -> Array:
        rows, coin, other = jax.random.split(key, 3)
        size = (labels.shape[0], max(world.batch // 4, 1))
        index = jax.random.randint(rows, size, 0, labels.shape[1])
        x = jnp.take_along_axis(inputs, index[:, :, None], axis=1)
        y = jnp.take_along_axis(labels, index, axis=1)
        noisy = jax.random.uniform(coin, size) < world.label_noise
        y = jnp.where(noisy, jax.random.randint(other, size, 0, world.classes), y)
        return jnp.mean(losses(params, tasks.heads, (x, y)))

    return _descend(key, fit, loss, world.pretrain_rate, steps)


def finetune(
    key: Key[Array, ""], fits: Fit, tasks: Tasks, train: Examples, world: World, steps: int
) -> tuple[Fit, Float[Array, " T"]]:
    """Takes steps of each copy on its own task; the last losses.

    One copy after another: their products are plain matrices, which a CPU does faster than stacks.
    """

    def one(task):
        key, fit, heads, (inputs, labels) = task

        def loss(params: Encoder, key: Array) -> Array:
            index = jax.random.randint(key, (world.batch,), 0, labels.shape[0])
            return losses(params, heads[None], (inputs[index][None], labels[index][None]))[0]

        return _descend(key, fit, loss, world.finetune_rate, steps)

    keys = jax.random.split(key, tasks.heads.shape[0])
    return jax.lax.map(one, (keys, fits, tasks.heads, train))


def _descend(key, fit: Fit, loss, rate: float, steps: int) -> tuple[Fit, Float[Array, ""]]:
    def step(fit: Fit, key: Array):
        value, gradient = jax.value_and_grad(loss)(fit.params, key)
        with jax.numpy_dtype_promotion("standard"):
            direction, moments = optax.scale_by_adam().update(gradient, fit.moments)
        params = jax.tree.map(lambda p, d: p - rate * d, fit.params, direction)
        return Fit(params, moments), value

    fit, values = jax.lax.scan(step, fit, jax.random.split(key, steps))
    return fit, values[-1]

"""Small RWKV-7 models that have read reference solutions: what post-training starts from.

A model is made once: it is kept under a hash of everything that decides what it becomes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxlab import ensemble, rwkv7, tasks
from jaxlab.posttrain.grpo import sample_completions, sample_problems
from jaxlab.posttrain.language_model import (
    LanguageModel,
    Params,
    completion_logits,
    rwkv7_model,
)
from jaxlab.posttrain.supervised import sft_loss


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a model becomes, but its seed."""

    task: tasks.TaskConfig
    compact: bool = True  # over the task's own ids; False for models that are to be merged
    n_layer: int = 1
    n_embd: int = 32
    head_size: int = 16
    ranks: tuple[int, int, int, int] = (8, 8, 8, 8)
    steps: int = 400
    batch: int = 64
    lr: float = 1e-2  # at its peak; it ends at a tenth
    weight_decay: float = 0.0
    block: int = 50  # steps between two evaluations
    evaluation_prompts: int = 128

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "block", "evaluation_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.steps % self.block:
            raise ValueError(f"steps: expected a multiple of {self.block}, got {self.steps}")

    def digest(self) -> str:
        """A hash of the contents."""
        contents = {"kind": type(self.task).__module__, **dataclasses.asdict(self)}
        text = json.dumps(contents, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_of(recipe: Recipe) -> tasks.Task:
    """The task that a recipe is for.

    Args:
        recipe: of the model.

    Returns:
        The task over the ids of the model.
    """
    task = tasks.make_task(recipe.task)
    return tasks.compact(task) if recipe.compact else task


def model_of(recipe: Recipe) -> LanguageModel:
    """The model that a recipe trains.

    Args:
        recipe: of the model.

    Returns:
        RWKV-7 in float32.
    """
    config = rwkv7.Config(
        task_of(recipe).vocab_size,
        recipe.n_layer,
        recipe.n_embd,
        head_size=recipe.head_size,
        ranks=recipe.ranks,
        dtype=jnp.float32,
    )
    return rwkv7_model(config)


def make(recipe: Recipe) -> ensemble.Experiment:
    """Training on reference solutions of training problems, new ones at every step.

    Args:
        recipe: of the model.

    Returns:
        An experiment without hyper-parameters: an update is a block of steps and reports "nll" and
        "accuracy" per token; an evaluation "test_pass_at_1", sampled at temperature 1.
    """
    task, model = task_of(recipe), model_of(recipe)
    optimizer = rwkv7.optimizer(
        recipe.lr, 0.1 * recipe.lr, recipe.steps, weight_decay=recipe.weight_decay
    )

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        del hparams
        key, start = jax.random.split(key)
        params = model.init(start)
        return {"params": params, "optimizer": optimizer.init(params), "key": key}

    def loss_of(params: Params, problems: Any, prompts: Array) -> tuple[Array, dict[str, Array]]:
        solutions = jax.vmap(task.solution)(problems)
        mask = jax.vmap(lambda p, s: tasks.policy_mask(task, p, s))(problems, solutions)
        return sft_loss(completion_logits(model, params, prompts, solutions), solutions, mask)

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], dict[str, Array]]:
        key, drawing = jax.random.split(state["key"])
        problems, prompts, _good = sample_problems(drawing, task, recipe.batch, "train")
        grads, metrics = jax.grad(loss_of, has_aux=True)(state["params"], problems, prompts)
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": moments, "key": key}, metrics

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, metrics = jax.lax.scan(step, state, None, length=recipe.block)
        return state, {name: jnp.mean(value) for name, value in metrics.items()}

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        fixed = jax.random.key(0, impl="threefry2x32")
        problems, prompts, _ = sample_problems(fixed, task, recipe.evaluation_prompts, "test")
        sampled, rows = sample_completions(
            key, task, model, state["params"], problems, prompts, 1, task.solution_length
        )
        return {"test_pass_at_1": jnp.mean(jax.vmap(task.outcome)(rows, sampled.tokens))}

    return ensemble.Experiment(init, update, evaluate)


def pretrained(
    recipe: Recipe,
    seeds: Sequence[int],
    directory: str | Path,
    *,
    progress: bool = False,
) -> tuple[Params, Any]:
    """Trains models, or reads those that were trained before.

    Args:
        recipe: of the models.
        seeds: one model each, all trained side by side.
        directory: where models are kept.
        progress: show a progress line.

    Returns:
        Parameters, leaves [len(seeds), ...], and the learning curves (an xarray.Dataset).
    """
    experiment = make(recipe)
    kind = type(recipe.task).__module__.rpartition(".")[2]
    which = hashlib.sha256(repr([int(seed) for seed in seeds]).encode()).hexdigest()[:8]
    place = Path(directory) / f"{kind}-{recipe.digest()}-{which}"

    def train(resume: bool) -> Any:
        return ensemble.run(
            experiment,
            steps=recipe.steps // recipe.block,
            seeds=[int(seed) for seed in seeds],
            checkpoint=place,
            resume=resume,
            progress=progress,
            label=f"pretraining {kind}",
        )

    try:
        curves = train(True)
    except ensemble.CheckpointError:
        # What is there was made by other code or another version: it is made again.
        curves = train(False)
    params = ensemble.states(place, experiment)["params"]
    return jax.tree.map(jnp.asarray, params), curves

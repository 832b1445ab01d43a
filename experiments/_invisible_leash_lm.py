"""The leash on a language model: countdown in postfix notation, where every program can be listed.

A small RWKV-7 has read reference programs for a while, so that it finds a right one in many
attempts but seldom in one. Its training goes on by GRPO (three variants, one compiled program for
all of them and all seeds) or by imitation of right programs drawn uniformly. What it could do and
can do on held-out problems is compared by the exact probabilities of all 192 programs of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxlab import ensemble, posttrain, tasks
from jaxlab.posttrain import grpo, pretraining
from jaxlab.tasks import countdown, countdown_postfix

from ._invisible_leash_exact import measures

if TYPE_CHECKING:
    import xarray

# Names of the arms that GRPO has, with what tells them apart.
GRPO_ARMS = {
    "grpo": {"kl_coef": 0.0, "entropy_coef": 0.0},
    "grpo + kl": {"kl_coef": 0.1, "entropy_coef": 0.0},
    "grpo + entropy": {"kl_coef": 0.0, "entropy_coef": 0.02},
}
IMITATION = "sft"
GAME = countdown.Config(style="postfix")


@dataclass(frozen=True)
class Config:
    """Sizes of the model and of its training."""

    n_layer: int = 1
    n_embd: int = 32
    head_size: int = 16
    ranks: tuple[int, int, int, int] = (8, 8, 8, 8)
    base_steps: int = 600  # of imitation before anything else
    base_batch: int = 64
    base_lr: float = 1e-2
    prompts: int = 16  # per step of GRPO
    group: int = 8
    block: int = 20  # steps in one call of the engine
    steps: int = 200  # of every arm
    lr: float = 2e-3  # of every arm
    imitation_batch: int = 64
    problems: int = 64  # held out
    passes: int = 256  # k of pass@k
    threshold: float = 1 / 256  # what counts as reached

    def __post_init__(self) -> None:
        """Refuses steps that are not whole blocks."""
        for name in ("steps", "base_steps"):
            if getattr(self, name) % self.block:
                raise ValueError(
                    f"{name}: expected a multiple of {self.block}, got {getattr(self, name)}"
                )

    @property
    def recipe(self) -> pretraining.Recipe:
        """How the bases are made."""
        return pretraining.Recipe(
            GAME,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            head_size=self.head_size,
            ranks=self.ranks,
            steps=self.base_steps,
            batch=self.base_batch,
            lr=self.base_lr,
            block=self.block,
        )

    @property
    def rl(self) -> grpo.Config:
        """How GRPO samples and learns; the divergence is there for the arm that is tied."""
        return grpo.Config(
            prompts=self.prompts, group=self.group, kl="k2", steps_per_update=self.block
        )


def listed(task: tasks.Task, count: int) -> tuple[Array, Array, Array]:
    """Held-out problems with all their programs.

    Args:
        task: the game over the ids of the model.
        count: number of problems.

    Returns:
        Prompts [N, P], programs [N, C, T] in the ids of the model, and which of them win [N, C].
    """
    problems, prompts, _ = grpo.sample_problems(jax.random.key(11), task, count, "test")
    texts, wins = jax.vmap(lambda p: countdown_postfix.programs(p.numbers, p.target, GAME.cap))(
        problems
    )
    narrow = tasks.compact_vocab(task.used).to_compact
    return prompts, narrow[texts], wins


def program_probabilities(
    model: posttrain.LanguageModel,
    params: Any,
    prompts: Int[Array, "N P"],
    programs: Int[Array, "N C T"],
) -> Float[Array, "N C"]:
    """Exact probability of every listed program, one problem at a time to bound the memory."""

    def one(problem: tuple[Array, Array]) -> Array:
        prompt, texts = problem
        logits = posttrain.completion_logits(model, params, prompt[None], texts)
        return jnp.exp(jnp.sum(posttrain.token_log_probs(logits, texts), axis=1))

    return jax.lax.map(one, (prompts, programs))


def _evaluation(config: Config) -> Any:
    """(state, key) -> measures of the state's parameters against those it started from."""
    task, model = pretraining.task_of(config.recipe), pretraining.model_of(config.recipe)

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        prompts, programs, wins = listed(task, config.problems)
        base, trained = (
            program_probabilities(model, state[name], prompts, programs)
            for name in ("reference", "params")
        )
        told = measures(base, trained, wins, config.passes, config.threshold)
        sampled, _ = grpo.sample_completions(
            key, task, model, state["params"], (), prompts, 8, task.solution_length
        )
        return {**told, "token_entropy": posttrain.masked_mean(sampled.entropy, sampled.mask)}

    return evaluate


def _on_bases(experiment: ensemble.Experiment) -> ensemble.Experiment:
    """Members of different bases have random streams of their own, the same in every arm."""

    def init(key: Array, hparams: Any) -> Any:
        return experiment.init(jax.random.fold_in(key, hparams["base"]), hparams)

    return experiment._replace(init=init)


def make_grpo(config: Config, bases: Any) -> ensemble.Experiment:
    """GRPO from one of the stacked bases; `hparams` has "base", "lr" and the arm's numbers."""
    experiment = grpo.make(
        pretraining.task_of(config.recipe),
        pretraining.model_of(config.recipe),
        lambda key, hparams: jax.tree.map(lambda leaf: leaf[hparams["base"]], bases),
        config.rl,
    )
    return _on_bases(experiment._replace(evaluate=_evaluation(config)))


def make_imitation(config: Config, bases: Any) -> ensemble.Experiment:
    """Likelihood of right programs, each as likely as the others; `hparams` as for GRPO."""
    task, model = pretraining.task_of(config.recipe), pretraining.model_of(config.recipe)
    narrow = tasks.compact_vocab(task.used).to_compact

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        params = jax.tree.map(lambda leaf: leaf[hparams["base"]], bases)
        lr = jnp.asarray(hparams["lr"], jnp.float32)
        moments = grpo.default_optimizer(lr).init(params)
        return {"params": params, "reference": params, "optimizer": moments, "lr": lr, "key": key}

    def right_program(key: Array, problem: countdown.Problem) -> Array:
        texts, wins = countdown_postfix.programs(problem.numbers, problem.target, GAME.cap)
        return narrow[texts[jax.random.categorical(key, jnp.where(wins, 0.0, -jnp.inf))]]

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], Array]:
        key, drawing, choosing = jax.random.split(state["key"], 3)
        count = config.imitation_batch
        problems, prompts, _good = grpo.sample_problems(drawing, task, count, "train")
        texts = jax.vmap(right_program)(jax.random.split(choosing, count), problems)

        def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = posttrain.completion_logits(model, params, prompts, texts)
            return posttrain.sft_loss(logits, texts, jnp.ones(texts.shape))

        grads, metrics = jax.grad(loss_of, has_aux=True)(state["params"])
        transform = grpo.default_optimizer(state["lr"])
        updates, moments = transform.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, "params": params, "optimizer": moments, "key": key}, metrics["nll"]

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, nll = jax.lax.scan(step, state, None, length=config.block)
        return state, {"nll": jnp.mean(nll)}

    return _on_bases(ensemble.Experiment(init, update, _evaluation(config)))


def run(
    config: Config, seeds: Sequence[int], directory: Path, resume: bool, progress: bool
) -> xarray.Dataset:
    """All arms from the base of each seed; dims (arm, seed, step)."""
    import xarray

    bases, _ = pretraining.pretrained(config.recipe, seeds, directory / "bases", progress=progress)
    updates = config.steps // config.block
    count = len(seeds)

    def go(name: str, experiment: ensemble.Experiment, arms: dict[str, dict[str, float]]) -> Any:
        rows = [(base, arm) for arm in arms.values() for base in range(count)]
        numbers = {key for arm in arms.values() for key in arm}
        points: dict[str, Any] = {
            key: jnp.asarray([arm[key] for _, arm in rows], jnp.float32) for key in numbers
        }
        points |= {
            "base": jnp.asarray([base for base, _ in rows], jnp.int32),
            "lr": jnp.full(len(rows), config.lr, jnp.float32),
        }
        data = ensemble.run(
            experiment,
            steps=updates,
            seeds=[0],
            points=points,
            record_every=max(1, updates // 4),
            checkpoint=directory / name,
            resume=resume,
            progress=progress,
            label=name,
        )
        data = data.isel(seed=0, drop=True).drop_vars([*points, "point"])
        table = {
            key: (("arm", "seed", *value.dims[1:]), value.values.reshape(
                len(arms), count, *value.shape[1:]
            ))
            for key, value in data.data_vars.items()
        }  # fmt: skip
        step = {"step": data["step"].values * config.block}
        return xarray.Dataset(table, {"arm": list(arms), "seed": np.asarray(seeds), **step})

    trained = go("lm-grpo", make_grpo(config, bases), GRPO_ARMS)
    imitated = go("lm-imitation", make_imitation(config, bases), {IMITATION: {}})
    return xarray.concat([trained, imitated], "arm", join="outer", data_vars="all")

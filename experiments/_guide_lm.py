"""Guidance of a language model: chains of modular arithmetic, hinted by their first results.

A small RWKV-7 has read solutions, some of them behind a hint. At the end of that nearly all were
wrong where a chain starts from a large number and there is no hint: it knows the skill and has a
bad habit, and half of the problems are hard. Its training goes on in nine ways, one compiled
program for all of them and all seeds. A step of every arm has the same number of groups: where
guidance is due, half of them are hinted groups of the other half's problems; elsewhere all are
groups of problems of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxlab import ensemble, posttrain
from jaxlab.posttrain import grpo

from ._guide_world import Config, is_right, make_bases, sampler, solver

if TYPE_CHECKING:
    import xarray

# Arms; the order is the meaning of `hparams["arm"]`.
ARMS = (
    "grpo",
    "filter",  # groups of equal rewards do not count
    "guide",
    "guide, constant",
    "guide, percentile",
    "guide, no ratio",
    "guide, useless",  # hints of other problems
    "always hinted",  # and trained behind the hint
    "solutions",  # failed groups see the reference solution instead
)
_GUIDED = tuple(arm.startswith("guide") or arm == "solutions" for arm in ARMS)


def _is(arm: Array, name: str) -> Array:
    return arm == ARMS.index(name)


def collector(config: Config) -> Callable[[Array, Any, Array], tuple[dict, dict]]:
    """(key, parameters, arm) -> the rows of a step to learn from, and what is told of them.

    Rows have "prompts" and "lengths" of what they are trained behind, "tokens", "mask", "old"
    log-probabilities behind what they were sampled behind, "advantages", whether they are "hinted",
    and whether their ratios are to be 1 ("blind").
    """
    task, sample = config.task, sampler(config)
    half = config.groups // 2
    second = jnp.arange(config.groups) >= half

    def per_row(x: Array) -> Array:
        return jnp.repeat(x, config.group, axis=0)

    def collect(key: Array, params: Any, arm: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        drawing, giving, sampling = jax.random.split(key, 3)
        guided = jnp.asarray(_GUIDED)[arm]
        problems, prompts, good = grpo.sample_problems(drawing, task, config.groups, "train")
        own = jnp.arange(config.groups)
        source = jnp.where(guided, own % half, own)
        problems = jax.tree.map(lambda leaf: leaf[source], problems)
        prompts, good = prompts[source], good[source]
        plain, _ = config.tokens
        strange = jnp.concatenate([prompts[:, :plain], jnp.roll(prompts, 1, axis=0)[:, plain:]], 1)
        prompts = jnp.where(_is(arm, "guide, useless"), strange, prompts)
        always = _is(arm, "always hinted")
        hinted = always | (guided & second)
        lengths = config.lengths(giving, hinted)
        sampled = sample(sampling, params, prompts, lengths, config.group)
        shown = per_row(second) & _is(arm, "solutions")
        solutions = per_row(jax.vmap(task.solution)(problems))
        tokens = jnp.where(shown[:, None], solutions, sampled.tokens)
        mask = jnp.where(shown[:, None], 1.0, sampled.mask)

        rewards = is_right(tokens, solutions)
        table = rewards.reshape(-1, config.group)
        mixed = jnp.max(table, axis=1) > jnp.min(table, axis=1)
        failed = jnp.tile(posttrain.needs_guidance(table[:half]), 2)
        counts = mixed | _is(arm, "grpo")
        counts = jnp.where(guided & second, failed & (mixed | _is(arm, "solutions")), counts)
        advantages = posttrain.grpo_advantages(rewards, config.group)
        batch = {
            "prompts": prompts,
            "lengths": jnp.where(always, lengths, plain),
            "tokens": tokens,
            "mask": mask * per_row(jnp.where(counts, good, 0))[:, None],
            "old": sampled.policy_log_probs,
            "advantages": jnp.where(shown, 1.0, advantages),
            "hinted": per_row(guided & second),
            # Ratios of 1: by design, or because nothing sampled these tokens.
            "blind": (per_row(guided & second) & _is(arm, "guide, no ratio")) | shown,
        }
        return batch, {
            "reward": jnp.mean(table[:half]),
            "failed": jnp.mean(failed[:half]),
            "used": jnp.mean(counts.astype(jnp.float32)),
        }

    return collect


def failing(config: Config, params: Any, rounds: int = 16) -> Float[Array, ""]:
    """Share of the groups of a step that have no right sample."""
    collect, arm = collector(config), jnp.int32(ARMS.index("filter"))
    keys = jax.random.split(jax.random.key(0), rounds)
    return jnp.mean(jax.lax.map(lambda key: collect(key, params, arm)[1]["failed"], keys))


def make(config: Config, bases: Any) -> ensemble.Experiment:
    """One arm from one of the stacked bases; `hparams` has "base", "arm" and "lr"."""
    model, collect, solve = config.model, collector(config), solver(config)

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        params = jax.tree.map(lambda leaf: leaf[hparams["base"]], bases)
        lr = jnp.asarray(hparams["lr"], jnp.float32)
        # The same stream for all arms of a base.
        return {
            "params": params,
            "base": params,
            "optimizer": grpo.default_optimizer(lr).init(params),
            "lr": lr,
            "arm": jnp.asarray(hparams["arm"], jnp.int32),
            "key": jax.random.fold_in(key, hparams["base"]),
        }

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], dict[str, Array]]:
        key, collecting = jax.random.split(state["key"])
        arm = state["arm"]
        batch, told = collect(collecting, state["params"], arm)

        def shape(ratio: Array, counted: Array) -> Array:
            constant = posttrain.shape_ratio(ratio, counted, "constant", 0.1)
            damped = posttrain.shape_ratio(ratio, counted, "percentile", 0.9)
            shaped = jnp.where(_is(arm, "guide, constant"), constant, ratio)
            return jnp.where(_is(arm, "guide, percentile"), damped, shaped)

        def loss_of(params: Any) -> tuple[Array, dict[str, Array]]:
            logits = posttrain.completion_logits(
                model, params, batch["prompts"], batch["tokens"], batch["lengths"]
            )
            log_probs = posttrain.token_log_probs(logits, batch["tokens"])
            own = jax.lax.stop_gradient(log_probs)
            old = jnp.where(batch["blind"][:, None], own, batch["old"])
            return posttrain.guide_policy_loss(
                log_probs, old, batch["advantages"], batch["mask"], batch["hinted"], shape=shape
            )

        grads, metrics = jax.grad(loss_of, has_aux=True)(state["params"])
        transform = grpo.default_optimizer(state["lr"])
        updates, moments = transform.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {**state, "params": params, "optimizer": moments, "key": key}, {**told, **metrics}

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, told = jax.lax.scan(step, state, None, length=config.block)
        return state, {name: jnp.mean(value) for name, value in told.items()}

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        before, after = (solve(state[name], key, False) for name in ("base", "params"))
        passes = partial(posttrain.pass_at_k, config.samples)
        told = {
            "pass_at_1": jnp.mean(passes(after, 1)),
            "pass_at_16": jnp.mean(passes(after, min(16, config.samples))),
            "base_pass_at_1": jnp.mean(passes(before, 1)),
            "base_pass_at_16": jnp.mean(passes(before, min(16, config.samples))),
        }
        for k in (4, 16):
            gain = posttrain.gain_decomposition(
                before, after, config.samples, min(k, config.samples)
            )
            told |= {f"distilled_{k}": gain.distilled, f"new_{k}": gain.new}
        return told

    return ensemble.Experiment(init, update, evaluate)


def train(
    config: Config,
    bases: Any,
    members: Sequence[tuple[int, int, float]],
    place: Path,
    resume: bool,
    progress: bool,
) -> xarray.Dataset:
    """Trains members (base, arm, learning rate); dims (point, step)."""
    base, arm, lr = zip(*members)
    updates = config.steps // config.block
    data = ensemble.run(
        make(config, bases),
        steps=updates,
        seeds=[0],
        points={
            "base": jnp.asarray(base, jnp.int32),
            "arm": jnp.asarray(arm, jnp.int32),
            "lr": jnp.asarray(lr, jnp.float32),
        },
        record_every=updates // 2,
        checkpoint=place,
        resume=resume,
        progress=progress,
        label=place.name,
    )
    return data.isel(seed=0, drop=True)


def run(
    config: Config,
    seeds: Sequence[int],
    tuning: Sequence[int],
    directory: Path,
    resume: bool,
    progress: bool,
) -> tuple[xarray.Dataset, dict[str, float]]:
    """All arms from the base of each seed, at the learning rate that suited each arm best.

    Returns:
        The dataset, dims (arm, seed, step), and the learning rates.
    """
    import xarray

    every = range(len(ARMS))
    go = partial(make_bases, config, directory=directory, resume=resume, progress=progress)
    bases = go(tuning, label="tuning-bases")
    tried = [(b, arm, lr) for arm in every for lr in config.rates for b in range(len(tuning))]
    found = train(config, bases, tried, directory / "tuning", resume, progress)
    score = found["pass_at_1"].values[:, -1].reshape(len(ARMS), len(config.rates), len(tuning))
    rates = [config.rates[int(i)] for i in np.nanargmax(score.mean(axis=2), axis=1)]

    bases = go(seeds, label="bases")
    solve = solver(config)
    hinted = jax.jit(jax.vmap(lambda params: solve(params, jax.random.key(0), True)))(bases)
    failed = jax.jit(jax.vmap(partial(failing, config)))(bases)
    members = [(b, arm, rates[arm]) for arm in every for b in range(len(seeds))]
    data = train(config, bases, members, directory / "arms", resume, progress)
    table: dict[str, Any] = {
        str(name): (
            ("arm", "seed", "step"),
            value.values.reshape(len(ARMS), len(seeds), -1),
        )
        for name, value in data.data_vars.items()
        if value.dims == ("point", "step")
    }
    table["base_failed"] = ("seed", np.asarray(failed))
    table["base_hinted_pass_at_1"] = ("seed", np.mean(hinted, axis=1) / config.samples)
    coords = {
        "arm": list(ARMS),
        "seed": np.asarray(seeds),
        "step": data["step"].values * config.block,
    }
    return xarray.Dataset(table, coords), dict(zip(ARMS, rates))

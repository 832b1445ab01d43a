"""Countdown as a walk: a sampler that breaks the rules now and then, and exact guides for it.

The sampler takes a uniformly random valid action, but each action against the rules has a small
weight too; one of those ends the walk in failure, as a language model's wrong step would. With
three numbers left there are 192 ways to go on, so what a prefix is worth is known exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.search import StepFunctions
from jaxlab.tasks import countdown, countdown_exact, countdown_postfix

GAME = countdown.Config(k=4)
GONE = countdown_postfix.GONE
STEPS = GAME.k - 1
LEAK = 0.02  # weight of each action against the rules; valid ones have 1
GUIDES = ("prm", "prm-o", "value")


class Walk(NamedTuple):
    """A partial solution."""

    numbers: Int[Array, " k"]  # remaining ones in front, `GONE` behind
    target: Int[Array, ""]
    broken: Bool[Array, ""]  # a step was against the rules
    path: Int[Array, " k-1"]  # actions taken, -1 for none


def start(problem: countdown.Problem) -> Walk:
    """Before the first step."""
    return Walk(problem.numbers, problem.target, jnp.asarray(False), jnp.full(STEPS, -1))


def take_step(key: Key[Array, ""], walk: Walk, place: Int[Array, ""]) -> Walk:
    """One step of the sampler; a broken walk stays as it is.

    Args:
        key: random key.
        walk: before the step.
        place: number of steps taken.

    Returns:
        After the step.
    """
    left, right, operator = (jnp.asarray(x) for x in countdown_exact.actions(GAME.k))
    a, b = walk.numbers[left], walk.numbers[right]
    there = (a != GONE) & (b != GONE)
    result, valid = countdown_exact.calculate(
        operator, jnp.maximum(a, 0), jnp.maximum(b, 0), GAME.cap
    )
    weight = jnp.where(there, jnp.where(valid, 1.0, LEAK), 0.0)
    action = jax.random.categorical(key, jnp.log(weight))
    numbers = walk.numbers.at[left[action]].set(result[action]).at[right[action]].set(GONE)
    numbers = numbers[jnp.argsort(numbers == GONE, stable=True)]
    moved = Walk(numbers, walk.target, ~valid[action], walk.path.at[place].set(action))
    return jax.tree.map(lambda new, old: jnp.where(walk.broken, old, new), moved, walk)


def leaky(numbers: Array, valid: Array, target: Array) -> Array:
    """The sampler's probabilities of all actions, those against the rules included."""
    del numbers, target
    weight = jnp.where(valid, 1.0, LEAK)
    return weight / jnp.sum(weight)


def exact_guide(name: str, walk: Walk, taken: Int[Array, ""]) -> Float[Array, ""]:
    """What a perfectly trained verifier would say.

    Args:
        name: "prm": no step was against the rules; "prm-o": and the target is within reach;
            "value": probability that the sampler goes on to reach it. All three say of a whole walk
            whether it is right.
        walk: after at least one step.
        taken: number of steps taken; traced.

    Returns:
        A score in [0, 1], 0 for broken walks.
    """

    def judge(size: int) -> Array:
        numbers = walk.numbers[:size]
        if size == 1:
            return (numbers[0] == walk.target).astype(jnp.float32)
        if name == "prm":
            return jnp.float32(1)
        if name == "prm-o":
            reach = countdown_exact.reachable(numbers, walk.target, GAME.cap)
            return reach.astype(jnp.float32)
        return countdown_exact.value(numbers, walk.target, GAME.cap, leaky)

    scores = jnp.stack([judge(GAME.k - steps) for steps in range(1, STEPS + 1)])
    return jnp.where(walk.broken, 0, scores[jnp.clip(taken - 1, 0, STEPS - 1)])


def solved(walk: Walk) -> Bool[Array, ""]:
    """Whether a whole walk kept the rules and ended at the target."""
    return ~walk.broken & (walk.path[-1] >= 0) & (walk.numbers[0] == walk.target)


def functions(value: object) -> StepFunctions:
    """The walk as a search problem.

    Args:
        value: (walk, steps taken) -> score.

    Returns:
        Functions of one walk; a broken walk is not finished and cannot be an answer.
    """
    return StepFunctions(
        sample_step=take_step,
        value=value,  # type: ignore[arg-type]
        finished=lambda walk: ~walk.broken & (walk.path[-1] >= 0),
        # Equal texts: the same numbers in the same order of steps.
        identity=lambda walk: jnp.concatenate([walk.path, walk.numbers]),
    )

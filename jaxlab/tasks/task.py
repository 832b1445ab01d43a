"""What every task offers to a trainer, whatever it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.tasks.sequences import first
from jaxlab.tasks.vocabulary import EOS, VOCAB_SIZE, compact_vocab

Problem = Any  # a pytree of int32 arrays


class Environment(NamedTuple):
    """Tokens that are not the model's to choose; a state machine over what was emitted.

    Attributes:
        start: problem -> (state, forced token at the first position or -1).
        step: (state, emitted token) -> (state, forced token at the next position or -1).
    """

    start: Callable[[Problem], tuple[Any, Int[Array, ""]]]
    step: Callable[[Any, Int[Array, ""]], tuple[Any, Int[Array, ""]]]


class Task(NamedTuple):
    """A task as pure functions of one problem, with static shapes; vmap lifts them to batches.

    Attributes:
        name: of the task.
        vocab_size: ids are in [0, vocab_size).
        stop: id that ends a completion.
        used: ids, of the shared vocabulary, that prompts and right completions consist of.
        prompt_length: tokens of a prompt, the same for all.
        solution_length: tokens of the longest reference solution, its end included.
        sample: key -> (problem, whether the draw succeeded).
        identity: problem -> integers that are equal for equivalent problems.
        prompt: problem -> tokens.
        solution: problem -> a right completion, `PAD` behind its end.
        outcome: (problem, completion) -> 1.0 if right and else 0.0, for any ids whatsoever.
        reward: (problem, completion) -> the task's own scale.
        environment: forced tokens, None if the model writes everything.
    """

    name: str
    vocab_size: int
    stop: int
    used: tuple[int, ...]
    prompt_length: int
    solution_length: int
    sample: Callable[[Key[Array, ""]], tuple[Problem, Bool[Array, ""]]]
    identity: Callable[[Problem], Int[Array, " n"]]
    prompt: Callable[[Problem], Int[Array, " Tp"]]
    solution: Callable[[Problem], Int[Array, " Ts"]]
    outcome: Callable[[Problem, Int[Array, " T"]], Float[Array, ""]]
    reward: Callable[[Problem, Int[Array, " T"]], Float[Array, ""]]
    environment: Environment | None = None


def policy_mask(task: Task, problem: Problem, completion: Int[Array, " T"]) -> Float[Array, " T"]:
    """Where a completion is the model's own: up to its end, without what the environment forced.

    Args:
        task: what the problem is of.
        problem: one problem.
        completion: ids.

    Returns:
        1 where the model chose the token, its stop token included.
    """
    place = jnp.arange(completion.shape[0])
    mine = place <= first(completion == task.stop)
    environment = task.environment
    if environment is not None:

        def step(carry: tuple[Any, Array], token: Array) -> tuple[tuple[Any, Array], Array]:
            state, forced = carry
            return environment.step(state, token), forced < 0

        mine = mine & jax.lax.scan(step, environment.start(problem), completion)[1]
    return mine.astype(jnp.float32)


def compact(task: Task) -> Task:
    """The same task over the ids it uses alone, for small models.

    Args:
        task: over the shared vocabulary.

    Returns:
        The task with ids 0, ..., v - 1; `PAD` stays 0. Ids outside of that are judged as garbage.

    Raises:
        ValueError: the task is compact already.
    """
    if task.vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"task: expected the shared vocabulary of {VOCAB_SIZE} ids, got {task.vocab_size}"
        )
    with jax.ensure_compile_time_eval():  # a task may be made inside of a traced function
        vocab = compact_vocab(task.used)
        stop = int(vocab.to_compact[EOS])
    size = vocab.from_compact.shape[0]

    def narrow(tokens: Array) -> Array:
        return jnp.where(tokens < 0, -1, vocab.to_compact[jnp.maximum(tokens, 0)])

    def widen(tokens: Array) -> Array:
        inside = (tokens >= 0) & (tokens < size)
        return jnp.where(inside, vocab.from_compact[jnp.clip(tokens, 0, size - 1)], -1)

    environment = task.environment
    if environment is not None:
        inner = environment

        def start(problem: Problem) -> tuple[Any, Array]:
            state, forced = inner.start(problem)
            return state, narrow(forced)

        def step(state: Any, token: Array) -> tuple[Any, Array]:
            state, forced = inner.step(state, widen(token))
            return state, narrow(forced)

        environment = Environment(start, step)
    return task._replace(
        vocab_size=size,
        stop=stop,
        prompt=lambda problem: narrow(task.prompt(problem)),
        solution=lambda problem: narrow(task.solution(problem)),
        outcome=lambda problem, completion: task.outcome(problem, widen(completion)),
        reward=lambda problem, completion: task.reward(problem, widen(completion)),
        environment=environment,
    )

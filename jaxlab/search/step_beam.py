"""Beams over sampled steps: a value function chooses which partial solutions go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

State = Any


class StepFunctions(NamedTuple):
    """A problem that is solved in sampled steps, as functions of one partial solution.

    Attributes:
        sample_step: (key, state, step's number) -> the state after one more step; a finished state
            comes back as it is.
        value: (state, number of steps taken) -> how promising the state is.
        finished: state -> whether it is a whole solution.
        identity: state -> integers that are equal for equal partial solutions.
    """

    sample_step: Callable[[Key[Array, ""], State, Int[Array, ""]], State]
    value: Callable[[State, Int[Array, ""]], Float[Array, ""]]
    finished: Callable[[State], Bool[Array, ""]]
    identity: Callable[[State], Int[Array, " n"]]


class Beams(NamedTuple):
    """What the search ended with."""

    states: State  # leaves [b, ...]
    scores: Float[Array, " b"]
    finished: Bool[Array, " b"]
    best: Int[Array, ""]  # the finished one with the highest score; of all, if none is finished


def value_guided_beam(
    key: Key[Array, ""],
    start: State,
    functions: StepFunctions,
    candidates: int,
    beams: int,
    max_steps: int,
    *,
    dedup: bool = True,
) -> Beams:
    """Every beam samples candidates / beams next steps; the best of all candidates go on.

    Args:
        key: random key.
        start: state before the first step.
        functions: the problem and the guide.
        candidates: n, a multiple of `beams`.
        beams: b; with b = n nothing is ever dropped, which is plain sampling and reranking.
        max_steps: most steps.
        dedup: prefer different partial solutions to copies of a better one.

    Returns:
        The beams after the last step.

    Raises:
        ValueError: `candidates` is no multiple of `beams`, or there are no steps.

    Reference: Yu et al. 2024, OVM, Outcome-supervised Value Models for Planning in Mathematical
    Reasoning, section 3.3.

    Pitfall: without `dedup` the best beams of problems with few steps to choose from are copies of
    each other; finished solutions stay and compete with the others on the same scale.
    """
    if beams < 1 or candidates % beams:
        raise ValueError(
            f"candidates: expected a multiple of beams {beams}, at least 1, got {candidates}"
        )
    if max_steps < 1:
        raise ValueError(f"max_steps: expected at least 1, got {max_steps}")
    rows = jnp.repeat(jnp.arange(beams), candidates // beams)

    def step(carry: State, place: Array) -> tuple[State, Array]:
        parents = jax.tree.map(lambda leaf: leaf[rows], carry)
        step_key = jax.random.fold_in(key, place)
        keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(jnp.arange(candidates))
        sampled = jax.vmap(functions.sample_step, (0, 0, None))(keys, parents, place)
        done = jax.vmap(functions.finished)(parents)
        sampled = jax.tree.map(
            lambda new, old: jnp.where(done.reshape(-1, *[1] * (new.ndim - 1)), old, new),
            sampled,
            parents,
        )
        scores = jax.vmap(functions.value, (0, None))(sampled, place + 1)
        identities = jax.vmap(functions.identity)(sampled) if dedup else None
        chosen = keep_best(scores, beams, identities)
        return jax.tree.map(lambda leaf: leaf[chosen], sampled), scores[chosen]

    first = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf)[None], (beams, *jnp.shape(leaf))), start
    )
    states, history = jax.lax.scan(step, first, jnp.arange(max_steps))
    finished = jax.vmap(functions.finished)(states)
    return Beams(states, history[-1], finished, best_finished(history[-1], finished))


def keep_best(
    scores: Float[Array, " n"], count: int, identities: Int[Array, "n m"] | None = None
) -> Int[Array, " b"]:
    """The places of the highest scores, in the order of the places; earlier ones win ties.

    Args:
        scores: of the candidates.
        count: how many to take.
        identities: with them, copies of an earlier candidate come after everything else.

    Returns:
        Places.
    """
    size = scores.shape[0]
    copy = jnp.zeros(size, bool)
    if identities is not None:
        same = jnp.all(identities[:, None, :] == identities[None, :, :], axis=-1)
        copy = jnp.any(same & jnp.tril(jnp.ones((size, size), bool), -1), axis=1)
    order = jnp.lexsort((jnp.arange(size), -scores, copy))
    return jnp.sort(order[:count])


def best_finished(scores: Num[Array, "*b n"], possible: Bool[Array, "*b n"]) -> Int[Array, "*b"]:
    """Place of the highest score among the possible ones; among all, if none is possible.

    Args:
        scores: of the candidates; NaN loses to every number.
        possible: which of them may be taken.

    Returns:
        Places.
    """
    possible = jnp.where(jnp.any(possible, axis=-1, keepdims=True), possible, True)
    order = jnp.lexsort((-scores, ~possible), axis=-1)  # stable, NaN behind every number
    return order[..., 0]

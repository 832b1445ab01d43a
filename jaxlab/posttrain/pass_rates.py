"""What many samples per prompt show: pass@k, majority, best of k, answer entropy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


def pass_at_k(n: int, correct: Int[Array, "*b"], k: int | Int[Array, ""]) -> Float[Array, "*b"]:
    """Probability that k of n samples, drawn without replacement, contain a right one.

    Args:
        n: samples per prompt.
        correct: how many of them are right.
        k: at most n; may be traced.

    Returns:
        1 - C(n - c, k) / C(n, k), the unbiased estimate for each prompt; average afterwards.

    Raises:
        ValueError: n or k is not positive, or k is larger than n.

    Reference: Chen et al. 2021, Evaluating Large Language Models Trained on Code, eq. 1.

    Pitfall: differences of log-gamma functions are wrong by 1e-2 in float32 at n = 8192; this is a
    sum of log1p.
    """
    _check(n, k)
    i = jnp.arange(1, n + 1)
    missed = (n - correct)[..., None]
    i = i.reshape((1,) * (missed.ndim - 1) + (n,))
    share = jnp.asarray(k, jnp.float32) / i.astype(jnp.float32)
    counts = (i > missed) & (i > k)  # below k nothing is left to multiply: the product is zero
    terms = jnp.where(counts, jnp.log1p(-jnp.where(counts, share, 0)), 0)
    return jnp.where(missed[..., 0] < k, 1.0, -jnp.expm1(jnp.sum(terms, axis=-1)))


def pass_pow_k(n: int, correct: Int[Array, "*b"], k: int | Int[Array, ""]) -> Float[Array, "*b"]:
    """Probability that k of n samples, drawn without replacement, are all right.

    Args:
        n: samples per prompt.
        correct: how many of them are right.
        k: at most n; may be traced.

    Returns:
        C(c, k) / C(n, k) for each prompt.

    Raises:
        ValueError: n or k is not positive, or k is larger than n.
    """
    _check(n, k)
    wrong = n - correct
    # C(c, k) / C(n, k) is what pass@k would miss, were the wrong ones the right ones.
    return 1 - pass_at_k(n, wrong, k)


def _check(n: int, k: int | Array) -> None:
    if n < 1 or (isinstance(k, (int, np.integer)) and not 1 <= k <= n):
        raise ValueError(f"n, k: expected 1 <= k <= n, got n = {n} and k = {k}")


def majority_answer(answers: Int[Array, "*b n"]) -> Int[Array, "*b"]:
    """The most frequent answer; of equally frequent ones the first to occur.

    Args:
        answers: ids, negative for samples without a readable answer, which have no vote.

    Returns:
        Ids; -1 where nobody has a vote.
    """
    same = answers[..., :, None] == answers[..., None, :]
    votes = jnp.where(answers >= 0, jnp.sum(same, axis=-1), 0)
    best = jnp.argmax(votes, axis=-1)[..., None]
    winner = jnp.take_along_axis(answers, best, axis=-1)[..., 0]
    return jnp.where(jnp.max(votes, axis=-1) > 0, winner, -1)


def majority_at_k(answers: Int[Array, "*b n"], right: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Whether the majority is right.

    Args:
        answers: ids, negative for none.
        right: id of the right answer.

    Returns:
        0 or 1 per prompt.
    """
    winner = majority_answer(answers)
    return ((winner == right) & (winner >= 0)).astype(jnp.float32)


def best_of_k(scores: Num[Array, "*b n"], correct: Num[Array, "*b n"]) -> Float[Array, "*b"]:
    """Whether the sample with the highest score is right.

    Args:
        scores: of a verifier; the first of equal ones is taken, and NaN loses to every number.
        correct: 1 for right samples.

    Returns:
        0 or 1 per prompt.
    """
    best = jnp.maximum(jnp.nanargmax(scores, axis=-1), 0)[..., None]  # -1 where all are NaN
    return jnp.take_along_axis(correct, best, axis=-1)[..., 0].astype(jnp.float32)


def answer_entropy(
    answers: Int[Array, "*b n"], weights: Num[Array, "*b n"] | None = None
) -> Float[Array, "*b"]:
    """Entropy of the distribution over distinct answers, in nats.

    Args:
        answers: ids; all negative ones are one class, "no answer".
        weights: of the samples, for exact distributions; equal if None.

    Returns:
        Entropies.
    """
    ids = jnp.maximum(answers, -1)
    weight = jnp.ones(ids.shape) if weights is None else weights.astype(jnp.float32)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    share = weight / jnp.where(total > 0, total, 1)
    same = ids[..., :, None] == ids[..., None, :]
    # Each sample sees the mass of its own class, so the sum needs no list of classes.
    mass = jnp.sum(jnp.where(same, share[..., None, :], 0), axis=-1)
    return -jnp.sum(share * jnp.log(jnp.where(mass > 0, mass, 1)), axis=-1)


def distinct_answers(answers: Int[Array, "*b n"]) -> Int[Array, "*b"]:
    """Number of different readable answers."""
    same = answers[..., :, None] == answers[..., None, :]
    size = answers.shape[-1]
    earlier: Bool[Array, "n n"] = jnp.tril(jnp.ones((size, size), bool), -1)
    earlier = earlier.reshape((1,) * (answers.ndim - 1) + (size, size))
    new = ~jnp.any(same & earlier, axis=-1) & (answers >= 0)
    return jnp.sum(new, axis=-1)

"""What the tests of tasks share: many problems of a task, and rows of tokens from all over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import tasks

TASKS = {
    "chain": tasks.chain.make(),
    "chain-wide": tasks.chain.make(
        tasks.chain.Config(n_steps=4, p=97, merge=2, hint=1, operators=(20, 22))
    ),
    "countdown": tasks.countdown.make(),
    "countdown-postfix": tasks.countdown.make(tasks.countdown.Config(style="postfix")),
    "stack": tasks.stack.make(tasks.stack.Config(tries=2)),
    "kvsum": tasks.kvsum.make(tasks.kvsum.Config(n_keys=16, p=100, turns=3, keys_per_turn=2)),
    "equiv": tasks.equiv.make(),
    "tool": tasks.tool.make(tasks.tool.Config(3, 2, style="call", tool_fail_prob=0.5)),
}


@functools.cache
def compiled(function):
    return jax.jit(jax.vmap(function))


def problems(task, n, seed=0):
    return compiled(task.sample)(jax.random.split(jax.random.key(seed), n))


def garbage(rng, n, length):
    """Rows of ids from the vocabulary, around it and far outside of it."""
    near = rng.integers(-3, 84, (n, length))
    far = rng.integers(-(2**31), 2**31, (n, length))
    rows = np.where(rng.random((n, length)) < 0.1, far, near)
    # Rows with an early end and from few ids get further into a parser.
    few = rng.choice([1, 2, 3, 4, 10, 11, 13, 20, 22, 23, 24, 25, 26, 31, 33], (n, length))
    return np.where(rng.random((n, 1)) < 0.5, few, rows).astype(np.int32)


def corruptions(tokens):
    """Every sequence that differs in one token, which may be any id or one outside."""
    ids = np.asarray([*range(-1, 82), -(2**31), 2**31 - 1], np.int32)
    rows = np.repeat(tokens[None], len(tokens) * len(ids), axis=0)
    places = np.repeat(np.arange(len(tokens)), len(ids))
    rows[np.arange(len(rows)), places] = np.tile(ids, len(tokens))
    return rows[(rows != tokens).any(axis=1)]


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


@pytest.fixture(scope="session")
def draw():
    return problems


@pytest.fixture(scope="session")
def junk():
    return garbage


@pytest.fixture(scope="session")
def corrupt():
    return corruptions


@pytest.fixture(scope="session")
def judge():
    """Outcomes and rewards of many completions of one problem."""

    def verdicts(task, problem, rows):
        def both(row):
            return task.outcome(problem, row), task.reward(problem, row)

        return [np.asarray(x) for x in jax.jit(jax.vmap(both))(jnp.asarray(rows))]

    return verdicts

"""Guided beams on a lock with three dials of ten digits: one combination opens it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import StepFunctions, best_finished, keep_best, value_guided_beam

CODE = jnp.asarray([7, 2, 9])
START = jnp.full(3, -1)


def turn(key, state, place):
    return state.at[place].set(jax.random.randint(key, (), 0, 10))


def right_so_far(state, taken):
    """The exact probability to open the lock from here, but for a factor of the step."""
    return jnp.all((state == CODE) | (jnp.arange(3) >= taken)).astype(jnp.float32)


def lock(value=right_so_far, finished=None):
    return StepFunctions(
        turn, value, finished or (lambda state: jnp.all(state >= 0)), lambda state: state
    )


def search(seeds, functions, candidates, beams, steps=3, **options):
    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(
        jax.vmap(
            lambda k: value_guided_beam(k, START, functions, candidates, beams, steps, **options)
        )
    )(keys)


def opened(result):
    best = np.take_along_axis(np.asarray(result.states), np.asarray(result.best)[:, None, None], 1)
    return (best[:, 0] == np.asarray(CODE)).all(axis=1)


def test_an_exact_guide_needs_one_right_digit_per_step():
    """Each step succeeds if one of n digits is right: (1 - 0.9^n)^3; without a guide n / 1000."""
    n, runs = 20, 2000
    want = (1 - 0.9**n) ** 3
    found = opened(search(runs, lock(), n, 1)).mean()
    assert abs(found - want) < 4 * np.sqrt(want * (1 - want) / runs)
    blind = opened(search(runs, lock(lambda state, taken: jnp.float32(0)), n, 1)).mean()
    assert blind < 0.01


def test_with_as_many_beams_as_candidates_it_is_sampling_and_reranking():
    result = search(300, lock(), 8, 8, dedup=False)
    keys = jax.random.split(jax.random.key(0), 300)

    def plain(key):
        def one(row):
            state = START
            for place in range(3):
                step_key = jax.random.fold_in(key, place)
                state = turn(jax.random.fold_in(step_key, row), state, place)
            return state

        return jax.vmap(one)(jnp.arange(8))

    np.testing.assert_array_equal(result.states, jax.jit(jax.vmap(plain))(keys))
    one = search(300, lock(), 1, 1)
    np.testing.assert_array_equal(one.states[:, 0], result.states[:, 0])


def test_dedup_keeps_different_beams():
    """With two digits to choose from, copies are everywhere; a flat score cannot tell them."""
    few = lock(lambda state, taken: jnp.float32(0))._replace(
        sample_step=lambda key, state, place: state.at[place].set(jax.random.randint(key, (), 0, 2))
    )
    for dedup in (True, False):
        states = np.asarray(search(200, few, 32, 4, dedup=dedup).states)
        kinds = np.asarray([len({tuple(row) for row in beams}) for beams in states])
        assert (kinds == 4).all() if dedup else (kinds < 4).any()


def test_what_is_finished_stays_and_competes():
    def finished(state):
        return state[0] == 7  # a first digit of 7 ends it

    def value(state, taken):
        return jnp.where(state[0] == 7, 0.5, jnp.where(state[1] == 3, 1.0, 0.1))

    result = search(500, lock(value, finished), 30, 2)
    states, done = np.asarray(result.states), np.asarray(result.finished)
    assert (states[done][:, 1:] == -1).all()  # never changed again
    assert done.any() and (~done).any()
    best = np.asarray(result.best)
    rows = done.any(axis=1)
    assert done[np.arange(500), best][rows].all()  # an answer, if there is one


def test_choosing():
    scores = jnp.asarray([1.0, 3.0, 2.0, 3.0, 0.0])
    assert keep_best(scores, 2).tolist() == [1, 3]
    assert keep_best(scores, 3).tolist() == [1, 2, 3]
    assert keep_best(jnp.zeros(5), 2).tolist() == [0, 1]
    kinds = jnp.asarray([[0], [1], [2], [1], [4]])
    assert keep_best(scores, 3, kinds).tolist() == [0, 1, 2]
    assert keep_best(scores, 5, kinds).tolist() == [0, 1, 2, 3, 4]
    possible = jnp.asarray([True, False, True, False, True])
    assert int(best_finished(scores, possible)) == 2
    assert int(best_finished(scores, jnp.zeros(5, bool))) == 1
    with pytest.raises(ValueError, match="candidates: expected a multiple"):
        value_guided_beam(jax.random.key(0), START, lock(), 5, 2, 1)


def test_a_score_that_is_no_number_is_not_chosen():
    scores = jnp.asarray([jnp.nan, 1.0, 2.0, -jnp.inf])
    possible = jnp.asarray([True, True, False, True])
    assert int(best_finished(scores, possible)) == 1
    assert int(best_finished(scores, jnp.zeros(4, bool))) == 2
    # The only possible one, whatever its score.
    assert int(best_finished(scores, jnp.asarray([False, False, False, True]))) == 3
    with pytest.raises(ValueError, match="max_steps: expected at least 1, got 0"):
        value_guided_beam(jax.random.key(0), START, lock(), 6, 2, 0)

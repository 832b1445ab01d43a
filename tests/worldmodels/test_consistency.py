"""Value functions that data leave: exact inclusion, equality without structure, golden cases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.worldmodels import (
    consistent_value_sets,
    count_distinct,
    deterministic_optimal_values,
    label_set,
    value_labels,
)

GAMMA, DENOMINATOR, ATOL = 0.5, float(2**4 * 105), 1e-4  # 105 = lcm(1, 3, 7, 15)


def tabular(states=3):
    """Every deterministic model of a few states and two actions."""
    models = itertools.product(range(states), repeat=2 * states)
    return np.array(list(models), np.int32).reshape(-1, states, 2)


def two_bits():
    """Models of two bits, each of which follows itself and the action."""
    models = []
    for f, g in itertools.product(range(16), repeat=2):
        table = [
            [(f >> (2 * (s & 1) + a) & 1) + 2 * (g >> (2 * (s >> 1) + a) & 1) for a in (0, 1)]
            for s in range(4)
        ]
        models.append(table)
    return np.array(models, np.int32)


def optimal(models, reward):
    return jax.jit(jax.vmap(lambda m: deterministic_optimal_values(m, reward, GAMMA, 40)))(
        jnp.asarray(models)
    )


def sets_of(models, reward, true, pairs):
    """Distinct value functions (as sets of rounded tuples) by either way of learning."""
    q = optimal(models, reward)
    rows = [(s, a, int(models[true][s, a])) for s, a in pairs]
    masks = consistent_value_sets(
        jnp.asarray(models), q, reward, GAMMA, jnp.array(rows, jnp.int32), ATOL
    )
    fractions = np.round(np.asarray(q).reshape(len(models), -1) * DENOMINATOR).astype(int)
    return [{tuple(row) for row in fractions[np.asarray(mask)]} for mask in masks], q, masks


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factored", [False, True])
def test_model_based_values_are_among_model_free_ones(seed, factored):
    models = two_bits() if factored else tabular()
    rng = np.random.default_rng(seed)
    states = models.shape[1]
    reward = np.zeros((states, 2), np.float32)
    reward[rng.integers(states)] = 1
    true = int(rng.integers(len(models)))
    pairs = list(itertools.product(range(states), range(2)))
    strict = []
    for size in (1, 2, 3):
        for chosen in itertools.islice(itertools.combinations(pairs, size), 6):
            (based, free), q, masks = sets_of(models, jnp.asarray(reward), true, chosen)
            assert based <= free and based
            labels = value_labels(q, DENOMINATOR)
            assert int(count_distinct(labels, masks[0])) == len(based)
            assert int(count_distinct(labels, masks[1])) == len(free)
            strict.append(based < free)
    assert np.mean(strict) > 0.5 if factored else not any(strict)
    (based, free), _, _ = sets_of(models, jnp.asarray(reward), true, pairs)
    assert len(based) == len(free) == 1  # all pairs seen: one value function is left


def test_optimal_values_by_hand():
    # From 0, action 1 leads to the rewarded absorbing state 1; action 0 stays.
    model = jnp.array([[0, 1], [1, 1]])
    reward = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    q = deterministic_optimal_values(model, reward, 0.5)
    np.testing.assert_allclose(q, [[0.5, 1.0], [2.0, 2.0]], rtol=1e-6)
    assert q.dtype == reward.dtype
    few = deterministic_optimal_values(model, reward, 0.5, 3)
    np.testing.assert_allclose(few[1], 1.75)  # the error is gamma^3 / (1 - gamma)


def test_masks_by_hand():
    models = jnp.array([[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[1, 1], [1, 1]]])
    reward = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    q = optimal(models, reward)
    based, free = consistent_value_sets(models, q, reward, 0.5, jnp.array([[0, 1, 1]]), ATOL)
    assert based.tolist() == free.tolist() == [True, False, True]
    based, free = consistent_value_sets(
        models, q, reward, 0.5, jnp.array([[1, 0, 1], [0, 0, 0]]), ATOL
    )
    assert based.tolist() == free.tolist() == [True, True, False]


def test_labels_name_values_and_not_models():
    q = jnp.array([[[1.0, 2.0]], [[0.5, 2.0]], [[1.0, 2.0 + 1e-6]], [[0.5, 1.0]]])
    labels = value_labels(q, 8.0)
    assert labels[0] == labels[2] and len(np.unique(labels)) == 3
    mask = jnp.array([True, False, True, True])
    assert int(count_distinct(labels, mask)) == 2
    assert int(jnp.sum(label_set(labels, jnp.zeros(4, bool)))) == 0

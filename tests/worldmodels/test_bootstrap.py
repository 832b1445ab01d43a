import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.worldmodels.bootstrap import split_rows, uniform_index

split = jax.jit(split_rows, static_argnums=(1, 2, 4, 5))


def test_uniform_index_stays_below_the_count_and_is_uniform(key):
    index = np.asarray(uniform_index(key, (70000,), jnp.int32(7)))
    counts = np.bincount(index)
    assert counts.size == 7
    # Chi-square with 6 degrees of freedom: 22.5 has a tail of 1e-3.
    assert np.sum((counts - 10000) ** 2 / 10000) < 22.5


@pytest.mark.parametrize("count", [2, 7, 83, 100])
def test_holdout_and_training_rows_are_disjoint_and_valid(key, count):
    rows = split(key, 3, 100, jnp.int32(count), 0.2, 15)
    held = np.asarray(rows.holdout)[np.asarray(rows.holdout_mask)]
    assert held.size == min(max(1, int(0.2 * count)), 15)
    assert np.unique(held).size == held.size
    assert rows.train_count == count - held.size
    bag = np.asarray(rows.bootstrap[:, : int(rows.train_count)])
    assert held.max() < count and bag.max() < count and bag.min() >= 0
    assert not set(held) & set(bag.ravel())


def test_every_member_draws_its_own_sample_with_replacement(key):
    rows = split(key, 4, 4000, jnp.int32(4000), 0.25, 5000)
    bags = np.asarray(rows.bootstrap[:, : int(rows.train_count)])
    for bag in bags:
        # A share 1 - 1/e of the rows is drawn at least once.
        np.testing.assert_allclose(np.unique(bag).size / 3000, 1 - np.exp(-1), atol=0.03)
    shared = len(set(bags[0]) & set(bags[1])) / 3000
    np.testing.assert_allclose(shared, (1 - np.exp(-1)) ** 2, atol=0.04)


def test_a_members_sample_does_not_depend_on_the_number_of_members(key):
    few, many = (split(key, n, 50, jnp.int32(40), 0.2, 15) for n in (1, 5))
    np.testing.assert_array_equal(few.bootstrap[0], many.bootstrap[0])

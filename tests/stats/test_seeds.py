"""Keys belong to a seed and a role, not to a place in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.stats import EVALUATION_FIRST, ROLES, TUNING_SEEDS, evaluation_seeds, seed_keys


def _data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_a_seed_alone_has_the_keys_it_has_in_a_batch(key):
    batch = seed_keys(key, range(8))
    alone = seed_keys(key, [3])
    for role in ROLES:
        np.testing.assert_array_equal(_data(alone[role])[0], _data(batch[role])[3])


def test_numbers_of_a_seed_do_not_depend_on_the_batch(key):
    def run(key):
        return jnp.tanh(jax.random.normal(key, (5,)) @ jax.random.normal(key, (5, 5)))

    batch = jax.vmap(run)(seed_keys(key, range(8))["env"])
    alone = jax.vmap(run)(seed_keys(key, [3])["env"])
    np.testing.assert_allclose(alone[0], batch[3], rtol=1e-6)


def test_all_keys_differ_over_seeds_and_roles(key):
    keys = seed_keys(key, range(50))
    flat = np.concatenate([_data(k) for k in keys.values()])
    assert len(np.unique(flat, axis=0)) == 50 * len(ROLES)


def test_keys_are_the_two_documented_folds(key):
    expected = jax.random.fold_in(jax.random.fold_in(key, 1007), ROLES.index("init"))
    np.testing.assert_array_equal(_data(seed_keys(key, [1007])["init"])[0], _data(expected))


def test_role_numbers_are_pinned():
    assert ROLES == ("data", "env", "eval", "init", "order", "noise")


def test_roles_can_be_chosen_without_changing_the_keys(key):
    some = seed_keys(key, [1, 2], roles=("noise", "data"))
    assert set(some) == {"noise", "data"}
    np.testing.assert_array_equal(_data(some["noise"]), _data(seed_keys(key, [1, 2])["noise"]))


def test_seed_ids_may_be_traced(key):
    ids = jnp.arange(4)
    traced = jax.jit(lambda i: jax.random.key_data(seed_keys(key, i)["eval"]))(ids)
    np.testing.assert_array_equal(traced, _data(seed_keys(key, ids)["eval"]))


def test_evaluation_and_tuning_seeds_are_disjoint():
    seeds = evaluation_seeds(500)
    assert seeds[0] == EVALUATION_FIRST == 1000
    assert len(set(seeds)) == 500
    assert not set(seeds) & set(TUNING_SEEDS)


def test_bad_input_is_refused_by_name(key):
    with pytest.raises(ValueError, match=r"roles: expected names out of .* got \['policy'\]"):
        seed_keys(key, [0], roles=("policy",))
    with pytest.raises(ValueError, match="root: expected one typed key"):
        seed_keys(jnp.zeros(2, jnp.uint32), [0])
    with pytest.raises(ValueError, match="root: expected one typed key"):
        seed_keys(jax.random.split(key), [0])
    with pytest.raises(ValueError, match="seed_ids: expected integers"):
        seed_keys(key, jnp.float32(1.0))
    with pytest.raises(ValueError, match="n: expected at least one seed"):
        evaluation_seeds(0)

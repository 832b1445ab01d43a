import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.values import partial_value_iteration, pessimistic


@pytest.mark.parametrize("length", [1, 4])
def test_an_error_at_the_end_of_a_chain_comes_back_discounted(length):
    following = jnp.minimum(jnp.arange(length + 1)[:, None] + 1, length)
    reward, updated = jnp.zeros((length + 1, 1)), jnp.arange(length + 1) < length
    q = jnp.zeros((1, length + 1, 1)).at[0, length].set(7.0)
    out = partial_value_iteration(q, following, reward, 0.9, updated, 2 * length)
    np.testing.assert_allclose(out[0, :, 0], 7 * 0.9 ** (length - np.arange(length + 1)), rtol=1e-5)
    known = jnp.arange(length + 1) == length
    patched = partial_value_iteration(
        q,
        following,
        reward,
        0.9,
        updated,
        2 * length,
        known_value=jnp.zeros(length + 1),
        known=known,
    )
    np.testing.assert_array_equal(patched[0, :length], 0.0)
    assert float(patched[0, length, 0]) == 7.0  # what is never updated stays


def world(key, states=20, actions=3):
    keys = jax.random.split(key)
    following = jax.random.randint(keys[0], (states, actions), 0, states)
    return following, jax.random.normal(keys[1], (states, actions))


def test_with_everything_updated_it_is_value_iteration(key):
    following, reward = world(key)
    q = 5 * jax.random.normal(key, (3, 20, 3))
    out = partial_value_iteration(q, following, reward, 0.8, jnp.ones(20, bool), 120)
    value = np.zeros(20)
    for _ in range(200):
        value = (np.asarray(reward, np.float64) + 0.8 * value[np.asarray(following)]).max(1)
    np.testing.assert_allclose(out.max(-1), np.broadcast_to(value, (3, 20)), rtol=1e-4, atol=1e-4)
    # The optimum is a fixed point, whatever is updated, and wherever its values are patched in.
    best = partial_value_iteration(out, following, reward, 0.8, jnp.ones(20, bool), 50)
    some = jnp.arange(20) % 2 == 0
    for known in (some, ~some):
        again = partial_value_iteration(
            best, following, reward, 0.8, some, 9, known_value=best[0].max(-1), known=known
        )
        np.testing.assert_allclose(again, best, rtol=1e-5, atol=1e-5)


def test_the_minimum_is_over_the_critics_that_take_part(key):
    q = jax.random.normal(key, (4, 5, 2))
    for n in (1, 2, 4):
        got = jax.jit(pessimistic)(q, jnp.int32(n))
        np.testing.assert_array_equal(got, np.asarray(q)[:n].min(0))
    np.testing.assert_array_equal(pessimistic(q), np.asarray(q).min(0))
    following, reward = world(key, 5, 2)
    updated = jnp.arange(5) < 3

    def run(n):
        return partial_value_iteration(q, following, reward, 0.9, updated, 7, critics=n)

    values = jax.vmap(run)(jnp.array([1, 4]))
    alone = partial_value_iteration(q[:1], following, reward, 0.9, updated, 7)
    np.testing.assert_allclose(values[0, 0], alone[0], rtol=1e-6)
    assert bool(jnp.all(values[1][0, :3] <= values[0][0, :3] + 1e-6))
    assert float(jnp.max(values[0][0, :3] - values[1][0, :3])) > 0.01


def test_known_values_come_with_their_place(key):
    following, reward = world(key)
    with pytest.raises(ValueError, match="known: expected together with known_value"):
        partial_value_iteration(
            jnp.zeros((1, 20, 3)), following, reward, 0.9, jnp.ones(20, bool), 1, known=jnp.ones(20)
        )

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import (
    FiniteMDP,
    action_values,
    garnet,
    greedy_policy,
    optimal_value,
    policy_value,
    sample_next,
)

# Two states: staying in 0 earns nothing, leaving for 1 costs 1, staying in 1 earns 2.
STAY, LEAVE = 0, 1
TWO = FiniteMDP(
    transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
    reward=jnp.array([[0.0, -1.0], [2.0, 0.0]]),
)


@pytest.fixture(scope="module")
def some():
    draw = jax.jit(jax.vmap(lambda k: garnet(k, 11, 3, 4, reward_density=0.2)))
    return draw(jax.random.split(jax.random.key(3), 50))


def test_a_garnet_branches_and_pays_as_it_was_asked_to(some):
    p, r = np.asarray(some.transition, np.float64), np.asarray(some.reward)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    assert (p >= 0).all() and ((p > 0).sum(-1) == 4).all()
    assert ((r > 0).sum((1, 2)) == round(0.2 * 33)).all() and (r < 1).all() and (r >= 0).all()
    # Every next state is as likely as another, and pieces of a broken stick have these moments.
    np.testing.assert_allclose((p > 0).mean((0, 1, 2)), 4 / 11, atol=0.04)
    np.testing.assert_allclose(p[p > 0].mean(), 1 / 4, rtol=1e-5)
    np.testing.assert_allclose((p[p > 0] ** 2).mean(), 2 / (4 * 5), rtol=0.03)
    np.testing.assert_allclose(r[r > 0].mean(), 0.5, atol=0.06)
    one = garnet(jax.random.key(0), 5, 2, 1, reward_density=0.0)
    assert set(np.unique(one.transition)) == {0.0, 1.0} and not one.reward.any()
    assert garnet(jax.random.key(0), 2, 2, 2).reward.all()


def test_values_of_two_states_by_hand():
    gamma = 0.5
    stay = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(policy_value(TWO, stay, gamma), [0.0, 4.0], atol=1e-6)
    # The best policy leaves 0 for 1: -1 + 0.5 * 4 = 1.
    best = optimal_value(TWO, gamma)
    np.testing.assert_allclose(best, [1.0, 4.0], rtol=1e-6)
    q = action_values(TWO, best, gamma)
    np.testing.assert_allclose(q, [[0.5, 1.0], [4.0, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(greedy_policy(q), [[0, 1], [1, 0]])
    # Impatient, it stays where it is.
    np.testing.assert_allclose(optimal_value(TWO, 0.1), [0.0, 2 / 0.9], atol=1e-6)


def test_values_against_value_iteration_in_float64(some):
    p, r = np.asarray(some.transition, np.float64), np.asarray(some.reward, np.float64)
    gammas = np.linspace(0.0, 0.97, 50, dtype=np.float32)
    best = jax.jit(jax.vmap(optimal_value))(some, gammas)
    even = jax.jit(jax.vmap(policy_value, (0, None, 0)))(some, jnp.full((11, 3), 1 / 3), gammas)
    v, w = np.zeros((2, 50, 11))
    for _ in range(1500):
        v = (r + gammas[:, None, None] * np.einsum("nsat,nt->nsa", p, v)).max(-1)
        w = (r + gammas[:, None, None] * np.einsum("nsat,nt->nsa", p, w)).mean(-1)
    np.testing.assert_allclose(best, v, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(even, w, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_rounding_grows_with_the_horizon_as_documented(gamma):
    gamma = float(np.float32(gamma))
    mdp = garnet(jax.random.key(2), 40, 3, 4)
    even = jax.jit(policy_value)(mdp, jnp.full((40, 3), 1 / 3), gamma)
    p = np.asarray(mdp.transition, np.float64).mean(1)
    p, r = p / p.sum(-1, keepdims=True), np.asarray(mdp.reward, np.float64).mean(1)
    exact = np.linalg.solve(np.eye(40) - gamma * p, r)
    np.testing.assert_allclose(even, exact, rtol=1e-7 / (1 - gamma))


def test_policy_iteration_ends_where_all_actions_are_equal():
    even = FiniteMDP(jnp.full((3, 2, 3), 1 / 3), jnp.array([[0.1, 0.1], [0.7, 0.7], [0.3, 0.3]]))
    best = jax.jit(optimal_value)(even, 0.9)
    np.testing.assert_allclose(best, np.array([0.1, 0.7, 0.3]) + 0.9 * np.mean(best), rtol=1e-5)
    np.testing.assert_array_equal(optimal_value(even.replace(reward=jnp.zeros((3, 2))), 0.9), 0.0)


def test_steps_follow_the_probabilities_and_never_leave():
    mdp = garnet(jax.random.key(1), 6, 2, 3)
    state, action = jnp.full((20000,), 4), jnp.full((20000,), 1)
    drawn = jax.jit(sample_next)(jax.random.key(2), mdp, state, action)
    assert drawn.dtype == jnp.int32
    share = np.bincount(drawn, minlength=6) / 20000
    np.testing.assert_allclose(share, mdp.transition[4, 1], atol=0.015)
    # Probabilities that round to less than one.
    short = FiniteMDP(jnp.full((3, 1, 3), 0.3), jnp.zeros((3, 1)))
    zeros = jnp.zeros((5000,), jnp.int32)
    ends = np.bincount(sample_next(jax.random.key(0), short, zeros, zeros), minlength=3)
    assert len(ends) == 3 and ends.min() > 1500


def test_a_policys_value_is_differentiable():
    def value(p):
        return policy_value(TWO, jnp.stack([1 - p, p]).T, 0.5)[0]

    step = 1e-2
    slope = jax.grad(value)(jnp.array([0.5, 0.5]))
    for i in range(2):
        shift = jnp.zeros(2).at[i].set(step)
        about = (value(0.5 + shift) - value(0.5 - shift)) / (2 * step)
        np.testing.assert_allclose(slope[i], about, rtol=1e-3)


def test_misuse_is_refused(key):
    with pytest.raises(ValueError, match=r"branching: expected 1 to 4 \(states\), got 5"):
        garnet(key, 4, 2, 5)
    with pytest.raises(ValueError, match="reward_density: expected within"):
        garnet(key, 4, 2, 2, reward_density=1.1)
    with pytest.raises(ValueError, match="states, actions: expected positive"):
        garnet(key, 4, 0, 2)
    with pytest.raises(ValueError, match=r"policy: expected shape \(2, 2\)"):
        policy_value(TWO, jnp.ones((2, 3)), 0.9)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values

STEPS, ACTIONS = 8, 3


def data(seed=0):
    rng = np.random.default_rng(seed)
    d = 0.9 * np.ones(STEPS)
    d[2] = 0.0
    cut = np.zeros(STEPS)
    cut[5] = 1.0
    r = rng.normal(size=STEPS)
    q = rng.normal(size=(STEPS, ACTIONS))
    a = rng.integers(ACTIONS, size=STEPS)
    pi, mu = rng.dirichlet(np.ones(ACTIONS), size=(2, STEPS))
    return r, d, q, a, pi, mu, cut


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32) for x in arrays]


def off_policy_return(r, d, q, a, pi, c, cut):
    """Q + the sum of discounted, traced expected-Sarsa errors: the paper's definition."""
    # q[t] belongs to the state after step t; the sum starts with the target of step s alone.
    expected = (pi * q).sum(-1)
    out = np.zeros(STEPS)
    for s in range(STEPS):
        out[s] = r[s] + d[s] * expected[s]
        weight = d[s]
        for t in range(s + 1, STEPS):
            weight *= c[t - 1] * (1 - cut[t - 1])
            out[s] += weight * (r[t] + d[t] * expected[t] - q[t - 1, a[t - 1]])
            weight *= d[t]
    return out


@pytest.mark.parametrize("backend", ["scan", "associative"])
@pytest.mark.parametrize("cutting", [False, True])
@pytest.mark.parametrize("rule", ["retrace", "tree_backup"])
def test_traced_returns_are_sums_of_expected_errors(rule, cutting, backend):
    r, d, q, a, pi, mu, cut = data()
    cut = cut if cutting else np.zeros(STEPS)
    pi_a, mu_a = (np.take_along_axis(x, a[:, None], 1)[:, 0] for x in (pi, mu))
    lam = 0.8
    arrays = f32(r, d, q, a, pi)
    if rule == "retrace":
        c = lam * np.minimum(1, pi_a / mu_a)
        target = values.retrace(*arrays, *f32(mu_a), lam, *f32(cut), backend=backend)
    else:
        c = lam * pi_a
        target = values.tree_backup(*arrays, lam, *f32(cut), backend=backend)
    expected = off_policy_return(r, d, q, a, pi, c, cut)
    np.testing.assert_allclose(target, expected, rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(target[-1], r[-1] + d[-1] * (pi * q).sum(-1)[-1], rtol=1e-5)


def test_retrace_limits():
    r, d, q, a, pi, mu, _ = f32(*data())
    mu_a = jnp.take_along_axis(mu, a[:, None], 1)[:, 0]
    np.testing.assert_allclose(
        values.retrace(r, d, q, a, pi, mu_a, 0.0),
        values.expected_sarsa_target(r, d, q, pi),
        rtol=1e-6,
    )
    # A deterministic policy that also acted: traces are one, the return is Monte Carlo's.
    one_hot = jax.nn.one_hot(a, ACTIONS)
    np.testing.assert_allclose(
        values.retrace(r, d, q, a, one_hot, jnp.ones(STEPS), 1.0),
        values.lambda_return(r, d, jnp.take_along_axis(q, a[:, None], 1)[:, 0], 1.0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_q_lambda_with_and_without_the_cut_at_exploration():
    r, d, q, _, _, _, _ = data()
    d[:] = 0.9
    greedy = q.argmax(-1)
    a = np.where(np.arange(STEPS) == 3, (greedy + 1) % ACTIONS, greedy)
    r, d, q, a = f32(r, d, q, a)
    np.testing.assert_allclose(
        values.q_lambda(r, d, q, 0.7), values.lambda_return(r, d, q.max(-1), 0.7), rtol=1e-6
    )
    cut = values.non_greedy(q, a)
    np.testing.assert_array_equal(cut, np.arange(STEPS) == 3)
    watkins = values.q_lambda(r, d, q, 0.7, cut)
    # The trace ends at the last greedy action, and bootstraps with the maximum there.
    np.testing.assert_allclose(watkins[3], r[3] + 0.9 * q[3].max(), rtol=1e-6)
    np.testing.assert_allclose(
        watkins[:4], values.q_lambda(r[:4], d[:4], q[:4], 0.7), rtol=1e-6, atol=1e-6
    )


def test_one_step_targets():
    r, d = jnp.float32(1.0), jnp.float32(0.5)
    q = jnp.array([1.0, 4.0, 2.0])
    assert float(values.q_target(r, d, q)) == 3.0
    assert float(values.sarsa_target(r, d, q, jnp.int32(2))) == 2.0
    assert float(values.expected_sarsa_target(r, d, q, jnp.array([0.5, 0.25, 0.25]))) == 2.0
    selector = jnp.array([0.0, -1.0, 5.0])
    assert float(values.double_q_target(r, d, q, selector)) == 2.0
    assert float(values.conservative_q_target(r, d, q, selector)) == 2.0
    assert float(values.q_target(r, jnp.float32(0.0), q)) == 1.0


def test_an_impossible_action_of_minus_infinity_leaves_an_expectation_finite():
    q = jnp.array([1.0, -jnp.inf])
    target = values.expected_sarsa_target(
        jnp.float32(0.0), jnp.float32(1.0), q, jnp.array([1.0, 0.0])
    )
    assert float(target) == 1.0


def test_refuses_actions_of_another_shape():
    q = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"action: expected shape \(4,\), got \(3,\)"):
        values.sarsa_target(jnp.ones(4), jnp.ones(4), q, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="q_next_selector: expected the shape of q_next_value"):
        values.double_q_target(jnp.ones(4), jnp.ones(4), q, q[:, :2])


@pytest.mark.parametrize("target", ["retrace", "tree_backup"])
def test_next_actions_that_are_not_used_may_be_anything(target):
    """At cuts and at the end: an id out of range, an illegal one, behaviour of probability 0."""
    rng = np.random.default_rng(3)
    r, d = jnp.asarray(rng.normal(size=4), jnp.float32), jnp.full(4, 0.9)
    q = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    pi, cut = jnp.array([[0.3, 0.7], [1.0, 0.0], [0.5, 0.5], [1.0, 0.0]]), jnp.array([0, 1, 0, 0])

    def evaluate(q, a, mu):
        more = (mu,) if target == "retrace" else ()
        return getattr(values, target)(r, d, q, a, pi, *more, 0.9, cut)

    want = evaluate(q, jnp.array([1, 0, 0, 0]), jnp.full(4, 0.5))
    for a in (jnp.array([1, 1, 0, 1]), jnp.array([1, 9, 0, 9])):
        holes = jnp.where(pi > 0, q, -jnp.inf)
        got = evaluate(holes, a, jnp.array([0.5, 0.0, 0.5, 0.0]))
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_an_illegal_action_in_the_middle_ends_the_trace():
    q = jnp.array([[3.0, -jnp.inf], [1.0, 2.0]])
    pi = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    r, d = jnp.ones(2), jnp.full(2, 0.9)
    got = values.retrace(r, d, q, jnp.array([1, 0]), pi, jnp.full(2, 0.5), 1.0)
    np.testing.assert_allclose(got, [1 + 0.9 * 3, 1 + 0.9 * 1.5], rtol=1e-6)

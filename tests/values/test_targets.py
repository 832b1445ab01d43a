import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values

# Computed with rlax 0.1.9.
R = jnp.array([1.0, -1.0, 2.0, 0.5])
D = jnp.array([0.9, 0.9, 0.0, 0.9])
V_NEXT = jnp.array([0.4, -0.1, 0.7, 0.6])

STEPS = 9


def data(seed=0, steps=STEPS):
    """A random trajectory with an end of the task, a time limit and values that jump at it."""
    rng = np.random.default_rng(seed)
    d = 0.95 * np.ones(steps)
    d[steps // 3] = 0.0
    cut = np.zeros(steps)
    cut[2 * steps // 3] = 1.0
    r, v, v_next = rng.normal(size=(3, steps))
    return r, d, v, v_next, cut


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def n_step(r, d, v_next, n, cut, t):
    """The definition, in float64: rewards until n, a cut or the window's end; then the value."""
    total, weight = 0.0, 1.0
    for i in range(n):
        total += weight * r[t + i]
        weight *= d[t + i]
        if cut[t + i] or t + i == len(r) - 1:
            break
    return total + weight * v_next[t + i]


def test_golden_vectors():
    np.testing.assert_allclose(
        values.lambda_return(R, D, V_NEXT, 0.7), [1.25479, 0.233, 2.0, 1.04], rtol=1e-6
    )
    np.testing.assert_allclose(
        values.n_step_target(R, D, V_NEXT, 2), [0.019, 0.8, 2.0, 1.04], rtol=1e-5
    )
    for n in (3, 10):
        np.testing.assert_allclose(
            values.n_step_target(R, D, V_NEXT, n), [1.72, 0.8, 2.0, 1.04], rtol=1e-6
        )
    advantages = values.gae(
        R, D, jnp.array([0.2, 0.4, -0.1, 0.3]), jnp.array([0.4, -0.1, 0.3, 0.6]), 0.95
    )
    np.testing.assert_allclose(advantages, [1.421202, 0.3055, 2.1, 0.74], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9, 10, 1000])
@pytest.mark.parametrize("cutting", [False, True])
def test_n_step_target_is_its_definition_with_a_traced_n(n, cutting):
    r, d, _, v_next, cut = data()
    if not cutting:  # nothing but the window's end stops the sum
        d, cut = 0.95 * np.ones(STEPS), np.zeros(STEPS)
    expected = [n_step(r, d, v_next, n, cut, t) for t in range(STEPS)]
    target = jax.jit(values.n_step_target)(*f32(r, d, v_next), n, *f32(cut))
    np.testing.assert_allclose(target, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["scan", "associative"])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_lambda_return_is_the_mixture_of_n_step_targets(lam, backend):
    r, d, _, v_next, cut = data()
    expected = []
    for t in range(STEPS):
        ends = [i for i in range(t, STEPS) if cut[i] or i == STEPS - 1]
        longest = ends[0] - t + 1
        mixture = [n_step(r, d, v_next, n, cut, t) for n in range(1, longest + 1)]
        weights = [(1 - lam) * lam**n for n in range(longest - 1)] + [lam ** (longest - 1)]
        expected.append(np.dot(weights, mixture))
    target = values.lambda_return(*f32(r, d, v_next), lam, *f32(cut), backend=backend)
    np.testing.assert_allclose(target, expected, rtol=2e-6, atol=2e-6)


def test_limits_of_lambda():
    r, d, _, v_next, cut = f32(*data())
    td0 = values.td0_target(r, d, v_next)
    np.testing.assert_allclose(td0, r + d * v_next, rtol=1e-6)
    np.testing.assert_allclose(values.lambda_return(r, d, v_next, 0.0), td0, rtol=1e-6)
    monte_carlo = values.n_step_target(r, d, v_next, STEPS, cut)
    np.testing.assert_allclose(
        values.lambda_return(r, d, v_next, 1.0, cut), monte_carlo, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("target", ["n_step", "lambda", "gae", "vtrace"])
@pytest.mark.parametrize("border", ["terminated", "cut"])
def test_nothing_leaks_from_the_next_episode(target, border):
    r, d, v, v_next, _ = f32(*data())
    d = jnp.full((STEPS,), 0.9)
    cut = jnp.zeros((STEPS,))
    if border == "terminated":
        d = d.at[4].set(0.0)
    else:
        cut = cut.at[4].set(1.0)

    def compute(r, v_next, v):
        if target == "n_step":
            return values.n_step_target(r, d, v_next, 6, cut)
        if target == "lambda":
            return values.lambda_return(r, d, v_next, 0.8, cut)
        if target == "gae":
            return values.gae(r, d, v, v_next, 0.8, cut)
        return values.vtrace(v, v_next, r, d, jnp.full((STEPS,), 1.3), 0.8, cut=cut)

    later = jnp.arange(STEPS) > 4
    other = [jnp.where(later, 1e3, x) for x in (r, v_next, v)]
    before, after = compute(r, v_next, v), compute(*other)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:5], y[:5]), before, after)
    # A time limit bootstraps at the border, an end does not.
    bumped = jax.tree.leaves(compute(r, v_next.at[4].add(1.0), v))[0]
    change = np.asarray(bumped - jax.tree.leaves(before)[0])
    assert (np.abs(change[4]) > 0.1) == (border == "cut")


def test_cut_equals_two_separate_windows():
    r, d, v, v_next, _ = f32(*data())
    cut = jnp.zeros((STEPS,)).at[3].set(1.0)
    whole = values.lambda_return(r, d, v_next, 0.9, cut)
    parts = [values.lambda_return(r[s], d[s], v_next[s], 0.9) for s in (slice(4), slice(4, None))]
    np.testing.assert_allclose(whole, jnp.concatenate(parts), rtol=1e-6)
    rho = jnp.linspace(0.5, 2.0, STEPS)
    whole = values.vtrace(v, v_next, r, d, rho, 0.9, cut=cut)
    parts = [
        values.vtrace(v[s], v_next[s], r[s], d[s], rho[s], 0.9) for s in (slice(4), slice(4, None))
    ]
    for name in ("value", "advantage"):
        joined = jnp.concatenate([getattr(p, name) for p in parts])
        np.testing.assert_allclose(getattr(whole, name), joined, rtol=1e-5, atol=1e-6)


def test_advantages_are_lambda_returns_less_values():
    r, d, v, v_next, cut = data()
    # Inside of an episode the next value is the next row's.
    inside = (cut[:-1] == 0) & (d[:-1] > 0)
    v_next[:-1] = np.where(inside, v[1:], v_next[:-1])
    r, d, v, v_next, cut = f32(r, d, v, v_next, cut)
    lam = jnp.linspace(0.0, 1.0, STEPS)
    np.testing.assert_allclose(
        values.gae(r, d, v, v_next, lam, cut),
        values.lambda_return(r, d, v_next, lam, cut) - v,
        atol=2e-6,
    )


@pytest.mark.parametrize("bars", [(1.0, 1.0, 1.0), (2.0, 0.8, 1.5), (np.inf, np.inf, np.inf)])
@pytest.mark.parametrize("backend", ["scan", "associative"])
def test_vtrace_is_its_sum_of_discounted_errors(bars, backend):
    r, d, v, v_next, cut = data(1)
    rho = np.exp(np.random.default_rng(2).normal(size=STEPS))
    rho_bar, c_bar, pg_bar = bars
    lam = 0.9
    delta = np.minimum(rho_bar, rho) * (r + d * v_next - v)
    c = lam * np.minimum(c_bar, rho)
    value = np.zeros(STEPS)
    for s in range(STEPS):
        weight = 1.0
        value[s] = v[s]
        for t in range(s, STEPS):
            value[s] += weight * delta[t]
            weight *= d[t] * c[t] * (1 - cut[t])
    advantage = np.zeros(STEPS)
    for t in range(STEPS):
        last = t == STEPS - 1 or cut[t]
        q = v_next[t] if last else lam * value[t + 1] + (1 - lam) * v[t + 1]
        advantage[t] = np.minimum(pg_bar, rho[t]) * (r[t] + d[t] * q - v[t])
    targets = values.vtrace(
        *f32(v, v_next, r, d, rho),
        lam,
        rho_bar=rho_bar,
        c_bar=c_bar,
        pg_rho_bar=pg_bar,
        cut=jnp.asarray(cut, jnp.float32),
        backend=backend,
    )
    np.testing.assert_allclose(targets.value, value, rtol=5e-6, atol=5e-6)
    np.testing.assert_allclose(targets.advantage, advantage, rtol=5e-6, atol=5e-6)


def test_vtrace_on_policy_is_the_lambda_return():
    r, d, v, v_next, _ = data()
    v_next[:-1] = v[1:]
    r, d, v, v_next = f32(r, d, v, v_next)
    targets = values.vtrace(v, v_next, r, d, jnp.ones(STEPS), 0.8)
    np.testing.assert_allclose(
        targets.value, values.lambda_return(r, d, v_next, 0.8), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("n", [0, -3])
def test_refuses_bad_arguments(n):
    with pytest.raises(ValueError, match=f"n: expected at least 1, got {n}"):
        values.n_step_target(R, D, V_NEXT, n)
    with pytest.raises(ValueError, match="discount: expected the shape of r"):
        values.lambda_return(R, D[:2], V_NEXT, 0.5)
    with pytest.raises(ValueError, match=r"lam: expected a scalar or shape \(4,\), got \(2,\)"):
        values.lambda_return(R, D, V_NEXT, jnp.ones(2))
    with pytest.raises(ValueError, match=r"r: expected a leading time axis"):
        values.gae(R[0], D[0], R[0], V_NEXT[0], 0.5)


def test_one_step_targets_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"v_next: expected the shape of r, \(3,\), got \(3, 1\)"):
        values.td0_target(jnp.ones(3), jnp.ones(3), jnp.ones((3, 1)))
    with pytest.raises(
        ValueError, match=r"discount: expected a scalar or shape \(3,\), got \(3, 1\)"
    ):
        values.q_target(jnp.ones(3), jnp.ones((3, 1)), jnp.ones((3, 2)))
    one = values.td0_target(jnp.ones(3), 0.5, jnp.arange(3.0))
    np.testing.assert_array_equal(one, [1.0, 1.5, 2.0])
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        values.n_step_target(jnp.ones(3), jnp.ones(3), jnp.ones(3), np.int64(0))

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import CEMConfig, init_cem, plan_cem

# A double integrator with quadratic cost: the optimal plan is known in closed form.
A = np.array([[1.0, 0.2], [0.0, 1.0]])
B = np.array([[0.0], [0.5]])
Q = np.diag([1.0, 0.1])
R = np.array([[0.3]])
START = np.array([0.8, -0.2])
HORIZON = 10


def lqr_return(plan, start=START):
    """Return of one plan[H, 1]: minus the summed stage costs, the last state included."""
    a, b, q, r = (jnp.asarray(x, jnp.float32) for x in (A, B, Q, R))

    def step(x, u):
        return a @ x + b @ u, x @ q @ x + u @ r @ u

    x, costs = jax.lax.scan(step, jnp.asarray(start, jnp.float32), plan)
    return -(jnp.sum(costs) + x @ q @ x)


def riccati():
    """Optimal cost and controls from START by the backward recursion, in float64."""
    p, gains = Q, []
    for _ in range(HORIZON):
        gain = np.linalg.solve(R + B.T @ p @ B, B.T @ p @ A)
        p = Q + A.T @ p @ (A - B @ gain)
        gains.append(gain)
    x, controls = START, []
    for gain in reversed(gains):
        u = -gain @ x
        controls.append(u)
        x = A @ x + B @ u
    return START @ p @ START, np.stack(controls)


def test_reaches_the_riccati_cost_within_one_percent(key):
    cost, controls = riccati()
    assert np.abs(controls).max() < 0.95  # the bounds do not bind, so Riccati is the optimum
    config = CEMConfig(HORIZON, 1, population=400, num_elites=40, iterations=12)
    plan, _, info = jax.jit(
        lambda k: plan_cem(k, jax.vmap(lqr_return), init_cem(config), config, alpha=0.0)
    )(key)
    assert -float(lqr_return(plan)) < 1.01 * cost
    assert -float(lqr_return(plan)) > (1 - 1e-5) * cost
    np.testing.assert_allclose(plan, controls, atol=0.1)
    assert np.all(np.diff(np.asarray(info.elite_return)) > -0.01)


def test_each_iteration_and_each_key_sees_other_plans(key):
    config = CEMConfig(3, 2, population=8, num_elites=8, iterations=2)
    seen = []

    def evaluate(plans):
        jax.debug.callback(lambda p: seen.append(np.array(p)), plans)
        return jnp.zeros(plans.shape[0])

    # With alpha one, the distribution stays exactly where it is: only the keys differ.
    for k in (key, jax.random.fold_in(key, 1), key):
        plan_cem(k, evaluate, init_cem(config), config, alpha=1.0)
    jax.effects_barrier()
    assert len(seen) == 6
    assert len({p.tobytes() for p in seen[:4]}) == 4  # two calls of two iterations, all different
    np.testing.assert_array_equal(seen[0], seen[4])
    np.testing.assert_array_equal(seen[1], seen[5])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_non_finite_returns_rank_below_everything(key, bad):
    config = CEMConfig(1, 1, population=64, num_elites=16, iterations=4)

    def evaluate(plans):
        u = plans[:, 0, 0]
        # All finite returns are very negative; the half u > 0 would look best if bad counted as 0.
        return jnp.where(u > 0, bad, -1e9 - 1e8 * u**2)

    plan, state, info = plan_cem(key, evaluate, init_cem(config), config)
    assert float(plan[0, 0]) < 0.05
    assert np.isfinite(np.asarray(plan)).all() and np.isfinite(np.asarray(state.mean)).all()
    assert np.isfinite(np.asarray(info.elite_return)).all()
    assert np.all(np.asarray(info.elite_return) < -1e8)
    assert 0.2 < float(info.finite_fraction[0]) < 0.8


def test_non_finite_plans_stay_out_when_finite_ones_are_fewer_than_elites(key):
    config = CEMConfig(1, 1, population=32, num_elites=32, iterations=1)

    def evaluate(plans):
        return jnp.where(plans[:, 0, 0] < 0, jnp.nan, -1.0)

    plan, _, _ = plan_cem(key, evaluate, init_cem(config), config, alpha=0.0)
    assert float(plan[0, 0]) > 0.2  # the mean of the positive half; the mean of all is near zero


def test_all_returns_nan_keeps_the_warm_start(key):
    config = CEMConfig(4, 1, population=16, num_elites=4, iterations=3)
    start = init_cem(config)._replace(mean=jnp.full((4, 1), 0.25))
    plan, state, info = plan_cem(key, lambda p: jnp.full(p.shape[0], jnp.nan), start, config)
    np.testing.assert_array_equal(plan, start.mean)
    np.testing.assert_array_equal(state.mean, [[0.25], [0.25], [0.25], [0.0]])
    np.testing.assert_array_equal(info.finite_fraction, 0.0)


def test_returns_the_elite_mean_not_the_best_sample(key):
    config = CEMConfig(2, 1, population=10, num_elites=3, iterations=1)
    seen = []

    def evaluate(plans):
        jax.debug.callback(lambda p: seen.append(np.array(p)), plans)
        return -jnp.sum((plans - 0.4) ** 2, axis=(1, 2))

    alpha = 0.25
    start = init_cem(config)._replace(mean=jnp.array([[0.1], [0.2]]))
    plan, _, info = plan_cem(key, evaluate, start, config, sigma=0.3, alpha=alpha)
    jax.effects_barrier()
    scores = -((seen[0] - 0.4) ** 2).sum((1, 2))
    elites = seen[0][np.argsort(scores)[-3:]]
    expected = alpha * np.array([[0.1], [0.2]]) + (1 - alpha) * elites.mean(0)
    np.testing.assert_allclose(plan, expected, rtol=1e-5)
    variance = alpha * 0.09 + (1 - alpha) * elites.var(0)  # population variance
    np.testing.assert_allclose(info.std, np.sqrt(variance), rtol=1e-5)
    np.testing.assert_allclose(info.elite_return, [np.sort(scores)[-3:].mean()], rtol=1e-5)


def test_doubling_sigma_doubles_the_spread_until_the_bounds_bind(key):
    config = CEMConfig(1, 1, population=4096, num_elites=4096, iterations=1)

    def spread(sigma):
        _, _, info = plan_cem(
            key, lambda p: jnp.zeros(p.shape[0]), init_cem(config), config, sigma=sigma, alpha=0.0
        )
        return float(info.std[0, 0])

    np.testing.assert_allclose(spread(0.4) / spread(0.2), 2.0, rtol=1e-4)
    # A standard normal cut at +-2 has variance 1 - 4 phi(2) / (2 Phi(2) - 1) = 0.7737.
    np.testing.assert_allclose(spread(0.4), 0.4 * np.sqrt(0.77374), rtol=0.03)
    np.testing.assert_allclose(spread(5.0), 0.5 * np.sqrt(0.77374), rtol=0.03)


@pytest.mark.parametrize("bounds", ["truncate", "clip"])
def test_every_plan_is_legal_and_the_warm_start_shifts(key, bounds):
    config = CEMConfig(5, 1, population=512, num_elites=16, iterations=3, bounds=bounds)

    def evaluate(plans):
        # Rewards leaving [0, 2]: a plan outside would win.
        return jnp.sum(jnp.abs(plans - 1.0), axis=(1, 2))

    start = init_cem(config, low=0.0, high=2.0)
    np.testing.assert_array_equal(start.mean, 1.0)
    first = start._replace(mean=start.mean.at[0].set(2.0))
    plan, state, info = plan_cem(key, evaluate, first, config, low=0.0, high=2.0)
    assert np.all((np.asarray(plan) >= 0) & (np.asarray(plan) <= 2))
    assert float(info.elite_return[-1]) <= 5.0
    if bounds == "truncate":
        np.testing.assert_array_equal(plan[0], 2.0)  # at the bound there is no room to sample
    np.testing.assert_array_equal(state.mean[:-1], plan[1:])
    np.testing.assert_array_equal(state.mean[-1], 1.0)


def test_clipping_reaches_a_bound_that_truncation_only_approaches(key):
    def plan(bounds):
        config = CEMConfig(1, 1, population=256, num_elites=16, iterations=3, bounds=bounds)
        evaluate = lambda plans: jnp.sum(plans, axis=(1, 2))  # noqa: E731  best at the upper bound
        plan, _, _ = plan_cem(key, evaluate, init_cem(config), config, sigma=1.0, alpha=0.0)
        return float(plan[0, 0])

    assert plan("clip") == 1.0
    assert 0.8 < plan("truncate") < 0.999


def test_batch_of_searches_under_vmap_equals_a_loop(key):
    config = CEMConfig(HORIZON, 1, population=32, num_elites=8, iterations=3)
    keys = jax.random.split(key, 3)
    starts = jnp.array([[0.8, -0.2], [0.1, 0.1], [-0.5, 0.3]])
    sigmas = jnp.array([0.2, 0.4, 0.8])

    def search(k, start, sigma):
        evaluate = jax.vmap(lambda plan: lqr_return(plan, start))
        return plan_cem(k, evaluate, init_cem(config), config, sigma=sigma)

    batched = jax.jit(jax.vmap(search))(keys, starts, sigmas)
    for i in range(3):
        alone = search(keys[i], starts[i], sigmas[i])
        jax.tree.map(
            lambda b, a, i=i: np.testing.assert_allclose(b[i], a, rtol=2e-5, atol=2e-6),
            batched,
            alone,
        )


def test_keeps_its_dtype_and_is_differentiable_in_the_start(key):
    config = CEMConfig(2, 1, population=16, num_elites=4, iterations=2)

    def mean_action(mean):
        plan, _, _ = plan_cem(
            key,
            lambda p: -jnp.sum(p**2, axis=(1, 2)),
            init_cem(config)._replace(mean=mean),
            config,
        )
        return jnp.sum(plan)

    gradient = jax.grad(mean_action)(jnp.full((2, 1), 0.1))
    assert np.isfinite(np.asarray(gradient)).all() and np.any(np.asarray(gradient) != 0)
    half = init_cem(config)._replace(mean=jnp.zeros((2, 1), jnp.bfloat16))
    plan, state, _ = plan_cem(key, lambda p: jnp.sum(p, axis=(1, 2)), half, config)
    assert plan.dtype == state.mean.dtype == jnp.bfloat16


def test_refuses_bad_input(key):
    with pytest.raises(ValueError, match="num_elites: expected at most population=4, got 5"):
        CEMConfig(2, 1, population=4, num_elites=5)
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        CEMConfig(0, 1)
    with pytest.raises(ValueError, match="bounds: expected one of"):
        CEMConfig(2, 1, population=4, num_elites=2, bounds="wrap")
    config = CEMConfig(2, 1, population=4, num_elites=2)
    other = init_cem(CEMConfig(3, 1, population=4, num_elites=2))
    with pytest.raises(ValueError, match=r"state.mean: expected shape \(2, 1\), got \(3, 1\)"):
        plan_cem(key, lambda p: jnp.zeros(4), other, config)
    with pytest.raises(ValueError, match=r"evaluate: expected returns of shape \(4,\)"):
        plan_cem(key, lambda p: jnp.zeros((4, 1)), init_cem(config), config)

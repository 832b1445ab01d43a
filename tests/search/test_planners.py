"""What every planner must do, whatever its method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import CEMConfig, ICEMConfig, MPPIConfig, make_planner

# A double integrator with quadratic cost: the optimal plan is known in closed form.
A = np.array([[1.0, 0.2], [0.0, 1.0]])
B = np.array([[0.0], [0.5]])
Q = np.diag([1.0, 0.1])
R = np.array([[0.3]])
START = np.array([0.8, -0.2])
HORIZON = 8


def lqr_return(plan, start=START):
    """Return of one plan[H, 1]: minus the summed stage costs, the last state included."""
    a, b, q, r = (jnp.asarray(x, jnp.float32) for x in (A, B, Q, R))

    def step(x, u):
        return a @ x + b @ u, x @ q @ x + u @ r @ u

    x, costs = jax.lax.scan(step, jnp.asarray(start, jnp.float32), plan)
    return -(jnp.sum(costs) + x @ q @ x)


def optimal_cost():
    p = Q
    for _ in range(HORIZON):
        gain = np.linalg.solve(R + B.T @ p @ B, B.T @ p @ A)
        p = Q + A.T @ p @ (A - B @ gain)
    return START @ p @ START


SMALL = {
    "cem": CEMConfig(HORIZON, 1, population=24, num_elites=6, iterations=2),
    "icem": ICEMConfig(HORIZON, 1, population=24, num_elites=6, iterations=2),
    "icem, best": ICEMConfig(HORIZON, 1, 24, num_elites=6, iterations=2, choose="best"),
    "mppi": MPPIConfig(HORIZON, 1, population=24, iterations=2),
}
LARGE = {
    "cem": (CEMConfig(HORIZON, 1, 300, 30, 12), {"sigma": 0.5, "alpha": 0.0}),
    "icem": (
        ICEMConfig(HORIZON, 1, 600, 40, 5, decay=1.1),
        {"sigma": 0.5, "alpha": 0.0, "noise_beta": 1.0},
    ),
    "icem, best": (
        ICEMConfig(HORIZON, 1, 600, 40, 5, decay=1.1, choose="best"),
        {"sigma": 0.5, "alpha": 0.0, "noise_beta": 1.0},
    ),
    "mppi": (MPPIConfig(HORIZON, 1, 1000, 12), {"sigma": 0.2, "gamma": 30.0, "beta": 1.0}),
}


@functools.cache
def compiled(name, low=-1.0, high=1.0):
    planner = make_planner(SMALL[name], low=low, high=high)

    @functools.partial(jax.jit, static_argnums=1)
    def plan(key, evaluate, state, hyperparams):
        return planner.plan(key, evaluate, state, hyperparams)

    return planner, plan


def quadratic(plans):
    return -jnp.sum((plans - 0.3) ** 2, axis=(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_reaches_the_riccati_cost_within_one_percent(name, key):
    config, hyperparams = LARGE[name]
    planner = make_planner(config)
    plan, _, report = jax.jit(
        lambda k: planner.plan(k, jax.vmap(lqr_return), planner.init(), hyperparams)
    )(key)
    cost = -float(lqr_return(plan))
    assert (1 - 1e-5) * optimal_cost() < cost < 1.01 * optimal_cost()
    assert float(report["finite_fraction"]) == 1.0
    assert cost <= 1.01 * -float(report["planned_return"])


@pytest.mark.parametrize("name", SMALL)
def test_warm_starts_bring_it_closer(name, key):
    planner, plan = compiled(name)
    state, errors = planner.init(), []
    for i in range(12):
        actions, state, _ = plan(
            jax.random.fold_in(key, i), quadratic, state, planner.hyperparams | {"sigma": 0.3}
        )
        errors.append(float(jnp.mean((actions[: HORIZON // 2] - 0.3) ** 2)))
    assert np.mean(errors[-4:]) < 0.5 * errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_non_finite_returns_rank_below_everything(name, bad, key):
    planner, plan = compiled(name)

    def evaluate(plans):
        first = plans[:, 0, 0]
        # All finite returns are very negative; the half above 0 would look best if bad counted 0.
        return jnp.where(first > 0, bad, -1e6 - 10 * (first + 0.5) ** 2)

    actions, state, report = plan(key, evaluate, planner.init(), planner.hyperparams)
    leaves = [x for x in jax.tree.leaves((actions, state, report))]
    assert all(np.isfinite(x).all() for x in leaves if x.dtype != bool)
    assert float(actions[0, 0]) < -0.05
    assert 0.2 < float(report["finite_fraction"]) < 1.0
    assert float(report["planned_return"]) < -9e5


@pytest.mark.parametrize("name", SMALL)
def test_all_returns_nan_keep_the_warm_start(name, key):
    planner, plan = compiled(name)
    start = planner.init()
    start = start._replace(mean=jnp.full_like(start.mean, 0.25))
    actions, state, report = plan(
        key, lambda p: jnp.full(p.shape[0], jnp.nan), start, planner.hyperparams
    )
    np.testing.assert_array_equal(actions, 0.25)
    np.testing.assert_array_equal(state.mean[:, 0], [0.25] * (HORIZON - 1) + [0.0])
    assert float(report["finite_fraction"]) == 0.0 and float(report["planned_return"]) == 0.0


@pytest.mark.parametrize("name", SMALL)
def test_plans_stay_legal_and_shift(name, key):
    low, high = 0.5, 2.0
    planner, plan = compiled(name, low, high)
    seen = []

    def evaluate(plans):
        jax.debug.callback(lambda p: seen.append(np.array(p)), plans)
        return jnp.sum((plans - 1.0) ** 2, axis=(1, 2))  # a plan outside would win

    start = planner.init()
    np.testing.assert_array_equal(start.mean, 1.25)
    actions, state, _ = plan(key, evaluate, start, planner.hyperparams | {"sigma": 3.0})
    jax.effects_barrier()
    assert len(seen) == 2 and not np.array_equal(seen[0][:12], seen[1][:12])
    for plans in seen:
        assert plans.min() >= low and plans.max() <= high
    assert float(actions.min()) >= low and float(actions.max()) <= high
    np.testing.assert_array_equal(state.mean[-1], 1.25)
    if name != "icem, best":
        np.testing.assert_array_equal(state.mean[:-1], actions[1:])


@pytest.mark.parametrize("name", SMALL)
def test_doubling_sigma_doubles_the_spread_and_keys_matter(name, key):
    planner, plan = compiled(name, -100.0, 100.0)
    spreads, samples = {}, []

    def evaluate(plans):
        jax.debug.callback(lambda p: samples.append(np.array(p)), plans)
        return jnp.zeros(plans.shape[0])

    for sigma in (1.0, 2.0):
        samples.clear()
        plan(key, evaluate, planner.init(), planner.hyperparams | {"sigma": sigma})
        jax.effects_barrier()
        spreads[sigma] = samples[0][:24].std()
    np.testing.assert_allclose(spreads[2.0] / spreads[1.0], 2.0, rtol=1e-4)
    first = samples[0]
    samples.clear()
    hyperparams = planner.hyperparams | {"sigma": 2.0}
    plan(jax.random.fold_in(key, 1), evaluate, planner.init(), hyperparams)
    plan(key, evaluate, planner.init(), hyperparams)
    jax.effects_barrier()
    assert not np.any(samples[0][:24] == first[:24])
    np.testing.assert_array_equal(samples[2], first)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_searches_under_vmap_are_searches_alone(name, key):
    planner, _ = compiled(name)
    keys = jax.random.split(key, 3)
    starts = jnp.array([[0.8, -0.2], [0.1, 0.1], [-0.5, 0.3]])
    sigmas = jnp.array([0.2, 0.4, 0.8])

    def search(k, start, sigma):
        evaluate = jax.vmap(lambda p: lqr_return(p, start))
        return planner.plan(k, evaluate, planner.init(), planner.hyperparams | {"sigma": sigma})

    batched = jax.jit(jax.vmap(search))(keys, starts, sigmas)
    alone = jax.jit(search)(keys[1], starts[1], sigmas[1])
    jax.tree.map(
        lambda b, a: np.testing.assert_allclose(b[1], a, rtol=2e-5, atol=2e-6), batched, alone
    )


@pytest.mark.parametrize("name", SMALL)
def test_refuses_what_does_not_fit(name, key):
    planner, _ = compiled(name)
    start = planner.init()
    with pytest.raises(ValueError, match=r"state\.mean: expected shape \(8, 1\), got \(7, 1\)"):
        planner.plan(key, quadratic, start._replace(mean=start.mean[1:]), planner.hyperparams)
    with pytest.raises(ValueError, match=r"evaluate: expected returns of shape \(\d+,\), got"):
        planner.plan(key, lambda p: p[:, 0], start, planner.hyperparams)
    kind = type(SMALL[name])
    for field in ("horizon", "action_dim", "population", "iterations"):
        with pytest.raises(ValueError, match=f"{field}: expected at least 1, got 0"):
            kind(**({"horizon": 2, "action_dim": 1} | {field: 0}))


def test_an_unknown_configuration_is_refused():
    with pytest.raises(ValueError, match="config: expected the configuration of a planner"):
        make_planner({"horizon": 3})

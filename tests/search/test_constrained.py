"""Cross-entropy search under a constraint, on a problem with a known solution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import ConstrainedConfig, init_constrained, step_constrained

SLACKS = jnp.array([-0.5, 0.0, 0.25, 1.0])
DIRECTION = jnp.array([3.0, 4.0])


def evaluate(key, points):
    """Largest objective within |z|^2 <= slack: 5 sqrt(slack), at the direction of (3, 4)."""
    del key
    return points @ DIRECTION, -jnp.sum(points**2, axis=-1)


def search(key, iterations, searched=2, config=ConstrainedConfig(64, 8), fn=evaluate):
    state = init_constrained(key, fn, jnp.zeros(2), SLACKS, 0.3)

    def step(state, key):
        state = step_constrained(key, fn, state, SLACKS, searched, config)
        return state, state

    return jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(key, iterations)))(state)


@pytest.mark.parametrize("searched", [2, 3])
def test_finds_the_known_solution_and_never_reports_a_violation(key, searched):
    end, steps = search(key, 60, searched)
    slack = float(SLACKS[searched])
    np.testing.assert_allclose(end.objective[searched], 5 * slack**0.5, rtol=0.02)
    np.testing.assert_allclose(end.best[searched], slack**0.5 * DIRECTION / 5, atol=0.05)
    norms = np.sum(np.asarray(steps.best) ** 2, axis=-1)  # [iterations, slacks]
    assert (norms[:, 1:] <= np.asarray(SLACKS)[None, 1:] + 1e-6).all()
    np.testing.assert_allclose(steps.margin, np.asarray(SLACKS) - norms, atol=1e-5)
    objective = np.asarray(steps.objective)[:, 1:]
    assert (np.diff(objective, axis=0) >= 0).all() and (np.diff(objective, axis=1) >= 0).all()


def test_without_budget_or_feasible_points_the_start_is_returned(key):
    state = init_constrained(key, evaluate, jnp.zeros(2), SLACKS, 0.3)
    np.testing.assert_array_equal(state.best, jnp.zeros((4, 2)))
    np.testing.assert_array_equal(state.objective, [np.finfo(np.float32).min, 0, 0, 0])
    end, _ = search(key, 5)
    np.testing.assert_array_equal(end.best[0], jnp.zeros(2))  # |z|^2 <= -0.5 has no solution


def test_points_without_a_number_are_neither_elites_nor_results(key):
    def broken(key, points):
        value, constraint = evaluate(key, points)
        return jnp.where(points[:, 0] > 0.1, jnp.nan, value), constraint

    end, _ = search(key, 20, fn=broken)
    assert np.isfinite(end.mean).all() and float(end.best[2, 0]) <= 0.1
    assert float(end.objective[2]) > 1.0


def test_refusals():
    with pytest.raises(ValueError, match="num_elites: expected at most population=4, got 8"):
        ConstrainedConfig(4, 8)
    with pytest.raises(ValueError, match="population: expected at least 1"):
        ConstrainedConfig(0, 0)


def test_a_start_without_a_number_is_no_record(key):
    def broken(key, points):
        value, constraint = evaluate(key, points)
        return jnp.where(jnp.all(points == 0, axis=1), jnp.nan, value), constraint

    state = init_constrained(key, broken, jnp.zeros(2), SLACKS, 0.3)
    assert np.isfinite(state.objective).all()
    end, _ = search(key, 20, fn=broken)
    assert float(end.objective[2]) > 1.0

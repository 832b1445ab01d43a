"""Amortised fronts: plain, with further points where the fit is worst, and pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import pareto
from jaxlab.merging.pareto import amortized

OPTIMA = jnp.asarray([[0.9, 0.2], [0.1, 0.7]])
SMALL = pareto.EvolutionConfig(40, 30)


def near(c, task):
    """Task t likes c near its optimum: exactly quadratic."""
    return 1 - jnp.sum((c - OPTIMA[task]) ** 2)


def test_lattice_points_cover_the_cube_and_are_generic():
    points = pareto.lattice_points(jax.random.key(0), 3, 400)
    np.testing.assert_array_equal(points[:3], np.eye(3))
    rest = np.asarray(points[3:])
    assert rest.min() >= 0 and rest.max() <= 1
    # Evenly: every part of a 4 x 4 x 4 division has about its share of 397 / 64.
    cells = np.unique((rest * 4).astype(int) @ [1, 4, 16], return_counts=True)[1]
    assert len(cells) == 64 and cells.min() >= 3 and cells.max() <= 10
    for n in (1, 2, 4):
        few = pareto.lattice_points(jax.random.key(1), n, pareto.num_coefficients(n))
        assert np.linalg.cond(pareto.design_quadratic(few)) < 1e4
    with pytest.raises(ValueError, match="count: expected at least 3, got 2"):
        pareto.lattice_points(jax.random.key(0), 3, 2)


@pytest.mark.slow
def test_a_quadratic_world_is_solved_with_as_many_evaluations_as_unknowns():
    points = pareto.lattice_points(jax.random.key(0), 2, 6)
    front = jax.jit(lambda k: pareto.map_front(k, near, points, 2, evolution=SMALL))(
        jax.random.key(1)
    )
    real = pareto.evaluate_points(near, front.coefficients, 2)
    np.testing.assert_allclose(front.predicted, real, atol=1e-4)
    length = float(jnp.linalg.norm(OPTIMA[0] - OPTIMA[1]))
    np.testing.assert_allclose(jnp.sqrt(1 - real).sum(1), length, rtol=0.04)
    assert front.trusted.all() and front.values.shape == (6, 2)
    best = pareto.pareto_pick(front.predicted, jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(front.coefficients[best], OPTIMA[1], atol=0.05)
    alone = lambda c, task: 1 - jnp.sum((c - 0.4) ** 2)  # noqa: E731
    one = pareto.map_front(
        jax.random.key(2), alone, pareto.lattice_points(jax.random.key(0), 1, 4), 1, evolution=SMALL
    )
    np.testing.assert_allclose(one.coefficients[0], [0.4], atol=0.01)


@pytest.mark.slow
def test_a_box_beyond_the_points_is_not_trusted():
    points = pareto.lattice_points(jax.random.key(0), 2, 8)
    upward = lambda c, task: jnp.sum(c**2) + c[task]  # noqa: E731  best in a far corner
    box = (jnp.full(2, -3.0), jnp.full(2, 3.0))
    front = pareto.map_front(jax.random.key(1), upward, points, 2, bounds=box, evolution=SMALL)
    assert not front.trusted[0] and front.coefficients[0].max() > 2.9
    inside = pareto.map_front(jax.random.key(1), upward, points, 2, evolution=SMALL)
    assert inside.trusted.all() and inside.coefficients.max() <= 1


def test_angles_and_back():
    c = jnp.abs(jax.random.normal(jax.random.key(0), (20, 4)))
    phi = jax.vmap(pareto.angles)(c)
    assert phi.min() >= 0 and phi.max() <= np.pi / 2 + 1e-6
    radius = jnp.linalg.norm(c, axis=1)
    np.testing.assert_allclose(jax.vmap(pareto.from_angles)(radius, phi), c, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pareto.angles(jnp.asarray([1.0, 1.0])), [np.pi / 4], rtol=1e-6)


@pytest.mark.slow
def test_new_points_go_where_the_residuals_are():
    points = jnp.concatenate([jnp.eye(2), jax.random.uniform(jax.random.key(0), (30, 2))])
    phi = jax.vmap(pareto.angles)(points)[:, 0]
    bad = jnp.where(phi > 3 * np.pi / 8, 1.0, 1e-6)  # of four bins the last
    keys = jax.random.split(jax.random.key(1), 50)
    new = jax.vmap(lambda k: amortized._explore(k, points, bad, 4, 0.07))(keys).reshape(-1, 2)
    found = jax.vmap(pareto.angles)(new)[:, 0]
    assert (found > 3 * np.pi / 8).mean() > 0.99
    length = jnp.linalg.norm(new, axis=1)
    assert length.min() >= 0.199 and length.max() <= 0.801
    # A bin without any points is worth a look.
    half = points[phi < np.pi / 4]
    even = jax.vmap(lambda k: amortized._explore(k, half, jnp.full(len(half), 1e-3), 4, 0.07))(
        keys
    ).reshape(-1, 2)
    assert 0.2 < (jax.vmap(pareto.angles)(even)[:, 0] > np.pi / 4).mean() < 0.8


@pytest.mark.slow
def test_further_points_keep_a_quadratic_and_belong_to_each_task():
    points = pareto.lattice_points(jax.random.key(0), 2, 7)
    front = jax.jit(
        lambda k: pareto.bayesian_map(k, near, points, 2, rounds=2, added=3, evolution=SMALL)
    )(jax.random.key(1))
    assert front.points.shape == (2, 13, 2) and front.values.shape == (13, 2)
    assert not np.array_equal(front.points[0, 7:], front.points[1, 7:])
    for task in range(2):
        own = jnp.stack([near(c, task) for c in front.points[task]])
        np.testing.assert_allclose(front.values[:, task], own, rtol=1e-6)
    real = pareto.evaluate_points(near, front.coefficients, 2)
    np.testing.assert_allclose(front.predicted, real, atol=1e-3)


def many(c, task):
    """Six tasks: each wants its own coefficient at 0.6, and the sum of all small."""
    return 1 - (c[task] - 0.6) ** 2 - 0.01 * jnp.sum(c) ** 2


def test_two_models_are_merged_as_by_the_plain_method():
    key = jax.random.key(3)
    # Without generations: rounding that differs between programs would grow with them.
    drawn = pareto.EvolutionConfig(40, 0)
    nested = pareto.nested_map(key, many, 2, points=12, evolution=drawn)
    sample, search = jax.random.split(jax.random.split(key, 1)[0])
    plain = pareto.map_front(search, many, pareto.lattice_points(sample, 2, 12), 2, evolution=drawn)
    best = pareto.pareto_pick(plain.predicted, 1.0)
    np.testing.assert_allclose(nested.coefficients, plain.coefficients[best], rtol=1e-5)
    assert nested.evaluations == 2 + 24


def test_a_task_without_weight_does_not_count():
    drawn = pareto.EvolutionConfig(40, 0)
    run = jax.jit(
        lambda liked: (
            pareto.nested_map(
                jax.random.key(0), many, 3, points=12, preference=liked, evolution=drawn
            ).coefficients
        )
    )
    found = {i: run(jnp.eye(3)[i]) for i in range(3)}
    for i, c in found.items():
        assert many(c, i) > 0.97
    np.testing.assert_allclose(run(jnp.zeros(3)), run(jnp.ones(3)), rtol=1e-5)


@pytest.mark.slow
def test_many_models_pair_by_pair():
    run = jax.jit(
        lambda key, liked: pareto.nested_map(
            key, many, 6, points=10, preference=liked, evolution=SMALL
        )
    )
    found = run(jax.random.key(0), jnp.ones(6))
    mean = lambda c: sum(many(c, t) for t in range(6)) / 6  # noqa: E731
    best = 0.6 / (1 + 6 * 0.06 / 6 * 1)  # of equal coefficients
    assert mean(found.coefficients) > mean(jnp.full(6, best)) - 0.02
    assert mean(found.coefficients) > max(mean(jnp.eye(6)[0]), mean(jnp.ones(6))) + 0.05
    assert 6 + 10 * 2 * 5 <= found.evaluations <= 6 + 10 * (2 + 3 + 4 + 5 + 6)
    liked = run(jax.random.key(0), jnp.asarray([1.0] + 5 * [1e-3]))
    assert many(liked.coefficients, 0) > 0.98

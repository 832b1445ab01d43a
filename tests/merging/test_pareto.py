"""Fronts and their measures, evolution towards known fronts, and quadratic surrogates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import pareto

RNG = np.random.default_rng(0)


def peeled(values):
    """Ranks by the definition, front after front."""
    rank, left, level = np.full(len(values), -1), set(range(len(values))), 0
    while left:
        beaten = {
            j
            for j in left
            for i in left
            if (values[i] >= values[j]).all() and (values[i] > values[j]).any()
        }
        for i in left - beaten:
            rank[i] = level
        left, level = beaten, level + 1
    return rank


@pytest.mark.parametrize("objectives", [2, 3])
def test_ranks_are_those_of_peeling_fronts_off(objectives):
    tables = RNG.integers(0, 5, (40, 12, objectives)).astype(np.float32)  # many ties and copies
    found = jax.jit(jax.vmap(pareto.non_dominated_rank))(tables)
    for table, rank in zip(tables, np.asarray(found)):
        assert rank.tolist() == peeled(table).tolist()
    copies = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]])
    assert pareto.non_dominated_mask(copies).tolist() == [True, True, False]
    best = jnp.asarray([[9.0, 9.0], [1.0, 2.0], [2.0, 1.0]])
    valid = jnp.asarray([False, True, True])
    assert pareto.non_dominated_rank(best, valid).tolist() == [3, 0, 0]
    assert pareto.non_dominated_mask(best[:, :1]).tolist() == [True, False, False]


def test_points_without_a_number_are_worst():
    values = jnp.asarray([[1.0, jnp.nan], [1.0, 2.0], [0.0, 1.0], [jnp.inf, 0.0]])
    assert pareto.non_dominated_rank(values).tolist() == [4, 0, 1, 4]
    assert pareto.hypervolume(values, jnp.zeros(2)) == 2


def test_crowding_is_the_gap_between_neighbours_of_the_front():
    values = jnp.asarray([[0.0, 10.0], [1.0, 8.0], [4.0, 2.0], [5.0, 0.0], [0.5, 0.5]])
    crowd = pareto.crowding_distance(values, pareto.non_dominated_rank(values))
    np.testing.assert_allclose(crowd[1:3], [4 / 5 + 8 / 10, 4 / 5 + 8 / 10])
    assert np.isinf(crowd[jnp.asarray([0, 3, 4])]).all()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_the_share_of_a_box_that_is_dominated(objectives):
    values = RNG.integers(-1, 6, (9, objectives)).astype(np.float32)
    cells = np.stack(np.meshgrid(*[np.arange(6)] * objectives, indexing="ij"), -1)
    cells = cells.reshape(-1, 1, objectives)  # unit cells [i, i + 1)
    expected = float((values[None] >= cells + 1).all(-1).any(-1).sum())
    measure = jax.jit(pareto.hypervolume)
    zero = jnp.zeros(objectives)
    assert measure(values, zero) == expected
    assert measure(values[::-1] + np.float32(3), zero + 3) == expected
    only = jnp.arange(9) < 1
    assert measure(values, zero, only) == np.prod(np.maximum(values[0], 0))


def test_distances_between_fronts_and_wins():
    front = jnp.asarray([[0.0, 1.0], [1.0, 0.0]])
    points = jnp.asarray([[0.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    valid = jnp.asarray([True, True, False])
    assert pareto.generational_distance(points, front, valid) == pytest.approx(0.5)
    found = pareto.inverted_generational_distance(points, front, valid)
    assert found == pytest.approx(0.5)
    second = jnp.asarray([False, True])  # the first is covered, the second 1 away
    found = pareto.inverted_generational_distance(points, front, valid, second)
    assert found == pytest.approx(1)
    assert pareto.win_rate(front, front) == 0.5
    assert pareto.win_rate(front + 2, front) == 1
    one = pareto.win_rate(points, front, (jnp.asarray([True, False, False]), jnp.ones(2, bool)))
    assert one == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)
    assert pareto.pareto_pick(front, jnp.asarray([0.0, 1.0])) == 0
    assert pareto.pareto_pick(points, 1.0) == 2
    assert pareto.pareto_pick(points, 1.0, valid) == 0
    assert pareto.pareto_pick(points.at[2, 0].set(jnp.nan), 1.0) == 0


def test_reference_directions():
    found = pareto.reference_directions(3, 4)
    assert found.shape == (15, 3) and len({tuple(row) for row in found.tolist()}) == 15
    np.testing.assert_allclose(found.sum(1), 1)
    assert set((found * 4).ravel().tolist()) == {0, 1, 2, 3, 4}


ENDS = jnp.asarray([[0.2, 0.3, 0.9], [0.8, 0.5, 0.1]])
UNIT = (jnp.zeros(3), jnp.ones(3))


def closeness(c):
    return -jnp.sum((c[None] - ENDS) ** 2, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["nsga2", "nsga3"])
def test_evolution_finds_the_segment_between_two_optima(selection):
    config = pareto.EvolutionConfig(60, 80, selection, divisions=20)
    points, values = jax.jit(lambda key: pareto.evolve_front(key, closeness, UNIT, config))(
        jax.random.key(0)
    )
    assert pareto.non_dominated_mask(values).all()
    length = float(jnp.linalg.norm(ENDS[0] - ENDS[1]))
    # sqrt(-f1) + sqrt(-f2) = |a - b| on the segment, and more beside it
    detour = np.asarray(jnp.sqrt(-values).sum(1)) / length - 1
    assert detour.min() > -1e-5 and detour.max() < 0.08 and detour.mean() < 0.01
    along = (points - ENDS[0][None]) @ (ENDS[1] - ENDS[0]) / length**2
    assert along.min() < 0.06 and along.max() > 0.94
    assert np.diff(np.sort(along)).max() < 0.12
    if selection == "nsga2":
        np.testing.assert_allclose(values, jax.vmap(closeness)(points))


@pytest.mark.slow
def test_evolution_covers_a_front_of_three_objectives():
    corners = jnp.eye(3)
    objectives = lambda c: -jnp.sum((c[None] - corners) ** 2, axis=1)  # noqa: E731
    config = pareto.EvolutionConfig(66, 40, "nsga3", divisions=10)
    run = jax.jit(jax.vmap(lambda key: pareto.evolve_front(key, objectives, UNIT, config)))
    points, values = run(jax.random.split(jax.random.key(1), 2))
    assert not np.array_equal(points[0], points[1])
    # The Pareto set is the simplex of the corners; an even lattice of it is hard to beat.
    lattice = jax.vmap(objectives)(pareto.reference_directions(3, 10))
    corner = jnp.full(3, -2.2)
    best = pareto.hypervolume(lattice, corner)
    random = jax.vmap(objectives)(jax.random.uniform(jax.random.key(2), (66, 3)))
    for found in values:
        assert pareto.hypervolume(found, corner) > 0.93 * best
    assert pareto.hypervolume(random, corner) < 0.9 * best
    near = jnp.abs(points[0][:, None] - pareto.reference_directions(3, 2)[None]).max(-1).min(0)
    assert near.max() < 0.45 and near.mean() < 0.25


def test_evolution_of_one_objective_is_an_optimum():
    objective = lambda c: closeness(c)[:1]  # noqa: E731
    points, values = pareto.evolve_front(
        jax.random.key(0), objective, UNIT, pareto.EvolutionConfig(20, 60)
    )
    np.testing.assert_allclose(points[0], ENDS[0], atol=0.02)
    assert values[0] == values.max()
    with pytest.raises(ValueError, match="population: expected an even number, got 3"):
        pareto.EvolutionConfig(3)
    with pytest.raises(ValueError, match="selection: expected"):
        pareto.EvolutionConfig(selection="moead")


def quadratics(seed, n=3, tasks=2, scale=1.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(tasks, n, n))
    a, b, e = a + a.transpose(0, 2, 1), rng.normal(size=(tasks, n)), rng.normal(size=tasks)

    def value(c):
        return scale * (e + c @ b.T + np.einsum("...i,tij,...j->...t", c, a, c) / 2)

    return (scale * a, scale * b, scale * e), value


@pytest.mark.parametrize("link", ["identity", "sigmoid", "softplus"])
def test_a_quadratic_is_recovered_from_as_many_points_as_unknowns(link):
    n = 3
    (a, b, e), value = quadratics(1, n, scale=0.3)
    points = np.random.default_rng(2).uniform(size=(pareto.num_coefficients(n), n))
    q = value(points)
    metric = {
        "identity": q,
        "sigmoid": 2 + 3 / (1 + np.exp(-q)),
        "softplus": np.log1p(np.exp(q)),
    }[link]
    found = jax.jit(
        functools.partial(pareto.fit_quadratic, link=link, bounds=(2.0, 5.0), resolution=1e-6)
    )(jnp.asarray(points, jnp.float32), jnp.asarray(metric, jnp.float32))
    for mine, true in ((found.curvature, a), (found.slope, b), (found.offset, e)):
        np.testing.assert_allclose(mine, true, atol=2e-3)
    predicted = jax.vmap(found)(jnp.asarray(points, jnp.float32))
    np.testing.assert_allclose(predicted, metric, atol=1e-5)
    assert found.curvature.shape == (2, n, n)


@pytest.mark.slow
def test_the_linked_fit_is_least_squares_of_the_metric_and_stays_in_bounds():
    rng = np.random.default_rng(3)
    _, value = quadratics(4, 2, 1)
    points = rng.uniform(size=(40, 2))
    share = 1 / (1 + np.exp(-3 * value(points)))
    noisy = np.clip(share + 0.1 * rng.normal(size=share.shape), 0, 1)
    given = jnp.asarray(points, jnp.float32), jnp.asarray(noisy, jnp.float32)
    found = pareto.fit_quadratic(*given, "sigmoid", resolution=0.01)
    start = pareto.fit_quadratic(*given, "sigmoid", resolution=0.01, steps=0)
    error = lambda f: float(jnp.mean((jax.vmap(f)(given[0]) - given[1]) ** 2))  # noqa: E731
    assert error(found) < 0.95 * error(start)
    slope = jax.grad(lambda f: jnp.sum((jax.vmap(f)(given[0]) - given[1]) ** 2))(found)
    assert abs(slope.offset[0]) < 1e-3 and jnp.abs(slope.slope).max() < 1e-3
    far = jax.vmap(found)(100 * given[0])
    assert far.min() >= 0 and far.max() <= 1
    assert pareto.r_squared(given[1], given[1])[0] == 1
    assert pareto.r_squared(jnp.full((40, 1), given[1].mean()), given[1])[0] == pytest.approx(
        0, abs=1e-5
    )


def test_bad_fits_are_named():
    with pytest.raises(ValueError, match="points: expected at least 6 for 2 models, got 5"):
        pareto.fit_quadratic(jnp.zeros((5, 2)), jnp.zeros((5, 1)))
    with pytest.raises(ValueError, match="link: expected one of"):
        pareto.fit_quadratic(jnp.zeros((6, 2)), jnp.zeros((6, 1)), "log")


@pytest.mark.slow
def test_the_local_expansion_of_a_linear_model_is_its_surrogate():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=30)
    base, vectors = rng.normal(size=4), rng.normal(size=(3, 4))
    as_jax = lambda z: jnp.asarray(z, jnp.float32)  # noqa: E731

    def loss(params):
        return jnp.mean((as_jax(x) @ params["w"] - as_jax(y)) ** 2)

    local = pareto.local_quadratic({"w": as_jax(base)}, {"w": as_jax(vectors)}, loss)
    residual = x @ base - y
    np.testing.assert_allclose(local.offset, np.mean(residual**2), rtol=1e-4)
    np.testing.assert_allclose(local.slope, 2 * (x @ vectors.T).T @ residual / 30, rtol=1e-3)
    np.testing.assert_allclose(
        local.curvature, 2 * (x @ vectors.T).T @ (x @ vectors.T) / 30, rtol=1e-3
    )
    points = pareto.lattice_points(jax.random.key(0), 3, 12)

    def metric(c, task):
        return loss({"w": as_jax(base) + c @ as_jax(vectors)})

    values = pareto.evaluate_points(metric, points, 1)
    fitted = pareto.fit_quadratic(points, values)
    np.testing.assert_allclose(fitted.slope[0], local.slope, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(fitted.curvature[0], local.curvature, rtol=1e-2, atol=1e-2)

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm


def reached(following, start, steps):
    """Oracle: states after every sequence of actions, one by one."""
    states, actions = following.shape
    levels = []
    for t in range(steps + 1):
        level = np.zeros(states, bool)
        for s in np.flatnonzero(start):
            for plan in itertools.product(range(actions), repeat=t):
                at = s
                for action in plan:
                    at = following[at, action]
                level[at] = True
        levels.append(level)
    return np.array(levels)


@pytest.mark.parametrize("seed", range(4))
def test_level_sets_are_those_of_all_plans(seed):
    rng = np.random.default_rng(seed)
    following = rng.integers(0, 12, (12, 2))
    start = rng.random(12) < 0.2
    for steps in (0, 1, 3):
        levels = wm.level_sets(jnp.asarray(following, jnp.int32), jnp.asarray(start), steps)
        expected = reached(following, start, steps)
        np.testing.assert_array_equal(levels, expected)
        if steps:
            edge = wm.edge_of_reach(jnp.asarray(following, jnp.int32), jnp.asarray(start), steps)
            np.testing.assert_array_equal(edge, expected[-1] & ~expected[:-1].any(axis=0))
            assert not np.any(edge & start)  # start states never are at the edge


def test_a_worked_example():
    # 0 -> 1 -> 2 -> 3, 3 stays; from 0 one may also stay.
    following = jnp.array([[1, 0], [2, 2], [3, 3], [3, 3]])
    start = jnp.array([True, False, False, False])
    assert wm.edge_of_reach(following, start, 1).tolist() == [False, True, False, False]
    assert wm.edge_of_reach(following, start, 2).tolist() == [False, False, True, False]
    assert wm.edge_of_reach(following, start, 3).tolist() == [False, False, False, True]
    # Longer than it takes to get anywhere: nothing is out of reach.
    assert not bool(jnp.any(wm.edge_of_reach(following, start, 4)))


def test_every_outcome_of_positive_probability_counts():
    chance = jnp.zeros((3, 1, 3)).at[0, 0].set(jnp.array([0.0, 0.999, 0.001]))
    chance = chance.at[1, 0, 1].set(1.0).at[2, 0, 2].set(1.0)
    start = jnp.array([True, False, False])
    levels = jax.jit(wm.level_sets, static_argnums=2)(chance, start, 2)
    assert levels.tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert not bool(jnp.any(wm.edge_of_reach(chance, start, 2)))


def test_the_box_is_the_lattice_of_a_king():
    side = np.arange(-6, 7)
    place = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    moves = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
    moved = np.clip(place[:, None] + moves[None], -6, 6)
    following = jnp.asarray((moved + 6) @ [13, 1], jnp.int32)
    start = jnp.asarray(np.abs(place).max(-1) <= 2)
    for steps in (1, 2, 3):
        edge = wm.edge_of_reach(following, start, steps)
        last = wm.level_sets(following, start, steps)[-1]
        obs, t = jnp.asarray(place, jnp.float32), jnp.full(len(place), steps)
        box = jax.jit(lambda o, t, k=steps: wm.box_edge_of_reach(o, t, k, 2.0, 1.0))(obs, t)
        np.testing.assert_array_equal(edge, box & last)
        assert not bool(jnp.any(wm.box_edge_of_reach(obs, t - 1, steps, 2.0, 1.0)))


def test_unvisited_cells(key):
    rows = jnp.array([[0.1, 0.1], [0.9, 0.2], [-0.1, 5.0], [7.0, 7.0]])
    width = jnp.array([1.0, 0.5])
    obs = jnp.array([[0.5, 0.3], [0.5, 0.6], [-0.5, 5.3], [0.5, 5.0], [7.5, 7.2]])
    assert wm.unvisited(obs, rows, width).tolist() == [False, True, False, True, False]
    assert wm.unvisited(obs, rows, width, 3).tolist() == [False, True, False, True, True]
    assert wm.unvisited(obs, rows, width, 0).tolist() == [True] * 5
    rows = jax.random.normal(key, (300, 3))
    asked = jax.random.normal(jax.random.fold_in(key, 1), (200, 3))
    cells = {tuple(c) for c in np.floor(np.asarray(rows) / 0.5).astype(int)}
    expected = [tuple(c) not in cells for c in np.floor(np.asarray(asked) / 0.5).astype(int)]
    got = jax.jit(wm.unvisited)(asked, rows, jnp.full(3, 0.5))
    np.testing.assert_array_equal(got, expected)
    assert 20 < sum(expected) < 180


def test_refusals():
    start = jnp.ones(3, bool)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        wm.edge_of_reach(jnp.zeros((3, 2), jnp.int32), start, 0)
    with pytest.raises(ValueError, match=r"transition: expected integers \[3, A\]"):
        wm.level_sets(jnp.zeros((3, 2)), start, 1)
    with pytest.raises(ValueError, match="rows: expected 2 dimensions, got 3"):
        wm.unvisited(jnp.zeros((1, 2)), jnp.zeros((1, 3)), jnp.ones(2))

"""Worlds of bits: their dynamics against rules written down independently, and exact optima."""

import itertools
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import (
    ButtonGridState,
    ProcMazeState,
    buttongrid,
    carve_maze,
    panflute,
    panflute_rewards,
    procmaze,
    relabel_bits,
    scramble_bits,
)
from jaxlab.envs.discrete import bits_to_code, code_to_bits
from jaxlab.envs.grids import neighbours

WORLDS = {
    "panflute": lambda: panflute(3),
    "buttongrid": lambda: buttongrid(3, 2),
    "procmaze": lambda: procmaze(4),
}


def pipes_step(pipes, action):
    """Pan flute without spontaneous sounds, with one list per pipe."""
    reward = all(pipe[-1] for pipe in pipes)
    return [[int(i == action), *pipe[:-1]] for i, pipe in enumerate(pipes)], reward


def all_panflute_steps(n):
    """Next code and reward of every state and action of the rule above."""
    cells = n * (n + 1) // 2
    ends = np.cumsum(range(1, n + 1))
    following, rewards = np.zeros((2**cells, n), int), np.zeros(2**cells)
    for code in range(2**cells):
        bits = [code >> i & 1 for i in range(cells)]
        pipes = [bits[end - i - 1 : end] for i, end in enumerate(ends)]
        for action in range(n):
            moved, reward = pipes_step(pipes, action)
            flat = list(itertools.chain(*moved))
            following[code, action] = sum(bit << i for i, bit in enumerate(flat))
            rewards[code] = reward
    return following, rewards, sum(1 << int(end - 1) for end in ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_contract(name):
    env = WORLDS[name]()
    keys = jax.random.split(jax.random.key(0), 16)
    states = jax.vmap(env.reset)(keys)
    actions = jnp.arange(16, dtype=jnp.int32) % env.num_actions
    step = jax.jit(jax.vmap(env.step))
    after, reward, terminated = step(states, actions, keys)
    assert jax.tree.structure(after) == jax.tree.structure(states)
    assert [x.dtype for x in jax.tree.leaves(after)] == [x.dtype for x in jax.tree.leaves(states)]
    assert (reward.dtype, terminated.dtype) == (jnp.float32, jnp.bool_)
    obs = np.asarray(jax.vmap(env.observe)(after))
    assert obs.shape == (16, env.obs_dim) and obs.dtype == np.float32
    assert set(np.unique(obs)) <= {0.0, 1.0}
    again = jax.jit(env.step)(jax.tree.map(lambda x: x[3], states), actions[3], keys[3])
    for alone, batched in zip(jax.tree.leaves(again), jax.tree.leaves((after, reward, terminated))):
        np.testing.assert_array_equal(alone, batched[3])


@pytest.mark.parametrize("n", [2, 3])
def test_panflute_moves_as_its_rule_says(n):
    env = panflute(n, spontaneous=False)
    following, rewards, _ = all_panflute_steps(n)
    codes = jnp.arange(len(rewards))
    states = code_to_bits(codes, env.obs_dim) > 0.5
    step = jax.jit(jax.vmap(jax.vmap(env.step, (None, 0, None)), (0, None, None)))
    after, reward, _ = step(states, jnp.arange(n), jax.random.key(0))
    np.testing.assert_array_equal(bits_to_code(after.astype(jnp.float32)), following)
    np.testing.assert_array_equal(reward, np.repeat(rewards[:, None], n, axis=1))
    assert rewards[-1] == 1  # all cells sound: rewarded in this very step


@pytest.mark.parametrize("spontaneous", [True, False])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_panflute_optimum_is_the_gain_of_value_iteration(n, spontaneous):
    following, rewards, ends = all_panflute_steps(n)
    p = 1 / n**2 if spontaneous else 0.0
    value = np.zeros(len(rewards))
    for _ in range(4000):
        moved = (1 - p) * value[following] + p * value[following | ends]
        # Half a step of staying keeps periodic chains from swinging; it halves the gain.
        change = 0.5 * (rewards + moved.max(axis=1) - value)
        value = value + change - change[0]
        if np.ptp(change) < 1e-9:
            break
    random, best = panflute_rewards(n, spontaneous=spontaneous)
    assert 2 * change.mean() == pytest.approx(best, abs=1e-8)
    uniform = np.full(len(rewards), 1 / len(rewards))
    for _ in range(60):
        flow = np.zeros_like(uniform)
        np.add.at(flow, following, np.repeat((1 - p) * uniform[:, None] / n, n, 1))
        np.add.at(flow, following | ends, np.repeat(p * uniform[:, None] / n, n, 1))
        uniform = flow
    assert uniform @ rewards == pytest.approx(random, abs=1e-9)


def test_panflute_optimal_play_and_spontaneous_sounds():
    assert panflute_rewards(4) == (pytest.approx(0.0661621), 0.296875)
    env = panflute(4)

    def step(carry, key):
        state, t = carry
        state, reward, _ = env.step(state, 3 - t % 4, key)
        return (state, t + 1), (reward, state)

    start = (env.reset(jax.random.key(0)), jnp.int32(0))
    keys = jax.random.split(jax.random.key(1), 20_000)
    _, (reward, states) = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    assert np.mean(reward) == pytest.approx(0.296875, abs=0.01)
    assert np.asarray(reward)[4::4].all()  # every round is rewarded
    ends = np.asarray(states)[:, [0, 2, 5, 9]]
    assert ends.all(axis=1)[1::4].mean() == pytest.approx(1 / 16, abs=0.01)


def test_relabelling_is_an_isomorphism(key):
    env = panflute(3)
    scrambled = scramble_bits(env, key)
    codes = jnp.arange(64)
    states = code_to_bits(codes, 6) > 0.5
    shown = np.asarray(bits_to_code(jax.vmap(scrambled.observe)(states)))
    assert sorted(shown) == list(range(64)) and (shown != np.arange(64)).sum() > 50
    same = relabel_bits(env, codes)
    np.testing.assert_array_equal(jax.vmap(same.observe)(states), states)
    step = jax.vmap(env.step, (0, None, None))
    for one, other in zip(
        step(states, 1, key), jax.vmap(scrambled.step, (0, None, None))(states, 1, key)
    ):
        np.testing.assert_array_equal(one, other)
    # Discounted optimal values, computed on what is shown, are a permutation of the plain ones.
    following, rewards, ends = all_panflute_steps(3)

    def optimal(following, rewards, jump):
        value = np.zeros(64)
        for _ in range(300):
            value = rewards + 0.9 * (8 / 9 * value[following] + value[jump[following]] / 9).max(1)
        return value

    plain = optimal(following, rewards, np.arange(64) | ends)
    back = np.argsort(shown)
    seen = optimal(shown[following[back]], rewards[back], shown[(np.arange(64) | ends)[back]])
    np.testing.assert_allclose(seen[shown], plain, atol=1e-9)
    with pytest.raises(ValueError, match="at most 12 observation bits, got 27"):
        scramble_bits(buttongrid(3, 2), key)
    with pytest.raises(ValueError, match=r"codes: expected shape \(64,\)"):
        relabel_bits(env, jnp.arange(8))


def test_codes_are_binary_numbers():
    bits = jnp.array([[1.0, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(bits_to_code(bits), [5, 6])
    np.testing.assert_array_equal(code_to_bits(jnp.array([5, 6]), 3), bits)


def button_state(player, on):
    return ButtonGridState(jnp.int32(player), jnp.array([1, 8], jnp.int32), jnp.array(on))


@pytest.mark.parametrize(
    "player, on, action, after",
    [
        (0, [False, False], 4, (1, [True, False])),  # entering switches on
        (0, [True, False], 4, (1, [False, False])),  # and off
        (1, [False, False], 0, (1, [False, False])),  # staying does not
        (1, [False, False], 1, (1, [False, False])),  # bumping into the border neither
        (5, [True, False], 3, (8, [True, True])),
        (4, [False, False], 2, (3, [False, False])),
    ],
)
def test_buttons_toggle_on_entering_alone(player, on, action, after):
    env = buttongrid(3, 2, spontaneous=False)
    state, reward, terminated = env.step(button_state(player, on), action, jax.random.key(0))
    assert (int(state.player), state.on.tolist()) == after
    assert float(reward) == 0 and not bool(terminated)
    obs = np.asarray(env.observe(state)).reshape(9, 3)
    assert obs[:, 0].argmax() == after[0] and obs.sum() == 3
    np.testing.assert_array_equal(obs[[1, 8], 1], np.array(after[1], float))
    np.testing.assert_array_equal(obs[[1, 8], 2], 1 - np.array(after[1], float))


def test_all_buttons_on_are_rewarded_and_start_everything_afresh():
    env = buttongrid(3, 2)
    keys = jax.random.split(jax.random.key(0), 20_000)
    step = jax.jit(jax.vmap(env.step, (None, None, 0)))
    state, reward, _ = step(button_state(4, [True, True]), 0, keys)
    assert (np.asarray(reward) == 1).all() and not np.asarray(state.on).any()
    buttons = np.asarray(state.buttons)
    assert (buttons[:, 0] != buttons[:, 1]).all()
    for cells in (np.asarray(state.player), buttons[:, 0], buttons[:, 1]):
        np.testing.assert_allclose(np.bincount(cells, minlength=9) / 20_000, 1 / 9, atol=0.01)
    state, reward, _ = step(button_state(4, [True, False]), 0, keys)
    assert not np.asarray(reward).any()
    assert np.asarray(state.on).all(axis=1).mean() == pytest.approx(1 / 90, abs=0.003)


def test_buttongrid_needs_as_many_steps_as_a_search_says():
    env = buttongrid(3, 2, spontaneous=False)
    step = jax.jit(jax.vmap(env.step, (None, 0, None)))
    actions = jnp.arange(5, dtype=jnp.int32)

    def search(start):
        """Fewest steps until all are on, by the environment's own steps."""
        queue, seen = deque([(start, 0)]), set()
        while queue:
            state, depth = queue.popleft()
            if state.on.all():
                return depth
            place = (int(state.player), *state.on.tolist())
            if place not in seen:
                seen.add(place)
                after = jax.device_get(step(state, actions, jax.random.key(0))[0])
                queue += [(jax.tree.map(lambda x: x[i], after), depth + 1) for i in range(5)]
        raise AssertionError("unreachable")

    # Buttons in the middle of the upper row and in the lower right corner, three steps apart.
    for player, least in [(0, 4), (2, 4), (1, 5), (8, 5), (7, 4), (4, 4)]:
        assert search(button_state(player, [False, False])) == least


@pytest.fixture(scope="module")
def mazes():
    env = procmaze(4)
    return env, jax.device_get(
        jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(2), 300))
    )


def distances(opened, goal, size):
    table, found, queue = neighbours(size), {int(goal): 0}, deque([int(goal)])
    while queue:
        cell = queue.popleft()
        for other in table[cell, 1:]:
            if opened[other] and int(other) not in found:
                found[int(other)] = found[cell] + 1
                queue.append(int(other))
    return found


def test_carved_cells_form_a_maximal_tree(mazes):
    _, states = mazes
    table = neighbours(4)
    for player, goal, opened in zip(states.player, states.goal, states.open):
        edges = sum(
            opened[c] and opened[o] and o > c for c in range(16) for o in table[c, 1:] if o != c
        )
        assert edges == opened.sum() - 1
        reached = distances(opened, goal, 4)
        assert len(reached) == opened.sum() and opened[player] and int(player) in reached
        for cell in np.flatnonzero(~opened):  # no wall could be opened without closing a loop
            around = {int(o) for o in table[cell, 1:] if o != cell}
            assert sum(opened[o] for o in around) != 1
    assert len(np.unique(states.open, axis=0)) > 100
    assert (states.player == states.goal).any()
    assert np.asarray(carve_maze(jax.random.key(0), 1)).tolist() == [True]


def test_the_best_return_of_a_maze_is_its_distance(mazes):
    env = procmaze(4, spontaneous=False)
    _, states = mazes
    table = neighbours(4)
    step = jax.jit(env.step)
    for i in range(12):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        found = distances(state.open, state.goal, 4)
        total, terminated, start = 0.0, False, found[int(state.player)]
        while not terminated:
            here = int(state.player)
            nearer = [a for a in range(5) if found.get(int(table[here, a]), 99) < found[here]]
            state, reward, terminated = step(state, (nearer or [0])[0], jax.random.key(0))
            total += float(reward)
        assert total == -(start + 1)


def test_walls_stop_the_player_and_chance_carries_it(mazes):
    env, _ = mazes
    opened = np.zeros(16, bool)
    opened[[0, 1, 2]] = True
    state = ProcMazeState(jnp.int32(0), jnp.int32(2), jnp.asarray(opened))
    keys = jax.random.split(jax.random.key(3), 20_000)
    after, reward, terminated = jax.jit(jax.vmap(env.step, (None, None, 0)))(state, 3, keys)
    assert (np.asarray(reward) == -1).all() and not np.asarray(terminated).any()
    carried = np.asarray(after.player) == 2
    assert set(np.unique(np.asarray(after.player))) == {0, 2}
    assert carried.mean() == pytest.approx(0.1 / 10, abs=0.003)
    at_goal = ProcMazeState(jnp.int32(2), jnp.int32(2), jnp.asarray(opened))
    _, reward, terminated = env.step(at_goal, 2, keys[0])
    assert bool(terminated) and float(reward) == -1
    obs = np.asarray(env.observe(state)).reshape(16, 4)
    assert obs[0, 0] == obs[2, 1] == 1 and obs[:, :2].sum() == 2
    np.testing.assert_array_equal(obs[:, 3], opened)
    np.testing.assert_array_equal(obs[:, 2], ~opened)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: panflute(0), "pipes: expected at least 1, got 0"),
        (lambda: buttongrid(2, 5), "buttons: expected 1 to 4, got 5"),
        (lambda: procmaze(0), "size: expected at least 1, got 0"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()

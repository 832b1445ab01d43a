import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import kvsum
from jaxlab.tasks.vocabulary import KEY

CONFIG = kvsum.Config(n_keys=3, turns=4, keys_per_turn=2)
# K5 = 7, K0 = 4, K9 = 8; the increments are 11, 12, 16, 14.
PROBLEM = kvsum.Problem(
    jnp.asarray([5, 0, 9]),
    jnp.asarray([7, 4, 8]),
    jnp.asarray([[0, 1], [2, 1], [2, 2], [0, 0]]),
    jnp.asarray([1, 3, 9, 3]),
)


def scores(written):
    completion = kvsum.completion_of(PROBLEM, jnp.asarray(written), CONFIG)
    return [s.tolist() for s in kvsum.turn_scores(PROBLEM, completion, CONFIG)]


def test_golden_tokens():
    k = [KEY + i for i in (5, 0, 9)]
    assert kvsum.prompt_tokens(PROBLEM, CONFIG).tolist() == [1, 73, k[0], 17, k[1], 14, k[2], 18, 5]
    turns = [[k[0], k[1], 5, 11, 3], [k[2], k[1], 5, 13, 3], [k[2], k[2], 5, 19, 3],
             [k[0], k[0], 5, 13, 3]]  # fmt: skip
    solution = [token for turn in turns for token in turn] + [2]
    assert kvsum.solution_tokens(PROBLEM, CONFIG).tolist() == solution
    free = [-1 if i % 5 == 3 and i < 20 else t for i, t in enumerate(solution)]
    assert kvsum.template(PROBLEM, CONFIG).tolist() == free


def test_the_three_accuracies():
    assert scores([1, 3, 9, 3]) == [[1, 1, 1, 1]] * 3
    # Off by one from turn 1 on: one wrong step.
    assert scores([1, 4, 0, 4]) == [[1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]]
    # An error and its reverse: the absolute accuracy recovers, the task's does not.
    assert scores([1, 4, 9, 3]) == [[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0]]


def test_an_unreadable_turn_is_wrong_and_carries_the_sum_before_it():
    completion = kvsum.solution_tokens(PROBLEM, CONFIG).at[8].set(77)
    # Turn 2 is judged from the 1 of turn 0: 1 + 16 = 7, but 9 is written.
    got = kvsum.turn_scores(PROBLEM, completion, CONFIG)
    assert got.step.tolist() == [1, 0, 0, 1] and got.absolute.tolist() == [1, 0, 1, 1]


def test_sampled_sums_are_running_sums(draw):
    config = kvsum.Config(n_keys=16, p=100, turns=7, keys_per_turn=3)
    problem, _ = draw(kvsum.make(config), 50)
    keys, values, queries, sums = (np.asarray(leaf) for leaf in problem)
    rows = np.arange(50)[:, None, None]
    np.testing.assert_array_equal(sums, values[rows, queries].sum(2).cumsum(1) % 100)
    assert (np.sort(keys, axis=1) == np.arange(16)).all()


def test_identity_ignores_the_order_of_the_dictionary():
    turned = PROBLEM._replace(
        keys=PROBLEM.keys[::-1], values=PROBLEM.values[::-1], queries=2 - PROBLEM.queries
    )
    np.testing.assert_array_equal(kvsum.identity(turned), kvsum.identity(PROBLEM))
    other = PROBLEM._replace(values=PROBLEM.values + 1)
    assert not np.array_equal(kvsum.identity(other), kvsum.identity(PROBLEM))


@pytest.mark.parametrize("mode", ["independent", "accumulating"])
def test_injected_errors(mode):
    keys = jax.random.split(jax.random.key(0), 2000)

    @jax.jit
    def run(rate):
        def one(key):
            written = kvsum.inject(key, PROBLEM, rate, CONFIG, mode)
            completion = kvsum.completion_of(PROBLEM, written, CONFIG)
            return written, kvsum.turn_scores(PROBLEM, completion, CONFIG).step

        return jax.vmap(one)(keys)

    def errors(rate):
        written, steps = run(rate)
        return np.asarray(written) != np.asarray(PROBLEM.sums), np.asarray(steps) == 0

    wrong, steps = errors(0.0)
    assert not wrong.any() and not steps.any()
    wrong, steps = errors(0.25)
    if mode == "accumulating":  # what is seen as wrong is wrong at the given rate
        np.testing.assert_allclose(steps.mean(0), 0.25, atol=4 * np.sqrt(0.1875 / 2000))
    else:  # a wrong sum is seen twice, unless two equal offsets follow each other
        np.testing.assert_allclose(wrong.mean(0), 0.25, atol=4 * np.sqrt(0.1875 / 2000))
        seen = 1 - 0.75**2 - 0.25**2 / 9
        np.testing.assert_allclose(steps[:, 1:].mean(0), seen, atol=0.045)
    wrong, steps = errors(1.0)
    assert steps.all() if mode == "accumulating" else wrong.all()


def test_the_environment_forces_the_template():
    task = kvsum.make(CONFIG)
    state, forced = task.environment.start(PROBLEM)
    seen = []
    for token in kvsum.solution_tokens(PROBLEM, CONFIG):
        seen.append(int(forced))
        state, forced = task.environment.step(state, token)
    assert seen == kvsum.template(PROBLEM, CONFIG).tolist() and int(forced) == -1


def test_refusals(key):
    for field, value in (("n_keys", 17), ("p", 7), ("turns", 0), ("keys_per_turn", 0)):
        with pytest.raises(ValueError, match=f"{field}: expected"):
            kvsum.Config(**{field: value})
    with pytest.raises(ValueError, match="mode: expected one of"):
        kvsum.inject(key, PROBLEM, 0.1, CONFIG, "both")

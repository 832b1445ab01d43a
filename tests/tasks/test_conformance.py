"""What every task promises: lengths, ids, right solutions, total verifiers, clean splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import tasks
from jaxlab.tasks import vocabulary as voc


@pytest.mark.slow
def test_prompts_and_solutions_have_their_shape_and_the_solutions_are_right(task):
    small, vocab = tasks.compact(task), tasks.compact_vocab(task.used)
    size = small.vocab_size

    def everything(key):
        problem, good = task.sample(key)
        solution = task.solution(problem)
        narrow = small.solution(problem)
        compact = (
            narrow,
            small.prompt(problem),
            [small.outcome(problem, row) for row in (narrow, jnp.full(5, size))],
        )
        # The answer stands; what follows the end does not matter, what is missing does.
        longer = jnp.concatenate([solution, jnp.full(3, voc.JUNK)])
        verdicts = [task.outcome(problem, row) for row in (solution, longer, solution * 0)]
        reward = task.reward(problem, solution)
        return good, task.prompt(problem), solution, verdicts, reward, compact

    keys = jax.random.split(jax.random.key(0), 64)
    good, prompts, solutions, verdicts, rewards, compact = jax.jit(jax.vmap(everything))(keys)
    assert good.mean() > 0.9
    assert prompts.shape == (64, task.prompt_length) and prompts.dtype == jnp.int32
    assert solutions.shape == (64, task.solution_length) and solutions.dtype == jnp.int32
    seen = set(np.asarray(prompts).ravel().tolist()) | set(np.asarray(solutions).ravel().tolist())
    assert seen <= {voc.PAD, *task.used}
    right, longer, empty = verdicts
    assert right.dtype == rewards.dtype == jnp.float32
    np.testing.assert_array_equal(right[good], 1.0)
    np.testing.assert_array_equal(rewards[good], 1.0)
    np.testing.assert_array_equal(longer, right)
    np.testing.assert_array_equal(empty, 0.0)
    # The compact ids are a bijection under which nothing changes.
    assert size == len({0, 1, 2, *task.used}) and small.stop == 2
    np.testing.assert_array_equal(vocab.to_compact[vocab.from_compact], np.arange(size))
    np.testing.assert_array_equal(vocab.from_compact[compact[0]], solutions)
    np.testing.assert_array_equal(vocab.from_compact[compact[1]], prompts)
    np.testing.assert_array_equal(compact[2][0], right)
    np.testing.assert_array_equal(compact[2][1], 0.0)


def total(task, problem, rows, judge):
    outcome, reward = judge(task, problem, rows)
    assert set(np.unique(outcome)) <= {0.0, 1.0}
    assert np.isfinite(reward).all()
    assert (outcome[reward == 1.0] == 1.0).all() or task.name == "kvsum"
    return outcome


def test_verifiers_are_total(task, draw, junk, corrupt, judge):
    problem = jax.tree.map(lambda leaf: leaf[0], draw(task, 1)[0])
    solution = np.asarray(task.solution(problem))
    single = corrupt(solution)
    rng = np.random.default_rng(1)
    count = 10_000 - len(single)
    rows = junk(rng, count, len(solution))
    # Right solutions with a few tokens exchanged come closer to being right.
    near = np.where(rng.random((count, len(solution))) < 0.1, rows, solution)
    rows = np.where((np.arange(count) % 2 == 0)[:, None], rows, near)
    outcome = total(task, problem, np.concatenate([single, rows]), judge)
    assert outcome.mean() < 1


@pytest.mark.slow
def test_verifiers_are_total_on_many(task, draw, junk, judge):
    problem = jax.tree.map(lambda leaf: leaf[0], draw(task, 1)[0])
    for seed in range(20):
        rows = junk(np.random.default_rng(seed), 10_000, task.solution_length + 3)
        total(task, problem, rows, judge)


def in_training(task, n):
    keys = jax.random.split(jax.random.key(3), n)

    def one(key):
        problem, good = tasks.sample_split(key, task, "train")
        return tasks.hash32(task.identity(problem)), good

    return jax.jit(jax.vmap(one))(keys)


@pytest.mark.slow
def test_no_test_problem_is_drawn_for_training(task):
    hashes, good = in_training(task, 1000)
    assert good.all() and (np.asarray(hashes) % 10 != 0).all()


@pytest.mark.slow
def test_no_test_problem_is_among_a_hundred_thousand_for_training(task):
    hashes, good = in_training(task, 100_000)
    assert good.all() and (np.asarray(hashes) % 10 != 0).all()


def test_one_problem_in_ten_is_for_testing(draw):
    task = tasks.chain.make()
    problem, _ = draw(task, 2000)
    belongs = jax.jit(jax.vmap(lambda p: tasks.is_test(task, p)))
    share = float(belongs(problem).mean())
    assert abs(share - 0.1) < 4 * np.sqrt(0.09 / 2000)
    keys = jax.random.split(jax.random.key(1), 50)
    drawn, good = jax.jit(jax.vmap(lambda key: tasks.sample_split(key, task, "test")))(keys)
    assert good.all() and belongs(drawn).all()
    with pytest.raises(ValueError, match="split: expected one of"):
        tasks.sample_split(keys[0], task, "validation")


def test_a_task_without_test_problems_says_so(key):
    """All problems of this chain are on the training side."""
    task = tasks.chain.make(tasks.chain.Config(n_steps=1, p=2, operators=(voc.PLUS,)))
    hopeless = task._replace(identity=lambda problem: jnp.zeros(1, jnp.int32) + 5)
    assert int(tasks.hash32(jnp.asarray([5]))) % 10 != 0
    assert not bool(tasks.sample_split(key, hopeless, "test")[1])


def test_hash_is_murmur3():
    """Published vectors of MurmurHash3_x86_32 with seed 0, for four and eight bytes."""
    word = int.from_bytes(b"test", "little")
    assert int(tasks.hash32(jnp.asarray([word]))) == 0xBA6BD213
    two = np.frombuffer(b"abcdefgh", "<i4").astype(np.int32)
    assert int(tasks.hash32(jnp.asarray(two))) == 0x49DDCCC4


def test_a_task_is_made_compact_once():
    with pytest.raises(ValueError, match="task: expected the shared vocabulary"):
        tasks.compact(tasks.compact(tasks.chain.make()))
    with pytest.raises(ValueError, match="used: expected ids in"):
        tasks.compact_vocab([80])


def forced_by(task, problem, tokens):
    """What the environment forces at each place of a given transcript."""
    state, forced = task.environment.start(problem)

    def step(carry, token):
        state, forced = carry
        return task.environment.step(state, token), forced

    return jax.lax.scan(step, (state, forced), tokens)[1]


def test_compact_environments_force_the_same_tokens(task, draw):
    if task.environment is None:
        pytest.skip("the model writes everything")
    small = tasks.compact(task)
    problem = jax.tree.map(lambda leaf: leaf[0], draw(task, 1)[0])
    wide = np.asarray(forced_by(task, problem, task.solution(problem)))
    narrow = np.asarray(forced_by(small, problem, small.solution(problem)))
    want = np.where(wide < 0, -1, np.asarray(tasks.compact_vocab(task.used).to_compact)[wide])
    np.testing.assert_array_equal(narrow, want)


@pytest.mark.slow
def test_problems_are_the_same_integers_with_x64(task):
    def everything(key):
        problem, _ = task.sample(key)
        solution = task.solution(problem)
        mask = tasks.policy_mask(task, problem, solution)
        verdicts = task.outcome(problem, solution), task.reward(problem, solution)
        return problem, task.prompt(problem), solution, mask, verdicts

    keys = jax.random.split(jax.random.key(3), 4)
    want = jax.vmap(everything)(keys)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        got = jax.vmap(everything)(keys)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert all(leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(got[0]))


@pytest.mark.parametrize("module", [tasks.countdown, tasks.equiv, tasks.stack])
def test_no_draws_are_refused(module):
    with pytest.raises(ValueError, match="tries: expected at least 1, got 0"):
        module.Config(tries=0)

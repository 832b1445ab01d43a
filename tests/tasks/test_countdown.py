import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import countdown, countdown_exact, countdown_postfix
from jaxlab.tasks.vocabulary import ANS, DIVIDE, EOS, EQUALS, MINUS, PLUS, STEP, TIMES

CAP = 99
CONFIG = countdown.Config()
FUNCTIONS = {
    PLUS: lambda a, b: a + b,
    MINUS: lambda a, b: a - b if a >= b else None,
    TIMES: lambda a, b: a * b,
    DIVIDE: lambda a, b: a // b if b and a % b == 0 else None,
}


def allowed(op, a, b):
    result = FUNCTIONS[op](a, b) if op in FUNCTIONS else None
    return None if result is None or result > CAP else result


def moves(numbers):
    """All valid actions by recursion on tuples: (a, op, b, what remains)."""
    for i, j in itertools.permutations(range(len(numbers)), 2):
        for op in FUNCTIONS:
            result = allowed(op, numbers[i], numbers[j])
            if result is not None:
                rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
                yield numbers[i], op, numbers[j], (*rest, result)


def leaves(numbers, target):
    if len(numbers) == 1:
        return int(numbers[0] == target)
    return sum(leaves(rest, target) for *_, rest in moves(numbers))


def chance(numbers, target):
    if len(numbers) == 1:
        return Fraction(numbers[0] == target)
    nexts = [rest for *_, rest in moves(numbers)]
    return sum((chance(rest, target) for rest in nexts), Fraction(0)) / len(nexts)


@pytest.mark.parametrize(
    ("numbers", "target", "count", "value"),
    [((2, 3, 4), 24, 12, 0.1416667), ((8, 3, 1), 24, 18, 0.2), ((1, 1, 1), 24, 0, 0.0),
     ((9, 9, 9), 9, 48, 0.375)],
)  # fmt: skip
def test_golden_enumerations(numbers, target, count, value):
    state = jnp.asarray(numbers)
    assert (
        int(countdown_exact.winning_leaves(state, target, CAP)) == count == leaves(numbers, target)
    )
    assert bool(countdown_exact.reachable(state, target, CAP)) == (count > 0)
    got = float(countdown_exact.value(state, target, CAP))
    assert got == pytest.approx(value, abs=1e-6)
    assert got == pytest.approx(float(chance(numbers, target)), abs=1e-6)


def test_statistics_of_constructed_problems(draw):
    problem, _ = draw(countdown.make(), 3000)

    def measure(p):
        rest, valid = countdown_exact.successors(p.numbers, CAP)
        keeps = jax.vmap(lambda s: countdown_exact.reachable(s, p.target, CAP))(rest) & valid
        value = countdown_exact.value(p.numbers, p.target, CAP)
        return value, valid.sum(), keeps.sum()

    value, valid, keeps = jax.jit(jax.vmap(measure))(problem)
    assert (value > 0).all()
    assert float(value.mean()) == pytest.approx(0.108, abs=0.01)
    assert float(valid.mean()) == pytest.approx(17.0, abs=0.15)
    assert float((keeps / valid).mean()) == pytest.approx(0.307, abs=0.025)


def test_a_policy_with_mass_on_invalid_actions_loses_it(draw):
    """Probability 1/A for every action, valid or not: the value is the share of winning leaves."""

    def blind(numbers, valid, target):
        return jnp.full(valid.shape, 1 / valid.shape[0])

    got = countdown_exact.value(jnp.asarray([2, 3, 4]), 24, CAP, blind)
    assert float(got) == pytest.approx(12 / (24 * 8))


def test_a_fixed_target_is_reached_by_the_reference(draw):
    problem, good = draw(countdown.make(countdown.Config(target=24, tries=1)), 1000)
    assert float(good.mean()) == pytest.approx(0.31, abs=0.06)  # of all triples
    assert (problem.target == 24).all() and (problem.result[good, -1] == 24).all()


def test_golden_tokens():
    problem = countdown.Problem(
        jnp.asarray([2, 3, 4]), jnp.int32(24), jnp.asarray([3, 2]), jnp.asarray([TIMES, TIMES]),
        jnp.asarray([4, 12]), jnp.asarray([12, 24]),
    )  # fmt: skip
    assert countdown.prompt_tokens(problem, CONFIG).tolist() == [
        1, 71, 10, 12, 9, 10, 13, 9, 10, 14, 5, 12, 14,
    ]  # fmt: skip
    assert countdown.solution_tokens(problem, CONFIG).tolist() == [
        10, 13, TIMES, 10, 14, EQUALS, 11, 12, STEP,
        10, 12, TIMES, 11, 12, EQUALS, 12, 14, STEP, ANS, 12, 14, EOS,
    ]  # fmt: skip
    post = countdown.Config(style="postfix")
    assert countdown.solution_tokens(problem, post).tolist() == [12, 13, 14, TIMES, TIMES, EOS]


def replay(numbers, target, tokens):
    """Validity of each step and the outcome, on Python lists."""
    numbers, tokens = list(numbers), list(tokens)
    visible = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    valid, place, fine = [0, 0], 0, True
    for i in range(2):
        piece = visible[place : place + 9]
        words = [10 * (piece[j] - 10) + piece[j + 1] - 10
                 if all(10 <= t < 20 for t in piece[j : j + 2]) else None
                 for j in (0, 3, 6)] if len(piece) == 9 else [None] * 3  # fmt: skip
        fine = fine and None not in words and piece[5] == EQUALS and piece[8] == STEP
        if fine:
            a, b, c = words
            rest = list(numbers)
            for n in (a, b):
                fine = fine and n in rest
                if fine:
                    rest.remove(n)
            fine = fine and allowed(piece[2], a, b) == c
            numbers = [*rest, c]
        valid[i] = int(fine)
        place += 9
    won = fine and numbers == [target]
    won = won and visible[place:] == [ANS, 10 + target // 10, 10 + target % 10, EOS]
    return valid, float(won)


def test_every_corruption_is_judged_as_lists_judge_it(corrupt, junk):
    numbers = (8, 3, 3)
    steps = [(3, TIMES, 8, 24), (24, PLUS, 3, 27), (8, MINUS, 3, 5), (3, DIVIDE, 3, 1),
             (8, DIVIDE, 1, 8), (24, DIVIDE, 1, 24), (24, MINUS, 3, 21), (24, TIMES, 3, 72),
             (3, MINUS, 3, 0), (8, DIVIDE, 0, 0), (8, TIMES, 0, 0), (24, DIVIDE, 3, 8),
             (8, TIMES, 3, 24), (3, PLUS, 3, 6), (8, PLUS, 6, 14)]  # fmt: skip

    def write(chosen, answer):
        text = []
        for a, op, b, c in chosen:
            text += [10 + a // 10, 10 + a % 10, op, 10 + b // 10, 10 + b % 10, EQUALS,
                     10 + c // 10, 10 + c % 10, STEP]  # fmt: skip
        return [*text, ANS, 10 + answer // 10, 10 + answer % 10, EOS]

    pairs = [write(pair, pair[-1][-1]) for pair in itertools.product(steps, repeat=2)]
    pairs += [write(pair, 24) for pair in itertools.product(steps, repeat=2)]
    three = write([steps[3], steps[0], steps[5]], 24)[:22]
    base = np.asarray(write([(3, DIVIDE, 3, 1), (8, TIMES, 1, 8)], 8), np.int32)
    problem = countdown.Problem(jnp.asarray(numbers), jnp.int32(8), *([jnp.zeros(2, int)] * 4))
    rows = np.concatenate(
        [corrupt(base), pairs, [three, base], junk(np.random.default_rng(0), 500, 22)]
    )

    def judged(tokens):
        labels = countdown.step_labels(problem, tokens, CONFIG)
        return labels.label, countdown.outcome(problem, tokens, CONFIG)

    labels, outcomes = jax.jit(jax.vmap(judged))(jnp.asarray(rows))
    for row, label, outcome in zip(rows.tolist(), labels.tolist(), outcomes.tolist()):
        valid, won = replay(numbers, 8, row)
        assert outcome == won, row
        assert label[:2] == valid, row
        assert label[2] in (0.0, won), row
    assert sum(outcomes.tolist()) >= 3


def test_labels_of_progress_and_value():
    problem = countdown.Problem(
        jnp.asarray([2, 3, 4]), jnp.int32(24), jnp.asarray([2, 5]), jnp.asarray([PLUS, TIMES]),
        jnp.asarray([3, 4]), jnp.asarray([5, 20]),
    )  # fmt: skip
    tokens = countdown.solution_tokens(problem, CONFIG).at[-3:-1].set(jnp.asarray([12, 10]))

    def labels(kind):
        return countdown.step_labels(problem, tokens, CONFIG, kind).label

    assert labels("valid").tolist() == [1, 1, 0]
    assert labels("progress").tolist() == [0, 0, 0]  # 5 and 4 do not give 24
    reached = countdown.Problem(*problem[:2], *(x.at[0].set(v) for x, v in zip(
        problem[2:], (2, TIMES, 3, 6)
    )))  # fmt: skip
    tokens = countdown.solution_tokens(reached, CONFIG)
    value = countdown.step_labels(reached, tokens, CONFIG, "value").label
    assert float(value[0]) == pytest.approx(float(chance((4, 6), 24)))
    with pytest.raises(ValueError, match="kind: expected one of"):
        labels("other")
    with pytest.raises(ValueError, match="style: expected"):
        countdown.step_labels(problem, tokens, countdown.Config(style="postfix"))


def evaluate(numbers, tokens):
    remaining, stack = list(numbers), []
    if EOS not in tokens:
        return None
    for token in tokens[: tokens.index(EOS)]:
        if 10 <= token < 20:
            if token - 10 not in remaining:
                return None
            remaining.remove(token - 10)
            stack.append(token - 10)
        else:
            if len(stack) < 2:
                return None
            b, a = stack.pop(), stack.pop()
            stack.append(allowed(token, a, b))
            if stack[-1] is None:
                return None
    return stack[0] if len(stack) == 1 and not remaining else None


@pytest.mark.parametrize(("numbers", "target"), [((8, 3, 3), 8), ((2, 3, 4), 24)])
def test_postfix_programs_are_all_there_and_judged_right(numbers, target):
    texts, wins = jax.jit(lambda n, t: countdown_postfix.programs(n, t, CAP))(
        jnp.asarray(numbers), jnp.int32(target)
    )
    rows = [tuple(row) for row in texts.tolist()]
    assert len(rows) == 192 and len(set(rows)) == (192 if len(set(numbers)) == 3 else 96)
    want = {row for row in rows if evaluate(numbers, list(row)) == target}
    got = [row for row, win in zip(rows, wins.tolist()) if win]
    assert set(got) == want and len(got) == len(want) and want  # each once
    # Each sequence of actions on distinct numbers is a program, but for the order of two
    # operations that do not depend on each other, which three numbers do not have.
    if len(set(numbers)) == 3:
        assert len(want) == leaves(numbers, target)


def test_postfix_verdicts_on_any_text(junk, corrupt):
    numbers = (8, 3, 3)
    base = np.asarray([18, 13, 13, DIVIDE, TIMES, EOS, 0], np.int32)
    rows = np.concatenate([corrupt(base), junk(np.random.default_rng(3), 3000, 7), [base]])
    short = np.random.default_rng(4).choice([13, 18, PLUS, TIMES, DIVIDE, MINUS, EOS], (5000, 7))
    rows = np.concatenate([rows, short])

    def judged(tokens):
        return countdown_postfix.outcome(jnp.asarray(numbers), jnp.int32(8), tokens, CAP)

    got = jax.jit(jax.vmap(judged))(jnp.asarray(rows, jnp.int32)).tolist()
    want = [float(evaluate(numbers, row) == 8) for row in rows.tolist()]
    assert got == want and sum(want) > 2


def test_four_numbers_in_postfix(draw):
    config = countdown.Config(k=4, style="postfix")
    problem, _ = draw(countdown.make(config), 200)
    solutions = jax.jit(jax.vmap(lambda p: countdown.solution_tokens(p, config)))(problem)
    for numbers, target, row in zip(
        problem.numbers.tolist(), problem.target.tolist(), solutions.tolist()
    ):
        assert evaluate(numbers, row) == target

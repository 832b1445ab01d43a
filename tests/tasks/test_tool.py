import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import tool
from jaxlab.tasks.vocabulary import (
    ANS,
    CALL,
    DIGIT,
    END,
    EOS,
    EQUALS,
    MINUS,
    NEG,
    OBS,
    PLUS,
    TIMES,
)  # fmt: skip

CONFIG = tool.Config()
PROBLEM = tool.Problem(*(jnp.int32(x) for x in (12, TIMES, 3, 36, 86, 0, 4321)))
GOLDEN = [CALL, 11, 12, TIMES, 10, 13, EQUALS, END]


@functools.partial(jax.jit, static_argnums=2)
def automaton(tokens, problem, config):
    def step(carry, token):
        state, forced = carry
        token = jnp.where(forced >= 0, forced, token)
        state, forced = tool.tool_step(state, token, config)
        return (state, forced), forced

    carry = (tool.tool_start(problem, config), jnp.int32(-1))
    return jax.lax.scan(step, carry, tokens)[1]


def replies(emitted, problem=PROBLEM, config=CONFIG, free=EOS):
    """Emits tokens, then whatever is forced; returns what was forced after each token."""
    size = len(emitted) + 9
    tokens = jnp.asarray([*emitted, *[free] * (40 - len(emitted))], jnp.int32)
    return automaton(tokens, problem, config).tolist()[:size]


def reply(value, width=5):
    return [OBS, *(DIGIT + int(c) for c in f"{value:0{width}d}"), END]


def test_golden_call():
    assert replies(GOLDEN) == [-1] * 7 + [*reply(36), -1, -1, -1]


def test_what_is_not_a_call_forces_nothing():
    assert replies([11, 12, TIMES, 10, 13, EQUALS, END]) == [-1] * 16


@pytest.mark.parametrize(
    "call",
    [
        [CALL, 11, 12, TIMES, 10, 13, END],  # no '='
        [CALL, END],
        [CALL, 11, TIMES, 10, 13, EQUALS, END],  # too short
        [CALL, 11, 12, 11, TIMES, 10, 13, EQUALS, END],  # too long
        [CALL, 11, 12, TIMES, 10, 13, EQUALS, EQUALS, END],
        [CALL, 10, 13, MINUS, 11, 12, EQUALS, END],  # negative
        [CALL, 11, 12, 23, 10, 13, EQUALS, END],  # no such operator
        [CALL, CALL, 12, TIMES, 10, 13, EQUALS, END],
        [CALL, 77, 12, TIMES, 10, 13, EQUALS, END],
    ],
)
def test_malformed_calls(call):
    want = [-1] * (len(call) - 1) + [OBS, NEG, END]
    got = replies(call)
    assert got[: len(want)] == want and set(got[len(want) :]) == {-1}
    assert replies([*call, 0, 0, 0, *GOLDEN])[-9 - 1 :][:7] == reply(36)  # and it goes on working


def test_a_second_call_is_answered():
    second = [CALL, 19, 19, PLUS, 10, 11, EQUALS, END]
    got = replies([*GOLDEN, *[0] * 7, *second])
    assert got[7:14] == reply(36) and got[22:29] == reply(100)


def test_the_calculator_agrees_with_integers_on_all_operands():
    left, right = (x.ravel() for x in np.meshgrid(np.arange(100), np.arange(100)))
    for op, function in ((PLUS, np.add), (MINUS, np.subtract), (TIMES, np.multiply)):
        got, exists = tool.calculate(jnp.int32(op), jnp.asarray(left), jnp.asarray(right))
        want = function(left, right)
        np.testing.assert_array_equal(exists, want >= 0)
        np.testing.assert_array_equal(got, np.maximum(want, 0))


def test_all_calls_are_answered_as_integers_say(rng=np.random.default_rng(0)):
    calls = rng.integers(0, 100, (300, 2))
    ops = rng.choice([PLUS, MINUS, TIMES], 300)
    rows = [
        [CALL, 10 + a // 10, 10 + a % 10, op, 10 + b // 10, 10 + b % 10, EQUALS, END]
        for (a, b), op in zip(calls, ops)
    ]

    def said(row):
        return jax.lax.scan(
            lambda s, t: tool.tool_step(s, t, CONFIG), tool.tool_start(PROBLEM, CONFIG), row
        )[0]

    states = jax.jit(jax.vmap(said))(jnp.asarray(rows, jnp.int32))
    for (a, b), op, got in zip(calls.tolist(), ops, states.reply.tolist()):
        value = {PLUS: a + b, MINUS: a - b, TIMES: a * b}[op]
        assert got == (reply(value) if value >= 0 else [OBS, NEG, END, -1, -1, -1, -1])


def test_a_failing_calculator_says_its_noise():
    assert replies(GOLDEN, PROBLEM._replace(fails=jnp.int32(1)))[7:14] == reply(4321)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (3, 2), (3, 3)])
def test_problems(draw, sizes):
    config = tool.Config(*sizes)
    problem, _ = draw(tool.make(config), 500)
    left, op, right, answer, wrong = (np.asarray(x) for x in problem[:5])
    want = np.select([op == PLUS, op == MINUS], [left + right, left - right], left * right)
    np.testing.assert_array_equal(answer, want)
    assert (answer >= 0).all() and max(answer.max(), wrong.max()) < 10**config.answer_width
    rows = [np.asarray(jax.vmap(lambda x: tool.candidate_tokens(x, config))(x))
            for x in (problem.answer, problem.wrong)]  # fmt: skip
    assert ((rows[0] != rows[1]).sum(axis=1) == 1).all()
    places = (rows[0] != rows[1]).sum(axis=0)
    assert (places[1:-1] > 0).all() and places[0] == places[-1] == 0
    judge = jax.jit(jax.vmap(lambda p, c: tool.outcome(p, c, config)))
    judged = [judge(problem, r) for r in rows]
    assert judged[0].all() and not judged[1].any()


def test_solutions_that_call(draw):
    config = tool.Config(style="call", tool_fail_prob=0.3)
    solution = tool.solution_tokens(PROBLEM, config)
    assert solution.tolist() == [*GOLDEN, *reply(36), ANS, *reply(36)[1:-1], EOS]
    forced = replies(solution.tolist(), config=config)
    assert forced[7:14] == reply(36)
    problem, _ = draw(tool.make(config), 1000)
    assert abs(float(problem.fails.mean()) - 0.3) < 4 * np.sqrt(0.21 / 1000)


def test_operands_that_may_change_places_are_one_problem():
    swapped = PROBLEM._replace(left=PROBLEM.right, right=PROBLEM.left)
    np.testing.assert_array_equal(tool.identity(PROBLEM), tool.identity(swapped))


def test_refusals():
    for options in (
        {"first_digits": 4}, {"second_digits": 0}, {"width": 1}, {"operators": (23,)},
        {"style": "other"}, {"tool_fail_prob": 2.0},
    ):  # fmt: skip
        (field,) = options
        with pytest.raises(ValueError, match=f"{field}: expected"):
            tool.Config(**options)

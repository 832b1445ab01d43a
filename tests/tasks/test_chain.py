import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import chain
from jaxlab.tasks.vocabulary import ANS, EOS, HINT, MINUS, PLUS, STEP, TIMES

CONFIG = chain.Config(n_steps=3)
PROBLEM = chain.Problem(
    jnp.int32(7), jnp.asarray([PLUS, TIMES, MINUS]), jnp.asarray([5, 4, 9]), jnp.asarray([2, 8, 9])
)
SOLUTION = [17, 20, 15, 24, 12, 3, 12, 22, 14, 24, 18, 3, 18, 21, 19, 24, 19, 3, 4, 19, 2]


def test_golden_tokens():
    prompt = chain.prompt_tokens(PROBLEM, CONFIG)
    assert prompt.tolist() == [1, 70, 17, 20, 15, 22, 14, 21, 19, 5]
    assert chain.solution_tokens(PROBLEM, CONFIG).tolist() == SOLUTION


@pytest.mark.parametrize(
    ("n", "p", "prompt", "solution"), [(4, 10, 3 + 1 + 8, 4 * 6 + 3), (2, 97, 3 + 2 + 6, 2 * 9 + 4)]
)
def test_lengths(n, p, prompt, solution):
    config = chain.Config(n_steps=n, p=p)
    assert (config.prompt_length, config.solution_length) == (prompt, solution)


@pytest.mark.slow
def test_variants():
    merged = chain.Config(n_steps=4, merge=2, hint=1)
    problem = chain.Problem(
        jnp.int32(1), jnp.asarray([PLUS, TIMES, MINUS, PLUS]), jnp.asarray([1, 3, 9, 2]),
        jnp.asarray([2, 6, 7, 9]),
    )  # fmt: skip
    steps = [11, PLUS, 11, TIMES, 13, 24, 16, STEP, 16, MINUS, 19, PLUS, 12, 24, 19, STEP]
    assert chain.solution_tokens(problem, merged).tolist() == [*steps, ANS, 19, EOS]
    assert chain.prompt_tokens(problem, merged)[-9:].tolist() == [HINT, *steps[:8]]
    values = chain.Config(n_steps=4, style="values")
    written = [12, STEP, 16, STEP, 17, STEP, 19, STEP, ANS, 19, EOS]
    assert chain.solution_tokens(problem, values).tolist() == written
    for config in (merged, values):
        labels = chain.step_labels(problem, chain.solution_tokens(problem, config), config)
        assert labels.label.tolist() == [1.0] * (config.written + 1) and labels.is_step.all()


def test_multiplication_by_zero_is_avoided_on_request(draw):
    free, _ = draw(chain.make(chain.Config(avoid_collapse=False)), 500)
    kept, _ = draw(chain.make(), 500)

    def zeros(problem):
        return ((problem.operator == TIMES) & (problem.operand == 0)).sum()

    assert zeros(free) > 0 and zeros(kept) == 0


def oracle(problem, tokens, config):
    """Outcome and labels with Python's lists and integers."""
    x0, ops, ds = int(problem.start), problem.operator.tolist(), problem.operand.tolist()
    functions = {PLUS: int.__add__, MINUS: int.__sub__, TIMES: int.__mul__}
    truth = x0
    for op, d in zip(ops, ds):
        truth = functions[op](truth, d) % config.p
    tokens = list(tokens)
    rows = config.written + 1
    label, end = [0.0] * rows, [len(tokens)] * rows
    visible = tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
    right = False
    if EOS in tokens and ANS in visible:
        place = len(visible) - 1 - visible[::-1].index(ANS)
        right = visible[place + 1 :] == [10 + truth, EOS]
    pieces, piece = [], []
    for i, token in enumerate(visible):
        piece.append(token)
        if token in (STEP, EOS):
            pieces.append((i, piece))
            piece = []
    before = x0
    for j, (place, piece) in enumerate(pieces[:rows]):
        end[j] = place
        if piece[-1] == EOS:
            label[j] = float(right)
            continue
        written = piece[-2] - 10 if len(piece) > 1 and 10 <= piece[-2] < 20 else None
        if j < config.written and before is not None and written is not None:
            result = functions[ops[j]](before, ds[j]) % config.p
            want = [10 + before, ops[j], 10 + ds[j], 24, 10 + result, STEP]
            label[j] = float(piece == want)
        before = written
    return float(right), label, end


def test_every_corruption_is_judged_as_lists_judge_it(corrupt, junk):
    rows = corrupt(np.asarray(SOLUTION, np.int32))
    shorter = [SOLUTION[:6] + SOLUTION[12:] + [0] * 6, SOLUTION[:6] * 2 + SOLUTION[12:21]]
    moved = [[3, *SOLUTION[:-1]], [2, *SOLUTION[:-1]], SOLUTION[6:12] + SOLUTION[:15]]
    rows = np.concatenate([rows, shorter, moved, junk(np.random.default_rng(2), 2000, 21)])

    def judged(tokens):
        labels = chain.step_labels(PROBLEM, tokens, CONFIG)
        return chain.outcome(PROBLEM, tokens, CONFIG), labels.label, labels.end

    got = jax.jit(jax.vmap(judged))(jnp.asarray(rows))
    for i, row in enumerate(rows.tolist()):
        outcome, label, end = oracle(PROBLEM, row, CONFIG)
        assert float(got[0][i]) == outcome, row
        assert got[1][i].tolist() == label, row
        assert got[2][i].tolist() == end, row


def test_a_wrong_step_is_forgiven_by_the_steps_that_follow_it():
    tokens = list(SOLUTION)
    tokens[4] = tokens[6] = 13  # 7 + 5 = 3, then 3 * 4 = 2, then 2 - 9 = 3
    tokens[10] = tokens[12] = 12
    tokens[16] = tokens[19] = 13
    labels = chain.step_labels(PROBLEM, jnp.asarray(tokens), CONFIG)
    assert labels.label.tolist() == [0, 1, 1, 0]
    assert labels.cumulative.tolist() == [0, 0, 0, 0]


def test_refusals():
    for field, value in (
        ("n_steps", 0), ("p", 101), ("operators", (23,)), ("style", "none"), ("merge", 3),
        ("hint", 5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{field}: expected"):
            chain.Config(**{field: value})

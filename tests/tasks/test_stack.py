import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.tasks import stack, stack_machine
from jaxlab.tasks.stack_machine import (
    ADD,
    CPL,
    DBL,
    DROP,
    DUP,
    INC,
    MUL,
    ONE,
    OVER,
    ROT,
    SUB,
    SWAP,
    ZERO,
)  # fmt: skip
from jaxlab.tasks.vocabulary import EOS, OPCODE

CONFIG = stack.Config()


def interpret(program, x, y):
    """The machine on a Python list; None after an error."""
    s = [x, y]
    for op in program:
        need = [2, 2, 2, 1, 2, 2, 1, 1, 1, 2, 2, 1, 1, 0, 0, 3][op]
        if len(s) < need:
            return None
        args = [s.pop() for _ in range(need)][::-1]
        s += [
            lambda b, a: [b + a], lambda b, a: [b - a], lambda b, a: [b * a], lambda a: [a, a],
            lambda b, a: [a, b], lambda b, a: [b, a, b], lambda a: [], lambda a: [a + 1],
            lambda a: [a - 1], lambda b, a: [max(a, b)], lambda b, a: [min(a, b)],
            lambda a: [2 * a], lambda a: [9 - a], lambda: [0], lambda: [1],
            lambda a, b, c: [b, c, a],
        ][op](*args)  # fmt: skip
        s = [v % 10 for v in s]
        if len(s) > 4:
            return None
    return s[0] if len(s) == 1 else None


@pytest.mark.parametrize(
    ("program", "want"),
    [([ADD], 1), ([SUB], 3), ([SWAP, SUB], 7), ([DROP], 7), ([ADD, INC], 2),
     ([OVER, ADD, MUL], 7), ([DUP], None), ([ROT], None)],
)  # fmt: skip
def test_golden_runs(program, want):
    run = stack_machine.execute(
        jnp.asarray(program), jnp.int32(len(program)), jnp.int32(7), jnp.int32(4)
    )
    assert bool(run.error) == (want is None) and (want is None or int(run.output) == want)
    assert interpret(program, 7, 4) == want


def test_random_programs_run_as_on_a_list():
    rng = np.random.default_rng(0)
    programs = rng.integers(0, 16, (400, 6))
    # Programs that live long: random opcodes mostly underflow.
    programs[200:, 0] = rng.choice([DUP, OVER, ZERO, ONE], 200)
    programs[200:, 1] = rng.choice([ROT, SWAP, CPL, DBL], 200)
    lengths = rng.integers(0, 7, 400)
    runs = jax.jit(jax.vmap(stack_machine.truth_table))(jnp.asarray(programs), jnp.asarray(lengths))
    x, y = (side.tolist() for side in stack_machine.all_inputs())
    fine = 0
    for program, length, output, error in zip(programs.tolist(), lengths, *map(np.asarray, runs)):
        want = [interpret(program[:length], a, b) for a, b in zip(x, y)]
        assert error.tolist() == [w is None for w in want]
        assert output.tolist() == [w or 0 for w in want]
        fine += want[0] is not None
    assert fine > 20


def test_the_four_rewards(draw):
    problem, _ = draw(stack.make(), 1)
    problem = jax.tree.map(lambda leaf: leaf[0], problem)
    solution = stack.solution_tokens(problem, CONFIG)

    judge = jax.jit(lambda tokens: stack.reward(problem, tokens, CONFIG))

    def reward(ops, *tail):  # nothing behind the last token but what is no EOS
        tokens = [*ops, *tail]
        return float(judge(jnp.asarray([*tokens, *[0] * (8 - len(tokens))], jnp.int32)))

    assert reward(solution.tolist()) == 1.0
    constant = [OPCODE + op for op in (DROP, DROP, ZERO)]
    assert reward(constant, EOS) == pytest.approx(-0.3)
    assert reward([OPCODE + DUP], EOS) == pytest.approx(-0.6)  # two values left
    assert reward([OPCODE + ZERO] * 3, EOS) == pytest.approx(-0.6)  # overflow
    for broken in ([EOS], [*constant], [OPCODE, 5, EOS], [46, EOS], [OPCODE - 1, EOS]):
        assert reward(broken) == -1.0
    # Another program for the same function is right.
    longer = [*solution.tolist()[: int(problem.length)], OPCODE + ZERO, OPCODE + ADD, EOS]
    assert reward(longer) == 1.0


def test_generated_programs_use_their_inputs(draw):
    problem, good = draw(stack.make(), 300)
    table = np.asarray(problem.table)
    x, y = (np.asarray(side) for side in stack_machine.all_inputs())
    assert good.all()
    assert (table != table[:, :1]).any(1).all() and (table != x).any(1).all()
    assert (table != y).any(1).all()
    assert len({row.tobytes() for row in table}) > 100
    for program, length, row in zip(problem.program.tolist(), problem.length.tolist(), table):
        assert 1 <= length <= CONFIG.max_length
        assert interpret(program[:length], 3, 8) == row[38]
    shown = np.sort(np.asarray(problem.shown), axis=1)
    assert (shown[:, 1:] != shown[:, :-1]).all()
    assert set(problem.length.tolist()) == set(range(1, 6))


def test_a_permutation_relabels_the_opcodes(draw):
    config = stack.Config(permutation=(*range(1, 16), 0))
    problem, _ = draw(stack.make(config), 20)

    @jax.jit
    @jax.vmap
    def write(p):
        plain, moved = (stack.solution_tokens(p, c) for c in (CONFIG, config))
        return plain, moved, stack.outcome(p, moved, config)

    plain, moved, right = write(problem)
    opcodes = np.asarray(plain) >= OPCODE
    want = np.where(opcodes, OPCODE + (np.asarray(plain) - OPCODE + 1) % 16, np.asarray(plain))
    np.testing.assert_array_equal(moved, want)
    np.testing.assert_array_equal(right, 1)
    for field, value in (("permutation", (0,) * 16), ("max_length", 0), ("examples", 101)):
        with pytest.raises(ValueError, match=f"{field}: expected"):
            stack.Config(**{field: value})


def test_prompt_shows_what_the_program_does(draw):
    problem, _ = draw(stack.make(), 1)
    problem = jax.tree.map(lambda leaf: leaf[0], problem)
    prompt = stack.prompt_tokens(problem, CONFIG).tolist()
    assert prompt[:2] == [1, 72] and prompt[-1] == 5
    program = problem.program.tolist()[: int(problem.length)]
    for i in range(4):
        x, y, equals, z, gap = prompt[2 + 5 * i : 7 + 5 * i]
        assert (equals, gap) == (24, 9) and interpret(program, x - 10, y - 10) == z - 10

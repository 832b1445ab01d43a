"""The chunk algebra: exact in float64, accurate in float32 and bfloat16, portable primitives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wkv7_oracle import NAMES, backward, forward, relative_error
from wkv7_problems import problem

from jaxlab_kernels import algebra

ALL = (*NAMES, "s0", "reset_state")


def one_head(x):
    return np.asarray(x)[0, :, 0] if np.ndim(x) == 4 else x


def count_of(reset):
    return None if reset is None else np.cumsum(reset[0])[:, None].astype(np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("resets", ["none", "often"])
@pytest.mark.parametrize("length", [16, 128])
def test_exact_in_float64(length, resets):
    learned = resets != "none"
    p = problem(
        length, 32, 16, keys="near", alpha=0.9, resets=resets, reset_state=learned, dtype=np.float64
    )
    with jax.enable_x64(True):
        inputs = tuple(jnp.asarray(one_head(x)) for x in p.inputs)
        dy = jnp.asarray(one_head(p.dy))
        s0, ds = (jnp.asarray(x[0, 0], jnp.float64) for x in (p.s0, p.ds))
        options = {
            "count": count_of(p.reset),
            "reset_state": jnp.asarray(p.reset_state[0, 0], jnp.float64) if learned else None,
            "operand_dtype": jnp.float64,
        }

        @jax.jit
        def everything(*inputs):
            return (
                algebra.chunk_forward(*inputs, s0, **options),
                algebra.chunk_backward(*inputs, s0, dy, ds, **options),
            )

        (y, state), gradients = everything(*inputs)
    oracle = {"s0": p.s0, "reset": p.reset, "reset_state": p.reset_state}
    want_y, want_state, _ = forward(p.inputs, **oracle)
    want = backward(p.inputs, p.dy, p.ds, **oracle)
    assert relative_error(y, one_head(want_y)) < 1e-13
    assert relative_error(state, want_state[0, 0]) < 1e-13
    assert len(gradients) == (8 if learned else 7)
    for name, gradient in zip(ALL, gradients):
        expected = want[name][0, :, 0] if name in NAMES else want[name][0, 0]
        assert relative_error(gradient, expected) < 1e-13, name


@pytest.mark.parametrize("length", [64, 128])
@pytest.mark.parametrize("alpha", [0.9, 1.0])
def test_inverse_for_one_key_written_again_and_again(length, alpha):
    """I - M with all entries alpha below the diagonal: the Neumann product reaches 1e9 here."""
    m = np.tril(np.full((length, length), -alpha), -1)
    got = jax.jit(algebra.ladder_inverse)(jnp.asarray(m, jnp.float32))
    want = np.linalg.inv(np.eye(length) - m.astype(np.float32).astype(np.float64))
    assert np.abs(np.asarray(got) - want).max() < 5e-7
    assert not np.triu(np.asarray(got), 1).any()


BF16 = dict.fromkeys(("y", "r", "k", "v"), 4e-3) | {
    **{"state": 2e-3, "a": 1e-2, "b": 1e-2, "logw": 5e-3, "s0": 3e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["random", "bound"])
@pytest.mark.parametrize("length", [16, 64, 128])
def test_bfloat16_operands(length, decay):
    """512 tokens by chunks, every operand rounded; d logw would be at 1e-2 in the textbook form."""
    p = problem(512, 64, decay=decay)
    inputs = [jnp.asarray(one_head(x), jnp.bfloat16) for x in p.inputs]
    inputs[1] = jnp.asarray(one_head(p.inputs[1]))
    dy, s0, ds = jnp.asarray(one_head(p.dy), jnp.bfloat16), p.s0[0, 0], p.ds[0, 0]
    step = jax.jit(partial(algebra.chunk_forward, operand_dtype=jnp.bfloat16))
    pull = jax.jit(partial(algebra.chunk_backward, operand_dtype=jnp.bfloat16))
    parts = [slice(i, i + length) for i in range(0, 512, length)]
    outputs, states = [], [jnp.asarray(s0)]
    for part in parts:
        y, state = step(*(x[part] for x in inputs), states[-1])
        outputs.append(y)
        states.append(state)
    cotangent, gradients = jnp.asarray(ds), []
    for part, state in zip(reversed(parts), reversed(states[:-1])):
        *chunk, cotangent = pull(*(x[part] for x in inputs), state, dy[part], cotangent)
        gradients.insert(0, chunk)
    got = {"y": jnp.concatenate(outputs), "state": states[-1], "s0": cotangent}
    got |= {name: jnp.concatenate(parts) for name, parts in zip(NAMES, zip(*gradients))}
    exact = [np.asarray(x)[None, :, None] for x in inputs]
    want_y, want_state, _ = forward(exact, p.s0)
    want = backward(exact, np.asarray(dy)[None, :, None], p.ds, p.s0)
    want |= {"y": want_y, "state": want_state}
    for name, bound in BF16.items():
        expected = want[name][0, 0] if name in ("state", "s0") else want[name][0, :, 0]
        assert relative_error(got[name], expected) < bound, name


# What Pallas lowers for Triton, Mosaic GPU and Mosaic TPU alike.
PORTABLE = {
    *("add", "and", "broadcast_in_dim", "convert_element_type", "dot_general", "eq", "exp", "ge"),
    *("gt", "iota", "mul", "neg", "not", "reduce_sum", "select_n", "shift_right_logical", "sub"),
}


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        inner = [x for x in equation.params.values() if hasattr(x, "jaxpr")]
        if not inner:
            yield equation.primitive.name
        for closed in inner:
            yield from primitives(closed.jaxpr)


def test_only_portable_primitives():
    tile, state = jnp.ones((16, 32)), jnp.ones((32, 32))
    options = {"count": jnp.ones((16, 1)), "reset_state": state, "operand_dtype": jnp.bfloat16}

    def everything(x, s):
        args = (x,) * 6
        return (
            algebra.chunk_forward(*args, s, **options),
            algebra.chunk_backward(*args, s, x, s, **options),
        )

    used = set(primitives(jax.make_jaxpr(everything)(tile, state).jaxpr))
    assert "dot_general" in used
    assert used <= PORTABLE

"""What must hold for any input: chunks, splits, resets, closed forms, long sequences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wkv7_check import check, pull_back
from wkv7_oracle import NAMES, backward, forward, relative_error
from wkv7_problems import BOUND, problem

from jaxlab_kernels import wkv7

run = jax.jit(wkv7, static_argnames=("impl", "chunk", "precision"))
chunked = partial(run, impl="xla")


def close(got, want, bound=3e-6):
    return all(relative_error(x, y) < bound for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("chunk", [64, 128])
def test_one_key_repeated_without_decay(chunk):
    shape = {"length": 128, "widths": (64, 64), "heads": (1, 1), "chunk": chunk}
    data = {"decay": "slow", "keys": "same", "alpha": 0.9, "resets": "none"}
    check("xla", shape | data | {"dtype": "float32", "reset_state": False})


def test_one_token_of_many_rows_that_share_a_state():
    """With sums of products in place of dots, XLA computed rows beyond 2**15 elements wrongly."""
    p = problem(length=1, width=8, batch=512, heads=2)
    shared = p.s0[:1]

    def outputs(inputs, s0):
        return wkv7(*inputs, jnp.broadcast_to(s0, p.s0.shape))

    y, state = jax.jit(outputs)(p.inputs, shared)
    gradients, ds0 = jax.jit(lambda *x: jax.vjp(outputs, *x)[1]((p.dy, p.ds)))(p.inputs, shared)
    whole = np.broadcast_to(shared, p.s0.shape)
    want_y, want_state, _ = forward(p.inputs, whole)
    want = backward(p.inputs, p.dy, p.ds, whole)
    assert close((y, state, *gradients), (want_y, want_state, *(want[name] for name in NAMES)))
    assert close([ds0], [want["s0"].sum(axis=0, keepdims=True)], 1e-5)


@pytest.mark.parametrize(("chunk", "logw"), [(16, -9.9), (128, -1.24)])
def test_decays_far_beyond_the_bound_of_rwkv7(chunk, logw):
    """Up to |logw| * chunk / 2 = 80, though products of rows in the wrong order are infinite."""
    p = problem(length=140, width=16)
    inputs = (p.inputs[0], np.full_like(p.inputs[1], logw), *p.inputs[2:])
    (y, state), (gradients, ds0, _) = pull_back(
        inputs, p.s0, None, None, p.dy, p.ds, impl="xla", chunk=chunk
    )
    want_y, want_state, _ = forward(inputs, p.s0)
    want = backward(inputs, p.dy, p.ds, p.s0)
    assert close((y, state, ds0), (want_y, want_state, want["s0"]))
    for name, gradient in zip(NAMES, gradients):
        if name != "logw":
            assert relative_error(gradient, want[name]) < 1e-5, name
    # d logw is a small difference of terms like r * dr, and as exact as they are.
    terms = np.linalg.norm(np.asarray(inputs[0], np.float64) * want["r"])
    assert np.linalg.norm(gradients[1] - want["logw"]) < 5e-6 * terms


@pytest.mark.slow
def test_chunk_size_does_not_matter():
    p = problem(length=100, width=16, heads=2, resets="often", reset_state=True)
    results = [
        jax.tree.leaves(
            pull_back(*p[:4], p.dy, p.ds, impl="xla", chunk=chunk),
        )
        for chunk in (16, 32, 128)
    ]
    assert len(results[0]) == 10
    assert all(close(other, results[0], 5e-6) for other in results[1:])


@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_split_and_carry_is_one_pass(impl):
    p = problem(length=90, width=16, heads=2, resets="every7", reset_state=True)
    options = {"reset_state": p.reset_state, "impl": impl, "chunk": 16}
    state, outputs = p.s0, []
    for part in (slice(0, 37), slice(37, 38), slice(38, 90)):
        y, state = run(*(x[:, part] for x in p.inputs), state, reset=p.reset[:, part], **options)
        outputs.append(y)
    whole = run(*p.inputs, p.s0, reset=p.reset, **options)
    assert close((jnp.concatenate(outputs, axis=1), state), whole)


@pytest.mark.parametrize("impl", ["scan", "xla", "xla_ad"])
@pytest.mark.parametrize("border", [15, 16, 17, 40])
def test_a_reset_separates_exactly(border, impl):
    """Nothing before a reset moves anything after it, by a single bit, nor its gradient."""
    p = problem(length=48, width=16)
    reset = np.arange(48)[None] == border
    learned = np.ones_like(p.s0)
    other = tuple(np.where((np.arange(48) < border)[:, None, None], 0.5 * x, x) for x in p.inputs)
    options = {"reset": reset, "reset_state": learned, "impl": impl, "chunk": 16}
    y, state = run(*p.inputs, p.s0, **options)
    moved_y, moved_state = run(*other, 2 * p.s0, **options)
    np.testing.assert_array_equal(y[:, border:], moved_y[:, border:])
    np.testing.assert_array_equal(state, moved_state)
    alone = run(*(x[:, border:] for x in p.inputs), learned, impl=impl, chunk=16)
    assert close((y[:, border:], state), alone)

    late, early = p.dy.copy(), p.dy.copy()
    late[:, :border], early[:, border:] = 0, 0
    pull = partial(pull_back, p.inputs, p.s0, reset, learned, impl=impl, chunk=16)
    _, (gradients, ds0, dlearned) = pull(late, p.ds)
    for gradient in gradients:
        assert not np.asarray(gradient)[:, :border].any()
        assert np.asarray(gradient)[:, border:].any()
    assert not np.asarray(ds0).any()
    assert np.asarray(dlearned).any()
    _, (gradients, ds0, dlearned) = pull(early, 0 * p.ds)
    for gradient in gradients:
        assert np.asarray(gradient)[:, :border].any()
        assert not np.asarray(gradient)[:, border:].any()
    assert np.asarray(ds0).any()
    assert not np.asarray(dlearned).any()


def test_linear_in_values_and_state():
    p, q = problem(length=40, width=16, seed=1), problem(length=40, width=16, seed=2)
    r, logw, k, v, a, b = p.inputs
    mixed = chunked(r, logw, k, 2 * v - 3 * q.inputs[3], a, b, 2 * p.s0 - 3 * q.s0)
    first, second = chunked(*p.inputs, p.s0), chunked(r, logw, k, q.inputs[3], a, b, q.s0)
    assert close(mixed, (2 * first[0] - 3 * second[0], 2 * first[1] - 3 * second[1]))


@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_without_removal_it_is_decayed_linear_attention(impl):
    p = problem(length=50, width=16)
    r, logw, k, v, a, _ = p.inputs
    y, _ = run(r, logw, k, v, 0 * a, 0 * a, impl=impl, chunk=16)
    r, logw, k, v = (x[0, :, 0].astype(np.float64) for x in (r, logw, k, v))
    total = np.cumsum(logw, axis=0)
    gaps = np.minimum(total[:, None] - total[None, :], 0)
    scores = np.tril(np.einsum("tk,tsk,sk->ts", r, np.exp(gaps), k))
    assert relative_error(y[0, :, 0], scores @ v) < 3e-6


@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_memory_reads_back_what_was_written_and_overwrites(impl):
    """alpha = 1, no decay, orthonormal keys: the state is an exact associative memory."""
    width, rng = 32, np.random.default_rng(0)
    keys = np.linalg.qr(rng.standard_normal((width, width)))[0]
    values = rng.standard_normal((2, width, width))
    kk = np.concatenate([keys, keys])[None, :, None]  # every key is written twice
    v = values.reshape(1, 2 * width, 1, width)
    y, state = run(
        *(jnp.asarray(x, jnp.float32) for x in (kk, 0 * kk, kk, v, -kk, kk)), impl=impl, chunk=64
    )
    assert relative_error(y, v) < 2e-6
    assert relative_error(np.asarray(state)[0, 0] @ keys.T, values[1].T) < 2e-6


def test_tokens_of_zeros_are_identity_steps():
    p = problem(length=40, width=16, heads=2)
    padded = [np.pad(x, [(0, 0), (0, 9), (0, 0), (0, 0)]) for x in p.inputs]
    y, state = chunked(*padded, p.s0, chunk=16)
    assert close((y[:, :40], state), chunked(*p.inputs, p.s0, chunk=16))


def test_batch_rows_and_heads_do_not_know_each_other():
    p = problem(length=32, width=16, batch=2, heads=3)
    y, state = chunked(*p.inputs, p.s0)
    shuffled = [x[::-1, :, [2, 0, 1]] for x in p.inputs]
    moved_y, moved_state = chunked(*shuffled, p.s0[::-1, [2, 0, 1]])
    assert close((moved_y, moved_state), (y[::-1, :, [2, 0, 1]], state[::-1, [2, 0, 1]]), 1e-6)


@pytest.mark.parametrize("logw", [0.0, -BOUND])
def test_long_sequences_stay_finite_and_repeat_bitwise(logw):
    p = problem(length=4096, width=16, keys="near")
    inputs = (p.inputs[0], np.full_like(p.inputs[1], logw), *p.inputs[2:])
    results = [
        pull_back(inputs, p.s0, None, None, p.dy, p.ds, impl="xla", chunk=128) for _ in range(2)
    ]
    for first, second in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)


def test_training_memory_at_8192_tokens():
    tokens = jax.ShapeDtypeStruct((1, 8192, 1, 64), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 1, 64, 64), jnp.float32)
    lowered = pull_back.lower((tokens,) * 6, state, None, None, tokens, state, impl="xla", chunk=16)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 6 * 6 * 8192 * 64 * 4

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7

TOLERANCE = 5e-5  # in units of the standard deviation of what is compared
T = 36  # two chunks and a piece of a third; cut in pieces of 12 below

run = jax.jit(rwkv7.forward, static_argnames=("config", "impl", "remat"))
step = jax.jit(rwkv7.step, static_argnums=1)


@functools.partial(jax.jit, static_argnames=("config", "impl", "remat"))
def slopes(params, config, tokens, impl="xla", remat="none"):
    def loss(params):
        logits, _ = rwkv7.forward(params, config, tokens, impl=impl, remat=remat)
        return rwkv7.l2wrap_cross_entropy(logits[:, :-1], tokens[:, 1:])

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def tokens(config):
    return jax.random.randint(jax.random.key(1), (2, T), 0, config.vocab_size)


@pytest.fixture(scope="module")
def start(params, config, tokens):
    """A state that is nowhere zero."""
    return run(params, config, tokens[::-1, :12], impl="scan")[1]


def close(got, want, scale=TOLERANCE):
    want = np.asarray(want)
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=scale * want.std())


def set_rows(state, index, value):
    return jax.tree.map(lambda leaf: leaf.at[:, index].set(value), state)


def assert_state(state, row, numpy):
    close(state.wkv[:, row], numpy.s)
    close(state.att_shift[:, row], numpy.att)
    close(state.ffn_shift[:, row], numpy.ffn)


def resume(numpy, state, row):
    """Puts the oracle into a state of ours."""
    leaves = [np.asarray(leaf[:, row], np.float64) for leaf in jax.tree.leaves(state)]
    numpy.att, numpy.s, numpy.ffn = (leaf.copy() for leaf in leaves)
    return numpy


@pytest.mark.parametrize(
    ("impl", "pieces"),
    [("scan", 1), ("scan", 3), ("xla", 1), ("xla", 3), ("auto", T)],
)
def test_whole_split_and_token_by_token_match_numpy(params, config, tokens, oracle, impl, pieces):
    state, found = None, []
    for piece in jnp.split(tokens, pieces, axis=1):
        if state is None:
            state = rwkv7.initial_state(config, 2)
        logits, state = run(params, config, piece, state, impl=impl)
        found.append(logits)
    logits = np.concatenate(found, axis=1)
    for row in range(2):
        numpy = oracle()
        close(logits[row], numpy.run(tokens[row]))
        assert_state(state, row, numpy)


def test_normalisation_eps_is_a_field(params, make_config, tokens, oracle):
    config = make_config(ln_x_eps=0.3)
    logits, _ = run(params, config, tokens[:, :12], impl="scan")
    close(logits[0], oracle(0.3).run(tokens[0, :12]))


def test_step_and_prefill_are_forward(params, config, tokens, start):
    want, state = run(params, config, tokens[:, :12], start, impl="scan")
    last, prefilled = rwkv7.prefill(params, config, tokens[:, :12], None, start, impl="scan")
    close(last, want[:, -1])
    jax.tree.map(close, prefilled, state)
    logits, stepped = step(params, config, tokens[:, 12], state)
    single, after = run(params, config, tokens[:, 12:13], state)
    close(logits, single[:, 0])
    jax.tree.map(close, stepped, after)


@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_reset_is_a_new_sequence(params, config, tokens, start, impl):
    """Row 0 starts anew at 12 and 24, row 1 at once and at 12: never at the edge of a chunk."""
    reset = jnp.zeros((2, T), bool).at[0, (12, 24)].set(True).at[1, (0, 12)].set(True)
    logits, state = run(params, config, tokens, start, reset, impl=impl)
    carried = set_rows(start, 1, 0)
    for piece, at in enumerate((0, 12, 24)):
        alone, carried = run(params, config, tokens[:, at : at + 12], carried, impl="scan")
        close(logits[:, at : at + 12], alone)
        last, carried = carried, set_rows(carried, slice(0, 2 - piece), 0)
    jax.tree.map(close, state, last)


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_reset_goes_to_a_learned_state_and_it_gets_its_gradient(
    params, config, tokens, start, impl
):
    learned = jax.tree.map(lambda leaf: leaf[:, 0], start)
    reset = jnp.zeros((2, 24), bool).at[:, 12].set(True)
    weight = jax.random.normal(jax.random.key(3), (2, 12, config.vocab_size))

    @jax.jit
    def packed(learned):
        logits, _ = rwkv7.forward(
            params, config, tokens[:, :24], None, reset, reset_state=learned, impl=impl
        )
        return jnp.sum(weight * logits[:, 12:])

    @jax.jit
    def alone(learned):
        state = rwkv7.initial_state(config, 2, learned)
        logits, _ = rwkv7.forward(params, config, tokens[:, 12:24], state, impl="scan")
        return jnp.sum(weight * logits)

    got, got_grad = jax.value_and_grad(packed)(learned)
    want, want_grad = jax.value_and_grad(alone)(learned)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    jax.tree.map(functools.partial(close, scale=1e-3), got_grad, want_grad)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(got_grad))


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["scan", "xla"])
def test_right_padding_does_not_touch_anything(params, config, tokens, start, oracle, impl):
    lengths = jnp.asarray([20, 3])
    logits, state = run(params, config, tokens, start, lengths=lengths, impl=impl)
    last, prefilled = rwkv7.prefill(params, config, tokens, lengths, start, impl=impl)
    jax.tree.map(close, prefilled, state)
    for row, length in enumerate((20, 3)):
        numpy = resume(oracle(), start, row)
        want = numpy.run(tokens[row, :length])
        close(logits[row, :length], want)
        close(last[row], want[-1], 2 * TOLERANCE)
        assert_state(state, row, numpy)


def test_rows_without_tokens_keep_their_state_bit_for_bit(params, config, tokens, start):
    none = jnp.zeros(2, jnp.int32)
    _, state = run(params, config, tokens, start, lengths=none, impl="xla")
    jax.tree.map(np.testing.assert_array_equal, state, start)
    _, state = step(params, config, tokens[:, 0], start, active=jnp.asarray([True, False]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, 1], b[:, 1]), state, start)
    assert not np.array_equal(state.wkv[:, 0], start.wkv[:, 0])


def test_a_reset_on_padding_is_ignored(params, config, tokens):
    late = jnp.zeros((2, 12), bool).at[:, 10].set(True)
    lengths = jnp.asarray([9, 10])
    got = run(params, config, tokens[:, :12], None, late, lengths=lengths)[1]
    want = run(params, config, tokens[:, :12], None, jnp.zeros_like(late), lengths=lengths)[1]
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
def test_the_first_layers_value_residual_has_no_gradient(params, config, tokens):
    _, grads = slopes(params, config, tokens)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        if path[-1].key in ("v0", "v1", "v2"):
            np.testing.assert_array_equal(leaf[0], 0)
            leaf = leaf[1:]
        assert np.isfinite(leaf).all()
        stacked = path[0].key == "blocks"
        largest = np.abs(leaf).reshape(leaf.shape[0] if stacked else 1, -1).max(axis=1)
        assert (largest > 0).all(), path


def test_gradient_matches_finite_differences_of_numpy(params, config, tokens, weights, make_oracle):
    """One direction through all parameters at once; central differences in float64."""
    grads = rwkv7.to_tensors(slopes(params, config, tokens)[1], config)
    rng = np.random.default_rng(0)
    direction = {name: rng.standard_normal(value.shape) for name, value in weights.items()}

    def at(step):
        losses = []
        for row in np.asarray(tokens):
            model = make_oracle({n: value + step * direction[n] for n, value in weights.items()})
            logits = model.run(row[:-1])
            target = np.take_along_axis(logits, row[1:, None], axis=1)[:, 0]
            pull = 0.5e-4 * logits.max(axis=1) ** 2
            losses.append(np.log(np.exp(logits).sum(axis=1)) - target + pull)
        return np.mean(losses)

    want = (at(1e-5) - at(-1e-5)) / 2e-5
    got = sum((direction[n] * np.asarray(t.read(), np.float64)).sum() for n, t in grads.items())
    np.testing.assert_allclose(got, want, rtol=1e-3)


@pytest.mark.slow
def test_an_ensemble_that_recomputes_blocks_is_a_loop_that_does_not(
    config, params, make_params, tokens
):
    members = [params, make_params(8, config)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    got = jax.jit(jax.vmap(lambda p: slopes(p, config, tokens, remat="block")))(many)
    assert abs(got[0][0] - got[0][1]) > 1e-3
    for index, member in enumerate(members):
        want = slopes(member, config, tokens)
        one = jax.tree.map(lambda leaf, m=index: leaf[m], got)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-5), one, want)


@pytest.mark.slow
def test_rows_may_live_on_different_devices(params, config, tokens, cpu_devices):
    mesh = jax.sharding.Mesh(np.asarray(cpu_devices), ("data",))
    rows, everywhere = jax.P("data"), jax.P()

    def mean_gradient(params, tokens):
        def loss(params):
            logits, _ = rwkv7.forward(params, config, tokens, impl="xla")
            mine = rwkv7.l2wrap_cross_entropy(logits[:, :-1], tokens[:, 1:])
            return jax.lax.pmean(mine, "data")  # parameters that all share get summed gradients

        return jax.grad(loss)(params)

    got = jax.jit(
        jax.shard_map(mean_gradient, mesh=mesh, in_specs=(everywhere, rows), out_specs=everywhere)
    )(params, tokens)
    want = slopes(params, config, tokens)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-3, atol=5e-5), got, want)


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_bfloat16_keeps_dtypes_and_stays_near(config, make_config, params, tokens, param_dtype):
    low = make_config(dtype="bfloat16", param_dtype=param_dtype)
    cast = jax.tree.map(lambda leaf: leaf.astype(low.param_dtype), params)
    logits, state = run(cast, low, tokens, rwkv7.initial_state(low, 2), impl="scan")
    want, _ = run(params, config, tokens, rwkv7.initial_state(config, 2), impl="scan")
    assert logits.dtype == jnp.float32 and state.wkv.dtype == jnp.float32
    assert state.att_shift.dtype == state.ffn_shift.dtype == jnp.bfloat16
    error = np.std(np.asarray(logits - want)) / np.std(np.asarray(want))
    assert 1e-4 < error < 0.06
    grads = jax.eval_shape(lambda p: slopes(p, low, tokens)[1], cast)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(param_dtype)}


@pytest.mark.slow
def test_bfloat16_gradients_point_the_same_way(config, make_config, params, tokens):
    """Of the same rounded parameters, computed in bfloat16 and in float32."""
    low = make_config(dtype="bfloat16", param_dtype="bfloat16")
    cast = jax.tree.map(lambda leaf: leaf.astype(low.param_dtype), params)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), cast)
    got, want = slopes(cast, low, tokens)[1], slopes(rounded, config, tokens)[1]
    flat = [
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (got, want)
    ]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.99


def test_the_state_stays_bounded_for_ten_thousand_tokens(params, config):
    tokens = jax.random.randint(jax.random.key(2), (10, 1, 1000), 0, config.vocab_size)

    def chunk(state, piece):
        _, state = rwkv7.features(params, config, piece, state)
        return state, jnp.linalg.norm(state.wkv, axis=(-2, -1)).max()

    start = rwkv7.initial_state(config, 1)
    _, norms = jax.jit(lambda: jax.lax.scan(chunk, start, tokens))()
    assert np.isfinite(norms).all()
    assert norms.max() < 2 * norms[0]  # no growth after the first thousand


def test_blocks_run_on_inputs_that_are_not_tokens(params, config, tokens):
    x = jax.random.normal(jax.random.key(4), (2, 6, config.n_embd))
    whole, state = rwkv7.run_blocks(params["blocks"], config, x)
    first, middle = rwkv7.run_blocks(params["blocks"], config, x[:, :4])
    second, end = rwkv7.run_blocks(params["blocks"], config, x[:, 4:], middle)
    close(jnp.concatenate([first, second], axis=1), whole)
    close(end.wkv, state.wkv)


def test_arguments_that_do_not_fit_are_named(params, config, tokens):
    state = rwkv7.initial_state(config, 3)
    cases = {
        r"tokens: expected integers \[B, T\]": dict(tokens=tokens[0]),
        r"x: expected .*T >= 1": dict(tokens=tokens[:, :0]),
        r"state: expected shapes": dict(state=state),
        r"reset_state: expected shapes": dict(reset_state=state, reset=tokens > 0),
        r"reset: expected bool\(2, 36\), got int32": dict(reset=tokens),
        r"lengths: expected integers \(2,\)": dict(lengths=jnp.ones(3, jnp.int32)),
        r"remat: expected one of none, block, got 'all'": dict(remat="all"),
        r"impl .*'cuda'": dict(impl="cuda"),
    }
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            rwkv7.forward(params, config, **({"tokens": tokens} | arguments))
    with pytest.raises(ValueError, match="learned: expected shapes"):
        rwkv7.initial_state(config, 2, state)

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7 import Sampler

N = 8
KEY = jax.random.key(4)
NEVER = jnp.asarray([-1, -1])
SAMPLER = Sampler(temperature=5.0, top_k=30, top_p=0.97)  # random weights make steep logits
forward = jax.jit(rwkv7.forward, static_argnums=1)


def generate(params, config, prompt, key=KEY, sampler=SAMPLER, **options):
    """Every option given every time: one program for all tests."""
    rows, width = prompt.shape
    options = {
        "lengths": jnp.full(rows, width),
        "stop_tokens": NEVER,
        "state": rwkv7.initial_state(config, rows),
    } | options
    return rwkv7.generate(params, config, prompt, N, key, sampler, **options)


@pytest.fixture(scope="module")
def config(make_config):
    """Two layers: these tests are about what surrounds the model."""
    return make_config(n_layer=2)


@pytest.fixture(scope="module")
def params(config, make_params):
    return make_params(11, config)


@pytest.fixture(scope="module")
def prompt(config):
    return jax.random.randint(jax.random.key(1), (3, 5), 1, config.vocab_size)


@pytest.fixture(scope="module")
def generated(params, config, prompt):
    return generate(params, config, prompt)


def assert_state(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)


def scores(params, config, prompt, tokens, lengths=None):
    """Log-probabilities of generated tokens by the parallel form, and what comes behind them."""
    whole = jnp.concatenate([prompt, tokens], axis=1)
    logits, state = forward(params, config, whole, lengths=lengths)
    filtered = rwkv7.filtered_logits(logits[:, prompt.shape[1] - 1 : -1], SAMPLER)
    log_probs = np.asarray(jax.nn.log_softmax(filtered, axis=-1))
    return np.take_along_axis(log_probs, np.asarray(tokens)[..., None], -1)[..., 0], logits, state


@pytest.mark.slow
def test_log_probabilities_and_state_are_those_of_the_parallel_form(
    params, config, prompt, generated
):
    assert generated.tokens.shape == (3, N) and generated.mask.all() and not generated.done.any()
    log_probs, logits, state = scores(params, config, prompt, generated.tokens)
    np.testing.assert_allclose(generated.log_probs, log_probs, atol=2e-4)
    assert (generated.log_probs < 0).any()
    np.testing.assert_allclose(generated.logits, logits[:, -1], atol=1e-3)
    assert_state(generated.state, state)


def test_temperature_zero_follows_the_most_likely_tokens(params, config, prompt):
    greedy = generate(params, config, prompt, sampler=SAMPLER._replace(temperature=0.0))
    logits, _ = forward(params, config, jnp.concatenate([prompt, greedy.tokens], axis=1))
    np.testing.assert_array_equal(greedy.tokens, jnp.argmax(logits[:, 4:-1], axis=-1))
    np.testing.assert_array_equal(greedy.log_probs, 0)


def test_a_key_decides_everything(params, config, prompt, generated):
    again = generate(params, config, prompt)
    np.testing.assert_array_equal(again.tokens, generated.tokens)
    other = generate(params, config, prompt, jax.random.key(5))
    assert not np.array_equal(other.tokens, generated.tokens)
    rows = generate(params, config, jnp.broadcast_to(prompt[:1], (3, 5))).tokens
    assert len({tuple(row) for row in np.asarray(rows).tolist()}) == 3
    np.testing.assert_array_equal(rows[0], generated.tokens[0])  # other rows do not matter


@pytest.mark.slow
def test_vmap_over_seeds_prompts_and_temperatures_is_a_loop(params, config, prompt):
    keys = jax.random.split(jax.random.key(6), 2)
    temperatures = jnp.asarray([3.0, 6.0])
    prompts = jnp.stack([prompt, prompt[::-1]])

    def run(key, tokens, temperature):
        sampler = SAMPLER._replace(temperature=temperature)
        return generate(params, config, tokens, key, sampler).tokens

    many = jax.vmap(run)(keys, prompts, temperatures)
    assert many.shape == (2, 3, N)
    for index in range(2):
        want = run(keys[index], prompts[index], temperatures[index])
        np.testing.assert_array_equal(many[index], want)


def test_stop_tokens_end_a_row_and_freeze_its_state(params, config, prompt, generated):
    """Of the first tokens of row 1, one that at least one other row never generates."""
    rows = np.asarray(generated.tokens)
    candidates = [t for t in rows[1, :5] if not all(t in row for row in rows)]
    stop = int(candidates[0])
    stops = jnp.asarray([-1, stop])
    stopped = generate(params, config, prompt, stop_tokens=stops)
    for row, found in enumerate(rows.tolist()):
        length = found.index(stop) + 1 if stop in found else N
        np.testing.assert_array_equal(stopped.tokens[row, :length], rows[row, :length])
        np.testing.assert_array_equal(stopped.tokens[row, length:], 0)
        np.testing.assert_array_equal(stopped.mask[row], np.arange(N) < length)
        np.testing.assert_array_equal(stopped.log_probs[row, length:], 0)
        assert bool(stopped.done[row]) == (stop in found)
    assert bool(stopped.done[1]) and not stopped.done.all()
    lengths = 5 + jnp.sum(stopped.mask, axis=1)
    assert_state(stopped.state, scores(params, config, prompt, stopped.tokens, lengths)[2])


@pytest.mark.slow
def test_prompts_of_different_lengths(params, config, prompt, generated):
    junk = prompt.at[1, 2:].set(17)
    got = generate(params, config, junk, lengths=jnp.asarray([5, 2, 5]))
    for row in (0, 2):
        np.testing.assert_array_equal(got.tokens[row], generated.tokens[row])
    behind = jnp.pad(got.tokens, ((0, 0), (0, 3)))
    lengths = jnp.full(3, 2 + N)
    log_probs, _, _ = scores(params, config, prompt[:, :2], behind, lengths)
    np.testing.assert_allclose(got.log_probs[1], log_probs[1, :N], atol=2e-4)


def test_a_state_goes_before_the_prompt(params, config, prompt, generated):
    _, state = rwkv7.prefill(params, config, prompt[:, :2])
    rest = jnp.pad(prompt[:, 2:], ((0, 0), (0, 2)))
    split = generate(params, config, rest, state=state, lengths=jnp.full(3, 3))
    np.testing.assert_array_equal(split.tokens, generated.tokens)


def test_the_stream_is_what_generate_returns(params, config, prompt, generated):
    row, words = generated.tokens[0].tolist(), prompt[0].tolist()
    pieces = list(rwkv7.stream(params, config, words, N, KEY, SAMPLER, stop_tokens=NEVER, chunk=3))
    assert list(map(len, pieces)) == [3, 3, 2]
    assert list(itertools.chain(*pieces)) == row
    stops = jnp.asarray([row[4], -1])
    stream = rwkv7.stream(params, config, words, N, KEY, SAMPLER, stop_tokens=stops, chunk=3)
    assert list(itertools.chain(*stream)) == row[: row.index(row[4]) + 1]
    with pytest.raises(ValueError, match="prompt: expected at least one token"):
        next(rwkv7.stream(params, config, [], N, KEY))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tokens(params, config, prompt):
    def temporaries(n):
        lowered = rwkv7.generate.lower(params, config, prompt, n, KEY, SAMPLER)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Beyond the three numbers per row and token that are returned.
    assert temporaries(2000) - temporaries(100) <= 1900 * 3 * 16


def test_every_row_may_have_its_own_sampler(params, config, prompt):
    logits, state = rwkv7.prefill(params, config, prompt)
    done = jnp.zeros(3, bool)
    rows = Sampler(jnp.asarray([0.0, 5.0, 5.0]), None, jnp.asarray([1.0, 1.0, 0.0]))
    got = rwkv7.decode(params, config, logits, state, done, 1, KEY, rows).tokens[:, 0]
    best = jnp.argmax(logits, axis=-1)
    assert got[0] == best[0] and got[2] == best[2]
    one = rwkv7.decode(params, config, logits, state, done, 1, KEY, Sampler(5.0, None, 1.0))
    assert got[1] == one.tokens[1, 0]

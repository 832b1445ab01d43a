import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets, posttrain, rwkv7, tasks
from jaxlab.rwkv7 import Sampler
from jaxlab.tasks import vocabulary as voc

T, STOP, NEVER = 9, 3, 99
KEY = jax.random.key(4)
PROMPTS = jax.random.randint(jax.random.key(1), (3, 5), 1, 20)


@functools.partial(jax.jit, static_argnames=("model", "length", "environment", "early_exit"))
def sample(
    model, params, prompts, key, stop=STOP, sampler=Sampler(), *, length=T, rows=None, lengths=None,
    environment=None, problems=None, early_exit=False,
):  # fmt: skip
    logits, state = posttrain.prefill(model, params, prompts, lengths)
    return posttrain.rollout(
        model, params, logits, state, key, length, sampler, stop=stop, rows=rows,
        environment=environment, problems=problems, early_exit=early_exit,
    )  # fmt: skip


@pytest.fixture(scope="module")
def lm(small_rwkv7):
    return small_rwkv7


@pytest.fixture(scope="module")
def rolled(lm):
    return sample(lm[0], lm[1], jnp.repeat(PROMPTS, 8, axis=0), KEY)


score = jax.jit(posttrain.completion_logits, static_argnums=0)


def test_log_probabilities_are_those_of_the_trainer(lm, rolled):
    model, params, _ = lm
    mask = np.asarray(rolled.mask)
    assert 0 < rolled.truncated.mean() < 1  # some rows stop, some do not
    logits = score(model, params, PROMPTS, rolled.tokens)  # each prompt read once
    trainer = np.where(mask > 0, posttrain.token_log_probs(logits, rolled.tokens), 0)
    np.testing.assert_allclose(rolled.behavior_log_probs, trainer, atol=1e-5)
    np.testing.assert_allclose(rolled.policy_log_probs, trainer, atol=1e-5)
    entropy = np.where(mask > 0, posttrain.token_entropy(logits), 0)
    np.testing.assert_allclose(rolled.entropy, entropy, atol=1e-5)
    many = jnp.repeat(PROMPTS, 8, axis=0)
    np.testing.assert_allclose(score(model, params, many, rolled.tokens), logits, atol=1e-5)


@pytest.mark.slow
def test_log_probabilities_under_filters(lm):
    """Top-k and temperature: the behaviour is the filtered distribution, the policy is not."""
    model, params, _ = lm
    many = jnp.repeat(PROMPTS, 4, axis=0)
    sampler = Sampler(jnp.float32(1.7), jnp.int32(4), jnp.float32(0.95))
    got = sample(model, params, many, KEY, sampler=sampler)
    logits = score(model, params, many, got.tokens)
    filtered = jax.nn.log_softmax(rwkv7.filtered_logits(logits, sampler), axis=-1)
    chosen = np.take_along_axis(np.asarray(filtered), np.asarray(got.tokens)[..., None], -1)[..., 0]
    mask = np.asarray(got.mask)
    assert np.isfinite(chosen[mask > 0]).all()
    np.testing.assert_allclose(got.behavior_log_probs, np.where(mask > 0, chosen, 0), atol=1e-5)
    policy = np.where(mask > 0, posttrain.token_log_probs(logits, got.tokens, 1.7), 0)
    np.testing.assert_allclose(got.policy_log_probs, policy, atol=1e-5)
    assert (np.asarray(got.behavior_log_probs) - policy)[mask > 0].max() > 0.01
    greedy = sample(model, params, many, KEY, sampler=sampler._replace(temperature=0.0))
    np.testing.assert_array_equal(greedy.behavior_log_probs, 0)
    best = jnp.argmax(score(model, params, many, greedy.tokens), axis=-1)
    rows = np.asarray(greedy.mask) > 0
    np.testing.assert_array_equal(np.asarray(best)[rows], np.asarray(greedy.tokens)[rows])
    assert np.isfinite(greedy.policy_log_probs).all()


def test_log_probabilities_in_a_packed_batch_with_resets(lm, rolled):
    """All rows one after the other in one sequence, the state reset where each begins."""
    _, params, config = lm
    many = np.repeat(np.asarray(PROMPTS), 8, axis=0)
    pieces = [np.concatenate([p, t[:n]]) for p, t, n in zip(many, *map(np.asarray, (
        rolled.tokens, rolled.length)))]  # fmt: skip
    packed = jnp.asarray(np.concatenate(pieces))[None]
    starts = np.cumsum([0] + [len(p) for p in pieces])[:-1]
    reset = jnp.zeros(packed.shape, bool).at[0, starts].set(True)
    logits, _ = jax.jit(rwkv7.forward, static_argnums=1)(params, config, packed, None, reset)
    log_probs = posttrain.token_log_probs(logits[:, :-1], packed[:, 1:])[0]
    for row, start in enumerate(starts):
        n = int(rolled.length[row])
        got = log_probs[start + 4 : start + 4 + n]
        np.testing.assert_allclose(got, rolled.behavior_log_probs[row, :n], atol=1e-5)


def test_after_the_stop_token_nothing_happens(lm, rolled):
    tokens, mask = np.asarray(rolled.tokens), np.asarray(rolled.mask)
    for row in range(len(tokens)):
        found = np.flatnonzero(tokens[row] == STOP)
        n = found[0] + 1 if len(found) else T
        np.testing.assert_array_equal(mask[row], np.arange(T) < n)
        np.testing.assert_array_equal(tokens[row, n:], voc.PAD)
        assert int(rolled.length[row]) == n and bool(rolled.truncated[row]) == (not len(found))
    _, params, config = lm
    whole = jnp.concatenate([jnp.repeat(PROMPTS, 8, axis=0), rolled.tokens], axis=1)
    _, state = jax.jit(rwkv7.forward, static_argnums=1)(
        params, config, whole, lengths=5 + rolled.length
    )
    for got, want in zip(jax.tree.leaves(rolled.state), jax.tree.leaves(state)):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-4)


@pytest.mark.slow
def test_a_row_is_the_same_in_any_batch(lm, rolled):
    model, params, _ = lm
    order = jnp.asarray([5, 0, 23, 11])
    some = sample(model, params, jnp.repeat(PROMPTS, 8, axis=0)[order], KEY, rows=order)
    np.testing.assert_array_equal(some.tokens, rolled.tokens[order])
    keys = jnp.stack([jax.random.key(9), KEY])
    many = jax.vmap(lambda k: sample(model, params, jnp.repeat(PROMPTS, 8, axis=0), k).tokens)(keys)
    np.testing.assert_array_equal(many[1], rolled.tokens)
    assert not np.array_equal(many[0], rolled.tokens)


@pytest.mark.slow
def test_early_exit_changes_nothing(lm, rolled):
    model, params, _ = lm
    got = sample(model, params, jnp.repeat(PROMPTS, 8, axis=0), KEY, early_exit=True)
    np.testing.assert_array_equal(got.tokens, rolled.tokens)
    np.testing.assert_allclose(got.behavior_log_probs, rolled.behavior_log_probs, atol=1e-6)
    np.testing.assert_array_equal(got.length, rolled.length)
    np.testing.assert_array_equal(got.truncated, rolled.truncated)
    # Rows that have all stopped end the loop: with every id a stop token, after one token.
    first = sample(model, params, PROMPTS[:1], KEY, rolled.tokens[0, 0], early_exit=True)
    assert int(first.length[0]) == 1 and first.tokens[0, 1:].tolist() == [0] * (T - 1)


def test_frequencies_are_the_distribution(lm):
    model, params, _ = lm
    n = 20_000
    many = jnp.repeat(PROMPTS[:1], n, axis=0)
    got = np.asarray(sample(model, params, many, KEY, sampler=Sampler(1.5), length=1).tokens)[:, 0]
    logits = score(model, params, PROMPTS[:1], jnp.zeros((1, 1), int))[0, 0]
    want = np.asarray(jax.nn.softmax(logits / 1.5))
    found = np.bincount(got, minlength=20) / n
    assert (np.abs(found - want) <= 4 * np.sqrt(want * (1 - want) / n) + 1e-9).all()


@pytest.mark.slow
def test_prompts_of_different_lengths(lm, rolled):
    model, params, _ = lm
    junk = jnp.concatenate([PROMPTS[:1], jnp.full((1, 5), 17)], axis=1)
    padded = sample(model, params, jnp.repeat(junk, 8, 0), KEY, lengths=jnp.full(8, 5))
    np.testing.assert_array_equal(padded.tokens, rolled.tokens[:8])
    logits = [
        score(model, params, p, rolled.tokens[:8], n)
        for p, n in ((PROMPTS[:1], None), (junk, jnp.asarray([5])))
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)
    with pytest.raises(ValueError, match="tokens: expected a multiple of 3"):
        posttrain.completion_logits(model, params, PROMPTS, rolled.tokens[:8])


@pytest.mark.slow
def test_snapshots_are_places_to_branch_from(lm, rolled):
    """Going on from the state behind token t with the same key gives the same tokens."""
    model, params, _ = lm
    logits, state = posttrain.prefill(model, params, PROMPTS)
    whole, kept = jax.jit(
        lambda: posttrain.rollout_with_snapshots(model, params, logits, state, KEY, T, stop=NEVER)
    )()
    at = 3
    branch = jax.tree.map(lambda leaf: leaf[at], kept)
    rest = jax.jit(
        lambda: posttrain.rollout(
            model, params, branch.logits, branch.state, KEY, T - at - 1, stop=NEVER, start=at + 1
        )
    )()
    np.testing.assert_array_equal(rest.tokens, whole.tokens[:, at + 1 :])
    np.testing.assert_allclose(
        rest.behavior_log_probs, whole.behavior_log_probs[:, at + 1 :], atol=1e-5
    )
    several = posttrain.repeat(model, branch.logits, branch.state, 2)
    np.testing.assert_array_equal(several[0][::2], several[0][1::2])


@pytest.fixture(scope="module")
def talker():
    """An RWKV-7 for the whole vocabulary of the tasks."""
    config = rwkv7.Config(
        80, n_layer=1, n_embd=16, head_size=8, ranks=(4, 4, 4, 4), dtype=jnp.float32
    )
    return posttrain.rwkv7_model(config), rwkv7.init(jax.random.key(2), config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kvsum", "tool"])
def test_what_an_environment_writes(talker, name):
    model, params = talker
    module = getattr(tasks, name)
    task = module.make(module.Config(turns=3) if name == "kvsum" else module.Config())
    problems, _ = jax.jit(jax.vmap(task.sample))(jax.random.split(KEY, 6))
    prompts = jax.vmap(task.prompt)(problems)
    length = 16
    got = sample(
        model, params, prompts, KEY, voc.EOS, length=length, environment=task.environment,
        problems=problems,
    )  # fmt: skip
    logits = score(model, params, prompts, got.tokens)
    mask = np.asarray(got.mask)
    trainer = np.where(mask > 0, posttrain.token_log_probs(logits, got.tokens), 0)
    np.testing.assert_allclose(got.behavior_log_probs, trainer, atol=1e-5)
    if name == "kvsum":
        template = np.asarray(
            jax.vmap(lambda p: module.template(p, module.Config(turns=3)))(problems)
        )
        for row in range(6):
            n = int(got.length[row])
            free = template[row, :n] < 0
            np.testing.assert_array_equal(mask[row, :n], free)
            np.testing.assert_array_equal(
                np.asarray(got.tokens)[row, :n][~free], template[row, :n][~free]
            )
    else:  # from a malformed call on: the reply is forced, and the model goes on
        called = jnp.asarray([voc.CALL, voc.END], jnp.int32)
        state, forced = task.environment.start(jax.tree.map(lambda x: x[0], problems))
        for token in called:
            state, forced = task.environment.step(state, token)
        assert int(forced) == voc.OBS


@pytest.mark.slow
def test_the_transformer_is_a_language_model_too():
    config = nets.TransformerConfig(20, n_layer=1, n_embd=16, head_size=8)
    model = posttrain.transformer_model(config, capacity=14)
    params = model.init(jax.random.key(0))
    got = sample(model, params, PROMPTS, KEY)
    logits = score(model, params, PROMPTS, got.tokens)
    trainer = np.where(np.asarray(got.mask) > 0, posttrain.token_log_probs(logits, got.tokens), 0)
    np.testing.assert_allclose(got.behavior_log_probs, trainer, atol=1e-5)
    whole = nets.transformer_apply(params, config, jnp.concatenate([PROMPTS, got.tokens], axis=1))
    np.testing.assert_allclose(logits, whole[:, 4:-1], atol=1e-5)


def test_ends_of_steps():
    tokens = jnp.asarray([[5, 3, 6, 3, 2, 0], [3, 3, 3, 3, 3, 3], [2, 3, 0, 0, 2, 0], [4] * 6])
    got = posttrain.step_ends(tokens, 3, 2, 3)
    assert got.tolist() == [[1, 3, 4], [0, 1, 2], [0, 6, 6], [6, 6, 6]]


def test_refusals(lm):
    model, params, _ = lm
    logits, state = posttrain.prefill(model, params, PROMPTS)
    with pytest.raises(ValueError, match="length: expected at least 1"):
        posttrain.rollout(model, params, logits, state, KEY, 0, stop=1)
    with pytest.raises(ValueError, match="environment, problems: expected both"):
        posttrain.rollout(model, params, logits, state, KEY, 1, stop=1, problems=())

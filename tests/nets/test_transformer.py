import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import nets

T = 11
apply = jax.jit(nets.transformer_apply, static_argnums=1)
extend = jax.jit(nets.transformer_extend, static_argnums=1)


@pytest.fixture(scope="module")
def config():
    return nets.TransformerConfig(vocab_size=19, n_layer=2, n_embd=24, head_size=6, dim_ffn=30)


@pytest.fixture(scope="module")
def params(config):
    shapes = jax.eval_shape(lambda: nets.transformer_init(jax.random.key(1), config))
    params = jax.tree.map(lambda leaf: 0.3 * jnp.ones(leaf.shape), shapes)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def tokens(config):
    return jax.random.randint(jax.random.key(3), (3, T), 0, config.vocab_size)


def numpy_transformer(params, config, tokens, offset=0):
    """One sequence in float64; positions are complex rotations of pairs of channels."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(q, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * q["weight"] + q["bias"]

    half = config.head_size // 2
    angles = np.outer(offset + np.arange(len(tokens)), 10_000.0 ** (-np.arange(half) / half))

    def turn(x):
        z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([z.real, z.imag], axis=1)

    x = p["emb"][np.asarray(tokens)]
    for layer in range(config.n_layer):
        b = jax.tree.map(lambda leaf, i=layer: leaf[i], p["blocks"])
        h = norm(b["ln1"], x) @ b["qkv"]
        outs = []
        for head in h.reshape(len(x), config.n_head, -1).transpose(1, 0, 2):
            q, k, v = np.split(head, 3, axis=1)
            scores = turn(q) @ turn(k).T / np.sqrt(config.head_size)
            scores = np.where(np.tri(len(x)) > 0, scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            outs.append(weights / weights.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(outs, axis=1) @ b["out"]
        h = norm(b["ln2"], x) @ b["up"]
        gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + gelu @ b["down"]
    return norm(p["ln_out"], x) @ p["head"]


def close(got, want, scale=2e-5):
    np.testing.assert_allclose(got, want, rtol=0, atol=scale * np.std(np.asarray(want)))


@pytest.mark.slow
def test_logits_match_numpy_wherever_the_sequence_starts(params, config, tokens):
    logits = apply(params, config, tokens)
    for row in range(3):
        close(logits[row], numpy_transformer(params, config, tokens[row]))
    close(logits[0], numpy_transformer(params, config, tokens[0], offset=100), 1e-4)


def test_nothing_is_seen_before_its_time(params, config, tokens):
    changed = tokens.at[:, 7].add(1) % config.vocab_size
    before, after = apply(params, config, tokens), apply(params, config, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.abs(before[:, 7:] - after[:, 7:]).max(axis=2) > 0).all()
    slope = jax.grad(lambda p: apply(p, config, tokens)[0, 4].sum())(params)["emb"]
    future = set(np.asarray(tokens[0, 5:]).tolist()) - set(np.asarray(tokens[0, :5]).tolist())
    assert future and all(np.all(slope[token] == 0) for token in future)


def test_packed_sequences_are_independent(params, config, tokens):
    reset = jnp.zeros((3, T), bool).at[0, 4].set(True).at[1, (0, 9)].set(True)
    logits = apply(params, config, tokens, reset)
    for row, cuts in enumerate(([4], [9], [])):
        pieces = np.split(np.asarray(tokens[row]), cuts)
        want = np.concatenate([numpy_transformer(params, config, piece) for piece in pieces])
        close(logits[row], want, 5e-5)


@pytest.mark.parametrize("pieces", [[T], [4, 1, 6], [1] * T], ids=str)
def test_extending_a_cache_is_the_whole_sequence(params, config, tokens, pieces):
    cache, found = nets.transformer_cache(config, 3, T + 2), []
    for piece in jnp.split(tokens, np.cumsum(pieces)[:-1].tolist(), axis=1):
        logits, cache = extend(params, config, piece, cache)
        found.append(logits)
    close(np.concatenate(found, axis=1), apply(params, config, tokens), 5e-5)
    np.testing.assert_array_equal(cache.length, T)


def test_prompts_of_different_lengths(params, config, tokens):
    lengths = jnp.asarray([7, 2, 4])
    cache = nets.transformer_cache(config, 3, T)
    prompt, cache = extend(params, config, tokens[:, :7], cache, lengths)
    logits, cache = extend(params, config, tokens[:, 8:9], cache)
    for row, length in enumerate((7, 2, 4)):
        whole = [*np.asarray(tokens[row, :length]).tolist(), int(tokens[row, 8])]
        want = numpy_transformer(params, config, whole)
        close(prompt[row, :length], want[:-1], 5e-5)
        close(logits[row, 0], want[-1], 5e-5)
    np.testing.assert_array_equal(cache.length, lengths + 1)


def test_a_full_cache_says_so(params, config, tokens):
    logits, _ = extend(params, config, tokens, nets.transformer_cache(config, 3, 8))
    assert np.isfinite(logits[:, :8]).all() and np.isnan(logits[:, 8:]).all()


def test_start_and_decay_mask():
    config = nets.TransformerConfig(500, 4, 128)
    params = jax.jit(nets.transformer_init, static_argnums=1)(jax.random.key(0), config)
    blocks = params["blocks"]
    for leaf, std in [
        (params["emb"], 0.02),
        (params["head"], 128**-0.5),
        (blocks["qkv"], 128**-0.5),
        (blocks["up"], 128**-0.5),
        (blocks["out"], 128**-0.5 / 8**0.5),
        (blocks["down"], 512**-0.5 / 8**0.5),
    ]:
        np.testing.assert_allclose(np.std(leaf), std, rtol=0.02)
    decayed = {
        ".".join(key.key for key in path)
        for path, yes in jax.tree_util.tree_leaves_with_path(nets.transformer_decay_mask(params))
        if yes
    }
    assert decayed == {"emb", "head", *(f"blocks.{n}" for n in ("qkv", "out", "up", "down"))}


@pytest.mark.slow
def test_it_learns_and_vmaps_over_seeds(config):
    """The next token is the one before the last: needs attention, not position-wise maps."""
    tokens = jnp.tile(jax.random.randint(jax.random.key(5), (16, 2), 0, 19), (1, 6))
    tx = optax.adam(1e-2)

    def loss(params):
        logits = nets.transformer_apply(params, config, tokens[:, :-1])[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 2:]).mean()

    def run(key):
        params = nets.transformer_init(key, config)

        def update(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(update, (params, tx.init(params)), None, length=60)[1]

    losses = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(6), 2))
    assert losses.shape == (2, 60)
    assert (np.abs(losses[:, 0] - np.log(19)) < 1).all() and (losses[:, -1] < 0.3).all()


def test_bfloat16_keeps_dtypes(config, params, tokens):
    low = nets.TransformerConfig(
        19, 2, 24, head_size=6, dim_ffn=30, dtype="bfloat16", param_dtype="bfloat16"
    )
    cast = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    logits, cache = extend(cast, low, tokens, nets.transformer_cache(low, 3, T))
    assert logits.dtype == jnp.float32 and cache.keys.dtype == jnp.bfloat16
    want = np.asarray(apply(params, config, tokens))
    assert np.std(logits - want) < 0.1 * want.std()


def test_arguments_that_do_not_fit_are_named(params, config, tokens):
    cache = nets.transformer_cache(config, 2, 5)
    for call, message in [
        (lambda: apply(params, config, tokens[0]), r"tokens: expected integers \[B, T\]"),
        (lambda: apply(params, config, tokens, tokens), r"reset: expected bool\(3, 11\)"),
        (lambda: extend(params, config, tokens, cache), "cache: expected shapes"),
        (
            lambda: extend(params, config, tokens[:2], cache, jnp.ones(3, jnp.int32)),
            r"lengths: expected shape \(2,\), got \(3,\)",
        ),
        (lambda: nets.TransformerConfig(9, 1, 15, head_size=5), "head_size: expected an even"),
        (lambda: nets.TransformerConfig(9, 0, 16, head_size=4), "n_layer: expected at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

"""The feature map at its limits, and both enlarged recurrences against what they must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7 import state_tuning as st
from jaxlab.rwkv7 import upscaling as up
from jaxlab_kernels import wkv7

H, N, M = 2, 4, 7


def signals(seed, length=5):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    kk = draw(1, length, H, N)
    kk = kk / jnp.linalg.norm(kk, axis=-1, keepdims=True)
    shape = (1, length, H, N)
    rate = jax.nn.sigmoid(draw(*shape))
    return up.Signals(draw(*shape), -0.6 * jax.nn.sigmoid(draw(*shape)), draw(*shape),
                      draw(*shape), kk, rate)  # fmt: skip


def layer(seed, count=M, writing=1.0):
    rng = np.random.default_rng(seed)
    samples = jnp.asarray(rng.standard_normal((1, 30, H, N)), jnp.float32)
    whole = up.init_upscaling(jax.random.key(seed), samples, count)
    return jax.tree.map(lambda x: x[0], whole)._replace(writing=jnp.float32(writing))


def test_features_at_their_limits():
    branch = layer(0)
    support = jnp.swapaxes(branch.support, 0, 1)[None]  # every vector of a head as a token
    phi = up.kernel_features(support, branch.support, branch.gamma)
    np.testing.assert_array_equal(np.diagonal(phi[0, :, 0]), np.ones(M, np.float32))
    assert (phi > 0).all() and (phi <= 1).all()
    sharp = up.kernel_features(support, branch.support, jnp.full(H, 1e4))
    np.testing.assert_allclose(sharp[0, :, 1], np.eye(M), atol=1e-6)
    flat = up.kernel_features(support, branch.support, jnp.zeros(H))
    np.testing.assert_array_equal(flat, np.ones_like(flat))


def test_support_vectors_are_samples_or_means_of_their_own():
    rng = np.random.default_rng(1)
    centres = 10 * rng.standard_normal((3, N))
    samples = np.concatenate([c + 0.1 * rng.standard_normal((20, N)) for c in centres])
    samples = jnp.asarray(samples, jnp.float32)
    chosen = up.support_vectors(jax.random.key(0), samples, 5)
    gaps = jnp.abs(chosen[:, None] - samples[None]).max(-1).min(1)
    np.testing.assert_array_equal(gaps, 0)
    assert len({tuple(row) for row in np.asarray(chosen)}) == 5
    # Six starting points among twenty samples of each of three clusters: none stays empty here.
    found = up.support_vectors(jax.random.key(3), samples, 6, "kmeans")
    nearest = jnp.linalg.norm(found[:, None] - jnp.asarray(centres, jnp.float32)[None], axis=-1)
    assert float(nearest.min(0).max()) < 0.2
    with pytest.raises(ValueError, match="count: expected at most 60, got 61"):
        up.support_vectors(jax.random.key(0), samples, 61)
    with pytest.raises(ValueError, match="method: expected one of random, kmeans"):
        up.support_vectors(jax.random.key(0), samples, 2, "grid")


def test_projection_and_mixing_are_what_they_must_be():
    branch, given = layer(2), signals(3)
    np.testing.assert_allclose(
        jnp.einsum("hnm,hkm->hnk", branch.projection, branch.projection),
        np.stack([np.eye(N)] * H), atol=1e-5,
    )  # fmt: skip
    r, log_decay, k, v, read, write = up.stable_inputs(branch, given)
    for new, old in ((r, given.receptance), (k, given.key), (v, given.value)):
        length = jnp.linalg.norm(new, axis=-1)
        np.testing.assert_allclose(length, jnp.linalg.norm(old, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(jnp.linalg.norm(read, axis=-1), 1, rtol=1e-5)
    assert (log_decay > -0.6).all() and (log_decay < 0).all()
    # write = rate * kk with every rate in (0, 1): the transition stays a contraction.
    assert ((write / -read > 0) & (write / -read < 1)).all()
    np.testing.assert_allclose(up.project(branch, v), given.value, atol=1e-5)


def test_with_the_identity_as_features_it_is_the_ordinary_recurrence():
    given = signals(4)
    eye = jnp.broadcast_to(jnp.eye(N), (H, N, N))
    branch = up.Upscaling(eye, jnp.ones(H), eye, eye, jnp.float32(1))
    start = jnp.asarray(np.random.default_rng(0).standard_normal((1, H, N, N)), jnp.float32)
    got = up.upscaled_wkv(branch, given, start, features=lambda x, u, g: x)
    r, log_decay, k, v, kk, rate = given
    want = wkv7(r, log_decay, k, v, -kk, kk * rate, start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)


def test_the_literal_recurrence_is_the_papers_and_diverges_where_features_are_flat():
    """Against float64 NumPy in the paper's row-vector form; then gamma = 0."""
    branch, given = layer(5), signals(6)
    got, last = up.upscaled_wkv(branch, given, jnp.zeros((1, H, M, M)), "literal")
    u, gamma, q = (np.asarray(x, np.float64) for x in branch[:3])
    r, w, k, v, kk, a = (np.asarray(x[0], np.float64) for x in given)
    for head in range(H):
        state = np.zeros((M, M))
        for t in range(5):
            phi = [
                np.exp(-gamma[head] * ((x[t, head] - u[head]) ** 2).sum(-1))
                for x in (r, np.exp(w), k, v, kk, a)
            ]
            transition = np.diag(phi[1]) - np.outer(phi[4], phi[5] * phi[4])
            state = state @ transition + np.outer(phi[3], phi[2])
            want = q[head] @ (state @ phi[0])
            np.testing.assert_allclose(got[0, t, head], want, rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(last[0, head], state, rtol=2e-3, atol=2e-4)

    flat = branch._replace(gamma=jnp.zeros(H))
    np.testing.assert_allclose(up.literal_radius(flat, given.removal, given.rate), M - 1, rtol=1e-6)
    start = jnp.ones((1, H, M, M))
    _, grown = up.upscaled_wkv(flat, signals(7, 9), start, "literal")
    _, tame = up.upscaled_wkv(flat, signals(7, 9), start, "stable")
    assert float(jnp.linalg.norm(grown)) > 1e3 * float(jnp.linalg.norm(tame))
    with pytest.raises(ValueError, match="mode: expected one of literal, stable"):
        up.upscaled_wkv(flat, given, start, "safe")


@pytest.mark.slow
def test_a_model_with_a_second_state_starts_as_the_base_model(config, params):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, config.vocab_size)
    forward = jax.jit(rwkv7.forward, static_argnums=1)
    base, _ = forward(params, config, tokens)
    logits, (r, k) = jax.jit(rwkv7.receptances_and_keys, static_argnums=1)(params, config, tokens)
    np.testing.assert_array_equal(logits, base)
    assert r.shape == k.shape == (3, 2, 9, 2, 16)
    samples = jnp.concatenate([r, k], axis=1).reshape(3, -1, 2, 16)
    branch = up.init_upscaling(jax.random.key(1), samples, 20, "kmeans")
    wide = up.upscaled(params, branch)
    got, state = forward(wide, config, tokens)
    np.testing.assert_array_equal(got, base)
    assert state.enlarged.shape == (3, 2, 2, 20, 20) and not state.enlarged.any()

    # Where it is written into, pieces are the whole, and padding leaves it alone.
    wide = up.upscaled(params, branch._replace(writing=jnp.asarray([1.0, -0.5, 2.0])))
    got, state = forward(wide, config, tokens)
    assert float(jnp.abs(got - base).max()) > 1e-2
    one, carried = forward(wide, config, tokens[:, :4])
    two, carried = forward(wide, config, tokens[:, 4:], carried)
    np.testing.assert_allclose(jnp.concatenate([one, two], 1), got, atol=2e-4)
    np.testing.assert_allclose(carried.enlarged, state.enlarged, atol=2e-4)
    short, after = forward(wide, config, tokens, lengths=jnp.asarray([9, 4]))
    np.testing.assert_allclose(short[1, :4], got[1, :4], atol=2e-4)
    want = forward(wide, config, tokens[:, :4])[1].enlarged
    np.testing.assert_allclose(after.enlarged[:, 1], want[:, 1], atol=2e-4)


def test_too_few_support_vectors_are_refused():
    with pytest.raises(ValueError, match="count: expected at least the width 4 of a head, got 3"):
        up.init_upscaling(jax.random.key(0), jnp.zeros((1, 9, H, N)), 3)


@pytest.fixture
def wide(make_config, make_params):
    config = make_config(n_layer=1)
    samples = jax.random.normal(jax.random.key(0), (1, 20, 2, 16))
    branch = up.init_upscaling(jax.random.key(1), samples, 16)
    return config, up.upscaled(make_params(11, config), branch._replace(writing=jnp.ones(1)))


def test_loops_over_tokens_fill_in_the_second_state(wide):
    config, params = wide
    state = rwkv7.initial_state(config, 2)
    tokens = jnp.asarray([[1, 2, 3], [4, 5, 6]])
    logits, last = rwkv7.forward(params, config, tokens)
    states = st.state_trajectory(params, config, tokens)
    np.testing.assert_allclose(states[-1], last.wkv, atol=1e-4)
    done = jnp.zeros(2, bool)
    out = rwkv7.decode(params, config, logits[:, -1], state, done, 2, jax.random.key(0))
    assert out.state.enlarged.shape == (1, 2, 2, 16, 16) and out.state.enlarged.any()


def test_a_second_state_is_not_lost_without_a_word(wide, tmp_path):
    config, params = wide
    with pytest.raises(ValueError, match="params: expected those of a base model"):
        rwkv7.save(tmp_path / "model.pth", params, config)
    base = params | {"blocks": {k: v for k, v in params["blocks"].items() if k != "upscaling"}}
    tokens = jnp.ones((2, 3), jnp.int32)
    state = rwkv7.initial_state(config, 2)._replace(enlarged=jnp.zeros((1, 2, 2, 16, 16)))
    with pytest.raises(ValueError, match=r"^state: expected no enlarged state.*\(1, 2, 2, 16, 16"):
        rwkv7.forward(base, config, tokens, state)
    fresh = jax.tree.map(lambda leaf: leaf[:, 0], state)
    with pytest.raises(ValueError, match="reset_state: expected no enlarged state"):
        rwkv7.forward(base, config, tokens, None, tokens > 1, reset_state=fresh)

"""State tuning: what must not change, closed forms, and tuned states on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7 import state_tuning as st
from jaxlab_kernels import wkv7

M = 20


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(n_layer=2)


@pytest.fixture(scope="module")
def params(config, make_params):
    return make_params(11, config)


@pytest.fixture(scope="module")
def batch(config):
    tokens = jax.random.randint(jax.random.key(1), (3, 9), 0, config.vocab_size)
    return st.Batch(tokens, jnp.zeros((3, 8)).at[:, 4:].set(1.0))


@pytest.fixture(scope="module")
def loss(config):
    return jax.jit(
        lambda tuned, params, batch, **rest: st.state_tuning_loss(
            tuned, params, config, batch, impl="scan", **rest
        )[0]
    )


def noise(tree, seed=0, scale=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), tree)


def wide(params, config, seed=2):
    samples = noise(jnp.zeros((config.n_layer, 40, config.n_head, config.head_size)), seed, 1.0)
    return st.upscaled(params, st.init_upscaling(jax.random.key(seed), samples, M))


@pytest.mark.slow
def test_the_zero_state_changes_nothing_whatever_its_scale(config, params, batch):
    forward = jax.jit(rwkv7.forward, static_argnums=1)
    tokens = batch.tokens[:, :8]
    tuned = st.init_tuned_state(config, tune_shift=True)
    for alpha in (1.0, 7.0):
        state = rwkv7.initial_state(config, 3, st.learned_state(tuned, config, alpha))
        assert jax.tree.all(jax.tree.map(lambda x: not x.any(), state))
    np.testing.assert_array_equal(
        forward(params, config, tokens, state)[0], forward(params, config, tokens)[0]
    )
    disabled = st.learned_state(noise(st.init_tuned_state(config)), config, 0.0)
    assert not disabled.wkv.any()


@pytest.mark.slow
def test_the_state_behind_a_prefix_stands_for_the_prefix(config, params, batch):
    forward = jax.jit(rwkv7.forward, static_argnums=1)
    whole, _ = forward(params, config, batch.tokens[:1, :8])
    _, behind = forward(params, config, batch.tokens[:1, :4])
    att, wkv, ffn = (leaf[:, 0] for leaf in behind[:3])
    tuned = st.Tuned(wkv=wkv, att_shift=att, ffn_shift=ffn)
    start = rwkv7.initial_state(config, 1, st.learned_state(tuned, config))
    got, _ = forward(params, config, batch.tokens[:1, 4:8], start)
    np.testing.assert_allclose(got, whole[:, 4:], atol=2e-4)


@pytest.mark.slow
def test_weights_get_no_gradient_and_prompts_do_not_count(config, params, batch, loss):
    model = wide(params, config)
    tuned = noise(st.init_tuned_state(config, M))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(tuned, model, batch)
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.abs(x).max() > 0), grads[0]))
    assert jax.tree.all(jax.tree.map(lambda x: not x.any(), grads[1]))
    # The loss by hand from the logits of the model, over the four last tokens.
    state = rwkv7.initial_state(config, 3, st.learned_state(tuned, config))
    logits, _ = jax.jit(rwkv7.forward, static_argnums=1)(
        st.tuned_model(model, tuned), config, batch.tokens[:, :-1], state
    )
    log_p = np.asarray(jax.nn.log_softmax(logits[:, 4:], axis=-1), np.float64)
    rows = np.take_along_axis(log_p, np.asarray(batch.tokens)[:, 5:, None], -1)
    np.testing.assert_allclose(loss(tuned, model, batch), -rows.mean(), rtol=1e-5)
    with_l2 = float(loss(tuned, model, batch, l2=0.5)) - float(loss(tuned, model, batch))
    square = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(tuned))
    assert with_l2 == pytest.approx(0.5 * square, rel=1e-4)


@pytest.mark.slow
def test_the_gradient_is_the_slope(config, params, batch, loss):
    model, tuned = wide(params, config), noise(st.init_tuned_state(config, M), 3)
    grads = jax.jit(jax.grad(loss))(tuned, model, batch)
    for part in ("wkv", "enlarged", "writing"):
        turn = noise(getattr(tuned, part), 5, 1.0)
        step = 3e-3
        up, down = (
            float(loss(tuned._replace(**{part: getattr(tuned, part) + s * turn}), model, batch))
            for s in (step, -step)
        )
        want = float(jnp.sum(getattr(grads, part) * turn))
        assert (up - down) / (2 * step) == pytest.approx(want, rel=0.05, abs=2e-3)


def test_the_gradient_through_one_token_has_its_closed_form():
    rng = np.random.default_rng(0)
    r, k, v, a, b, dy = (rng.standard_normal((1, 1, 1, 4)).astype(np.float32) for _ in range(6))
    log_decay = -0.5 * rng.random((1, 1, 1, 4)).astype(np.float32)
    start = rng.standard_normal((1, 1, 4, 4)).astype(np.float32)

    def read(s):
        return jnp.sum(dy * wkv7(r, log_decay, k, v, a, b, s)[0])

    got = jax.jit(jax.grad(read))(jnp.asarray(start))[0, 0]
    r, a, b, dy, w = (x[0, 0, 0].astype(np.float64) for x in (r, a, b, dy, np.exp(log_decay)))
    outer = np.outer(dy, r)
    want = outer * w[None, :] + np.outer(outer @ b, a)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_linear_probe_is_learned_to_its_least_squares_optimum():
    """y = S0 (diag w + a b^T) r for one token: the best S0 is known."""
    rng = np.random.default_rng(1)
    rows, n = 30, 4

    def draw(scale=1.0):
        return scale * rng.standard_normal((rows, 1, 1, n)).astype(np.float32)

    r, a, b, target = draw(), draw(0.3), draw(0.3), draw()
    log_decay = -0.5 * rng.random((rows, 1, 1, n)).astype(np.float32)
    zero = np.zeros_like(r)

    def error(s):
        y, _ = wkv7(r, log_decay, zero, zero, a, b, s)
        return jnp.mean((y - target) ** 2)

    optimizer = st.state_optimizer(400)

    def step(carry, _):
        s, moments = carry
        updates, moments = optimizer.update(jax.grad(error)(s), moments)
        return (s + updates, moments), None

    start = jnp.zeros((1, n, n))
    (learned, _), _ = jax.jit(
        lambda: jax.lax.scan(step, (start, optimizer.init(start)), None, length=400)
    )()
    w = np.exp(log_decay[:, 0, 0])
    x = w * r[:, 0, 0] + a[:, 0, 0] * (b[:, 0, 0] * r[:, 0, 0]).sum(1, keepdims=True)
    best, *_ = np.linalg.lstsq(x, target[:, 0, 0], rcond=None)
    np.testing.assert_allclose(learned[0], best.T, atol=5e-3)


@pytest.mark.slow
def test_packed_sequences_are_separate_ones_with_their_gradient(config, params, batch):
    tuned = noise(st.init_tuned_state(config))
    one, two = (st.Batch(batch.tokens[i : i + 1], batch.weight[i : i + 1]) for i in (0, 1))
    # Nine tokens each; the place between them predicts nothing.
    packed = st.Batch(
        jnp.concatenate([one.tokens, two.tokens], 1),
        jnp.concatenate([one.weight, jnp.zeros((1, 1)), two.weight], 1),
        jnp.zeros((1, 17), bool).at[0, 9].set(True),
    )

    def mean(tuned, batches):
        return sum(st.state_tuning_loss(tuned, params, config, b)[0] for b in batches) / len(
            batches
        )

    slope = jax.jit(jax.value_and_grad(mean))
    got, want = slope(tuned, [packed]), slope(tuned, [one, two])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-3), got, want)


def repeat(batch, steps):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), batch)


@pytest.mark.slow
def test_tuning_learns_what_it_may_and_identity_mixing_is_no_mixing(config, params, batch):
    model = wide(params, config)
    before = jax.tree.map(np.array, model)
    start = st.init_tuned_state(config, M)
    optimizer = st.state_optimizer(30, 0.3)

    @jax.jit
    def tune(trainable, rule):
        return st.tune_state(
            start, model, config, repeat(batch, 30), optimizer, rule=rule, trainable=trainable
        )

    everything = st.Tuned(1.0, 1.0, 1.0)
    still = st.Decorrelation(jnp.float32(0))
    tuning, told = tune(everything, still)
    assert float(told["nll"][-1]) < 0.8 * float(told["nll"][0])
    np.testing.assert_array_equal(tuning.decorrelation, model["blocks"]["upscaling"].decorrelation)
    plain = jax.jit(lambda: st.tune_state(start, model, config, repeat(batch, 30), optimizer)[0])()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-2), tuning.tuned, plain.tuned
    )
    moving, told = tune(everything, st.Decorrelation(jnp.float32(1e-2)))
    assert float(told["correlation"][-1]) < 0.8 * float(told["correlation"][0])
    assert float(jnp.abs(moving.decorrelation - tuning.decorrelation).max()) > 1e-3
    base_only, _ = tune(st.Tuned(1.0, 0.0, 0.0), still)
    assert base_only.tuned.wkv.any() and not base_only.tuned.enlarged.any()
    jax.tree.map(np.testing.assert_array_equal, before, model)


@pytest.mark.slow
def test_a_mixed_second_state_has_the_preconditioned_gradient(config, params, batch, loss):
    """S0_eff = S0 R: dS0 = dS0_eff R^T."""
    model, tuned = wide(params, config), noise(st.init_tuned_state(config, M), 4)
    mixing = noise(jnp.zeros((config.n_layer, config.n_head, M, M)), 5, 0.05)
    mixing = mixing + jnp.eye(M)[None, None]
    effective = tuned._replace(enlarged=tuned.enlarged @ mixing)
    np.testing.assert_allclose(
        loss(tuned, model, batch, decorrelation=mixing), loss(effective, model, batch), rtol=1e-5
    )
    got = jax.grad(loss)(tuned, model, batch, decorrelation=mixing).enlarged
    outer = jax.grad(loss)(effective, model, batch).enlarged
    np.testing.assert_allclose(got, outer @ jnp.swapaxes(mixing, -1, -2), atol=1e-5)


@pytest.mark.parametrize(("kappa", "white"), [(0.0, False), (0.5, True)])
def test_decorrelation_whitens(kappa, white):
    """Gaussian inputs: off-diagonals go to zero at full rank, with variances to the identity."""
    rng = np.random.default_rng(0)
    size = 5
    root = rng.standard_normal((size, size)) / np.sqrt(size) + np.eye(size)
    x = rng.standard_normal((4000, size)) @ root.T
    x = jnp.asarray(x, jnp.float32)
    covariance = np.asarray(x.T @ x / 4000, np.float64)

    def step(mixing, _):
        return st.dbp_update(mixing, x @ mixing.T, 0.1, kappa)

    mixing, losses = jax.jit(lambda: jax.lax.scan(step, st.dbp_init(size), None, length=2000))()
    mixing = np.asarray(mixing, np.float64)
    moment = mixing @ covariance @ mixing.T
    assert np.abs(moment - np.diag(np.diagonal(moment))).max() < 1e-3
    assert np.linalg.cond(mixing) < 100 and losses[-1] < losses[0]
    if white:
        np.testing.assert_allclose(moment, np.eye(size), atol=2e-3)


def test_white_inputs_stay_and_variances_scale_rows():
    corners = jnp.asarray([[1, 1], [1, -1], [-1, 1], [-1, -1]], jnp.float32)
    mixing, loss = st.dbp_update(st.dbp_init(2), corners, 0.3, 0.5)
    np.testing.assert_array_equal(mixing, np.eye(2))
    assert float(loss) == 0
    # Variances 4 and 1: row 0 alone shrinks, by 2 kappa lr 3.
    mixing, _ = st.dbp_update(jnp.ones((2, 2)), corners * jnp.asarray([[2.0, 1.0]]), 0.1, 1.0)
    np.testing.assert_allclose(mixing, [[0.4, 0.4], [1.0, 1.0]], rtol=1e-6)


@pytest.mark.slow
def test_test_time_tuning_starts_from_nothing_and_follows_its_guide(config, params, batch):
    none = st.test_time_tune(params, config, batch, 0, st.state_optimizer(1))
    assert not none.wkv.any()
    logits, _ = jax.jit(rwkv7.forward, static_argnums=1)(params, config, batch.tokens[:, :-1])
    # A guide that is the model itself, and no tokens to learn: nothing to be done.
    guided = batch._replace(teacher=logits)

    def divergence(instance, tuned):
        silent = instance._replace(weight=jnp.where(instance.weight > 0, 1e-12, 0))
        return st.state_tuning_loss(tuned, params, config, silent, beta=1.0)[0]

    zero = st.init_tuned_state(config)
    slope = jax.jit(jax.grad(divergence, argnums=1))(guided, zero)
    assert float(jnp.abs(slope.wkv).max()) < 1e-5
    instances = jax.tree.map(lambda x: x[:, None], batch)
    each = jax.jit(
        jax.vmap(lambda b: st.test_time_tune(params, config, b, 4, st.state_optimizer(4, 0.3)))
    )(instances)
    for i in range(3):
        mine = jax.tree.map(lambda x, i=i: x[i], (instances, each))
        before = st.state_tuning_loss(zero, params, config, mine[0])[0]
        assert st.state_tuning_loss(mine[1], params, config, mine[0])[0] < 0.9 * before


@pytest.mark.slow
def test_an_observer_of_itself_explains_everything(config, params, batch):
    tokens = batch.tokens[:, :5]
    states = jax.jit(st.state_trajectory, static_argnums=1)(params, config, tokens)
    _, last = jax.jit(rwkv7.forward, static_argnums=1)(params, config, tokens)
    np.testing.assert_allclose(states[-1], last.wkv, atol=1e-4)
    heads, size = config.n_head, config.head_size
    same = jnp.eye(heads)[None, :, :, None, None] * jnp.eye(size)[None, None, None]
    same = jnp.broadcast_to(same, (config.n_layer, heads, heads, size, size))
    loss, told = st.observer_loss(st.ObserverMaps(same, same), states, states)
    assert float(loss) < 1e-10 and float(told["explained"]) == pytest.approx(1)
    nothing = st.ObserverMaps(0 * same, same)
    assert float(st.observer_loss(nothing, states, states)[0]) == pytest.approx(1)


@pytest.mark.slow
def test_an_observer_learns_a_larger_teachers_states(
    config, params, batch, make_config, make_params
):
    large = make_config(n_layer=2, n_embd=48)
    teacher = make_params(12, large)
    states = st.state_trajectory(teacher, large, batch.tokens[:, :-1])
    trained = st.init_tuned_state(config), st.init_observer(jax.random.key(0), config, large)
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        trained, moments = carry
        slope = jax.grad(st.observed_tuning_loss, has_aux=True)
        grads, told = slope(trained, params, config, batch, states, 0.1)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(trained, updates), moments), told

    (_, _), told = jax.jit(
        lambda: jax.lax.scan(step, (trained, optimizer.init(trained)), None, length=60)
    )()
    assert told["explained"][-1] > max(0.2, float(told["explained"][0]))
    assert told["nll"][-1] < told["nll"][0]
    with pytest.raises(ValueError, match="student: expected 3 layers"):
        st.init_observer(jax.random.key(0), config, make_config(n_layer=3))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_tuned_state_is_saved_and_read(config, tmp_path, suffix):
    tuned = noise(st.init_tuned_state(config))
    path = tmp_path / f"tuned.{suffix}"
    rwkv7.save_learned_state(path, st.learned_state(tuned, config), config)
    got = rwkv7.load_learned_state(path, config)
    np.testing.assert_array_equal(got.wkv, tuned.wkv)
    shifted = st.learned_state(noise(st.init_tuned_state(config, tune_shift=True)), config)
    with pytest.raises(ValueError, match="state: expected zero token shifts"):
        rwkv7.save_learned_state(path, shifted, config)
    with pytest.raises(ValueError, match="state: expected shapes"):
        rwkv7.save_learned_state(path, rwkv7.initial_state(config, 2), config)


@pytest.mark.slow
def test_what_a_model_does_not_have_is_refused(config, params, batch):
    with pytest.raises(ValueError, match="params: expected those of `upscaled`"):
        st.tuned_model(params, st.init_tuned_state(config, M))
    with pytest.raises(ValueError, match="rule: expected a model with a second state"):
        st.tune_state(
            st.init_tuned_state(config), params, config, repeat(batch, 2),
            st.state_optimizer(2), rule=st.Decorrelation(0.1),
        )  # fmt: skip
    wrong = rwkv7.initial_state(config, 3)._replace(enlarged=jnp.zeros((2, 2, M, M)))
    with pytest.raises(ValueError, match="state: expected an enlarged state"):
        rwkv7.forward(wide(params, config), config, batch.tokens, wrong)


def test_an_observer_sees_the_writing_and_no_packed_sequences(config, params, batch):
    maps = st.init_observer(jax.random.key(0), config, config)
    model = wide(params, config)
    tuned = noise(st.init_tuned_state(config, M))
    states = jnp.ones((8, 2, 3, *tuned.wkv.shape[1:]))

    @jax.jit
    def apart(writing):
        trained = (tuned._replace(writing=writing), maps)
        return st.observed_tuning_loss(trained, model, config, batch, states, 0.0)[0]

    assert abs(apart(tuned.writing) - apart(0 * tuned.writing)) > 1e-4
    packed = batch._replace(reset=jnp.zeros((3, 8), bool))
    with pytest.raises(ValueError, match="batch: expected sequences that are not packed"):
        st.observed_tuning_loss((tuned, maps), model, config, packed, states)

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7.upscaling import Upscaling


def test_groups(params, config):
    labels = rwkv7.param_labels(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    groups = {}
    for path, label in jax.tree_util.tree_leaves_with_path(labels):
        groups.setdefault(label, set()).add(".".join(key.key for key in path))
    assert groups["w0_2x"] == {"blocks.att.w0"}
    matrices = {f"blocks.att.{n}" for n in ("receptance", "key", "value", "output")}
    assert groups["decay"] == matrices | {"blocks.ffn.key", "blocks.ffn.value", "emb", "head"}
    assert len(groups["no_decay"]) == len(jax.tree.leaves(params)) - 9


def test_learning_rate():
    def rate(step, **fields):
        return float(rwkv7.learning_rate_schedule(step, 110, 6e-4, 6e-5, **fields))

    np.testing.assert_allclose(rate(0), 6e-6, rtol=1e-6)
    np.testing.assert_allclose(rate(5), 6e-4 * (0.01 + 0.99 / 2), rtol=1e-6)
    np.testing.assert_allclose(rate(10), 6e-4, rtol=1e-6)  # the cosine starts after the warm-up
    np.testing.assert_allclose(rate(60), (6e-4 + 6e-5) / 2, rtol=1e-6)
    np.testing.assert_allclose(rate(35), 6e-5 + 5.4e-4 * (0.5 + 0.5 * np.sqrt(0.5)), rtol=1e-6)
    for late in (110, 500):
        np.testing.assert_allclose(rate(late), 6e-5, rtol=1e-5)
    np.testing.assert_allclose(rate(0, warmup_steps=0), 6e-4, rtol=1e-6)


def test_first_updates_by_hand():
    """Adam's first step is the sign of the gradient; decay only for matrices; twice for w0."""
    params = {
        "head": jnp.asarray([[2.0, -4.0]]),
        "w0": jnp.asarray([1.0]),
        "a0": jnp.asarray([1.0]),
    }
    grads = {"head": jnp.asarray([[3.0, -1e-9]]), "w0": jnp.asarray([4.0]), "a0": jnp.zeros(1)}
    tx = rwkv7.optimizer(1e-2, 1e-2, 100, warmup_steps=0, weight_decay=0.5, clip=1e9)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["head"], [[-1e-2 * (1 + 1), -1e-2 * (-1 - 2)]], rtol=1e-5)
    np.testing.assert_allclose(updates["w0"], [-2e-2], rtol=1e-5)
    np.testing.assert_array_equal(updates["a0"], 0)
    # Second step with gradient g2: m = (b1 (1-b1) g1 + (1-b1) g2) / (1-b1^2), likewise v.
    grads["w0"] = jnp.asarray([-2.0])
    updates, _ = tx.update(grads, state, params)
    m = (0.9 * 0.1 * 4 + 0.1 * -2) / (1 - 0.9**2)
    v = (0.99 * 0.01 * 16 + 0.01 * 4) / (1 - 0.99**2)
    np.testing.assert_allclose(updates["w0"], [-2e-2 * m / np.sqrt(v)], rtol=1e-5)


def test_clipping_by_the_global_norm():
    params = {"k_k": jnp.zeros(2), "r_k": jnp.zeros(1)}
    tx = rwkv7.optimizer(1.0, 1.0, 10, warmup_steps=0, clip=1.0)
    small = {"k_k": jnp.asarray([0.3, 0.0]), "r_k": jnp.asarray([0.4])}
    large = jax.tree.map(lambda leaf: 40 * leaf, small)  # norm 20
    state = tx.init(params)

    def moments(grads):
        return tx.update(grads, state, params)[1].moments.mu

    np.testing.assert_allclose(moments(small)["k_k"], 0.1 * small["k_k"], rtol=1e-6)
    np.testing.assert_allclose(moments(large)["k_k"], 0.1 * large["k_k"] / 20, rtol=1e-6)
    np.testing.assert_allclose(moments(large)["r_k"], 0.1 * large["r_k"] / 20, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, small)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tx.update(zero, state, params)))


def test_tiny_gradients_still_move():
    """eps = 1e-18 is far below any second moment; 1e-8 would swallow this gradient."""
    params = {"k_k": jnp.zeros(1)}
    tx = rwkv7.optimizer(1e-2, 1e-2, 10, warmup_steps=0)
    state = tx.init(params)
    assert state.moments.mu["k_k"].dtype == state.moments.nu["k_k"].dtype == jnp.float32
    updates, _ = tx.update({"k_k": jnp.full(1, 1e-12, jnp.bfloat16)}, state, params)
    assert updates["k_k"].dtype == jnp.float32
    np.testing.assert_allclose(updates["k_k"], -1e-2, rtol=1e-2)


def test_hyper_parameters_are_swept_by_vmap():
    params = {"head": jnp.ones((2, 2)), "w0": jnp.ones(3)}
    grads = jax.tree.map(lambda leaf: 0.1 * leaf, params)

    def run(peak, decay):
        tx = rwkv7.optimizer(peak, 0.1 * peak, 5, warmup_steps=2, weight_decay=decay)

        def body(carry, _):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), None, length=5)[0][0]

    peaks, decays = jnp.asarray([1e-2, 3e-3]), jnp.asarray([0.0, 0.5])
    many = jax.jit(jax.vmap(run))(peaks, decays)
    for index in range(2):
        want = run(peaks[index], decays[index])
        jax.tree.map(
            lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-6), many, want
        )


def test_the_parameters_are_needed():
    tx = rwkv7.optimizer(1.0, 1.0, 10)
    params = {"k_k": jnp.zeros(1)}
    with pytest.raises(ValueError, match="params: expected the parameters"):
        tx.update(params, tx.init(params))


def test_parameters_too_coarse_for_updates_are_refused():
    params = {"blocks": {"k_k": jnp.zeros(1), "w0": jnp.zeros(1, jnp.bfloat16)}}
    with pytest.raises(ValueError, match=r"float32, got bfloat16 at .*'w0'.*param_dtype='float32'"):
        rwkv7.optimizer(1.0, 1.0, 10).init(params)


def test_a_second_state_is_trained_without_decay():
    branch = Upscaling(*(jnp.ones(1) for _ in Upscaling._fields))
    params = {"blocks": {"upscaling": branch, "w0": jnp.ones(1)}}
    labels = rwkv7.param_labels(params)["blocks"]
    assert labels == {"upscaling": Upscaling(*["no_decay"] * 5), "w0": "w0_2x"}
    tx = rwkv7.optimizer(1e-2, 1e-2, 10, warmup_steps=0)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["blocks"]["upscaling"].gamma, -1e-2, rtol=1e-5)

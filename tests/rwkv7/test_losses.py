import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.rwkv7 import l2wrap_cross_entropy


def test_golden_gradient():
    logits = jnp.asarray([[[1.0, 3.0, 2.0]]])
    loss, grad = jax.value_and_grad(l2wrap_cross_entropy)(logits, jnp.zeros((1, 1), jnp.int32))
    np.testing.assert_allclose(grad[0, 0], (-0.90996943, 0.66554096, 0.24472847), rtol=2e-6)
    want = np.log(np.exp([1.0, 3.0, 2.0]).sum()) - 1.0
    np.testing.assert_allclose(loss, want, rtol=1e-6)  # the value is the plain cross-entropy


def test_gradient_is_that_of_the_penalised_loss(key):
    logits = 3 * jax.random.normal(key, (2, 5, 7))
    targets = jax.random.randint(key, (2, 5), 0, 7)

    def penalised(logits):
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
        return -log_p.mean() + 0.5 * 0.3 * jnp.mean(jnp.max(logits, axis=-1) ** 2)

    got = jax.grad(lambda x: 2.5 * l2wrap_cross_entropy(x, targets, factor=0.3))(logits)
    np.testing.assert_allclose(got, 2.5 * jax.grad(penalised)(logits), atol=1e-6)


def test_equal_logits_pull_at_the_first():
    logits = jnp.full((1, 1, 4), 2.0)
    grad = jax.grad(lambda x: l2wrap_cross_entropy(x, jnp.zeros((1, 1), jnp.int32), factor=1.0))
    np.testing.assert_allclose(grad(logits)[0, 0], (0.25 - 1 + 2.0, 0.25, 0.25, 0.25), rtol=1e-6)


@pytest.mark.slow
def test_masked_positions_do_not_exist(key):
    logits = jax.random.normal(key, (2, 6, 5))
    targets = jax.random.randint(key, (2, 6), 0, 5)
    mask = jnp.zeros((2, 6), bool).at[:, :4].set(True)
    dirty = jnp.where(mask[..., None], logits, jnp.nan)
    masked = jax.jit(jax.value_and_grad(lambda x: l2wrap_cross_entropy(x, targets, mask)))(dirty)
    short = jax.value_and_grad(lambda x: l2wrap_cross_entropy(x, targets[:, :4]))(logits[:, :4])
    np.testing.assert_allclose(masked[0], short[0], rtol=1e-6)
    np.testing.assert_allclose(masked[1][:, :4], short[1], atol=1e-7)
    np.testing.assert_array_equal(masked[1][:, 4:], 0)
    nothing = l2wrap_cross_entropy(logits, targets, jnp.zeros((2, 6), bool))
    assert float(nothing) == 0.0


def test_vmap_is_a_loop_and_bfloat16_is_computed_in_float32(key):
    logits = jax.random.normal(key, (3, 2, 4, 5)).astype(jnp.bfloat16)
    targets = jax.random.randint(key, (3, 2, 4), 0, 5)
    losses = jax.vmap(l2wrap_cross_entropy)(logits, targets)
    assert losses.dtype == jnp.float32
    for index in range(3):
        want = l2wrap_cross_entropy(logits[index].astype(jnp.float32), targets[index])
        np.testing.assert_allclose(losses[index], want, rtol=1e-6)
    grad = jax.grad(l2wrap_cross_entropy)(logits[0], targets[0])
    assert grad.dtype == jnp.bfloat16


def test_shapes_that_do_not_fit(key):
    with pytest.raises(ValueError, match="logits, targets, mask: shapes that do not fit"):
        l2wrap_cross_entropy(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4), jnp.int32))


@pytest.mark.parametrize("ignored", [-100, 3])
def test_ignored_targets_may_be_anything(ignored):
    loss = jax.value_and_grad(l2wrap_cross_entropy)
    logits, mask = jnp.asarray([[[1.0, 2.0, 3.0]] * 2]), jnp.asarray([[True, False]])
    got = loss(logits, jnp.asarray([[1, ignored]]), mask)
    want = loss(logits, jnp.asarray([[1, 0]]), mask)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert np.isfinite(got[0])

"""A training step: the loss falls, and members or devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from jaxlab import rwkv7

CONFIG = rwkv7.Config(19, n_layer=2, n_embd=32, head_size=16, ranks=(4, 4, 4, 4), dtype=jnp.float32)


@pytest.fixture(scope="module")
def training():
    return rwkv7.make_training(CONFIG, rwkv7.optimizer(1e-2, 1e-3, 40))


def tokens():
    return (jnp.arange(4)[:, None] + jnp.arange(17)[None]) % 19  # each token tells the next


@pytest.mark.slow
def test_a_cycle_is_learnt(training):
    state = jax.jit(training.init)(jax.random.key(0))
    step = jax.jit(training.step)
    losses = []
    for _ in range(40):
        state, metrics = step(state, tokens())
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses[0], np.log(19), rtol=0.2)
    assert losses[-1] < 0.2


@pytest.mark.slow
def test_devices_that_share_a_model_change_nothing(training, cpu_devices):
    state = jax.jit(training.init)(jax.random.key(0))
    mesh = Mesh(np.array(cpu_devices[:2]), "data", axis_types=(AxisType.Auto,))
    alone, metrics = jax.jit(training.step)(state, tokens())
    with jax.set_mesh(mesh):
        spread, shared = jax.jit(training.step)(state, tokens())
    np.testing.assert_allclose(shared["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(shared["grad_norm"], metrics["grad_norm"], rtol=1e-3)
    key = spread.params["blocks"]["ffn"]["key"]
    assert key.sharding.shard_shape(key.shape) != key.shape
    # The first step of Adam moves by the sign of a gradient, and some are zero up to rounding.
    far = jax.tree.map(lambda a, b: jnp.abs(a - b) > 1e-3, alone.params, spread.params)
    assert sum(int(x.sum()) for x in jax.tree.leaves(far)) == 0

"""Which dimension is cut, and that spreading a computation over devices changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxlab.nets import constrain_batch, constrain_fsdp, fsdp_specs


def test_the_largest_divisible_dimension_is_cut():
    tree = {
        "last of equals": jnp.zeros((64, 64)),
        "largest": jnp.zeros((3, 128, 64)),
        "divisible": jnp.zeros((130, 66)),
        "none": jnp.zeros((33, 35)),
        "small": jnp.zeros((4, 4)),
        "scalar": jnp.zeros(()),
    }
    assert fsdp_specs(tree, "data", 4) == {
        "last of equals": PartitionSpec(None, "data"),
        "largest": PartitionSpec(None, "data", None),
        "divisible": PartitionSpec(),
        "none": PartitionSpec(),
        "small": PartitionSpec(),
        "scalar": PartitionSpec(),
    }
    assert fsdp_specs(tree, "data", 2)["divisible"] == PartitionSpec("data", None)


def test_constraints_spread_and_change_nothing(cpu_devices):
    def loss(w, x):
        return jnp.tanh(constrain_batch(x) @ constrain_fsdp(w)).mean()

    step = jax.jit(lambda w, x: constrain_fsdp(w - jax.grad(loss)(w, x)))
    w, x = jax.random.normal(jax.random.key(0), (64, 32)), jnp.ones((4, 64))
    alone = step(w, x)
    with jax.set_mesh(Mesh(np.array(cpu_devices[:2]), "data", axis_types=(AxisType.Auto,))):
        spread = step(w, x)
    assert spread.sharding.shard_shape(spread.shape) == (32, 32)
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-6)

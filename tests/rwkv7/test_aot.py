"""The training step compiles for a TPU topology, one member per chip, without communication."""

import jax.numpy as jnp
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7.aot import compile_members

pytest.importorskip("libtpu", reason="compiling for a TPU needs PyPI's libtpu")


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x2"])
def test_members_on_chips_do_not_talk(topology):
    config = rwkv7.Config(256, n_layer=2, n_embd=128, ranks=(32,) * 4, dtype=jnp.bfloat16)
    report = compile_members(topology, config, batch=1, length=128)
    assert report.collectives == ()
    assert report.kernels >= 2  # forward and backward

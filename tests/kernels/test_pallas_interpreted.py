"""The fused kernels, interpreted on a CPU, against the float64 oracle and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wkv7_check import check
from wkv7_problems import problem

from jaxlab_kernels import wkv7

CASE = {
    "length": 40,
    "widths": (64, 64),
    "heads": (1, 2),
    "decay": "random",
    "keys": "random",
    "alpha": "random",
    "resets": "none",
    "reset_state": False,
    "chunk": 16,
    "dtype": "float32",
}
CASES = [
    CASE,
    CASE | {"dtype": "bfloat16", "heads": (2, 1), "resets": "every7"},
    CASE | {"length": 65, "chunk": 32, "resets": "edges", "reset_state": True, "heads": (2, 1)},
    CASE | {"widths": (128, 64), "keys": "same", "alpha": 0.9, "decay": "slow", "heads": (1, 1)},
    CASE | {"length": 100, "chunk": 128, "dtype": "mixed", "keys": "near", "decay": "bound"},
]
GROUPS = CASE | {"widths": (32, 64), "heads": (1, 5), "resets": "start", "decay": "bound"}
MOSAIC = CASE | {"length": 130, "chunk": 64, "dtype": "bfloat16", "heads": (1, 1)}
MOSAIC_CASES = [
    MOSAIC | {"length": 70, "resets": "every7", "decay": "bound", "heads": (2, 1)},
    MOSAIC | {"length": 65, "keys": "near", "alpha": 0.9, "decay": "slow", "heads": (1, 2)},
]


def describe(case):
    return "-".join(str(value).replace(" ", "") for value in case.values())


@pytest.mark.parametrize("case", CASES, ids=describe)
def test_tpu_equals_oracle(case):
    check("pallas_tpu", case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[1:3], ids=describe)
def test_triton_equals_oracle(case):
    check("pallas_triton", case)


@pytest.mark.slow
def test_head_groups_are_padded():
    check("pallas_tpu", GROUPS)


@pytest.mark.parametrize("case", MOSAIC_CASES, ids=describe)
def test_mosaic_gpu_equals_oracle(case):
    check("pallas_mosaic_gpu", case)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed"])
@pytest.mark.parametrize(
    ("widths", "chunk"),
    # Interpreted kernels are compiled step by step: minutes for wide heads and long chunks at once.
    [((64, 64), chunk) for chunk in (16, 32, 64, 128)]
    + [(widths, 32) for widths in ((16, 16), (32, 32), (128, 128), (64, 128), (128, 64))],
)
@pytest.mark.parametrize("impl", ["pallas_tpu", "pallas_triton"])
def test_grid_equals_oracle(impl, widths, chunk, dtype):
    static = {"widths": widths, "chunk": chunk, "dtype": dtype, "length": chunk + 17}
    for decay, keys, alpha, resets in (
        ("random", "random", "random", "none"),
        ("bound", "same", 1, "edges"),
        ("slow", "near", 0.9, "every7"),
    ):
        data = {"decay": decay, "keys": keys, "alpha": alpha, "resets": resets}
        check(impl, CASE | static | data | {"reset_state": resets == "edges"})


@pytest.mark.slow
def test_vmap_equals_loop(impl="pallas_tpu"):  # the kernels share what folds the mapped axis
    problems = [problem(32, 32, batch=2, resets="every7", seed=s) for s in range(2)]
    inputs = [jnp.stack([jnp.asarray(p.inputs[i]) for p in problems]) for i in range(6)]
    s0 = jnp.asarray(problems[0].s0)  # one for both: not mapped
    resets = jnp.stack([jnp.asarray(p.reset) for p in problems])

    def loss(inputs, s0, reset):
        y, state = wkv7(*inputs, s0, reset=reset, impl=impl, chunk=16)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.sin(state))

    both = jax.value_and_grad(loss, (0, 1))
    mapped = jax.jit(jax.vmap(both, (0, None, 0)))(inputs, s0, resets)
    looped = [jax.jit(both)([x[i] for x in inputs], s0, resets[i]) for i in range(2)]
    looped = jax.tree.map(lambda *xs: jnp.stack(xs), *looped)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-5), mapped, looped)


def test_segments_are_strangers(impl="pallas_triton"):  # the kernels share the algebra
    p = problem(48, 32)
    reset = jnp.arange(48)[None] == 21

    def late(inputs):
        y, _ = wkv7(*inputs, jnp.asarray(p.s0), reset=reset, impl=impl, chunk=16)
        return jnp.sum(y[:, 21:] ** 2)

    for gradient in jax.jit(jax.grad(late))(tuple(map(jnp.asarray, p.inputs))):
        assert not np.any(gradient[:, :21])
        assert np.any(gradient[:, 21:])

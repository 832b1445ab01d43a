"""Several devices, and several stretches of one sequence, give what one device gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wkv7_oracle import relative_error
from wkv7_problems import problem

from jaxlab_kernels import sharded_wkv7, wkv7, wkv7_along_axis


def mesh_of(devices, axis):
    return jax.sharding.Mesh(np.array(devices[:2]), (axis,))


def loss_of(run, p):
    def loss(inputs, s0, reset_state):
        y, state = run(*inputs, s0, reset=p.reset, reset_state=reset_state)
        return jnp.sum(y * p.dy) + jnp.sum(state * p.ds)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))


def assert_same(got, want, bound):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert relative_error(x, y) < bound


@pytest.mark.slow
@pytest.mark.parametrize("impl", ["scan", "xla"])
@pytest.mark.parametrize("axis", ["batch_axis", "head_axis"])
def test_splitting_batch_or_heads_changes_nothing(cpu_devices, axis, impl):
    mesh = mesh_of(cpu_devices, "parts")
    p = problem(length=33, width=16, batch=2, heads=2, resets="often", reset_state=True)
    shared = p.reset_state[0]  # one for all rows: its gradient is a sum over devices

    def split(*args, **options):
        return sharded_wkv7(*args, mesh=mesh, impl=impl, **{axis: "parts"}, **options)

    def whole(*args, **options):
        return wkv7(*args, impl=impl, **options)

    got = loss_of(split, p)(p.inputs, p.s0, shared)
    assert_same(got, loss_of(whole, p)(p.inputs, p.s0, shared), 5e-6)


def test_splitting_batch_needs_no_communication(cpu_devices):
    mesh = mesh_of(cpu_devices, "parts")
    p = problem(length=32, width=16, batch=2)
    run = jax.jit(lambda *args: sharded_wkv7(*args, mesh=mesh, impl="xla", batch_axis="parts"))
    text = run.lower(*p.inputs).compile().as_text()
    assert "while" in text
    assert not [op for op in ("all-reduce", "all-gather", "collective-permute") if op in text]


@pytest.mark.slow
@pytest.mark.parametrize("resets", ["none", "every7"])
def test_sequence_over_two_devices_is_one_pass(cpu_devices, resets):
    mesh = mesh_of(cpu_devices, "time")
    p = problem(
        length=64, width=16, value_width=32, heads=2, resets=resets, reset_state=resets != "none"
    )

    def split(*args, **options):
        return sharded_wkv7(*args, mesh=mesh, impl="xla", sequence_axis="time", **options)

    got = loss_of(split, p)(p.inputs, p.s0, p.reset_state)
    assert_same(got, loss_of(wkv7, p)(p.inputs, p.s0, p.reset_state), 5e-6)


def test_five_stretches_compose_in_order():
    p = problem(length=80, width=16, heads=2, decay="slow", resets="none")
    stretches = [np.moveaxis(x.reshape(1, 5, 16, *x.shape[2:]), 1, 0) for x in p.inputs]
    run = jax.vmap(
        lambda *x: wkv7_along_axis(*x, p.s0, axis_name="time", impl="scan"), axis_name="time"
    )
    y, state = jax.jit(run)(*stretches)
    want_y, want_state = wkv7(*p.inputs, p.s0, impl="scan")
    assert relative_error(jnp.moveaxis(y, 0, 1).reshape(want_y.shape), want_y) < 1e-6
    for copy in state:
        assert relative_error(copy, want_state) < 1e-6


def test_refuses_what_does_not_divide(cpu_devices):
    mesh = mesh_of(cpu_devices, "parts")
    p = problem(length=5, width=16)
    with pytest.raises(ValueError, match="do not divide 5"):
        sharded_wkv7(*p.inputs, mesh=mesh, sequence_axis="parts")
    with pytest.raises(ValueError, match="did you mean 'parts'"):
        sharded_wkv7(*p.inputs, mesh=mesh, sequence_axis="part")


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (16, 16), (2, 1, 1, 1)])
def test_states_that_do_not_fit_a_stretch_are_refused(shape):
    p = problem(length=16, width=16, batch=2, heads=2)
    with pytest.raises(ValueError, match=r"s0 must be \[B, H, D, K\] = \(2, 2, 16, 16\)"):
        wkv7_along_axis(*p.inputs, np.ones(shape, np.float32), axis_name="time")

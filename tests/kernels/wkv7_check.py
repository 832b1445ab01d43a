"""One case of one implementation against the float64 oracle."""

from functools import partial

import jax
import jax.numpy as jnp
from wkv7_oracle import NAMES, backward, forward, relative_error
from wkv7_problems import problem

from jaxlab_kernels import wkv7

TOLERANCES = {  # relative l2, against the oracle on the rounded inputs
    "float32": dict.fromkeys((*NAMES, "y", "state", "s0", "reset_state"), 5e-6),
    "bfloat16": {
        **dict.fromkeys(("y", "r", "k", "v"), 4e-3),
        **{"state": 2e-3, "a": 1e-2, "b": 1e-2, "logw": 5e-3, "s0": 3e-3, "reset_state": 3e-3},
    },
}


@partial(jax.jit, static_argnames=("impl", "chunk"))
def pull_back(inputs, s0, reset, reset_state, dy, ds, *, impl, chunk):
    """((y, state), (input gradients, ds0, dreset_state)); one compilation per shape and option."""

    def run(inputs, s0, reset_state):
        return wkv7(*inputs, s0, reset=reset, reset_state=reset_state, impl=impl, chunk=chunk)

    out, vjp = jax.vjp(run, inputs, s0, reset_state)
    return out, vjp((dy, ds))


def check(impl, case):
    case = dict(case)
    dtype, chunk = case.pop("dtype"), case["chunk"]
    (batch, heads), (width, value_width) = case.pop("heads"), case.pop("widths")
    if case["resets"] == "none":
        case["reset_state"] = False
    p = problem(**case, batch=batch, heads=heads, width=width, value_width=value_width)
    low = {"float32": (), "bfloat16": NAMES, "mixed": ("r", "v", "a")}[dtype]
    inputs = [
        jnp.asarray(x, jnp.bfloat16 if name in low else jnp.float32)
        for name, x in zip(NAMES, p.inputs)
    ]
    dy = jnp.asarray(p.dy, inputs[3].dtype)
    (y, state), (gradients, ds0, dreset) = pull_back(
        inputs, p.s0, p.reset, p.reset_state, dy, p.ds, impl=impl, chunk=chunk
    )
    options = {"s0": p.s0, "reset": p.reset, "reset_state": p.reset_state}
    want_y, want_state, _ = forward(inputs, **options)
    want = backward(inputs, dy, p.ds, **options) | {"y": want_y, "state": want_state}
    got = dict(zip(NAMES, gradients)) | {"y": y, "state": state, "s0": ds0}
    if dreset is not None:
        got["reset_state"] = dreset
    for name, x in zip(NAMES, inputs):
        assert got[name].dtype == x.dtype
    assert y.dtype == inputs[3].dtype
    assert state.dtype == ds0.dtype == jnp.float32
    for name, value in got.items():
        # With bfloat16 throughout, operands may be rounded: float32 results carry that error.
        bound = TOLERANCES["bfloat16" if dtype == "bfloat16" else value.dtype.name][name]
        if chunk == 128 and value.dtype == jnp.float32:
            bound *= 2
        if case["length"] == 2:  # a gradient may be one product whose terms cancel
            bound *= 4
        assert relative_error(value, want[name]) <= bound, name

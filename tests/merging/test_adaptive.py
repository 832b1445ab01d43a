"""Coefficients learned by entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging
from jaxlab.merging import METHODS, PathSpec, PerLayer, merge

BASE = {"layers": jnp.zeros((2, 3)), "scale": jnp.zeros(())}
MODELS = {
    "layers": jnp.asarray([[[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]], [[0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]),
    "scale": jnp.asarray([1.0, 0.0]),
}
INPUTS = jax.random.normal(jax.random.key(0), (2, 16, 3))
SPEC = PathSpec(layer_axis=(("layers", 0),))


def logits(params, x):
    score = x @ params["layers"].sum(0) + params["scale"]
    return jnp.stack([score, -score], axis=-1)


def entropy(weight):
    params = jax.tree.map(lambda x: jnp.tensordot(weight, x, 1), MODELS)
    share = jax.nn.softmax(jax.vmap(lambda x: logits(params, x))(INPUTS))
    return -(share * np.log(share + 1e-8)).sum(-1).mean()


def adapt(key=jax.random.key(1), **given):
    given = {"steps": 40, "batch": 64, "learning_rate": 0.02} | given
    return merging.adamerging(key, logits, BASE, MODELS, INPUTS, **given)


def test_entropy_falls_and_the_merge_is_task_arithmetic():
    found = jax.jit(adapt)()
    np.testing.assert_allclose(
        found.entropy[0], entropy(jnp.full(2, 0.3)), rtol=0.1
    )  # a batch of all
    assert entropy(found.weight) < entropy(jnp.full(2, 0.3)) - 0.02
    # Adam's first steps are of one length.
    one = adapt(steps=1)
    np.testing.assert_allclose(np.abs(one.weight - 0.3), 0.02, rtol=1e-3)
    expected = merge(METHODS["task_arithmetic"], BASE, MODELS, {"weight": found.weight})
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found.merged, expected)


def test_coefficients_per_layer():
    found = adapt(granularity="layer", spec=SPEC)
    assert found.weight["layers"].shape == (2, 2) and found.weight["scale"].shape == (2,)
    given = lambda path: {  # noqa: E731
        "weight": PerLayer(found.weight["layers"].T) if path == "layers" else found.weight["scale"]
    }
    expected = merge(METHODS["task_arithmetic"], BASE, MODELS, given, spec=SPEC)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found.merged, expected)
    # What no input sees has no gradient: the second model did not move its second layer.
    assert found.weight["layers"][1, 1] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="granularity: expected"):
        adapt(granularity="leaf")


def test_skipped_leaves_stay_the_bases():
    found = adapt(steps=2, spec=PathSpec(skip="scale"))
    assert found.merged["scale"] == BASE["scale"] and found.merged["layers"].any()


def test_clipping_and_seeds_as_one_program():
    keys = jax.random.split(jax.random.key(2), 2)
    many = jax.jit(jax.vmap(lambda k: adapt(k, batch=4, clip=True, learning_rate=0.5).weight))(keys)
    assert many.min() >= 0 and many.max() <= 1 and (many == 1).any()
    alone = adapt(keys[1], batch=4, clip=True, learning_rate=0.5).weight
    np.testing.assert_allclose(many[1], alone, rtol=1e-4, atol=1e-5)

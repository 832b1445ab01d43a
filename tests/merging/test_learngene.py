"""Layers as a linear function of their depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets
from jaxlab.merging import growth
from jaxlab.merging.growth import Gene

CONFIG = nets.TransformerConfig(11, 4, 8, 4, 16)
STEM = nets.transformer_init(jax.random.key(0), CONFIG)
TOKENS = jnp.arange(12).reshape(2, 6) % 11


def block(seed):
    draw = lambda i, x: jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), x.shape[1:])  # noqa: E731
    return {
        name: jax.tree.map(lambda x: 0.3 * draw(i, x), leaf)
        for i, (name, leaf) in enumerate(STEM["blocks"].items())
    }


GENE = Gene(block(1), block(2))
NOTHING = jax.tree.map(jnp.zeros_like, GENE.slope)


def loss(blocks, depth):
    config = nets.TransformerConfig(11, depth, 8, 4, 16)
    logits = nets.transformer_apply({**STEM, "blocks": blocks}, config, TOKENS)
    return jnp.mean(jax.nn.log_softmax(logits)[..., 3] ** 2)


def close(a, b, **limits):
    limits = {"rtol": 1e-4, "atol": 1e-5} | limits
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **limits), a, b)


@pytest.mark.parametrize("rule,last", [("l/L", 3 / 4), ("l/(L-1)", 1.0)])
def test_positions_and_layers(rule, last):
    assert growth.positions(4, 4, rule)[-1] == pytest.approx(last)
    layers = growth.le_expand(GENE, 4, rule)
    close(jax.tree.map(lambda x: x[0], layers), GENE.base)
    end = jax.tree.map(lambda a, b: b + last * a, GENE.slope, GENE.base)
    close(jax.tree.map(lambda x: x[3], layers), end)
    close(jax.tree.map(lambda x: x[0], growth.le_expand(GENE, 1, rule)), GENE.base)
    with pytest.raises(ValueError, match="rule: expected"):
        growth.positions(4, 4, "l")


def test_a_traced_depth_with_room():
    padded = jax.jit(lambda depth: growth.le_expand(GENE, depth, room=6))(jnp.int32(4))
    close(jax.tree.map(lambda x: x[:4], padded), growth.le_expand(GENE, 4))


@pytest.mark.parametrize("rule", ["l/L", "l/(L-1)"])
def test_fitting_expanded_layers_gives_the_gene_back(rule):
    gene, r2 = jax.jit(growth.le_fit, static_argnums=1)(growth.le_expand(GENE, 5, rule), rule)
    close(gene, GENE)
    close(r2, jax.tree.map(lambda _: 1.0, r2), rtol=1e-5)


def test_fit_is_least_squares():
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(6, 7))
    design = np.stack([np.arange(6) / 6, np.ones(6)], axis=1)
    expected, rest, *_ = np.linalg.lstsq(design, layers, rcond=None)
    gene, r2 = growth.le_fit(jnp.asarray(layers, jnp.float32))
    close(gene.slope, expected[0])
    close(gene.base, expected[1])
    assert r2 == pytest.approx(1 - rest.sum() / ((layers - layers.mean(0)) ** 2).sum(), rel=1e-4)
    gene, r2 = growth.le_fit(jnp.ones((1, 3)))
    assert r2 == 1 and (gene.base == 1).all() and not gene.slope.any()


@pytest.mark.slow
def test_gradients_of_the_gene_are_sums_over_layers():
    depth = 4
    of_gene = jax.jit(jax.grad(lambda g: loss(growth.le_expand(g, depth), depth)))(GENE)
    of_layers = jax.jit(jax.grad(lambda b: loss(b, depth)))(growth.le_expand(GENE, depth))
    close(of_gene.base, jax.tree.map(lambda x: x.sum(0), of_layers))
    place = jnp.arange(depth) / depth
    close(of_gene.slope, jax.tree.map(lambda x: jnp.tensordot(place, x, 1), of_layers))
    shared = growth.le_expand(Gene(NOTHING, GENE.base), depth)
    close(shared, jax.tree.map(lambda x: jnp.stack([x] * depth), GENE.base))


def test_a_descendant_of_the_same_depth_is_the_auxiliary_model():
    model = growth.gene_transfer(GENE, STEM, 4)
    auxiliary = {**STEM, "blocks": growth.le_expand(GENE, 4)}
    jax.tree.map(np.testing.assert_array_equal, model, auxiliary)
    deeper = growth.gene_transfer(GENE, STEM, 7, head="head")
    assert "head" not in deeper and growth.depth_of(deeper["blocks"]) == 7
    other = growth.gene_transfer(GENE, STEM, 4, "l/(L-1)")
    expected = growth.le_expand(GENE, 4, "l/(L-1)")
    jax.tree.map(np.testing.assert_array_equal, other["blocks"], expected)


@pytest.mark.slow
def test_linearity_against_shuffled_layers():
    key = jax.random.key(0)
    line = growth.linearity_report(key, growth.le_expand(GENE, 8))
    assert line.linear == pytest.approx(1, abs=1e-4) and line.component == pytest.approx(
        1, abs=1e-4
    )
    assert np.mean(np.asarray(line.null) >= 0.999) < 0.05
    rng = np.random.default_rng(1)
    noise = jnp.asarray(rng.normal(size=(8, 500)), jnp.float32)
    random = growth.linearity_report(key, noise)
    assert random.linear == pytest.approx(1 / 7, abs=0.06)
    assert np.mean(np.asarray(random.null)) == pytest.approx(1 / 7, abs=0.03)
    place = jnp.arange(8.0)[:, None]
    bent = growth.linearity_report(key, (place - 3.5) ** 2 * jnp.ones((8, 3)))
    assert bent.quadratic == pytest.approx(1, abs=1e-4) and bent.linear < 0.01
    # The R^2 of one leaf is that of the fit.
    np.testing.assert_allclose(random.linear, growth.le_fit(noise)[1], atol=1e-4)


def test_distillation_loss():
    student, teacher = jnp.asarray([[0.0, np.log(3.0)]]), jnp.asarray([[0.0, 0.0]])
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3
    expected = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert growth.kd_loss(student, teacher) == pytest.approx(expected, rel=1e-5)
    assert growth.kd_loss(student, teacher, reduction="numel") == pytest.approx(expected / 2)
    assert growth.kd_loss(2 * student, 2 * teacher, 2.0) == pytest.approx(4 * expected, rel=1e-5)
    x = jax.random.normal(jax.random.key(0), (5, 4))
    assert growth.kd_loss(x, x) == pytest.approx(0, abs=1e-6)
    shifted = growth.kd_loss(x + 7, x[::-1] - 3, 1.5)
    np.testing.assert_allclose(shifted, growth.kd_loss(x, x[::-1], 1.5), rtol=1e-4)
    slope = jax.grad(growth.kd_loss, (0, 1))(x, x[::-1])
    assert slope[0].any() and not slope[1].any()
    with pytest.raises(ValueError, match="reduction: expected"):
        growth.kd_loss(x, x, reduction="sum")

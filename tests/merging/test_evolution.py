"""CMA-ES on known functions; genomes that are known merges; paths that are known models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxlab import merging, nets
from jaxlab.merging import CMAConfig, Genes

CONFIG = nets.TransformerConfig(11, 2, 8, 4, 16)
TOKENS = jnp.arange(12).reshape(2, 6) % 11
WRITES = ("out$", "down$")


def sphere(x):
    return -jnp.sum(x**2)


def tutorial(generations, mean, sigma):
    """Figure 6 of Hansen's tutorial in float64, with an inverse root in place of eigenvectors."""
    n, count = len(mean), len(generations[0][1])
    mu = count // 2
    w = np.log((count + 1) / 2) - np.log(np.arange(1, mu + 1))
    w /= w.sum()
    mueff = 1 / (w**2).sum()
    cs, cc = (mueff + 2) / (n + mueff + 5), (4 + mueff / n) / (n + 4 + 2 * mueff / n)
    c1 = 2 / ((n + 1.3) ** 2 + mueff)
    cmu = min(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))
    damping = 1 + 2 * max(0, np.sqrt((mueff - 1) / (n + 1)) - 1) + cs
    chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    c, pc, ps = np.eye(n), np.zeros(n), np.zeros(n)
    for g, (points, scores) in enumerate(generations):
        y = (points[np.argsort(-scores)][:mu] - mean) / sigma
        yw = w @ y
        root = np.linalg.inv(scipy.linalg.sqrtm(c).real)
        ps = (1 - cs) * ps + np.sqrt(cs * (2 - cs) * mueff) * root @ yw
        size = np.linalg.norm(ps)
        h = size / np.sqrt(1 - (1 - cs) ** (2 * (g + 1))) < (1.4 + 2 / (n + 1)) * chi
        pc = (1 - cc) * pc + h * np.sqrt(cc * (2 - cc) * mueff) * yw
        c = (
            (1 - c1 - cmu + c1 * (1 - h) * cc * (2 - cc)) * c
            + c1 * np.outer(pc, pc)
            + cmu * (w[:, None] * y).T @ y
        )
        mean, sigma = mean + sigma * yw, sigma * np.exp(cs / damping * (size / chi - 1))
    return mean, sigma, c


def test_a_step_is_the_tutorials():
    config, size = CMAConfig(8), 3
    rng = np.random.default_rng(0)
    generations = [(rng.normal(1, s, (8, size)), rng.normal(size=8)) for s in (0.4, 3.0, 0.2, 0.5)]
    state = merging.cma_init(jnp.ones(size), 0.4)
    tell = jax.jit(lambda state, points, scores: merging.cma_tell(state, points, scores, config))
    for points, scores in generations:
        state = tell(state, jnp.asarray(points, jnp.float32), jnp.asarray(scores, jnp.float32))
    mean, sigma, c = tutorial(generations, np.ones(size), 0.4)
    np.testing.assert_allclose(state.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(state.scale, sigma, rtol=1e-4)
    np.testing.assert_allclose(state.covariance, c, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_sphere_is_solved():
    def one(key):
        config = CMAConfig(12)
        return merging.evolve(key, sphere, jnp.ones(10), 0.5, 250, config)[1][-1]

    values = -np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 100)))
    assert np.mean(values < 1e-8) >= 0.95


@pytest.mark.slow
def test_only_the_order_of_scores_counts():
    key, mean, config = jax.random.key(1), jnp.ones(4), CMAConfig(8)

    def centres(score):
        state = merging.cma_init(mean, 0.3)
        for i in range(5):
            points = merging.cma_ask(jax.random.fold_in(key, i), state, config)
            state = merging.cma_tell(state, points, jax.vmap(score)(points), config)
        return state

    plain, warped = centres(sphere), centres(lambda x: jnp.exp(sphere(x)))
    jax.tree.map(np.testing.assert_array_equal, plain, warped)
    # Members in another order give the same distribution, up to rounding.
    state = merging.cma_init(mean, 0.3)
    points = merging.cma_ask(key, state, config)
    scores = jax.vmap(sphere)(points).at[3].set(jnp.nan)
    after, turned = (merging.cma_tell(state, points[o], scores[o], config) for o in (
        jnp.arange(8), jnp.arange(8)[::-1]
    ))  # fmt: skip
    np.testing.assert_allclose(after.mean, turned.mean, rtol=1e-6)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(after))
    # The first step is the weighted mean of the better half.
    raw = np.log(4.5) - np.log(np.arange(1, 5))
    order = np.argsort(np.where(np.isnan(scores), np.inf, -np.asarray(scores)))[:4]
    np.testing.assert_allclose(after.mean, (raw / raw.sum()) @ np.asarray(points)[order], rtol=1e-5)
    with pytest.raises(ValueError, match="population: expected at least 4, got 3"):
        CMAConfig(3)


@pytest.mark.slow
def test_rotations_are_learned_but_not_by_the_diagonal_variant():
    size = 6
    scales = jnp.asarray(10 ** np.linspace(0, 4, size), jnp.float32)
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (size, size)))[0]

    def generations(rotation, diagonal):
        def score(x):
            return -jnp.sum(scales * (rotation @ x) ** 2)

        def one(key):
            config = CMAConfig(12, diagonal)
            history = merging.evolve(key, score, jnp.ones(size), 0.5, 400, config)[1]
            return jnp.where(history[-1] > -1e-4, jnp.argmax(history > -1e-4), 1000)

        return np.median(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), 15)))

    eye = jnp.eye(size)
    straight, turned = generations(eye, False), generations(turn, False)
    assert turned < 1.3 * straight
    assert generations(turn, True) > 1.3 * generations(eye, True)


@pytest.fixture(scope="module")
def models():
    keys = jax.random.split(jax.random.key(4), 3)
    return jax.vmap(lambda k: nets.transformer_init(k, CONFIG))(keys)


def first(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def group_of(path):
    return 1 + np.arange(2) if path.startswith("blocks/") else 0


SPEC = merging.PathSpec(layer_axis=(("^blocks/", 0),))


def merged(models, genes):
    base, sources = first(models, 0), jax.tree.map(lambda x: x[1:], models)
    return merging.merge_genes(
        merging.dare_ties, base, sources, genes, group_of, spec=SPEC, key=jax.random.key(5)
    )


@pytest.mark.slow
def test_genomes_that_name_a_source_are_that_source(models):
    one_hot = Genes(jnp.tile(jnp.array([[0.0, 1.0]]), (3, 1)), jnp.ones((3, 2)))
    close = lambda a, b: jax.tree.map(  # noqa: E731
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b
    )
    close(merged(models, one_hot), first(models, 2))
    # Layers of different sources: each group is its own.
    mixed = Genes(jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), jnp.ones((3, 2)))
    found = merged(models, mixed)
    for layer, source in ((0, 2), (1, 0)):
        close(first(found["blocks"], layer), first(first(models, source)["blocks"], layer))
    close(found["head"], models["head"][1])
    population = jax.random.normal(jax.random.key(6), (3, 12))
    read = lambda g: merging.read_genes(g, 3, 2)  # noqa: E731
    together = jax.vmap(lambda g: merged(models, read(g)))(population)
    for i, genome in enumerate(population):
        alone = merged(models, read(genome))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x[i], y, atol=1e-5), together, alone)


def test_genomes_are_read_as_weights_and_densities():
    genes = merging.read_genes(jnp.array([-2.0, 1, 2, 3, -0.5, 0.25, 7, 0]), 2, 2)
    assert genes.weight.tolist() == [[-2, 1], [2, 3]]
    assert genes.density.tolist() == [[0.5, 0.25], [1, 0]]


@pytest.mark.slow
def test_paths_are_models(models):
    a, b = first(models, 1), first(models, 2)
    pool = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a["blocks"], b["blocks"])
    neutral = jnp.ones((4, 4))

    def logits(blocks):
        return nets.transformer_apply({**a, "blocks": blocks}, CONFIG, TOKENS)

    def routed(used, scales=neutral):
        indicators = jnp.where(jnp.isin(jnp.arange(8), jnp.array(used)), 1.0, -1.0)
        return logits(merging.route_layers(pool, indicators, scales, WRITES))

    layers = lambda *order: jax.tree.map(lambda x: x[np.array(order)], pool)  # noqa: E731
    np.testing.assert_array_equal(routed([0, 1]), nets.transformer_apply(a, CONFIG, TOKENS))
    np.testing.assert_allclose(
        routed([0, 1, 4, 5]), logits(merging.growth.stack(a["blocks"], 2)), atol=1e-6
    )
    np.testing.assert_allclose(routed([1, 2, 4]), logits(layers(1, 2, 0)), atol=1e-6)
    silent = jax.tree.map(lambda x: 0 * x[:1], a["blocks"])
    np.testing.assert_allclose(routed([99]), logits(silent), atol=1e-6)


def test_scales_act_on_the_hidden_state_between_layers():
    """Against the loop that multiplies the state, with blocks that read through a norm."""
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
    pool = {"up": draw(0, 3, 4, 5), "down": draw(1, 3, 5, 4)}
    unit = lambda h: h / jnp.sqrt(jnp.sum(h**2))  # noqa: E731

    def layer(p, h):
        return h + jnp.tanh(unit(h) @ p["up"]) @ p["down"]

    indicators = jnp.array([0.3, -1.0, 0.1, 2.0, 0.2, -0.1])
    scales = jnp.exp(draw(2, 3, 3)).at[2, 0].set(-0.7).at[0, 1].set(0.0)
    h, before = draw(3, 4), None
    start = h
    for slot, layer_index in ((0, 0), (2, 2), (3, 0), (4, 1)):
        assert indicators[slot] > 0 and slot % 3 == layer_index
        if before is not None:
            h = h * max(abs(float(scales[before, layer_index])), 0.05)
        h, before = layer(first(pool, layer_index), h), layer_index
    path = merging.route_layers(pool, indicators, scales, ("^down$",))
    found = start
    for slot in range(6):
        found = layer(first(path, slot), found)
    np.testing.assert_allclose(unit(found), unit(h), rtol=1e-4, atol=1e-5)

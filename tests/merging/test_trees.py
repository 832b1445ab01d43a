"""Whole models: paths, layers, what is not merged, and averages along runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging
from jaxlab.merging import METHODS, PathSpec, PerLayer, merge, stack_models
from jaxlab.merging.randomness import leaf_key


def model(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"layers": {"w": draw(3, 4, 5)}, "norm": draw(4), "step": jnp.int32(7)}


BASE, MODELS = model(0), stack_models([model(1), model(2)])
TA = METHODS["task_arithmetic"]


def test_coefficients_may_depend_on_the_path_and_on_the_layer():
    weights = {"layers/w": 1.0, "norm": 0.0, "step": 0.0}
    merged = merge(TA, BASE, MODELS, lambda path: {"weight": weights[path]})
    w = MODELS["layers"]["w"]
    np.testing.assert_allclose(
        merged["layers"]["w"], w[0] + w[1] - BASE["layers"]["w"], rtol=1e-5, atol=1e-5
    )
    assert np.array_equal(merged["norm"], BASE["norm"]) and merged["step"] == 7
    spec = PathSpec(layer_axis=(("^layers/", 0),), skip="norm")
    per_layer = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    merged = merge(TA, BASE, MODELS, {"weight": PerLayer(per_layer)}, spec=spec)
    np.testing.assert_allclose(merged["layers"]["w"][0], w[0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged["layers"]["w"][1], w[1, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged["layers"]["w"][2], w[:, 2].mean(0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(merged["norm"], BASE["norm"])  # skipped
    with pytest.raises(ValueError, match="norm: weight: expected a leaf with a layer axis"):
        merge(TA, BASE, MODELS, {"weight": PerLayer(per_layer)}, spec=PathSpec((("layers", 0),)))


def test_leaves_that_cannot_be_merged_are_named():
    other = MODELS | {"step": jnp.asarray([7, 8])}
    with pytest.raises(ValueError, match="step: expected equal values of a leaf of int32"):
        merge(TA, BASE, other, {"weight": 1.0})
    with pytest.raises(ValueError, match="layers/w: weight: expected a scalar or 2 numbers"):
        merge(TA, BASE, MODELS, {"weight": jnp.ones(3)})
    with pytest.raises(ValueError, match="key: dare_ties is random"):
        merge(METHODS["dare_ties"], BASE, MODELS, {"weight": 1.0})


def test_the_path_decides_the_random_numbers():
    key = jax.random.key(0)
    given = {"weight": 1.0, "density": 0.5}
    merged = merge(METHODS["dare_linear"], BASE, MODELS, given, key=key)
    alone = merging.dare_linear(BASE["norm"], MODELS["norm"], key=leaf_key(key, "norm"), **given)
    assert np.array_equal(merged["norm"], alone)


def test_a_population_of_merges_is_one_vmap():
    weights = jnp.linspace(0, 1, 6).reshape(3, 2)
    run = lambda w: merge(METHODS["ties"], BASE, MODELS, {"weight": w, "density": 0.5})  # noqa: E731
    many = jax.jit(jax.vmap(run))(weights)
    for i in range(3):
        one = jax.tree.map(lambda x: x[i], many)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            one,
            run(weights[i]),
        )


def test_task_vectors_and_back():
    floats = lambda t: {"norm": t["norm"], "w": t["layers"]["w"].astype(jnp.bfloat16)}  # noqa: E731
    base, models = floats(BASE), floats(MODELS)
    vectors = merging.task_vectors(base, models)
    assert vectors["w"].dtype == jnp.float32
    back = merging.apply_task_vectors(base, vectors, jnp.asarray([0.0, 1.0]))
    assert np.array_equal(back["w"], models["w"][1]) and back["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(back["norm"], models["norm"][1], rtol=1e-6)


def test_soups():
    stacked = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0], [0.6, 0.6]])
    np.testing.assert_allclose(merging.uniform_soup(stacked), stacked.mean(0))

    def loss(x):
        return jnp.sum((x - jnp.asarray([0.5, 0.5])) ** 2)

    soup, chosen = jax.jit(lambda m: merging.greedy_soup(m, loss))(stacked)
    # Best first is 0.6; alone with either unit vector it gets worse, as it does with the far one.
    assert chosen.tolist() == [False, False, False, True]
    soup, chosen = merging.greedy_soup(stacked.at[3].set(jnp.asarray([1.2, -0.1])), loss)
    assert chosen.tolist() == [True, True, False, False]
    np.testing.assert_allclose(soup, [0.5, 0.5])
    average = merging.average_init(stacked[0])
    for row in stacked:
        average = merging.average_update(average, row)
    np.testing.assert_allclose(average.mean, stacked.mean(0), rtol=1e-6)
    mean = merging.ema_update(jnp.zeros(2), stacked[2], 0.75)
    np.testing.assert_allclose(mean, [1.0, 1.0])
    early = merging.ema_update(jnp.zeros(2), stacked[2], 0.999, step=0)
    np.testing.assert_allclose(early, 0.9 * stacked[2], rtol=1e-6)


def test_averages_along_a_run_take_counters_as_they_are():
    big = 2**24 + 1  # no float32
    model = {"step": jnp.int32(big), "w": jnp.float32(2)}
    average = merging.average_update(merging.average_init(model), model)
    assert average.mean == model and average.mean["step"].dtype == jnp.int32
    start = {"step": jnp.int32(3), "w": jnp.float32(0)}
    assert merging.ema_update(start, model, 0.5) == {"step": big, "w": 1.0}


def test_counters_are_copied_where_equal_and_refused_otherwise():
    big = 2**24 + 1  # no float32
    models = {"step": jnp.full(2, big), "w": jnp.asarray([1.0, 2.0])}
    base = {"step": jnp.int32(big), "w": jnp.float32(0)}
    loss = lambda p: (p["w"] - 2) ** 2  # noqa: E731
    vectors = merging.task_vectors(base, models)
    moved = merging.apply_task_vectors(base, vectors, jnp.asarray([1.0, 1.0]))
    soup, _ = merging.greedy_soup(models, loss)
    for merged in (
        moved,
        soup,
        merging.uniform_soup(models),
        jax.jit(merging.uniform_soup)(models),
    ):
        assert merged["step"] == big and merged["step"].dtype == jnp.int32
    assert moved["w"] == 3 and soup["w"] == 2
    other = models | {"step": jnp.arange(2)}
    for refused in (
        lambda: merging.uniform_soup(other),
        lambda: merging.greedy_soup(other, loss),
        lambda: merging.task_vectors(base, other),
    ):
        with pytest.raises(ValueError, match="step: expected equal values of a leaf of int32"):
            refused()


def test_a_scalar_has_no_layer_axis():
    spec = PathSpec(layer_axis=((".", 0),))
    with pytest.raises(ValueError, match=r"w: layer_axis: expected an axis .* shape \(\), got 0"):
        merge(METHODS["linear"], None, {"w": jnp.ones(2)}, {"weight": 1.0}, spec=spec)


def test_masks_that_stay_with_tasks():
    base = jnp.zeros(4)
    models = jnp.asarray([[1.0, -2.0, 0.5, 0.0], [2.0, 1.0, -0.5, 1.0]])
    elected = merging.emr(base, models)
    np.testing.assert_allclose(elected.unified, [2.0, -2.0, -0.5, 1.0])
    assert elected.masks.tolist() == [[True, True, False, False], [True, False, True, True]]
    np.testing.assert_allclose(elected.scales, [3.5 / 4.0, 4.5 / 3.5])
    tall = merging.tall_masks(base, models, 0.5)
    assert tall.tolist() == [[False, True, True, False], [True, False, True, True]]
    assert merging.consensus_mask(tall).tolist() == [False, False, True, False]
    assert merging.consensus_mask(tall, 1).tolist() == [True, True, True, True]


def test_fisher_information_of_logistic_regression():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(50, 3)).astype(np.float32), np.float32([0.5, -1.0, 0.2])

    def log_probs(params, x):
        logit = jnp.dot(x, params["w"])
        return jax.nn.log_sigmoid(jnp.stack([logit, -logit]))

    found = jax.jit(lambda p, x: merging.fisher_diagonal(log_probs, p, x))({"w": w}, x)["w"]
    p = 1 / (1 + np.exp(-x @ w))
    np.testing.assert_allclose(found, ((p * (1 - p))[:, None] * x**2).mean(0), rtol=1e-4)
    ones = jnp.ones((1000, 3), jnp.bfloat16)  # whose sum is more than eight bits can count
    low = merging.fisher_diagonal(log_probs, {"w": jnp.zeros(3, jnp.bfloat16)}, ones)["w"]
    assert low.dtype == jnp.bfloat16 and low.tolist() == [0.25] * 3


def test_fisher_weighted_average():
    models, information = (
        jnp.asarray([[1.0, 2.0], [3.0, 6.0]]),
        jnp.asarray([[3.0, 0.0], [1.0, 0.0]]),
    )
    merged = merging.fisher_merge({"w": models}, {"w": information})["w"]
    np.testing.assert_allclose(merged, [1.5, 4.0], rtol=1e-5)  # no information: the mean
    scaled = merging.fisher_merge(
        {"w": models}, {"w": information * jnp.asarray([[10.0], [1.0]])}, normalize=True
    )["w"]
    np.testing.assert_allclose(scaled[0], 2.0, rtol=1e-4)
    with pytest.raises(ValueError, match="information: expected the structure"):
        merging.fisher_merge({"w": models}, {"v": information})


def test_regmean_is_the_least_squares_solution():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(2, 40, 4)) * np.array([[1.0], [3.0]])[:, None]
    models = rng.normal(size=(2, 4, 3))
    stacked = np.concatenate(inputs)
    wanted = np.concatenate([x @ w for x, w in zip(inputs, models)])
    expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    grams = np.einsum("mri,mrj->mij", inputs, inputs) / 40
    merged = merging.regmean(
        jnp.asarray(models, jnp.float32), jnp.asarray(grams, jnp.float32), ratio=1.0
    )
    np.testing.assert_allclose(merged, expected, rtol=1e-3, atol=1e-3)
    no_inputs = merging.regmean(jnp.asarray(models, jnp.float32), jnp.zeros((2, 4, 4)))
    np.testing.assert_allclose(no_inputs, models.mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"grams: expected \[M, i, i\]"):
        merging.regmean(jnp.zeros((2, 4, 3)), jnp.zeros((2, 3, 3)))

"""Agreement with mergekit, leaf by leaf, where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import METHODS

merge_methods = pytest.importorskip("mergekit.merge_methods")
base_module = pytest.importorskip("mergekit.merge_methods.base")
torch = pytest.importorskip("torch")

SHAPES = [(64, 48), (257,), (1, 300), (40, 1)]
W = [0.5, 1.0, 0.7]
# name, number of models besides the base, mergekit's parameters, ours
CASES = [
    ("linear", 3, {"weight": W}, {"weight": W}),
    ("linear", 3, {"weight": W, "normalize": False}, {"weight": W, "normalize": False}),
    ("slerp", 1, {"t": 0.3}, {"t": 0.3}),
    ("slerp", 1, {"t": 1.4}, {"t": 1.4}),
    ("nuslerp", 2, {"weight": W[:2]}, {"weight": W[:2]}),
    (
        "nuslerp",
        2,
        {"weight": W[:2], "nuslerp_flatten": False},
        {"weight": W[:2], "axis": -1},
    ),
    (
        "nuslerp",
        2,
        {"weight": W[:2], "nuslerp_flatten": False, "nuslerp_row_wise": True},
        {"weight": W[:2], "axis": 0},
    ),
    ("multislerp", 3, {"weight": W}, {"weight": W}),
    ("multislerp", 3, {"weight": W, "normalize_weights": False}, {"weight": W, "normalize": False}),
    ("karcher", 3, {}, {}),
    ("task_arithmetic", 3, {"weight": W, "lambda": 0.6}, {"weight": W, "lam": 0.6}),
    ("task_arithmetic", 3, {"weight": W, "normalize": True}, {"weight": W, "normalize": True}),
    ("ties", 3, {"weight": W, "density": [0.3, 0.7, 1.0]}, {"weight": W, "density": [0.3, 0.7, 1]}),
    (
        "ties",
        3,
        {"weight": [0.5, -0.3, 1.0], "density": 0.4, "normalize": False},
        {"weight": [0.5, -0.3, 1.0], "density": 0.4, "normalize": False},
    ),
    (
        "breadcrumbs",
        3,
        {"weight": W, "density": 0.4, "gamma": 0.05},
        {"weight": W, "keep": 0.4, "drop_top": 0.05},
    ),
    (
        "breadcrumbs",
        3,
        {"weight": W, "density": 0.9, "gamma": 0.3},
        {"weight": W, "keep": 0.9, "drop_top": 0.3},
    ),
    ("breadcrumbs_ties", 3, {"weight": W, "density": 0.4}, {"weight": W, "keep": 0.4}),
    ("sce", 3, {}, {}),
    ("sce", 3, {"select_topk": 0.3}, {"select": 0.3}),
    ("ram", 3, {}, {}),
    ("ram", 3, {"epsilon": 0.02}, {"epsilon": 0.02}),
    ("ramplus_tl", 3, {"epsilon": 0.02}, {"epsilon": 0.02}),
    ("model_stock", 3, {}, {}),
    ("model_stock", 3, {"filter_wise": True}, {"filter_wise": True}),
    ("nearswap", 1, {"t": 0.01}, {"t": 0.01}),
    ("passthrough", 1, {"scale": 1.7}, {"scale": 1.7}),
    ("arcee_fusion", 1, {}, {}),
]


def leaves(count, shape, seed):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape).astype(np.float32) * 0.05
    models = base + 0.02 * rng.normal(size=(count, *shape)).astype(np.float32)
    return base, models.astype(np.float32)


def theirs(name, base, models, parameters):
    method = merge_methods.get(name)
    alone = METHODS[name].base == "none" or name == "passthrough"
    arrays = list(models) if alone else [base, *models]
    group = base_module.TensorGroup.from_tensors(
        [torch.from_numpy(np.array(x)) for x in arrays], base_index=None if alone else 0
    )
    return method([group], parameters=parameters)[0].numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "count", "parameters", "ours"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_the_merged_leaf_is_mergekits(name, count, parameters, ours, shape):
    base, models = leaves(count, shape, seed=hash(shape) % 100)
    alone = METHODS[name].base == "none" or name == "passthrough"
    merged = METHODS[name](None if alone else jnp.asarray(base), jnp.asarray(models), **ours)
    expected = theirs(name, base, models, parameters)
    difference = np.abs(np.asarray(merged) - expected)
    print(f"{name} {shape}: {difference.max():.2e}")
    assert difference.max() <= 2e-6


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_methods_keep_as_many_and_as_much(name):
    base, models = leaves(1, (200, 500), seed=0)
    parameters = {"weight": 1.0, "density": 0.6}
    ours = METHODS[name](
        jnp.asarray(base), jnp.asarray(models), weight=1.0, density=0.6, key=jax.random.key(0)
    )
    torch.manual_seed(0)
    moved = [np.asarray(m) - base for m in (ours, theirs(name, base, models, parameters))]
    kept = [np.mean(np.abs(d) > 1e-6) for d in moved]
    assert abs(kept[0] - kept[1]) < 5 * np.sqrt(2 * 0.6 * 0.4 / base.size)
    norms = [np.abs(d).sum() for d in moved]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    squares = [np.square(d).sum() for d in moved]
    assert squares[0] == pytest.approx(squares[1], rel=0.02)

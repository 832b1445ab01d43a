"""What every operator must do, from one table."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.merging import METHODS, PathSpec, merge, stack_models

SHAPE = (6, 8)


class Case(NamedTuple):
    """An operator and arguments: numbers are swept and differentiated, flags are closed over."""

    name: str
    numbers: Mapping[str, Any] = MappingProxyType({})
    flags: Mapping[str, Any] = MappingProxyType({})
    count: int = 3
    base: bool = True
    scales: bool = False  # f(b + a d) - b = a (f(b + d) - b)
    keeps_base: bool = True  # zero task vectors give the base
    keeps_model: bool = True  # identical models give that model
    symmetric: bool = True  # the order of the models does not matter
    random: bool = False
    label: str = ""

    def __call__(self, base, models, numbers=None, flags=None):
        numbers = self.numbers if numbers is None else numbers
        flags = self.flags if flags is None else flags
        if self.random:
            flags = {"key": jax.random.key(3)} | flags
        return METHODS[self.name](base if self.base else None, models, **numbers, **flags)


W = np.array([0.5, 1.0, 0.7])
MEAN = np.array([1 / 3, 1 / 3, 1 / 3])
CASES = [
    Case("linear", {"weight": W}, base=False),
    Case("linear", {"weight": MEAN}, {"normalize": False}, base=False, label="sum"),
    Case("task_arithmetic", {"weight": MEAN, "lam": 1.0}, scales=True),
    Case("task_arithmetic", {"weight": W, "lam": 1.0}, {"normalize": True}, scales=True, label="n"),
    Case("slerp", {"t": 0.3}, count=1),
    Case("nuslerp", {"weight": W[:2]}, count=2, scales=True),
    Case("nuslerp", {"weight": W[:2]}, {"axis": -1}, count=2, scales=True, label="rows"),
    Case("nuslerp", {"weight": W[:2]}, {"axis": 0}, count=2, base=False, label="columns"),
    Case("multislerp", {"weight": W}, scales=True),
    Case("multislerp", {"weight": W}, base=False, label="origin"),
    Case("karcher", {"tol": 1e-5}, base=False),
    Case("ties", {"weight": W, "density": 0.4, "lam": 1.0}, scales=True, keeps_model=False),
    Case("ties", {"weight": W}, scales=True, label="dense"),
    Case(
        "breadcrumbs",
        {"weight": MEAN, "keep": 0.4, "drop_top": 0.1},
        scales=True,
        keeps_model=False,
    ),
    Case(
        "breadcrumbs",
        {"weight": MEAN, "keep": 0.4, "drop_top": 0.2},
        {"axis": -1},
        scales=True,
        keeps_model=False,
        label="rows",
    ),
    Case(
        "breadcrumbs_ties",
        {"weight": W, "keep": 0.4, "drop_top": 0.1},
        {"normalize": True},
        scales=True,
        keeps_model=False,
    ),
    Case("dare_linear", {"weight": MEAN, "density": 0.5}, random=True, scales=True),
    Case(
        "dare_ties",
        {"weight": W, "density": 0.5},
        {"semantics": "paper", "normalize": True},
        random=True,
        scales=True,
    ),
    Case("della", {"weight": W, "density": 0.5, "epsilon": 0.2}, random=True, scales=True),
    Case(
        "della_linear",
        {"weight": MEAN, "density": 0.5},
        {"semantics": "paper"},
        random=True,
        scales=True,
    ),
    Case("sce", {"select": 0.5, "eps": 1e-12}, scales=True, keeps_model=False),
    Case("sce", {}, label="all"),
    Case("ram", {"epsilon": 1e-5}),
    Case("ramplus_tl", {"r": 0.1, "alpha": 0.2}),
    Case("model_stock", scales=True),
    Case("model_stock", {}, {"filter_wise": True}, scales=True, label="rows"),
    Case("nearswap", {"t": 0.05}, count=1, keeps_model=False),
    Case("arcee_fusion", count=1, keeps_model=False),
    Case("passthrough", {"scale": 1.0}, count=1, base=False),
    Case("expo", {"alpha": 0.5}, count=1, scales=True, keeps_model=False),
    Case("magmax", {"lam": 0.5}, scales=True, keeps_model=False),
    Case("iso_c", {"alpha": 1.0}, scales=True, keeps_model=False),
    Case("iso_cts", {"alpha": 1.0}, {"common": 0.5}, scales=True, keeps_model=False),
    Case("tsv_m", {"alpha": 1.0}, scales=True, keeps_model=False),
    Case("wudi", {"learning_rate": 1e-3}, {"steps": 5}, keeps_model=False),
]
ALL = pytest.mark.parametrize(
    "case", CASES, ids=lambda c: "-".join(filter(None, (c.name, c.label)))
)


COMPILED = {}


def compiled(case):
    """The case as one program of (base, models, numbers), compiled once for each shape."""
    name = (case.name, case.label, case.base)
    if name not in COMPILED:
        COMPILED[name] = jax.jit(lambda b, m, n: case(b, m, n))
    numbers = {k: np.float32(v) for k, v in case.numbers.items()}
    return lambda b, m, n=numbers: COMPILED[name](b, m, n)


def where(predicate):
    cases = [c for c in CASES if predicate(c)]
    return pytest.mark.parametrize(
        "case", cases, ids=lambda c: "-".join(filter(None, (c.name, c.label)))
    )


def data(case, seed=0, shape=SHAPE, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=shape)
    models = base + 0.1 * rng.normal(size=(case.count, *shape))
    return jnp.asarray(base, dtype), jnp.asarray(models, dtype)


def test_the_table_covers_every_operator():
    assert {case.name for case in CASES} == set(METHODS)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (1, 1)], ids=str)
def test_any_shape_merges_to_that_shape_and_is_finite(case, shape):
    base, models = data(case, shape=shape)
    merged = compiled(case)(base, models)
    assert merged.shape == shape and merged.dtype == jnp.float32
    assert np.isfinite(merged).all()


@pytest.mark.slow
@ALL
def test_jit_changes_nothing(case):
    base, models = data(case)
    numbers = {k: np.float32(v) for k, v in case.numbers.items()}
    expected = case(base, models, numbers)
    np.testing.assert_allclose(compiled(case)(base, models), expected, rtol=2e-5, atol=2e-6)


@ALL
def test_vmap_over_seeds_and_coefficients_is_the_loop(case):
    bases, models = (jnp.stack(x) for x in zip(*(data(case, seed) for seed in range(3))))
    factors = np.float32([1.0, 0.9, 0.75])
    sweep = {k: np.multiply.outer(factors, np.float32(v)) for k, v in case.numbers.items()}
    together = jax.jit(jax.vmap(lambda b, m, n: case(b, m, n)))(bases, models, sweep)
    alone = [
        compiled(case)(bases[i], models[i], {k: v[i] for k, v in sweep.items()}) for i in range(3)
    ]
    np.testing.assert_allclose(together, jnp.stack(alone), rtol=2e-5, atol=2e-6)


@ALL
def test_low_precision_is_the_float32_merge_rounded_once(case):
    base, models = data(case, dtype=jnp.bfloat16)
    merged = compiled(case)(base, models)
    assert merged.dtype == jnp.bfloat16
    exact = compiled(case)(base.astype(jnp.float32), models.astype(jnp.float32))
    assert np.array_equal(merged, exact.astype(jnp.bfloat16))


def degenerate():
    rng = np.random.default_rng(5)
    x, zero = rng.normal(size=SHAPE), np.zeros(SHAPE)
    ones, orthogonal = np.ones(SHAPE), np.zeros(SHAPE)
    orthogonal[0, 0] = 1.0
    return {
        "all zero": (zero, [zero, zero, zero]),
        "equal": (x, [x, x, x]),
        "parallel": (zero, [x, 2 * x, 3 * x]),
        "antiparallel": (x, [-x, x, -x]),
        "opposite task vectors": (zero, [x, -x, zero]),
        "one zero": (x, [zero, x, 2 * x]),
        "constant": (zero, [ones, ones, -ones]),
        "one element": (zero, [orthogonal, -orthogonal, zero]),
    }


@ALL
def test_values_and_gradients_are_finite_at_degenerate_inputs(case):
    kinds = degenerate()
    bases = jnp.asarray(np.stack([b for b, _ in kinds.values()]), jnp.float32)
    models = np.stack([np.stack(m[: case.count]) for _, m in kinds.values()])
    numbers = {k: jnp.asarray(v, jnp.float32) for k, v in case.numbers.items()}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def gradients(base, models, numbers):
        merged, pull = jax.vjp(case, base, models, numbers)
        return merged, pull(jnp.ones_like(merged))

    merged, pulled = gradients(bases, jnp.asarray(models, jnp.float32), numbers)
    for i, kind in enumerate(kinds):
        for leaf in jax.tree.leaves((merged, pulled)):
            assert np.isfinite(leaf[i]).all(), kind


@where(lambda c: c.keeps_model)
def test_identical_models_give_that_model(case):
    base, models = data(case)
    if case.count == 1:
        base = models[0]  # an operator on two models, of which the base is one
    same = jnp.broadcast_to(models[:1], models.shape)
    if case.random:  # nothing dropped
        case = case._replace(numbers=case.numbers | {"density": 1.0})
    merged = compiled(case)(base, same, {k: np.float32(v) for k, v in case.numbers.items()})
    np.testing.assert_allclose(merged, models[0], rtol=1e-5, atol=1e-5)


@where(lambda c: c.base and c.keeps_base)
def test_zero_task_vectors_give_the_base(case):
    base, models = data(case)
    same = jnp.broadcast_to(base[None], models.shape)
    np.testing.assert_allclose(compiled(case)(base, same), base, rtol=1e-6, atol=1e-6)


@where(lambda c: c.symmetric and c.count > 1 and not c.random)
def test_the_order_of_models_does_not_matter(case):
    base, models = data(case)
    order = np.arange(case.count)[::-1]
    numbers = {k: np.float32(v) for k, v in case.numbers.items()}
    turned = {k: v[order] if np.ndim(v) else v for k, v in numbers.items()}
    run = compiled(case)
    np.testing.assert_allclose(
        run(base, models[order], turned), run(base, models), rtol=3e-5, atol=3e-6
    )


@where(lambda c: c.scales)
def test_scaling_task_vectors_scales_the_merged_one(case):
    base, models = data(case)
    zero, deltas = jnp.zeros_like(base), models - base[None]
    run = compiled(case)
    np.testing.assert_allclose(run(zero, 4 * deltas), 4 * run(zero, deltas), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@ALL
def test_a_scanned_model_merges_as_the_unrolled_one(case):
    layers = [data(case, seed) for seed in range(3)]
    unrolled = {f"layer{i}": {"w": b} for i, (b, _) in enumerate(layers)}
    models = {f"layer{i}": {"w": m} for i, (_, m) in enumerate(layers)}
    key = jax.random.key(3) if case.random else None
    op = METHODS[case.name]
    given = case.numbers | case.flags
    base = unrolled if case.base else None
    plain = jax.jit(lambda b, m: merge(op, b, m, given, key=key))(base, models)
    spec = PathSpec(layer_axis=((r"layers/w", 1),), layer_path=lambda path, i: f"layer{i}/w")
    base = {"layers": {"w": jnp.stack([b for b, _ in layers], 1)}} if case.base else None
    scanned = {"layers": {"w": jnp.stack([m for _, m in layers], 2)}}
    merged = jax.jit(lambda b, m: merge(op, b, m, given, spec=spec, key=key))(base, scanned)
    expected = jnp.stack([plain[f"layer{i}"]["w"] for i in range(3)], 1)
    np.testing.assert_allclose(merged["layers"]["w"], expected, rtol=2e-5, atol=2e-6)


def test_stack_models_names_what_differs():
    with pytest.raises(ValueError, match=r"models\[1\]: expected a/b of shape \(2,\), got \(3,\)"):
        stack_models([{"a": {"b": jnp.zeros(2)}}, {"a": {"b": jnp.zeros(3)}}])
    with pytest.raises(ValueError, match=r"models\[1\]: expected the structure"):
        stack_models([{"a": 1.0}, {"b": 1.0}])

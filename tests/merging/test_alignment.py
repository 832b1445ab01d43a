"""Permutation symmetries: they keep the function, and matching undoes them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging, nets
from jaxlab.merging import AxisSpec, LeafAxes

MLP = merging.mlp_axes(4, layer_norm=True)
SIZES = (5, 12, 9, 12, 3)
CONFIG = nets.TransformerConfig(11, 2, 16, 4, 24)
TRANSFORMER = merging.transformer_axes()


def mlp(seed):
    params = nets.mlp_init(jax.random.key(seed), SIZES, layer_norm=True)
    noise = iter(jax.random.split(jax.random.key(seed + 100), 99))
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), params)


def transformer(seed):
    params = nets.transformer_init(jax.random.key(seed), CONFIG)
    noise = iter(jax.random.split(jax.random.key(seed + 100), 99))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)
    return merging.split_heads(params, CONFIG.head_size)


def logits(params):
    tokens = jax.random.randint(jax.random.key(3), (2, 7), 0, 11)
    return nets.transformer_apply(merging.join_heads(params), CONFIG, tokens)


KINDS = {
    "mlp": (MLP, mlp, lambda p: nets.mlp_apply(p, jax.random.normal(jax.random.key(3), (8, 5)))),
    "transformer": (TRANSFORMER, transformer, logits),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
@EACH
def test_permuting_units_keeps_the_function(kind):
    spec, make, apply = KINDS[kind]
    params = make(0)

    @jax.jit
    def shuffle(key, params):
        return merging.permute(spec, merging.random_permutations(key, spec, params), params)

    moved = shuffle(jax.random.key(1), params)
    changed = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), params, moved)
    assert sum(x > 0 for x in jax.tree.leaves(changed)) >= len(jax.tree.leaves(changed)) - 1
    np.testing.assert_allclose(apply(moved), apply(params), rtol=1e-4, atol=1e-5)
    equal(merging.permute(spec, merging.identity_permutations(spec, params), params), params)


def test_splitting_heads_is_undone():
    params = nets.transformer_init(jax.random.key(0), CONFIG)
    equal(merging.join_heads(merging.split_heads(params, CONFIG.head_size)), params)


@pytest.mark.slow
@EACH
def test_weight_matching_undoes_a_random_permutation(kind):
    spec, make, apply = KINDS[kind]
    a = make(0)
    keys = jax.random.split(jax.random.key(5), 3)
    shuffled, matchings, undone = jax.jit(jax.vmap(lambda k: shuffle_and_match(k, spec, a)))(keys)
    for i in range(3):
        equal(jax.tree.map(lambda x: x[i], undone), a)
    squares = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(a))
    np.testing.assert_allclose(matchings.similarity, squares, rtol=1e-5)
    assert matchings.settled.all() and (matchings.passes < 10).all()
    b, back = (jax.tree.map(lambda x: x[0], tree) for tree in (shuffled, undone))
    loss = lambda p: jnp.mean((apply(p) - apply(a)) ** 2)  # noqa: E731
    np.testing.assert_allclose(merging.barrier(loss, a, back, 5), np.zeros(5), atol=1e-7)
    assert merging.barrier(loss, a, b, 5).max() > 1e-3


def shuffle_and_match(key, spec, a):
    first, second = jax.random.split(key)
    b = merging.permute(spec, merging.random_permutations(first, spec, a), a)
    matching = merging.weight_matching(second, spec, a, b)
    return b, matching, merging.permute(spec, matching.permutations, b)


def test_matching_finds_the_best_assignment_of_a_single_layer():
    spec = merging.mlp_axes(2)
    a, b = (nets.mlp_init(jax.random.key(i), (3, 4, 2)) for i in range(2))
    matching = merging.weight_matching(jax.random.key(0), spec, a, b)

    def similarity(order):
        moved = merging.permute(spec, {"hidden0": jnp.asarray(order)}, b)
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(moved))
        return sum(float(jnp.sum(x * y)) for x, y in pairs)

    best = max(itertools.permutations(range(4)), key=similarity)
    assert matching.permutations["hidden0"].tolist() == list(best)
    np.testing.assert_allclose(matching.similarity, similarity(best), rtol=1e-5)


def test_assignments_are_the_best_of_all():
    tables = jax.random.normal(jax.random.key(0), (6, 5, 5))
    found = jax.jit(merging.assign)(tables)
    for table, chosen in zip(np.asarray(tables), np.asarray(found)):
        total = lambda order: sum(table[i, j] for i, j in enumerate(order))  # noqa: E731
        best = max(itertools.permutations(range(5)), key=total)
        assert chosen.tolist() == list(best)


def activations(params, x):
    found = {}
    for i, layer in enumerate(params[:-1]):
        x = jax.nn.silu(x @ layer["kernel"] + layer["bias"][None])
        found[f"hidden{i}"] = x
    return found, x @ params[-1]["kernel"] + params[-1]["bias"][None]


@pytest.mark.slow
def test_activation_matching_undoes_a_random_permutation():
    spec = merging.mlp_axes(4)
    a = nets.mlp_init(jax.random.key(0), SIZES)
    shuffled = merging.random_permutations(jax.random.key(1), spec, a)
    b = merging.permute(spec, shuffled, a)
    x = jax.random.normal(jax.random.key(2), (200, 5))
    # A unit that is always the same correlates with nothing and must not spoil the others.
    seen = [
        {k: v.at[:, 2].set(1.0) if k == "hidden1" else v for k, v in activations(p, x)[0].items()}
        for p in (a, merging.permute(spec, {"hidden1": jnp.argsort(shuffled["hidden1"])}, b))
    ]
    found = jax.jit(merging.activation_matching)(activations(a, x)[0], activations(b, x)[0])
    equal(merging.permute(spec, found, b), a)
    dead = merging.activation_matching(*seen)
    assert dead["hidden1"].tolist() == list(range(9))
    with pytest.raises(ValueError, match="b: expected activations of"):
        merging.activation_matching(seen[0], {})
    with pytest.raises(ValueError, match="hidden0: expected"):
        merging.activation_matching(seen[0], {k: v[:5] for k, v in seen[1].items()})


def forward(params, x, tap):
    *hidden, last = params
    for i, layer in enumerate(hidden):
        x = jax.nn.relu(tap(f"layer{i}", x @ layer["kernel"] + layer["bias"][None]))
    return x @ last["kernel"] + last["bias"][None]


def test_repair_gives_units_the_statistics_of_the_parents():
    a, b = (nets.mlp_init(jax.random.key(i), (5, 40, 40, 3)) for i in range(2))
    merged = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    merged[0]["kernel"] = merged[0]["kernel"].at[:, 0].set(0)  # a unit that never changes
    x = jax.random.normal(jax.random.key(2), (500, 5))
    parents = [merging.unit_statistics(forward, p, x) for p in (a, b)]
    found = jax.jit(lambda m: merging.repair(forward, m, parents, x, jnp.asarray([0.3, 0.7])))(
        merged
    )
    fixed = []
    for i, layer in enumerate(merged):
        if i < 2:
            pair = merging.rescale_units(layer["kernel"], layer["bias"], found[f"layer{i}"])
            layer = dict(zip(("kernel", "bias"), pair))
        fixed.append(layer)
    now = merging.unit_statistics(forward, tuple(fixed), x)
    before = merging.unit_statistics(forward, merged, x)
    for i in range(2):
        name, alive = f"layer{i}", slice(1 if i == 0 else 0, None)
        for field in range(2):
            goal = 0.3 * parents[0][name][field] + 0.7 * parents[1][name][field]
            part = now[name][field][alive]
            np.testing.assert_allclose(part, goal[alive], rtol=1e-3, atol=1e-4)
        assert before[name].std[alive].mean() < 0.8 * now[name].std[alive].mean()
    mean = 0.3 * parents[0]["layer0"].mean[0] + 0.7 * parents[1]["layer0"].mean[0]
    np.testing.assert_allclose(now["layer0"].mean[0], mean, rtol=1e-4)
    assert now["layer0"].std[0] < 1e-6
    same = merging.repair(forward, a, [parents[0]] * 2, x)
    np.testing.assert_allclose(same["layer1"].scale, 1, rtol=1e-4)
    np.testing.assert_allclose(same["layer1"].shift, 0, atol=1e-4)


def test_units_on_two_axes_of_a_leaf():
    leaves = (("w", LeafAxes(("h", "h"), (0,))), ("in", LeafAxes((None, "h"))))
    spec = AxisSpec(leaves, (("h", ()),))
    params = {"w": jnp.arange(16.0).reshape(4, 4), "in": jnp.arange(8.0).reshape(2, 4)}
    order = jnp.asarray([2, 0, 3, 1])
    moved = merging.permute(spec, {"h": order}, params)
    equal(moved, {"w": params["w"][order][:, order], "in": params["in"][:, order]})
    with pytest.raises(ValueError, match=r"spec: expected 'h' on one axis of 'w', got \('h', 'h'"):
        merging.weight_matching(jax.random.key(0), spec, params, params)


def test_bad_specifications_are_named():
    with pytest.raises(ValueError, match="units: expected 'heads' once and after"):
        AxisSpec((), (("heads", ("groups",)), ("groups", ())))
    with pytest.raises(ValueError, match=r"leaves: 'w' has 'heads' and expected \['layer'\] too"):
        AxisSpec((("w", LeafAxes(("heads",))),), (("heads", ("layer",)),))
    spec = AxisSpec((("w", LeafAxes(("a", None))), ("v", LeafAxes(("a",)))), (("a", ()),))
    with pytest.raises(ValueError, match="w: expected axes"):
        spec.sizes({"w": jnp.zeros(3)})
    with pytest.raises(ValueError, match="w: expected 3 of 'a', got 2"):
        spec.sizes({"v": jnp.zeros(3), "w": jnp.zeros((2, 2))})
    units = (("a", ()), ("b", ()), ("c", ("a", "b")))
    two = AxisSpec((("x", LeafAxes(("a", "b", "c"))),), units)
    x = {"x": jnp.zeros((2, 2, 2))}
    with pytest.raises(ValueError, match="units: expected 'c' within"):
        merging.weight_matching(jax.random.key(0), two, x, x)
    with pytest.raises(ValueError, match=r"params: expected a leaf with each of \['a'\]"):
        merging.identity_permutations(spec, {"x": jnp.zeros(3)})

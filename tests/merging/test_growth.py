"""Growth operators: what keeps the function, what repeats what, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging, nets
from jaxlab.merging import AxisSpec, LeafAxes, growth

CONFIG = nets.TransformerConfig(11, 2, 16, 4, 24)
SPEC = merging.transformer_axes()
ZERO = ("out$", "down$")
TOKENS = np.arange(14).reshape(2, 7) % 11


def noisy(params, seed=9):
    keys = iter(jax.random.split(jax.random.key(seed), 99))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


PARAMS = noisy(nets.transformer_init(jax.random.key(0), CONFIG))
SPLIT = merging.split_heads(PARAMS, 4)
LAYERS = {"w": jnp.arange(3.0)[:, None] + jnp.zeros((3, 2)), "b": 10 + jnp.arange(3.0)}


def logits(params, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return nets.transformer_apply(params, config, jnp.asarray(TOKENS))


def wide_logits(params, sizes):
    return nets.transformer_apply(
        merging.join_heads(params), merging.widened(CONFIG, sizes), jnp.asarray(TOKENS)
    )


def with_blocks(blocks):
    return {**PARAMS, "blocks": blocks}


def order(layers):
    np.testing.assert_array_equal(layers["w"][:, 0] + 10, layers["b"])
    return layers["b"].astype(int).tolist()


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_orders_of_layers():
    assert order(growth.stack(LAYERS, 2)) == [10, 11, 12, 10, 11, 12]
    assert order(growth.interleave(LAYERS, 2)) == [10, 10, 11, 11, 12, 12]
    assert order(growth.gradual(LAYERS, 2)) == [10, 11, 12, 11, 12]
    assert order(growth.solar(LAYERS, 1)) == [10, 11, 11, 12]
    equal(growth.stack(LAYERS, 1), LAYERS)
    # A copy of the first layer takes what the first layer never learned from the second.
    lent = growth.stack(LAYERS, 2, borrowed="^b$")
    # Where they repeat the whole stack, other operators lend as well.
    equal(growth.gradual(LAYERS, 3, borrowed="^b$"), lent)
    equal(growth.solar(LAYERS, 0, borrowed="^b$"), lent)
    assert lent["b"].tolist() == [10, 11, 12, 11, 11, 12]
    assert lent["w"][:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    for call in (
        lambda: growth.gradual(LAYERS, 4),
        lambda: growth.solar(LAYERS, 3),
        lambda: growth.stack(LAYERS, 0),
        lambda: growth.identity_depth(LAYERS, 2, zero=("w",)),
        lambda: growth.depth_of({"a": jnp.zeros(2), "b": jnp.zeros(3)}),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
    with pytest.raises(ValueError, match=r"zero: expected patterns of leaves, \['x'\] match none"):
        growth.identity_depth(LAYERS, 4, zero=("x",))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_new_layers_that_write_nothing_keep_the_function(depth):
    grown = with_blocks(growth.identity_depth(PARAMS["blocks"], depth, zero=ZERO))
    np.testing.assert_allclose(logits(grown, n_layer=depth), logits(PARAMS), atol=1e-5)
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    outside = size(PARAMS) - size(PARAMS["blocks"])
    assert size(grown) - outside == depth * size(PARAMS["blocks"]) // 2
    fresh = nets.transformer_init(jax.random.key(4), dataclasses.replace(CONFIG, n_layer=3))
    layers, ramped = growth.random_depth(PARAMS["blocks"], fresh["blocks"], zero=ZERO)
    np.testing.assert_allclose(
        logits(with_blocks(ramped(0.0)), n_layer=5), logits(PARAMS), atol=1e-5
    )
    equal(ramped(1.0), layers)
    assert jnp.abs(logits(with_blocks(layers), n_layer=5) - logits(PARAMS)).max() > 1e-2


def test_stacking_silent_blocks_keeps_the_function():
    silent = growth.identity_depth(PARAMS["blocks"], 2, zero=())
    silent = silent | {"out": 0 * silent["out"], "down": 0 * silent["down"]}
    grown = with_blocks(growth.stack(silent, 3))
    np.testing.assert_allclose(
        logits(grown, n_layer=6), logits(with_blocks(silent)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [{"hidden": 37}, {"residual": 32, "heads": 8, "hidden": 25}], ids=["hidden", "all"]
)
def test_copied_units_keep_the_function(sizes):
    for key in (None, jax.random.key(1)):
        grown = jax.jit(lambda p: growth.width_direct(p, SPEC, sizes, key=key))(SPLIT)
        assert {k: SPEC.sizes(grown)[k] for k in sizes} == sizes
        np.testing.assert_allclose(wide_logits(grown, sizes), logits(PARAMS), atol=1e-5)
    # Readers are divided by the number of copies: rows of copied units are equal.
    np.testing.assert_allclose(
        growth.width_direct(SPLIT, SPEC, {"hidden": 48})["blocks"]["down"][:, 24:],
        SPLIT["blocks"]["down"] / 2,
    )
    with pytest.raises(ValueError, match="sizes: expected a multiple of 16 for 'residual'"):
        growth.width_direct(SPLIT, SPEC, {"residual": 20})
    with pytest.raises(ValueError, match="sizes: expected at least 24 of 'hidden', got 3"):
        growth.width_direct(SPLIT, SPEC, {"hidden": 3})
    with pytest.raises(ValueError, match="sizes: expected labels out of"):
        growth.width_direct(SPLIT, SPEC, {"layer": 3})


@pytest.mark.slow
def test_new_zero_units_keep_the_function_and_can_learn():
    sizes = {"hidden": 30}
    grown = growth.width_zero(jax.random.key(1), SPLIT, SPEC, sizes)
    np.testing.assert_allclose(wide_logits(grown, sizes), logits(PARAMS), atol=1e-5)
    assert not grown["blocks"]["up"][..., 24:].any()
    new = grown["blocks"]["down"][:, 24:]
    np.testing.assert_allclose(new.std(), SPLIT["blocks"]["down"].std(), rtol=0.2)
    slope = jax.grad(lambda p: jnp.sum(wide_logits(p, sizes) ** 2))(grown)
    assert (jnp.abs(slope["blocks"]["up"][..., 24:]).max(axis=1) > 0).all()


RMS = AxisSpec(
    (
        ("^emb$", LeafAxes((None, "residual"))),
        ("^gain$", LeafAxes(("residual",))),
        ("^up$", LeafAxes(("residual", "hidden"), (0,))),
        ("^down$", LeafAxes(("hidden", "residual"), (0,))),
        ("^head$", LeafAxes(("residual", None), (0,))),
    ),
    (("residual", ()), ("hidden", ())),
)


def rms_model(params, mask):
    x = params["emb"]
    for _ in range(2):
        h = growth.masked_rms_norm(x, params["gain"], mask, 1e-3)
        x = x + jax.nn.sigmoid(h @ params["up"]) @ params["down"]
    return growth.masked_rms_norm(x, params["gain"], mask, 1e-3) @ params["head"]


@pytest.mark.slow
def test_random_units_fade_in_behind_their_mask():
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)  # noqa: E731
    names = {"emb": (5, 6), "gain": (6,), "up": (6, 8), "down": (8, 6), "head": (6, 3)}
    small = {name: draw(i, *shape) for i, (name, shape) in enumerate(names.items())}
    sizes = {"residual": 10, "hidden": 11}
    grown, masks = growth.width_random(jax.random.key(7), small, RMS, sizes)

    def at(ramp):
        shown = masks(ramp)
        return rms_model(growth.mask_units(grown, RMS, shown), shown["residual"])

    before = rms_model(small, jnp.ones(6))
    np.testing.assert_allclose(at(0.0), before, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at(1.0), rms_model(grown, jnp.ones(10)), rtol=1e-5, atol=1e-5)
    steps = jnp.abs(jax.vmap(at)(jnp.linspace(0, 1, 5)) - before[None]).mean(axis=(1, 2))
    assert (jnp.diff(steps) > 0).all()
    # The mask belongs to the norm as well: without it the new channels change the scale.
    unmasked = rms_model(growth.mask_units(grown, RMS, masks(0.0)), jnp.ones(10))
    assert jnp.abs(unmasked - before).max() > 1e-2
    rms = before = jnp.sqrt(jnp.mean(small["emb"] ** 2, axis=-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(
        growth.masked_rms_norm(small["emb"], small["gain"], jnp.ones(6), 1e-3),
        small["emb"] / rms * small["gain"][None],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_a_learned_operator_starts_as_stacked_copies():
    sizes = {"hidden": 48, "residual": 32, "heads": 8}
    start = growth.ligo_init(SPLIT, SPEC, sizes, layers=4)
    grown = jax.jit(lambda o: growth.ligo_apply(o, SPLIT, SPEC))(start)
    direct = growth.width_direct(SPLIT, SPEC, sizes)
    direct = direct | {"blocks": growth.stack(direct["blocks"], 2)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grown, direct)
    plain = growth.ligo_apply(growth.ligo_init(SPLIT, SPEC, {}, layers=4), SPLIT, SPEC)
    equal(plain["blocks"], growth.stack(SPLIT["blocks"], 2))
    # W' = sum_j w_ij B W_j A^T, by hand.
    rng = np.random.default_rng(0)
    b, a, w = rng.normal(size=(48, 24)), rng.normal(size=(48, 24)), rng.normal(size=(4, 2))
    learned = growth.LiGO(
        {"hidden": jnp.asarray(b, jnp.float32)},
        {"hidden": jnp.asarray(a, jnp.float32)},
        {f"blocks/{name}": jnp.asarray(w, jnp.float32) for name in ("up", "down")},
    )
    grown = growth.ligo_apply(learned, SPLIT, SPEC)["blocks"]
    up, down = (np.asarray(SPLIT["blocks"][name], np.float64) for name in ("up", "down"))
    np.testing.assert_allclose(grown["up"], np.einsum("kl,lch,nh->kcn", w, up, b), atol=1e-4)
    np.testing.assert_allclose(grown["down"], np.einsum("kl,nh,lhc->knc", w, a, down), atol=1e-4)
    slope = jax.grad(
        lambda o: sum(jnp.sum(x**2) for x in jax.tree.leaves(growth.ligo_apply(o, SPLIT, SPEC)))
    )(learned)
    assert all((x != 0).any() for x in jax.tree.leaves(slope))


def test_growth_timing_gives_the_published_tokens():
    sizes = np.array([8e9, 7e9, 13e9, 70e9])
    tokens = np.array([15e12, 2e12, 2e12, 2e12])
    found = growth.growth_timing(sizes, 6 * sizes * tokens)
    np.testing.assert_allclose(found / 1e9, [6.58, 11.11, 15.84, 42.48], atol=0.015)


def test_operations_are_counted_from_shapes():
    x, w = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert growth.matmul_flops(lambda x, w: x @ w, x, w) == 2 * 3 * 4 * 5

    def looped(x, w):
        step = lambda c, _: (c @ w @ w.T, None)  # noqa: E731
        return jax.lax.scan(step, x, length=7)[0]

    assert growth.matmul_flops(jax.jit(looped), x, w) == 7 * 2 * 2 * 3 * 4 * 5
    branch = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: 2 * (x @ w @ w.T @ w))  # noqa: E731
    assert growth.matmul_flops(branch, x, w) == 3 * 2 * 3 * 4 * 5
    # Dense layers: two operations per parameter and token, twice that backward.
    batch = jnp.zeros((10, 6))
    params = nets.mlp_init(jax.random.key(0), (6, 8, 3))
    loss = lambda p, x: jnp.sum(nets.mlp_apply(p, x))  # noqa: E731
    assert growth.matmul_flops(jax.grad(loss, (0, 1)), params, batch) == 6 * 10 * (48 + 24)
    tokens = jnp.asarray(TOKENS)
    count = growth.matmul_flops(lambda p: nets.transformer_apply(p, CONFIG, tokens), PARAMS)
    per_token = 2 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 2 * 7 * 16  # matrices, then attention
    assert count == 14 * (2 * per_token + 2 * 16 * 11)


def test_speedup_interpolates_in_log_compute():
    cost = jnp.asarray([1.0, 10.0, 100.0])
    scratch = (cost, jnp.asarray([4.0, 3.0, 2.0]))
    assert growth.speedup(scratch, scratch) == pytest.approx(0.0, abs=1e-5)
    grown = (cost, jnp.asarray([4.0, 2.5, 1.5]))  # 2.0 at half way between 10 and 100
    assert growth.speedup(scratch, grown) == pytest.approx(100 / 10**1.5 - 1, rel=1e-5)
    early = (cost, jnp.asarray([1.0, 3.0, 3.0]))
    assert growth.speedup(scratch, early) == pytest.approx(99.0, rel=1e-5)
    assert np.isnan(growth.speedup(scratch, (cost, jnp.asarray([4.0, 3.0, 2.5]))))


def test_stacked_rwkv_layers_borrow_the_value_residual():
    from jaxlab import rwkv7

    config = rwkv7.Config(11, 2, 8, head_size=4, ranks=(2, 2, 2, 2))
    shapes = jax.eval_shape(lambda key: rwkv7.init(key, config), jax.random.key(0))
    rng = np.random.default_rng(0)
    blocks = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), shapes["blocks"])
    grown = growth.stack(blocks, 2, borrowed=r"att/v[012]$")
    for name, leaf in blocks["att"].items():
        if name != "ln_x":
            source = 1 if name in ("v0", "v1", "v2") else 0
            np.testing.assert_array_equal(grown["att"][name][2], leaf[source])
            np.testing.assert_array_equal(grown["att"][name][3], leaf[1])
            np.testing.assert_array_equal(grown["att"][name][0], leaf[0])

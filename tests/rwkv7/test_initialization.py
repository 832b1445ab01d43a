"""The initial parameters against the recipe's formulas, evaluated here by loops."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7

DEPTH, SIZE, HEAD, WIDTH = 3, 64, 16, 96


@pytest.fixture(scope="module")
def config():
    return rwkv7.Config(
        vocab_size=100,
        n_layer=DEPTH,
        n_embd=SIZE,
        head_size=HEAD,
        dim_ffn=WIDTH,
        ranks=(8, 8, 72, 8),  # one rank above the width: the gain grows
        dtype="float32",
    )


@pytest.fixture(scope="module")
def params(config):
    return jax.jit(rwkv7.init, static_argnums=1)(jax.random.key(0), config)


def official(layer):
    """Channel by channel, as the trainer's loops have it."""
    q, p = layer / (DEPTH - 1), 1 - layer / DEPTH
    table = {}
    for n in range(SIZE):
        ddd, lin = n / SIZE, n / (SIZE - 1) - 0.5
        z = ((n % HEAD) - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
        zz = z * abs(z)
        row = {
            "x_r": 1 - ddd ** (0.2 * p),
            "x_g": 1 - ddd ** (0.2 * p),
            "x_w": 1 - ddd ** (0.9 * p),
            "x_a": 1 - ddd ** (0.9 * p),
            "x_k": 1 - ddd ** (0.7 * p),
            "x_v": 1 - ddd ** (0.7 * p),
            "w0": -6 + 6 * (n / (SIZE - 1)) ** (1 + q**0.3) + 0.5 + 2.5 * zz,
            "a0": -0.19 + 0.3 * zz + 0.4 * lin,
            "v0": 0.73 - 0.4 * lin,
            "k_k": 0.71 - 0.1 * lin,
            "k_a": 1.02,
            "ffn.x_k": 1 - ddd ** (p**4),
        }
        for name, value in row.items():
            table.setdefault(name, []).append(value)
    return table


def test_vectors_follow_the_formulas(params):
    att = params["blocks"]["att"]
    for layer in range(DEPTH):
        for name, want in official(layer).items():
            got = params["blocks"]["ffn"]["x_k"] if name == "ffn.x_k" else att[name]
            np.testing.assert_allclose(got[layer], want, atol=2e-6, err_msg=name)
        np.testing.assert_allclose(
            att["ln_x"]["weight"][layer], ((1 + layer) / DEPTH) ** 0.7, rtol=1e-6
        )
    np.testing.assert_allclose(att["r_k"], -0.04, rtol=1e-6)
    assert att["r_k"].shape == (DEPTH, SIZE // HEAD, HEAD)


def test_what_starts_at_zero_or_one(params):
    blocks = params["blocks"]
    for name in ("w1", "a1", "v1", "g1", "output"):
        np.testing.assert_array_equal(blocks["att"][name], 0)
    np.testing.assert_array_equal(blocks["ffn"]["value"], 0)
    for norm in (params["ln0"], params["ln_out"], blocks["ln1"], blocks["ln2"]):
        np.testing.assert_array_equal(norm["weight"], 1)
        np.testing.assert_array_equal(norm["bias"], 0)
    np.testing.assert_array_equal(blocks["att"]["ln_x"]["bias"], 0)


def test_matrices_are_orthogonal_with_the_stated_gain(params):
    att, ffn = params["blocks"]["att"], params["blocks"]["ffn"]
    gains = {"receptance": 1, "value": 1, "key": 0.1, "w2": 0.1, "a2": 0.1, "g2": 0.1}
    gains["v2"] = 0.1 * math.sqrt(72 / SIZE)
    stacks = [(att[name], gain) for name, gain in gains.items()]
    stacks += [(ffn["key"], 1), (params["head"][None], 0.5 * math.sqrt(100 / SIZE))]
    for stack, gain in stacks:
        for matrix in np.asarray(stack, np.float64):
            small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            want = gain**2 * np.eye(small.shape[0])
            np.testing.assert_allclose(small @ small.T, want, atol=1e-5 * gain**2)
    assert not np.allclose(att["receptance"][0], att["receptance"][1])
    assert not np.allclose(att["receptance"], att["value"])


def test_embedding_is_uniform(params):
    scaled = np.asarray(params["emb"]) / 1e-4
    assert np.abs(scaled).max() <= 1 and np.abs(scaled).max() > 0.99
    np.testing.assert_allclose(scaled.var(), 1 / 3, rtol=0.05)


def test_every_block_adds_zero_at_the_start(config, params):
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 100)
    logits, _ = rwkv7.forward(params, config, tokens)
    x = np.asarray(params["emb"], np.float64)[np.asarray(tokens)]
    for _ in ("ln0", "ln_out"):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    want = x @ np.asarray(params["head"], np.float64).T
    np.testing.assert_allclose(logits, want, atol=5e-5 * want.std())


def test_keys_and_dtypes(config):
    init = jax.jit(rwkv7.init, static_argnums=1)
    one, two = (init(jax.random.key(n), config) for n in (1, 2))
    assert not np.array_equal(one["head"], two["head"])
    np.testing.assert_array_equal(one["head"], init(jax.random.key(1), config)["head"])
    shapes = jax.eval_shape(
        lambda key: rwkv7.init(key, rwkv7.Config(10, 1, 64, param_dtype="bfloat16")),
        jax.random.key(0),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_one_layer_has_finite_values():
    config = rwkv7.Config(7, 1, 1, head_size=1, ranks=(1, 1, 1, 1))
    params = rwkv7.init(jax.random.key(0), config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_number_of_parameters_of_released_sizes():
    config = rwkv7.Config(65536, 24, 1024, ranks=(64, 64, 32, 128))
    assert rwkv7.num_params(config) == 450_834_432
    unused = 1024 + 2 * 1024 * 32  # v0, v1, v2 of layer 0
    assert rwkv7.num_params(config) - unused == 450_767_872
    sizes = dict(vocab_size=50304, n_layer=12, n_embd=768, ranks=(64, 64, 32, 128))
    c, v, depth = 768, 50304, 12
    want = 2 * v * c + 4 * c + depth * (19 * c + 12 * c * c + 2 * c * (64 + 64 + 32 + 128))
    assert rwkv7.num_params(rwkv7.Config(**sizes)) == want


@pytest.mark.parametrize(
    ("n_embd", "ranks"),
    [
        (32, (32, 32, 32, 32)),
        (768, (64, 64, 32, 128)),
        (1024, (64, 64, 64, 160)),  # 2.5 rounds to 2: halves go to the even number
        (2048, (128, 128, 64, 224)),
        (4096, (160, 160, 96, 320)),
    ],
)
def test_default_ranks(n_embd, ranks):
    assert rwkv7.default_ranks(n_embd) == ranks
    assert rwkv7.Config(10, 1, n_embd, head_size=32).ranks == ranks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(n_embd=48), "n_embd: expected a multiple of head_size 32, got 48"),
        (dict(n_layer=0), "n_layer: expected at least 1, got 0"),
        (dict(dim_ffn=0), "dim_ffn: expected at least 1, got 0"),
        (dict(ranks=(1, 2, 3, 0)), r"ranks: expected at least 1 each, got \(1, 2, 3, 0\)"),
        (dict(dtype="float16"), "dtype: expected one of float32, bfloat16, got float16"),
    ],
)
def test_bad_sizes_are_named(fields, message):
    sizes = dict(vocab_size=10, n_layer=1, n_embd=64, head_size=32)
    with pytest.raises(ValueError, match=message):
        rwkv7.Config(**(sizes | fields))


def test_configurations_hash_and_compare_by_what_they_mean():
    explicit = rwkv7.Config(10, 1, 64, dim_ffn=256, ranks=(32, 32, 32, 32), dtype="bfloat16")
    assert explicit == rwkv7.Config(10, 1, 64)
    assert hash(explicit) == hash(rwkv7.Config(10, 1, 64))


def test_decompositions_stay_single_in_an_ensemble(config):
    # On CPUs, batched ones that run at the same time can wait for each other for ever.
    keys = jax.random.split(jax.random.key(0), 5)
    text = jax.jit(jax.vmap(lambda key: rwkv7.init(key, config))).lower(keys).as_text()
    calls = re.findall(r"@lapack_\w+\(.*\(tensor<([^>]*)>", text)
    assert calls
    assert all(len(re.findall(r"\d+x", shape)) == 2 for shape in calls), calls

"""Every format there and back, and the official and the Hugging Face naming spelled out."""

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import rwkv7
from jaxlab.rwkv7.checkpoints.safetensors import read_safetensors, write_safetensors
from jaxlab.rwkv7.checkpoints.tensors import Tensor

C, V, F, H, N = 32, 40, 56, 2, 16
OFFICIAL = {
    "emb.weight": (V, C),
    "blocks.0.ln0.weight": (C,),
    "blocks.0.ln0.bias": (C,),
    "ln_out.weight": (C,),
    "ln_out.bias": (C,),
    "head.weight": (V, C),
}
LAYER = {
    **{
        f"{norm}.{part}": (C,) for norm in ("ln1", "ln2", "att.ln_x") for part in ("weight", "bias")
    },
    **{f"att.x_{mix}": (1, 1, C) for mix in "rwkvag"},
    **{f"att.{name}": (1, 1, C) for name in ("w0", "a0", "v0", "k_k", "k_a")},
    **{f"att.{name}1": (C, rank) for name, rank in zip("wavg", (4, 5, 6, 7))},
    **{f"att.{name}2": (rank, C) for name, rank in zip("wavg", (4, 5, 6, 7))},
    "att.r_k": (H, N),
    **{f"att.{name}.weight": (C, C) for name in ("receptance", "key", "value", "output")},
    "ffn.x_k": (1, 1, C),
    "ffn.key.weight": (F, C),
    "ffn.value.weight": (C, F),
}


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def without_unused(params):
    """Layer 0's value residual has no place in the Hugging Face layout."""
    att = {
        name: leaf.at[0].set(0) if name in ("v0", "v1", "v2") else leaf
        for name, leaf in params["blocks"]["att"].items()
    }
    return params | {"blocks": params["blocks"] | {"att": att}}


def plain(array):
    array = np.asarray(array)
    return Tensor(array.shape, array.dtype, lambda: array)


def arrays(tensors):
    return {name: np.asarray(tensor.read()) for name, tensor in tensors.items()}


def test_official_names_and_shapes(params, config):
    tensors = rwkv7.to_tensors(params, config)
    want = OFFICIAL | {f"blocks.{i}.{n}": s for i in range(3) for n, s in LAYER.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == want
    assert {name: tensor.read().shape for name, tensor in tensors.items()} == want
    key = tensors["blocks.1.att.key.weight"].read()
    np.testing.assert_array_equal(key, params["blocks"]["att"]["key"][1])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_exact(params, config, tmp_path, suffix, dtype):
    config = dataclasses.replace(config, param_dtype=dtype, dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    path = tmp_path / f"model.{suffix}"
    rwkv7.save(path, params, config)
    loaded, found = rwkv7.load(path)
    assert found == config  # ranks, head size and widths are all unusual
    assert_equal(loaded, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(dtype)}
    first = path.read_bytes()
    rwkv7.save(path, loaded, found)
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == [path.name]


def test_dtypes_on_request_and_half_precision_files(params, config, tmp_path):
    path = tmp_path / "half.safetensors"
    halves = {
        name: plain(array.astype(np.float16))
        for name, array in arrays(rwkv7.to_tensors(params, config)).items()
    }
    write_safetensors(path, halves)
    loaded, found = rwkv7.load(path, dtype="float32")
    assert found.param_dtype == jnp.float32 and found.dtype == jnp.float32
    want = np.asarray(params["head"]).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(loaded["head"], want)
    loaded, found = rwkv7.load(path, param_dtype="bfloat16")
    assert loaded["head"].dtype == found.param_dtype == jnp.bfloat16


@pytest.fixture
def folder(params, config, tmp_path):
    """A Hugging Face folder; its normalisation is 1e-5 times the head size."""
    config = dataclasses.replace(config, ln_x_eps=16e-5)
    rwkv7.save(tmp_path / "hf", params, config)
    return tmp_path / "hf", config


def test_hugging_face_folder(params, folder):
    path, config = folder
    loaded, found = rwkv7.load(path, dtype="float32")
    assert found == config
    assert_equal(loaded, without_unused(params))
    described = json.loads((path / "config.json").read_text())
    assert described["hidden_size"] == C and described["intermediate_size"] == F
    assert described["head_dim"] == N and described["num_hidden_layers"] == 3
    ranks = [described[f"{name}_low_rank_dim"] for name in ("decay", "a", "v", "gate")]
    assert ranks == [4, 5, 6, 7] and described["norm_first"]
    single, _ = rwkv7.load(path / "model.safetensors", dtype="float32")
    assert_equal(single, loaded)


def test_hugging_face_names_and_layout(params, folder):
    att, ffn = (jax.tree.map(lambda x: x[1], params["blocks"][part]) for part in ("att", "ffn"))
    top = {
        "model.embeddings.weight": params["emb"],
        "model.layers.0.pre_norm.weight": params["ln0"]["weight"],
        "model.layers.0.pre_norm.bias": params["ln0"]["bias"],
        "model.norm.weight": params["ln_out"]["weight"],
        "model.norm.bias": params["ln_out"]["bias"],
        "lm_head.weight": params["head"],
    }
    layer = {
        "attn_norm.weight": params["blocks"]["ln1"]["weight"][1],
        "attn_norm.bias": params["blocks"]["ln1"]["bias"][1],
        "ffn_norm.weight": params["blocks"]["ln2"]["weight"][1],
        "ffn_norm.bias": params["blocks"]["ln2"]["bias"][1],
        "attn.g_norm.weight": att["ln_x"]["weight"],
        "attn.g_norm.bias": att["ln_x"]["bias"],
        "attn.r_proj.weight": att["receptance"],
        "attn.k_proj.weight": att["key"],
        "attn.v_proj.weight": att["value"],
        "attn.o_proj.weight": att["output"],
        "attn.k_k": att["k_k"],
        "attn.k_a": att["k_a"],
        "attn.r_k": att["r_k"],
        "ffn.x_k": ffn["x_k"],
        "ffn.key.weight": ffn["key"],
        "ffn.value.weight": ffn["value"],
        "attn.g_lora.lora.0.weight": att["g1"].T,
        "attn.g_lora.lora.2.weight": att["g2"].T,
        **{f"attn.x_{mix}": att[f"x_{mix}"][None, None] for mix in "rwkvag"},
    }
    for kind in "wav":
        layer |= {
            f"attn.{kind}_lora.lora.0.weight": att[f"{kind}1"].T,
            f"attn.{kind}_lora.lora.2.weight": att[f"{kind}2"].T,
            f"attn.{kind}_lora.lora.2.bias": att[f"{kind}0"],
        }
    found = arrays(read_safetensors(folder[0] / "model.safetensors"))
    names = set(top) | {f"model.layers.{i}.{n}" for i in range(3) for n in layer}
    assert set(found) == {n for n in names if not n.startswith("model.layers.0.attn.v_lora")}
    for name, value in (top | {f"model.layers.1.{n}": x for n, x in layer.items()}).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert found[name].shape == value.shape, name


def test_older_stacked_layout_and_shards(params, folder):
    path, _ = folder
    tensors = read_safetensors(path / "model.safetensors")
    old = {name: tensor for name, tensor in tensors.items() if ".attn.x_" not in name}
    for layer in range(3):
        prefix = f"model.layers.{layer}.attn.x_"
        stacked = [
            tensors[prefix + mix].read().reshape(C) for mix in ("r", "w", "k", "v", "a", "g")
        ]
        old[f"{prefix}x"] = plain(np.stack(stacked))
    names = sorted(old)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-{number:05}-of-00002.safetensors"
        write_safetensors(path / shard, {name: old[name] for name in part})
        index |= dict.fromkeys(part, shard)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    loaded, _ = rwkv7.load(path, dtype="float32")
    assert_equal(loaded, without_unused(params))


def test_variants_of_official_files(params, config):
    """Squeezed vectors, DeepSpeed's prefix, any order, and layer 0's value residual absent."""
    tensors = rwkv7.to_tensors(params, config)
    squeezed = {
        f"_forward_module.{name}": plain(np.squeeze(array))
        for name, array in reversed(arrays(tensors).items())
        if not name.startswith("blocks.0.att.v") or name.endswith("weight")
    }
    loaded, found = rwkv7.from_tensors(squeezed, dtype="float32")
    assert found == config
    assert_equal(loaded, without_unused(params))
    other = dict(tensors) | {"blocks.0.att.v1": plain(np.ones((3, 3), np.float32))}
    loaded, _ = rwkv7.from_tensors(other, dtype="float32")
    np.testing.assert_array_equal(loaded["blocks"]["att"]["v1"][0], 0)


def test_one_layer(make_config, make_params):
    config = make_config(n_layer=1)
    params = make_params(3, config)
    tensors = rwkv7.to_tensors(params, config)
    loaded, found = rwkv7.from_tensors(tensors, dtype="float32")
    assert found == config
    assert_equal(loaded, params)
    for name in ("v0", "v1", "v2"):
        del tensors[f"blocks.0.att.{name}"]
    assert rwkv7.from_tensors(tensors)[1].ranks == (4, 5, 1, 7)


def test_learned_state_of_a_tuned_file(params, config, tmp_path):
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, H, N, N)).astype(np.float32)
    path = tmp_path / "tuned.safetensors"
    tuned = {f"blocks.{i}.att.time_state": plain(states[i]) for i in range(3)}
    write_safetensors(path, rwkv7.to_tensors(params, config) | tuned)
    assert_equal(rwkv7.load(path, dtype="float32")[0], params)
    state = rwkv7.load_learned_state(path, config)
    np.testing.assert_array_equal(state.wkv, states)
    batched = rwkv7.initial_state(config, 2, state)
    np.testing.assert_array_equal(batched.wkv[:, 1], states)
    write_safetensors(path, {name: tuned[name] for name in list(tuned)[:2]})
    with pytest.raises(rwkv7.CheckpointError, match=r"blocks.2.att.time_state: expected .*none"):
        rwkv7.load_learned_state(path, config)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(params, config, tmp_path):
    path = tmp_path / "model.safetensors"
    rwkv7.save(path, params, config)
    before = path.read_bytes()

    def fail():
        raise OSError("disk full")

    for write in (write_safetensors, rwkv7.checkpoints.pth.write_pth):
        with pytest.raises(OSError, match="disk full"):
            write(path, {"a": Tensor((2,), np.dtype(np.float32), fail)})
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [path.name]


def test_what_cannot_be_saved_is_said(params, config, tmp_path):
    cases = [
        (dict(format="onnx"), params, config, "format: expected one of pth, .* got 'onnx'"),
        (dict(format="fla"), params, config, "config.ln_x_eps: flash-linear-attention .*0.00016"),
        ({}, params, dataclasses.replace(config, ln_x_eps=1e-5), "config.ln_x_eps: official"),
        ({}, params, dataclasses.replace(config, n_layer=2), "params: expected 2 layers, got 3"),
        (
            {},
            params,
            dataclasses.replace(config, dim_ffn=57),
            r"ffn.key.weight: expected \(57, 32\)",
        ),
    ]
    for options, tree, sizes, message in cases:
        with pytest.raises(ValueError, match=message):
            rwkv7.save(tmp_path / "model.pth", tree, sizes, **options)
    assert os.listdir(tmp_path) == []

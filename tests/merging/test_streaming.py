"""Merges of checkpoints on disk: the same numbers as in memory, within the budget, or a refusal."""

import json
import math
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxlab.merging import METHODS
from jaxlab.merging.randomness import leaf_key
from jaxlab.merging.streaming import (
    Checkpoint,
    MergeError,
    StreamOptions,
    blocks,
    make_plan,
    merge_checkpoints,
    merge_trees,
    parse_recipe,
    writer,
)

SHAPES = {
    "model.embed_tokens.weight": (40, 24),
    "model.layers.0.mlp.weight": (24, 36),
    "model.layers.0.norm.weight": (24,),
    "model.layers.1.mlp.weight": (24, 36),
    "model.layers.1.norm.weight": (24,),
    "model.norm.weight": (24,),
    "lm_head.weight": (40, 24),
}


def tensors(seed, dtype=np.float32, shapes=SHAPES, scale=0.1):
    base = np.random.default_rng(99)
    own = np.random.default_rng(seed)
    return {
        name: (base.normal(size=shape) + scale * own.normal(size=shape)).astype(dtype)
        for name, shape in shapes.items()
    }


def save(folder, arrays, config=True, shards=1):
    """A checkpoint, written without the code under test."""
    codes = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "float16": "F16"}
    codes["float64"] = "F64"
    folder.mkdir(parents=True, exist_ok=True)
    names = list(arrays)
    weight_map = {}
    for i in range(shards):
        mine = names[i::shards]
        file = (
            "model.safetensors" if shards == 1 else f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        )
        header, position = {"__metadata__": {"format": "pt"}}, 0
        for name in mine:
            x = arrays[name]
            header[name] = {
                "dtype": codes[x.dtype.name],
                "shape": list(x.shape),
                "data_offsets": [position, position + x.nbytes],
            }
            position += x.nbytes
            weight_map[name] = file
        text = json.dumps(header).encode()
        data = b"".join(arrays[name].tobytes() for name in mine)
        (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config:
        values = {"num_hidden_layers": 2, "torch_dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(values))
    return folder


def load(folder):
    """All tensors of a checkpoint, by the reference reader."""
    safetensors = pytest.importorskip("safetensors.numpy")
    merged = {}
    for path in sorted(folder.glob("*.safetensors")):
        merged |= safetensors.load_file(path)
    return merged


@pytest.fixture
def models(tmp_path):
    for i, name in enumerate(["base", "a", "b", "c"]):
        save(tmp_path / name, tensors(i))
    return {name: tmp_path / name for name in ["base", "a", "b", "c"]}


def recipe(method, names="abc", base=True, parameters="{}", extra=""):
    listed = "\n".join(f"  - model: {name}" for name in names)
    first = "base_model: base\n" if base else ""
    return parse_recipe(
        f"merge_method: {method}\n{first}models:\n{listed}\nparameters: {parameters}\n{extra}"
    )


METHOD_CASES = {
    "linear": ("{weight: 0.5}", "abc", False, {"weight": 0.5}),
    "slerp": ("{t: 0.3}", "a", True, {"t": 0.3}),
    "nuslerp": ("{weight: 0.5}", "ab", True, {"weight": 0.5}),
    "nuslerp rows": (
        "{weight: 0.5, nuslerp_flatten: false}",
        "ab",
        True,
        {"weight": 0.5, "axis": -1},
    ),
    "nuslerp columns": (
        "{weight: 0.5, nuslerp_flatten: false, nuslerp_row_wise: true}",
        "ab",
        True,
        {"weight": 0.5, "axis": 0},
    ),
    "multislerp": ("{weight: 0.5}", "abc", True, {"weight": 0.5}),
    "karcher": ("{max_iter: 7}", "abc", False, {"steps": 7}),
    "task_arithmetic": ("{weight: 0.5, lambda: 0.7}", "abc", True, {"weight": 0.5, "lam": 0.7}),
    "ties": ("{weight: 0.5, density: 0.3}", "abc", True, {"weight": 0.5, "density": 0.3}),
    "dare_ties": ("{weight: 0.5, density: 0.3}", "abc", True, {"weight": 0.5, "density": 0.3}),
    "della": (
        "{weight: 0.5, density: 0.3, epsilon: 0.1}",
        "abc",
        True,
        {"weight": 0.5, "density": 0.3, "epsilon": 0.1},
    ),
    "breadcrumbs": (
        "{weight: 0.5, density: 0.3, gamma: 0.05}",
        "abc",
        True,
        {"weight": 0.5, "keep": 0.3, "drop_top": 0.05},
    ),
    "breadcrumbs rows": (
        "{weight: 0.5, density: 0.3, gamma: 0.05, axis: -1}",
        "abc",
        True,
        {"weight": 0.5, "keep": 0.3, "drop_top": 0.05, "axis": -1},
    ),
    "breadcrumbs_ties rows": (
        "{weight: 0.5, density: 0.3, axis: -1}",
        "abc",
        True,
        {"weight": 0.5, "keep": 0.3, "axis": -1},
    ),
    "sce": ("{select_topk: 0.3}", "abc", True, {"select": 0.3}),
    "ram": ("{}", "abc", True, {}),
    "ramplus_tl": ("{epsilon: 0.05}", "abc", True, {"epsilon": 0.05}),
    "model_stock": ("{}", "abc", True, {}),
    "model_stock rows": ("{filter_wise: true}", "abc", True, {"filter_wise": True}),
    "nearswap": ("{t: 0.02}", "a", True, {"t": 0.02}),
    "arcee_fusion": ("{}", "a", True, {}),
    "passthrough": ("{scale: 2.0}", "a", False, {"scale": 2.0}),
    "iso_c": ("{alpha: 0.7}", "abc", True, {"alpha": 0.7}),
}


@pytest.mark.parametrize("block", [blocks.BLOCK, 256], ids=["one block", "blocks"])
@pytest.mark.parametrize("case", METHOD_CASES)
def test_a_streamed_merge_is_the_operator(case, block, monkeypatch):
    parameters, names, base, given = METHOD_CASES[case]
    method = case.split()[0]
    if METHODS[method].random and block == 256:
        pytest.skip("random numbers come in blocks of their own length")
    monkeypatch.setattr(blocks, "BLOCK", block)  # the last of several blocks is padded
    shape = (30, 33)
    arrays = {m: tensors(i, shapes={"w": shape}) for i, m in enumerate(["base", "a", "b", "c"])}
    merged = merge_trees(recipe(method, names, base, parameters), arrays)
    extra = {"key": leaf_key(jax.random.key(0), "w")} if METHODS[method].random else {}
    run = jax.jit(lambda b, m: METHODS[method](b, m, **given, **extra))
    stacked = np.stack([arrays[m]["w"] for m in names])
    expected = run(arrays["base"]["w"] if base else None, stacked)
    np.testing.assert_allclose(merged["w"], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", METHOD_CASES)
def test_a_streamed_scalar_is_the_operator(case):
    parameters, names, base, given = METHOD_CASES[case]
    method = case.split()[0]
    arrays = {m: {"w": np.float32(4 + i)} for i, m in enumerate(["base", "a", "b", "c"])}
    merged = merge_trees(recipe(method, names, base, parameters), arrays)["w"]
    extra = {"key": leaf_key(jax.random.key(0), "w")} if METHODS[method].random else {}
    stacked = np.stack([arrays[m]["w"] for m in names])
    expected = METHODS[method](arrays["base"]["w"] if base else None, stacked, **given, **extra)
    assert merged.shape == ()
    np.testing.assert_allclose(merged, expected, rtol=2e-5)


@pytest.mark.parametrize("method", ["slerp", "ties", "sce", "breadcrumbs", "arcee_fusion"])
def test_the_bytes_do_not_depend_on_memory_or_on_being_on_disk(
    tmp_path, models, method, monkeypatch
):
    monkeypatch.setattr(blocks, "BLOCK", 256)
    parameters, names, base, _ = METHOD_CASES[method]
    made = recipe(method, names, base, parameters)
    need = blocks.working_memory(4, 4, 256)
    tight, wide = (StreamOptions(memory=m, shard_size=10_000) for m in (need, 1 << 30))
    merge_checkpoints(made, tmp_path / "tight", tight, models=models)
    merge_checkpoints(made, tmp_path / "wide", wide, models=models)
    files = sorted(p.name for p in (tmp_path / "wide").iterdir())
    assert "model-00001-of-00002.safetensors" in files
    for file in files:
        assert (tmp_path / "wide" / file).read_bytes() == (tmp_path / "tight" / file).read_bytes()
    trees = {name: tensors(i) for i, name in enumerate(["base", "a", "b", "c"])}
    in_memory = merge_trees(made, trees)
    on_disk = load(tmp_path / "wide")
    assert all(np.array_equal(in_memory[name], on_disk[name]) for name in SHAPES)


@pytest.mark.slow
def test_random_blocks_of_a_streamed_leaf_are_those_of_the_array():
    shape = (
        1030,
        1025,
    )  # a little more than one block of random numbers, rows that do not divide it
    arrays = {m: tensors(i, shapes={"w": shape}) for i, m in enumerate(["base", "a"])}
    for method, given in (("dare_linear", {}), ("della_linear", {"epsilon": 0.1})):
        made = recipe(method, "a", True, f"{json.dumps({'weight': 1.0, 'density': 0.4} | given)}")
        streamed = merge_trees(made, arrays)["w"]
        expected = METHODS[method](
            jnp.asarray(arrays["base"]["w"]),
            jnp.asarray(arrays["a"]["w"])[None],
            weight=1.0,
            density=0.4,
            key=leaf_key(jax.random.key(0), "w"),
            **given,
        )
        np.testing.assert_allclose(streamed, expected, rtol=1e-4, atol=1e-5)


def test_low_precision_in_and_out_and_the_files_beside(tmp_path):
    arrays = {m: tensors(i, ml_dtypes.bfloat16) for i, m in enumerate(["base", "a", "b"])}
    for name, values in arrays.items():
        save(tmp_path / name, values, shards=2)
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    models = {name: str(tmp_path / name) for name in arrays}  # paths may be text
    made = recipe("task_arithmetic", "ab", True, "{weight: 0.5}", "dtype: float16")
    merge_checkpoints(made, str(tmp_path / "out"), models=models)
    merged = load(tmp_path / "out")
    for name, values in merged.items():
        b, x, y = (arrays[m][name].astype(np.float32) for m in ("base", "a", "b"))
        assert values.dtype == np.float16
        np.testing.assert_allclose(values, b + 0.5 * (x - b) + 0.5 * (y - b), rtol=1e-3, atol=1e-3)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"num_hidden_layers": 2, "torch_dtype": "float16"}
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        "mergekit_config.yml",
        "README.md",
    }
    assert (tmp_path / "out" / "mergekit_config.yml").read_text() == made.text


def test_integers_are_copied_where_equal_and_refused_otherwise(tmp_path):
    extra = {"model.position_ids": np.arange(5)}
    for i, name in enumerate(["a", "b"]):
        save(tmp_path / name, tensors(i) | extra)
    models = {name: tmp_path / name for name in "ab"}
    made = recipe("linear", "ab", False, "{weight: 1.0}")
    merge_checkpoints(made, tmp_path / "out", models=models)
    assert np.array_equal(load(tmp_path / "out")["model.position_ids"], np.arange(5))
    save(tmp_path / "b", tensors(1) | {"model.position_ids": np.arange(1, 6)})
    with pytest.raises(MergeError, match=r"model\.position_ids: integers that differ"):
        merge_checkpoints(made, tmp_path / "other", models=models)
    assert not (tmp_path / "other").exists()


def test_slices_renumber_layers_and_take_the_ends_from_the_right_slices(tmp_path, models):
    made = parse_recipe(
        "merge_method: passthrough\n"
        "slices:\n"
        "  - sources: [{model: a, layer_range: [1, 2]}]\n"
        "  - sources: [{model: b, layer_range: [0, 2], parameters: {scale: 3.0}}]\n"
    )
    merge_checkpoints(made, tmp_path / "out", models=models)
    merged, a, b = load(tmp_path / "out"), tensors(1), tensors(2)
    assert np.array_equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert np.array_equal(merged["lm_head.weight"], 3 * b["lm_head.weight"])
    for layer, source in enumerate([a, b, b]):
        old = f"model.layers.{1 if layer == 0 else layer - 1}.mlp.weight"
        scale = 1 if layer == 0 else 3
        assert np.array_equal(merged[f"model.layers.{layer}.mlp.weight"], scale * source[old])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3


def test_an_interrupted_merge_goes_on_to_the_same_bytes(tmp_path, models):
    made = recipe("ties", "abc", True, "{weight: 0.5, density: 0.3}")
    merge_checkpoints(made, tmp_path / "whole", models=models)

    def stop_after(count):
        done = []

        def report(written, total, tensor):
            done.append(tensor)
            if len(done) == count:
                raise KeyboardInterrupt

        return report

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(made, out, models=models, report=stop_after(3))
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    with pytest.raises(MergeError, match="unfinished merge; go on with --resume"):
        merge_checkpoints(made, out, models=models)
    resumed = StreamOptions(resume=True)
    with pytest.raises(MergeError, match="another recipe or other inputs"):
        other = recipe("ties", "abc", True, "{weight: 0.6, density: 0.3}")
        merge_checkpoints(other, out, resumed, models=models)
    calls = []
    merge_checkpoints(made, out, resumed, models=models, report=lambda *a: calls.append(a))
    assert len(calls) == len(SHAPES) and calls[-1][0] == calls[-1][1]
    assert not (tmp_path / "out.partial").exists()
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()
    with pytest.raises(MergeError, match="exists already"):
        merge_checkpoints(made, out, models=models)


def test_another_dtype_of_the_same_width_is_another_merge(tmp_path, models):
    def stop(written, total, tensor):
        raise KeyboardInterrupt

    made = recipe("linear", "ab", False, "{weight: 1.0}")
    half, other = StreamOptions(dtype="F16"), StreamOptions(dtype="BF16", resume=True)
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(made, tmp_path / "out", half, models=models, report=stop)
    with pytest.raises(MergeError, match="another recipe or other inputs"):
        merge_checkpoints(made, tmp_path / "out", other, models=models)


def test_double_precision_is_kept_or_refused(tmp_path):
    values = {"w": 1 + 1e-10 * np.random.default_rng(0).normal(size=(4, 4))}
    models = {"a": save(tmp_path / "a", values)}
    made = recipe("passthrough", "a", False)
    with pytest.raises(MergeError, match=r"w: a has F64, .*; set JAX_ENABLE_X64=1"):
        merge_checkpoints(made, tmp_path / "out", models=models)
    assert not list(tmp_path.glob("out*"))
    with jax.enable_x64(True):
        merge_checkpoints(made, tmp_path / "out", models=models)
    assert np.array_equal(load(tmp_path / "out")["w"], values["w"])


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_json(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(data))


def huge_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + path.read_bytes()[8:])


def wrong_shape(folder):
    save(folder, tensors(1) | {"lm_head.weight": np.zeros((41, 24), np.float32)})


def missing(folder):
    kept = {k: v for k, v in tensors(1).items() if k != "model.layers.1.norm.weight"}
    save(folder, kept)


def additional(folder):
    save(folder, tensors(1) | {"extra.weight": np.zeros(3, np.float32)})


def other_depth(folder):
    deeper = {"model.layers.2.mlp.weight": (24, 36), "model.layers.2.norm.weight": (24,)}
    save(folder, tensors(1, shapes=SHAPES | deeper))


def empty(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncated, "truncated or overlong: expected"),
        (no_json, "its header is not valid JSON"),
        (huge_header, "truncated, or not a .safetensors file"),
        (wrong_shape, r"lm_head.weight: base has shape \(40, 24\), a has \(41, 24\); .*vocab"),
        (missing, "a has no tensor for model.layers.1.norm.weight"),
        (additional, "base has no tensor for extra.weight"),
        (other_depth, "different numbers of layers"),
        (empty, "holds no safetensors file"),
    ],
)
def test_broken_inputs_are_refused_and_nothing_is_written(tmp_path, models, damage, sentence):
    damage(tmp_path / "a")
    with pytest.raises(MergeError, match=sentence):
        merge_checkpoints(
            recipe("task_arithmetic", "a", True, "{weight: 1.0}"), tmp_path / "out", models=models
        )
    assert not list(tmp_path.glob("out*"))


def test_a_shard_that_is_cut_short_while_it_is_read(tmp_path, models):
    checkpoint = Checkpoint(models["a"])
    truncated(models["a"])
    with checkpoint, pytest.raises(MergeError, match=r"was cut short while lm_head\.weight"):
        checkpoint.source("lm_head.weight").read_into(np.zeros(960, np.float32), 0)


def test_a_missing_shard_is_named(tmp_path):
    save(tmp_path / "a", tensors(1), shards=2)
    (tmp_path / "a" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MergeError, match=r"the shard model-00002-of-00002\.safetensors is missing"):
        Checkpoint(tmp_path / "a")


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite"])
def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, models, call, monkeypatch):
    made = recipe("task_arithmetic", "a", True, "{weight: 1.0}")
    real, calls = getattr(os, call), []

    def full(*args):
        calls.append(args)
        if len(calls) > 4 or call == "posix_fallocate":
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(writer.os, call, full)
    with pytest.raises(MergeError, match="no space left"):
        merge_checkpoints(made, tmp_path / "out", models=models)
    assert not (tmp_path / "out").exists()
    if call == "posix_fallocate":
        assert not (tmp_path / "out.partial").exists()
        return
    monkeypatch.setattr(writer.os, call, real)  # room was made: it goes on
    merge_checkpoints(made, tmp_path / "out", StreamOptions(resume=True), models=models)
    merge_checkpoints(made, tmp_path / "again", models=models)
    again, out = (tmp_path / f / "model.safetensors" for f in ("again", "out"))
    assert again.read_bytes() == out.read_bytes()


def test_too_little_memory_is_refused_by_the_tensor(tmp_path, models):
    with pytest.raises(MergeError, match=r"weight: needs 30 MB of memory"):
        merge_checkpoints(
            recipe("slerp", "a", True, "{t: 0.5}"),
            tmp_path / "out",
            StreamOptions(memory=1000),
            models=models,
        )


def test_plans_do_not_read_weights(tmp_path):
    for name in ("base", "a"):
        save(tmp_path / name, tensors(0))
    tables = {name: Checkpoint(tmp_path / name).tensors for name in ("base", "a")}
    plan = make_plan(recipe("slerp", "a", True, "{t: 0.5}"), tables)
    assert [tensor.name for tensor in plan.tensors][:2] == [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.weight",
    ]
    assert plan.layers == 2
    assert sum(math.prod(tensor.shape) for tensor in plan.tensors) == sum(
        math.prod(shape) for shape in SHAPES.values()
    )


def test_tensors_whose_elements_cannot_be_counted_are_refused():
    huge = SimpleNamespace(shape=(2**16, 2**15), code="F32")
    options = {"layout": "flat", "random": False, "dtype": np.float32, "memory": 10**9}
    with pytest.raises(MergeError, match=r"more elements than the 2\^31 - 1"):
        blocks.StreamLeaf(None, [huge], None, **options)

"""Recipes: what they mean tensor by tensor, and what is refused by which words."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxlab.merging.streaming import MergeError, make_plan, parse_recipe
from jaxlab.merging.streaming.layers import arrange, is_embedding, split
from jaxlab.merging.streaming.settings import evaluate, resolve

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up", "self_attn.q")),
    "model.norm.weight",
]


def table(shape=(4, 4), code="F32", names=NAMES):
    return {name: SimpleNamespace(shape=shape, code=code) for name in names}


def values(text, models=("base", "a", "b"), tables=None):
    plan = make_plan(parse_recipe(text), tables or {model: table() for model in models})
    return {tensor.name: tensor.values for tensor in plan.tensors}


def test_gradients_run_over_the_layers_and_start_outside_of_them():
    got = values(
        "merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\n"
        "parameters: {t: [0.0, 0.4, 1.0]}"
    )
    layers = [float(got[f"model.layers.{i}.mlp.up.weight"]["t"]) for i in range(5)]
    np.testing.assert_allclose(layers, [0.0, 0.2, 0.4, 0.7, 1.0], atol=1e-12)
    assert got["model.embed_tokens.weight"]["t"] == got["model.norm.weight"]["t"] == 0.0


def test_filters_match_substrings_first_come_first_served():
    got = values(
        "merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\n"
        "parameters:\n  t:\n"
        "    - {filter: self_attn, value: [0.0, 1.0]}\n"
        "    - {filter: mlp, value: 0.3}\n"
        "    - {value: 0.5}\n"
    )
    assert got["model.layers.1.self_attn.q.weight"]["t"] == 0.25
    assert got["model.layers.4.mlp.up.weight"]["t"] == 0.3
    assert got["model.norm.weight"]["t"] == 0.5


def test_inner_settings_win_and_unmatched_filters_fall_through():
    got = values(
        "merge_method: ties\nbase_model: base\n"
        "models:\n"
        "  - {model: a, parameters: {weight: 0.1, density: [{filter: mlp, value: 0.9}]}}\n"
        "  - {model: b}\n"
        "parameters: {weight: 0.7, density: 0.4, lambda: 2.0, normalize: false}\n"
    )
    mlp, attention = (got[f"model.layers.0.{part}.weight"] for part in ("mlp.up", "self_attn.q"))
    assert mlp["weight"].tolist() == [0.1, 0.7] and mlp["density"].tolist() == [0.9, 0.4]
    assert attention["density"].tolist() == [0.4, 0.4]
    assert mlp["lam"] == 2.0 and mlp["normalize"] is False


def test_each_slice_has_its_own_gradient_and_settings():
    plan = make_plan(
        parse_recipe(
            "merge_method: linear\n"
            "slices:\n"
            "  - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [2, 5]}]\n"
            "    parameters: {weight: [1.0, 3.0]}\n"
            "  - sources: [{model: b, layer_range: [4, 5]}, {model: a, layer_range: [4, 5]}]\n"
            "parameters: {weight: [5.0, 6.0]}\n"
        ),
        {"a": table(), "b": table()},
    )
    by_name = {tensor.name: tensor for tensor in plan.tensors}
    weights = [
        by_name[f"model.layers.{i}.mlp.up.weight"].values["weight"].tolist() for i in range(4)
    ]
    assert weights == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [6.0, 6.0]]  # one layer: its end
    second = by_name["model.layers.1.mlp.up.weight"]
    assert second.models == (
        ("a", "model.layers.1.mlp.up.weight"),
        ("b", "model.layers.3.mlp.up.weight"),
    )
    assert by_name["model.embed_tokens.weight"].values["weight"].tolist() == [1.0, 1.0]
    assert by_name["model.norm.weight"].values["weight"].tolist() == [5.0, 5.0]
    assert [source for source, _ in by_name["model.norm.weight"].models] == ["b", "a"]
    assert plan.layers == 4


def test_names_of_mergekit_and_their_meaning_here():
    crumbs = values(
        "merge_method: breadcrumbs\nbase_model: base\nmodels: [{model: a}]\n"
        "parameters: {weight: 1, density: 0.3, gamma: 0.02}"
    )["model.norm.weight"]
    assert (crumbs["keep"].item(), crumbs["drop_top"].item()) == (0.3, 0.02)
    for text, axis in [
        ("", None),
        (", nuslerp_flatten: false", -1),
        (", nuslerp_flatten: false, nuslerp_row_wise: true", 0),
        (", nuslerp_row_wise: true", None),
    ]:
        got = values(
            "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\n"
            f"parameters: {{weight: 1e-1{text}}}",
            ("a", "b"),
        )["model.norm.weight"]
        assert got.get("axis") == axis and got["weight"].tolist() == [0.1, 0.1]


def test_one_module_is_a_model():
    plain = values("merge_method: karcher\nmodels: [{model: a}, {model: b}]", ("a", "b"))
    module = values(
        "merge_method: karcher\n"
        "modules: {default: {models: [{model: a}, {model: b}], parameters: {max_iter: 3}}}",
        ("a", "b"),
    )
    assert set(plain) == set(module) and module["model.norm.weight"]["steps"] == 3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "expected keys such as merge_method"),
        ("a: [", "no readable YAML"),
        ("merge_method: tie\nmodels: [{model: a}]", "unknown merge_method 'tie'; did you mean"),
        (
            "merge_method: [tie]\nmodels: [{model: a}]",
            "unknown merge_method .'tie'.; known",
        ),
        ("merge_method: linear", "exactly one of models, slices and modules"),
        (
            "merge_method: linear\nmodels: [{model: a}]\nslices: [{sources: []}]",
            "exactly one of models, slices and modules",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\ntokenizer_source: union",
            "tokenizer_source: merging of tokenizers is not supported",
        ),
        (
            "merge_method: linear\nmodels: [{model: a}]\nchat_template: auto",
            "chat_template: setting a chat template is not supported",
        ),
        (
            "merge_method: linear\nmodel: [{model: a}]",
            "unknown key in a recipe 'model'; did you mean 'models'?",
        ),
        (
            "merge_method: linear\nmodels: [{model: a, weight: 1.0}]",
            "unknown key in an entry of models 'weight'",
        ),
        ("merge_method: linear\nmodels: [{model: a+b}]", "a LoRA adapter, which is not supported"),
        ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "a is listed twice"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: int8", "dtype: expected one of"),
        ("merge_method: linear\nmodels: [{model: a}]\ndtype: [float16]", "dtype: expected one of"),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 1]}]}]",
            r"layer_range: expected \[first, last \+ 1\]",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}, "
            "{model: b, layer_range: [0, 2]}]}]",
            r"sources of one slice have \[1, 2\] layers",
        ),
        (
            "merge_method: linear\nmodules: {x: {models: [{model: a}]}, y: {models: [{model: a}]}}",
            "more than one module is not supported",
        ),
    ],
)
def test_recipes_that_are_refused(text, sentence):
    with pytest.raises(MergeError, match=sentence):
        parse_recipe(text)


HEAD = "base_model: base\nmodels: [{model: a}]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("merge_method: slerp\n" + HEAD, "model.embed_tokens.weight: parameter t of slerp is miss"),
        ("merge_method: ties\n" + HEAD, "parameter weight of ties is missing for a"),
        (
            "merge_method: linear\n" + HEAD + "parameters: {density: 0.5}",
            "linear has no 'density'; known: weight, normalize",
        ),
        (
            "merge_method: ties\n" + HEAD + "parameters: {weight: heavy}",
            "weight is a number, got 'heavy'",
        ),
        (
            "merge_method: ties\n" + HEAD + "parameters: {weight: 1, normalize: 1}",
            "normalize is true or false, got 1",
        ),
        (
            "merge_method: ties\n" + HEAD + "parameters: {weight: 1, rescale: true}",
            "rescale is not supported for ties",
        ),
        ("merge_method: ties\nmodels: [{model: a}]", "ties: expected a base model, got none"),
        (
            "merge_method: slerp\nbase_model: base\nmodels: [{model: a}, {model: b}]",
            "slerp: expected 1 models besides the base, got 2",
        ),
        (
            "merge_method: model_stock\n" + HEAD,
            "expected at least 2 models besides the base, got 1",
        ),
        (
            "merge_method: della\n" + HEAD + "parameters: {weight: 1, density: 0.1}",
            r"epsilon: expected density - epsilon and density \+ epsilon in \(0, 1\)",
        ),
        (
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [3, 9]}]}]",
            "a has 5 layers, but layer_range ends at 9",
        ),
    ],
)
def test_merges_that_are_refused(text, sentence):
    recipe = parse_recipe(text)
    with pytest.raises(MergeError, match=sentence):
        if "della" in text:
            from jaxlab.merging.streaming import merge_trees

            tree = {"w": np.ones((3, 4), np.float32)}
            merge_trees(recipe, {"base": tree, "a": tree})
        make_plan(recipe, {model: table() for model in recipe.models})


def test_settings():
    assert evaluate([1, 2, 4], "x", 0.75) == 3.0
    assert evaluate([7], "x", 1.0) == 7.0
    assert evaluate([True, False], "x", 0.4) is True and evaluate([True, False], "x", 1.0) is False
    assert evaluate([{"filter": "a", "value": 1}], "b", 0.0) is None
    assert evaluate({"filter": "*", "value": [0, 2]}, "b", 0.5) == 1.0
    assert resolve("w", [None, {"w": [{"filter": "q", "value": 1}]}, {"w": 2}], "mlp", 0) == 2
    with pytest.raises(MergeError, match="a filter needs a value"):
        evaluate([{"filter": "a"}], "a", 0.0)


def test_names_of_layers():
    assert split("model.layers.12.mlp.up.weight").at(3) == "model.layers.3.mlp.up.weight"
    assert split("blocks/0/ln0/scale") == ("blocks/", 0, "/ln0/scale")
    assert split("transformer.h.4.attn.bias").stack == "transformer.h."
    assert split("model.embed_tokens.weight") is None and split("layers_norm.1.weight") is None
    assert [is_embedding(n) for n in ("emb.weight", "transformer.wte.weight", "embed/kernel")] == [
        True
    ] * 3
    assert not is_embedding("model.norm.weight") and not is_embedding("lm_head.weight")
    with pytest.raises(MergeError, match="layer 1 has no tensors"):
        arrange(["layers.0.w", "layers.2.w"], "m")

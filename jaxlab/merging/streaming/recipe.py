"""Recipes: mergekit's YAML, read into plain data; what is not supported is refused by name."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlab.merging.registry import METHODS
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.settings import Settings

KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "name",
)
NOT_SUPPORTED = {
    "tokenizer_source": "merging of tokenizers",
    "tokenizer": "merging of tokenizers",
    "chat_template": "setting a chat template",
    "residual_weight": "scaling of the residual stream",
}
FLOAT_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


@dataclass(frozen=True)
class SourceSlice:
    """Consecutive layers of one model; all of them if there is no range."""

    model: str
    layers: tuple[int, int] | None
    parameters: Settings = None


@dataclass(frozen=True)
class OutputSlice:
    """Consecutive layers of the merged model, made of as many layers of each source."""

    sources: tuple[SourceSlice, ...]
    base: str | None
    parameters: Settings = None


@dataclass(frozen=True)
class Recipe:
    """What to merge and how.

    Args:
        method: name of an operator.
        slices: the merged model from its first layer to its last.
        parameters: settings from the innermost scope outwards that hold for all slices.
        dtype: output dtype as safetensors spells it, or None for that of the inputs.
        text: the recipe as it was written.
    """

    method: str
    slices: tuple[OutputSlice, ...]
    parameters: tuple[Settings, ...]
    dtype: str | None
    text: str

    @property
    def models(self) -> tuple[str, ...]:
        """Every model, in the order of appearance."""
        names: dict[str, None] = {}
        for piece in self.slices:
            names.update((source.model, None) for source in piece.sources)
        return tuple(names)


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a file.

    Args:
        path: a YAML file.

    Returns:
        The recipe.

    Raises:
        MergeError: naming the key that is wrong or not supported.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{path} cannot be read: {error}") from error
    try:
        return parse_recipe(text)
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from error


def parse_recipe(text: str) -> Recipe:
    """Reads a recipe from YAML text.

    Args:
        text: the recipe.

    Returns:
        The recipe.

    Raises:
        MergeError: naming the key that is wrong or not supported.
    """
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MergeError(f"no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise MergeError(f"expected keys such as merge_method and models, got {data!r}")
    _check_keys(data, KEYS, "a recipe")
    method = data.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        raise MergeError(_unknown("merge_method", method, METHODS))
    base = data.get("base_model")
    if base is not None:
        base = _model(base)
    outer: list[Settings] = [_settings(data.get("parameters"))]
    body = data
    if "modules" in data:
        modules = data["modules"]
        if not isinstance(modules, dict) or len(modules) != 1:
            raise MergeError("modules: more than one module is not supported")
        body = next(iter(modules.values()))
        if not isinstance(body, dict):
            raise MergeError(f"modules: expected models or slices, got {body!r}")
        _check_keys(body, ("models", "slices", "parameters"), "a module")
        outer.insert(0, _settings(body.get("parameters")))
    given = [key for key in ("models", "slices") if body.get(key)]
    if len(given) != 1 or (body is not data and (data.get("models") or data.get("slices"))):
        raise MergeError("expected exactly one of models, slices and modules")
    make = _from_models if given == ["models"] else _from_slices
    slices = make(body[given[0]], base)
    for piece in slices:
        names = [source.model for source in piece.sources]
        for name in names:
            if names.count(name) > 1:
                raise MergeError(f"{name} is listed twice in one merge")
    dtype = data.get("out_dtype") or data.get("dtype")
    for key in ("dtype", "out_dtype"):
        code = data.get(key)
        if code is not None and (not isinstance(code, str) or code not in FLOAT_DTYPES):
            raise MergeError(f"{key}: expected one of {', '.join(FLOAT_DTYPES)}, got {code!r}")
    return Recipe(method, slices, tuple(outer), FLOAT_DTYPES[dtype] if dtype else None, text)


def _from_models(entries: Any, base: str | None) -> tuple[OutputSlice, ...]:
    sources = []
    for entry in _entries(entries, "models"):
        _check_keys(entry, ("model", "parameters"), "an entry of models")
        sources.append(
            SourceSlice(_model(entry.get("model")), None, _settings(entry.get("parameters")))
        )
    if base is not None and base not in [source.model for source in sources]:
        sources.append(SourceSlice(base, None))
    return (OutputSlice(tuple(sources), base),)


def _from_slices(entries: Any, base: str | None) -> tuple[OutputSlice, ...]:
    slices = []
    for entry in _entries(entries, "slices"):
        _check_keys(entry, ("sources", "base_model", "parameters"), "a slice")
        sources = []
        for source in _entries(entry.get("sources"), "sources"):
            _check_keys(source, ("model", "layer_range", "parameters"), "a source")
            layers = source.get("layer_range")
            if (
                not isinstance(layers, list)
                or len(layers) != 2
                or not all(isinstance(n, int) and not isinstance(n, bool) for n in layers)
                or not 0 <= layers[0] < layers[1]
            ):
                raise MergeError(f"layer_range: expected [first, last + 1], got {layers!r}")
            model = _model(source.get("model"))
            settings = _settings(source.get("parameters"))
            sources.append(SourceSlice(model, (layers[0], layers[1]), settings))
        lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers is not None}
        if len(lengths) > 1:
            raise MergeError(f"layer_range: sources of one slice have {sorted(lengths)} layers")
        own = entry.get("base_model")
        slices.append(
            OutputSlice(
                tuple(sources),
                base if own is None else _model(own),
                _settings(entry.get("parameters")),
            )
        )
    return tuple(slices)


def _entries(value: Any, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        raise MergeError(f"{key}: expected a list of entries, got {value!r}")
    return value


def _model(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise MergeError(f"model: expected a path, got {value!r}")
    if "+" in value and not Path(value).exists():
        raise MergeError(f"model: {value} asks for a LoRA adapter, which is not supported")
    return value


def _settings(value: Any) -> Settings:
    if value is not None and not isinstance(value, dict):
        raise MergeError(f"parameters: expected names with values, got {value!r}")
    return value


def _check_keys(data: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    for key, value in data.items():
        if key in known or value is None:
            continue
        if key in NOT_SUPPORTED:
            raise MergeError(f"{key}: {NOT_SUPPORTED[key]} is not supported")
        raise MergeError(_unknown(f"key in {where}", key, known))


def _unknown(what: str, got: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(got), list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what} {got!r}; {hint}"

"""Turns a recipe and its checkpoints into a list of tensors to make, before any arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxlab.merging.operators import Operator
from jaxlab.merging.registry import METHODS
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.layers import Layers, arrange
from jaxlab.merging.streaming.parameters import check_names, coefficients
from jaxlab.merging.streaming.recipe import OutputSlice, Recipe, SourceSlice
from jaxlab.merging.streaming.settings import resolve
from jaxlab.safetensors import FLOATING

_LARGEST = 2**31 - 1  # positions within a tensor are 32-bit


class Described(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def code(self) -> str:
        """Dtype as safetensors spells it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape."""


Tables = Mapping[str, Mapping[str, Described]]  # model -> tensor -> description


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the merged model comes about.

    Args:
        name: its name.
        code: its dtype as safetensors spells it.
        shape: its shape.
        base: model and tensor of the base, or None.
        models: model and tensor of each other input.
        values: the operator's arguments; None for a tensor that is copied because it must be equal
            everywhere.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    base: tuple[str, str] | None
    models: tuple[tuple[str, str], ...]
    values: dict[str, Any] | None


@dataclass(frozen=True)
class Plan:
    """All tensors of the merged model, in the order of their bytes."""

    operator: Operator
    tensors: tuple[TensorPlan, ...]
    layers: int


def make_plan(recipe: Recipe, tables: Tables, dtype: str | None = None) -> Plan:
    """Plans a merge.

    Args:
        recipe: what to merge.
        tables: the tensors of every model of the recipe.
        dtype: output dtype of floating tensors as safetensors spells it; the recipe's, or that of
            the first input, if None.

    Returns:
        The plan.

    Raises:
        MergeError: naming the tensor, the model or the parameter that does not fit.
    """
    operator = METHODS[recipe.method]
    for scope in recipe.parameters:
        check_names(operator, scope)
    for piece in recipe.slices:
        check_names(operator, piece.parameters)
        for source in piece.sources:
            check_names(operator, source.parameters)
        _check_inputs(operator, piece)
    planner = _Planner(recipe, operator, tables, dtype or recipe.dtype)
    return planner.plan()


def _check_inputs(operator: Operator, piece: OutputSlice) -> None:
    names = [source.model for source in piece.sources]
    base = piece.base if operator.base != "none" else None
    if base is not None and base not in names:
        raise MergeError(f"base_model {base} is not a source of a slice that it is the base of")
    try:
        operator.check_inputs(len(names) - (base is not None), base is not None)
    except ValueError as error:
        raise MergeError(f"merge_method {error}") from error


class _Planner:
    def __init__(self, recipe: Recipe, operator: Operator, tables: Tables, dtype: str | None):
        self.recipe, self.operator, self.tables, self.dtype = recipe, operator, tables, dtype
        self.arranged: dict[str, Layers] = {}
        for model in recipe.models:
            self.arranged[model] = arrange(tables[model], model)

    def plan(self) -> Plan:
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        tensors = self._outside(first, "before")
        made = 0
        for piece in self.recipe.slices:
            count = self._length(piece)
            for j in range(count):
                t = j / (count - 1) if count > 1 else 1.0
                tensors += self._layer(piece, j, made, t)
                made += 1
        tensors += self._outside(last, "after")
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise MergeError(f"the merged model would have {twice} twice")
        return Plan(self.operator, tuple(tensors), made)

    def _length(self, piece: OutputSlice) -> int:
        lengths = {}
        for source in piece.sources:
            have = self.arranged[source.model].depth
            low, high = source.layers or (0, have)
            if high > have:
                raise MergeError(
                    f"{source.model} has {have} layers, but layer_range ends at {high}"
                )
            lengths[source.model] = high - low
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{model}: {n}" for model, n in lengths.items())
            raise MergeError(f"models have different numbers of layers ({told})")
        return next(iter(lengths.values()))

    def _reference(self, piece: OutputSlice) -> SourceSlice:
        """The source whose tensors the output has: the base, or the first."""
        sources = piece.sources
        return next((s for s in sources if s.model == piece.base), sources[0])

    def _outside(self, piece: OutputSlice, side: str) -> list[TensorPlan]:
        groups = {s.model: getattr(self.arranged[s.model], side) for s in piece.sources}
        names = groups[self._reference(piece).model]
        self._same(piece, {m: {n: n for n in group} for m, group in groups.items()})
        return [
            self._tensor(piece, name, {s.model: name for s in piece.sources}, 0.0) for name in names
        ]

    def _layer(self, piece: OutputSlice, offset: int, made: int, t: float) -> list[TensorPlan]:
        found = {}
        for source in piece.sources:
            index = (source.layers or (0, 0))[0] + offset
            parts = self.arranged[source.model].layers.get(index, ())
            found[source.model] = {p.at(made): p.at(index) for p in parts}
        self._same(piece, found)
        names = found[self._reference(piece).model]
        return [
            self._tensor(piece, name, {m: group[name] for m, group in found.items()}, t)
            for name in names
        ]

    def _same(self, piece: OutputSlice, found: Mapping[str, Mapping[str, str]]) -> None:
        """Every source must have the same tensors: nothing is dropped without a word."""
        reference = self._reference(piece).model
        for model, group in found.items():
            for have, lack, other in (
                (reference, model, group),
                (model, reference, found[reference]),
            ):
                for name in found[have]:
                    if name not in other:
                        raise MergeError(
                            f"{lack} has no tensor for {name}, but {have} has {found[have][name]}"
                        )

    def _tensor(
        self, piece: OutputSlice, name: str, inputs: Mapping[str, str], t: float
    ) -> TensorPlan:
        described = {model: self.tables[model][tensor] for model, tensor in inputs.items()}
        reference = self._reference(piece).model
        shape, code = described[reference].shape, described[reference].code
        for model, info in described.items():
            if info.shape != shape:
                advice = (
                    "; models with different vocabularies must be brought to one size first"
                    if len(shape) == len(info.shape) and shape[1:] == info.shape[1:]
                    else ""
                )
                raise MergeError(
                    f"{name}: {reference} has shape {shape}, {model} has {info.shape}{advice}"
                )
            if info.code == "F64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
                raise MergeError(
                    f"{name}: {model} has F64, which would be computed in 32 bits; set "
                    "JAX_ENABLE_X64=1 in the environment"
                )
        floating = {info.code in FLOATING for info in described.values()}
        if len(floating) > 1:
            raise MergeError(f"{name}: floating in some models, integers in others")
        base = piece.base if self.operator.base != "none" else None
        others = [s for s in piece.sources if s.model != base]
        pairs = tuple((s.model, inputs[s.model]) for s in others)
        origin = None if base is None else (base, inputs[base])
        if floating == {False}:
            return TensorPlan(name, code, shape, origin, pairs, None)
        size = 1
        for n in shape:
            size *= n
        if size > _LARGEST:
            raise MergeError(f"{name}: tensors of more than {_LARGEST} elements are not supported")
        outer = (piece.parameters, *self.recipe.parameters)

        def shared(parameter: str) -> Any:
            return resolve(parameter, outer, name, t)

        def own(source: SourceSlice) -> Any:
            scopes = (source.parameters, *outer)
            return lambda parameter: resolve(parameter, scopes, inputs[source.model], t)

        values = coefficients(
            self.operator, shared, [own(s) for s in others], name, [s.model for s in others]
        )
        return TensorPlan(name, self.dtype or code, shape, origin, pairs, values)

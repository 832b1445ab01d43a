"""What a merging operator is: a rule on a leaf, and the coefficients it takes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlab.merging.arrays import is_concrete, per_model
from jaxlab.merging.leaf import ArrayLeaf, Leaf

BasePolicy = Literal["required", "optional", "none"]
Layout = Literal["flat", "rows", "whole"]

PerModel = Annotated[Any, "per model"]  # a scalar or [M], traced
Shared = Annotated[Any, "shared"]  # a scalar, traced
ModelFraction = Annotated[Any, "per model", "fraction"]  # counted in float64 where known
Fraction = Annotated[Any, "shared", "fraction"]


@dataclass(frozen=True)
class Coefficient:
    """One argument of an operator.

    Args:
        name: the keyword.
        default: its default; `inspect.Parameter.empty` if it must be given.
        per_model: whether there is one number per model.
        fraction: whether it is a share of elements, to be turned into a count.
        static: whether it is a flag or a count of iterations, fixed at trace time.
    """

    name: str
    default: Any
    per_model: bool
    fraction: bool
    static: bool

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True)
class Operator:
    """A merging operator: call it as `op(base, models, **coefficients)`.

    Args:
        name: the field's name of the method.
        rule: the operator's body, `rule(leaf, **coefficients)`.
        base: whether a base is needed, welcome, or an ordinary model.
        layout: which blocks the rule can work on, given its static arguments: any ("flat"), whole
            rows along the last axis ("rows"), or the whole leaf ("whole").
        models: fewest and most models besides the base.
        random: whether it takes a `key`.
        coefficients: its arguments.
    """

    name: str
    rule: Callable[..., Any]
    base: BasePolicy
    layout: Callable[[Mapping[str, Any]], Layout]
    models: tuple[int, int | None]
    random: bool
    coefficients: tuple[Coefficient, ...]

    def __call__(
        self, base: Float[Array, "*s"] | None, models: Float[Array, "M *s"], **coefficients: Any
    ) -> Float[Array, "*s"]:
        """Merges one leaf.

        Args:
            base: the base's leaf, or None.
            models: the models' leaves, stacked.
            **coefficients: what the operator takes; numbers may be traced.

        Returns:
            The merged leaf in the base's dtype, or the models' if there is no base; computed in
            float32, or float64 if an input has it.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        base = None if base is None else jnp.asarray(base)
        models = jnp.asarray(models)
        self.check_inputs(models.shape[0] if models.ndim else 0, base is not None)
        values = {c.name: c.default for c in self.coefficients if not c.required} | coefficients
        rows = self.layout(values) == "rows"
        return self.apply(ArrayLeaf(base, models, rows=rows), **coefficients)

    def apply(self, leaf: Leaf, **coefficients: Any) -> Any:
        """Runs the rule on a leaf, with its coefficients checked and converted.

        Args:
            leaf: the leaf.
            **coefficients: as for a call.

        Returns:
            What `leaf.emit` returns.

        Raises:
            ValueError: naming the coefficient that is missing, unknown or of a wrong shape.
        """
        known = {c.name: c for c in self.coefficients}
        for name in coefficients:
            if name not in known and not (self.random and name == "key"):
                raise ValueError(f"{self.name}: expected {', '.join(known)}, got {name!r}")
        if self.random and "key" not in coefficients:
            raise ValueError(f"{self.name}: expected a key, since the operator is random")
        values = {}
        for name, value in coefficients.items():
            values[name] = _convert(known.get(name), value, leaf)
        for coefficient in self.coefficients:
            if coefficient.name in values:
                continue
            if coefficient.required:
                raise ValueError(f"{self.name}: expected {coefficient.name}, got nothing")
            values[coefficient.name] = _convert(coefficient, coefficient.default, leaf)
        return self.rule(leaf, **values)

    def check_inputs(self, count: int, has_base: bool) -> None:
        """Refuses a wrong number of models.

        Args:
            count: models besides the base.
            has_base: whether there is a base.

        Raises:
            ValueError: saying what the operator merges.
        """
        least, most = self.models
        if self.base == "required" and not has_base:
            raise ValueError(f"{self.name}: expected a base model, got none")
        if self.base == "none" and has_base:
            raise ValueError(f"{self.name}: expected no base; give it as one of the models")
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if most == least else f"at least {least}"
            if most is not None and most != least:
                wanted = f"{least} to {most}"
            besides = " besides the base" if has_base else ""
            raise ValueError(f"{self.name}: expected {wanted} models{besides}, got {count}")


def _convert(coefficient: Coefficient | None, value: Any, leaf: Leaf) -> Any:
    if coefficient is None or coefficient.static or value is None:
        return value
    if coefficient.fraction and is_concrete(value):
        # float64 as written, since the count of kept elements is rounded down.
        shape = np.shape(value)
        if shape not in ((), (leaf.count,)[: coefficient.per_model]):
            raise ValueError(f"{coefficient.name}: expected one number, got shape {shape}")
        kept = np.asarray(value)
        return np.broadcast_to(kept, (leaf.count,)) if coefficient.per_model else kept
    if coefficient.per_model:
        return per_model(coefficient.name, value, leaf.count, leaf.dtype)
    array = jnp.asarray(value).astype(leaf.dtype)
    if array.shape != ():
        raise ValueError(f"{coefficient.name}: expected one number, got shape {array.shape}")
    return array


def operator(
    *,
    base: BasePolicy = "required",
    layout: Layout | Callable[[Mapping[str, Any]], Layout] = "flat",
    models: tuple[int, int | None] = (1, None),
) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an operator of a rule; its keyword-only arguments are the coefficients.

    Args:
        base: the operator's policy.
        layout: which blocks the rule can work on, or a function of its arguments that tells.
        models: fewest and most models besides the base.

    Returns:
        A decorator.
    """

    def wrap(rule: Callable[..., Any]) -> Operator:
        coefficients, random = [], False
        for parameter in inspect.signature(rule).parameters.values():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if parameter.name == "key":
                random = True
                continue
            marks = getattr(parameter.annotation, "__metadata__", ())
            coefficients.append(
                Coefficient(
                    parameter.name,
                    parameter.default,
                    per_model="per model" in marks,
                    fraction="fraction" in marks,
                    static=not marks,
                )
            )
        choose = layout if callable(layout) else lambda values: layout
        made = Operator(rule.__name__, rule, base, choose, models, random, tuple(coefficients))
        object.__setattr__(made, "__doc__", rule.__doc__)
        return made

    return wrap

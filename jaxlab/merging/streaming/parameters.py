"""mergekit's names of parameters, turned into the coefficients of the operators."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.merging.operators import Coefficient, Operator
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.settings import as_number

_DELTA_SUMS = {"lambda": "lam", "int8_mask": None}  # a mask's dtype changes no number here
ALIASES: dict[str, dict[str, str | None]] = {
    "task_arithmetic": {**_DELTA_SUMS, "density": None, "rescale": None},
    "ties": {**_DELTA_SUMS, "rescale": None},
    "dare_linear": _DELTA_SUMS,
    "dare_ties": _DELTA_SUMS,
    "della": _DELTA_SUMS,
    "della_linear": _DELTA_SUMS,
    "breadcrumbs": {**_DELTA_SUMS, "density": "keep", "gamma": "drop_top", "rescale": None},
    "breadcrumbs_ties": {**_DELTA_SUMS, "density": "keep", "gamma": "drop_top", "rescale": None},
    "sce": {"select_topk": "select", "int8_mask": None},
    "karcher": {"max_iter": "steps"},
    "multislerp": {"normalize_weights": "normalize"},
    "nuslerp": {"nuslerp_flatten": None, "nuslerp_row_wise": None},
}
_REFUSED = {"rescale"}  # would change numbers, and is not offered for these methods


def names(operator: Operator) -> dict[str, str | None]:
    """Every parameter that a recipe may give for a method, with the operator's name for it."""
    aliases = ALIASES.get(operator.name, {})
    renamed = set(aliases.values())
    own = {c.name: c.name for c in operator.coefficients if c.name not in renamed}
    if operator.name == "nuslerp":
        own.pop("axis")
    return own | aliases


def coefficients(
    operator: Operator,
    shared: Callable[[str], Any],
    per_model: Sequence[Callable[[str], Any]],
    tensor: str,
    models: Sequence[str],
) -> dict[str, Any]:
    """The operator's arguments for one tensor.

    Args:
        operator: the method.
        shared: value of a parameter for the tensor, None if not given.
        per_model: the same for each model besides the base.
        tensor: the tensor's name, for messages.
        models: the models' names, for messages.

    Returns:
        Keyword arguments; what was not given is left to the operator's defaults.

    Raises:
        MergeError: naming the parameter that is missing or of a wrong type, and the tensor.
    """
    known = {c.name: c for c in operator.coefficients}
    values: dict[str, Any] = {}
    for name, ours in names(operator).items():
        if ours is None:
            if name in _REFUSED and shared(name) not in (None, False):
                raise MergeError(f"parameters: {name} is not supported for {operator.name}")
            continue
        coefficient = known[ours]
        if not coefficient.per_model:
            value = shared(name)
            if value is not None:
                values[ours] = _convert(coefficient, name, value)
            elif coefficient.required:
                raise MergeError(f"{tensor}: parameter {name} of {operator.name} is missing")
            continue
        given = [lookup(name) for lookup in per_model]
        if all(value is None for value in given) and not coefficient.required:
            continue
        if coefficient.required and any(value is None for value in given):
            model = models[[value is None for value in given].index(True)]
            raise MergeError(
                f"{tensor}: parameter {name} of {operator.name} is missing for {model}"
            )
        filled = [coefficient.default if value is None else value for value in given]
        values[ours] = np.array([_convert(coefficient, name, value) for value in filled])
    if operator.name == "nuslerp" and shared("nuslerp_flatten") is False:
        values["axis"] = 0 if shared("nuslerp_row_wise") else -1
    return values


def check_names(operator: Operator, settings: Mapping[str, Any] | None) -> None:
    """Refuses parameters that the method does not have.

    Args:
        operator: the method.
        settings: one scope of a recipe.

    Raises:
        MergeError: naming the parameter and the known ones.
    """
    known = names(operator)
    for name in settings or ():
        if name not in known:
            raise MergeError(
                f"parameters: {operator.name} has no {name!r}; known: {', '.join(known) or 'none'}"
            )


def _convert(coefficient: Coefficient, name: str, value: Any) -> Any:
    if coefficient.static:
        if isinstance(coefficient.default, bool):
            if not isinstance(value, bool):
                raise MergeError(f"parameters: {name} is true or false, got {value!r}")
            return value
        if isinstance(coefficient.default, str):
            return value
        number = as_number(value)
        if number is None:
            raise MergeError(f"parameters: {name} is a number, got {value!r}")
        return int(number) if isinstance(coefficient.default, int) else number
    number = as_number(value)
    if number is None or not np.isfinite(number):
        raise MergeError(f"parameters: {name} is a number, got {value!r}")
    return number

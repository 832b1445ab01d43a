"""Values of a recipe that depend on the tensor: gradients over layers and filters on names."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxlab.merging.streaming.errors import MergeError

Settings = Mapping[str, Any] | None


def evaluate(setting: Any, tensor: str, t: float) -> Any:
    """The value of a setting for one tensor.

    Args:
        setting: a scalar; a list of scalars, read as a curve over the layers; or a list of
            {filter, value} of which the first matching one counts.
        tensor: the tensor's name.
        t: where the layer is in its slice, 0 to 1; 0 outside of layers.

    Returns:
        A scalar, or None if no filter matches.

    Raises:
        MergeError: if the setting has none of these forms.

    Pitfall:
        A filter is a plain substring of the name: "mlp" also matches a model called "mlpx".
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, (bool, int, float, str)):
        return setting
    if not isinstance(setting, list):
        raise MergeError(f"a parameter is a number, a list or a filter, got {setting!r}")
    if not setting:
        return None
    if any(isinstance(item, Mapping) for item in setting):
        for item in setting:
            if not isinstance(item, Mapping) or "value" not in item:
                raise MergeError(f"a filter needs a value, got {item!r}")
            unknown = set(item) - {"filter", "value"}
            if unknown:
                raise MergeError(f"a filter has filter and value, got {sorted(unknown)[0]!r}")
            pattern = item.get("filter")
            if pattern is None or pattern == "*" or str(pattern) in tensor:
                return evaluate(item["value"], tensor, t)
        return None
    numbers = [as_number(item) for item in setting]
    if any(isinstance(item, bool) or number is None for item, number in zip(setting, numbers)):
        return setting[int(t * (len(setting) - 1))]
    place = t * (len(setting) - 1)
    low = int(place)
    high, share = min(len(setting) - 1, low + 1), place - low
    return (1 - share) * numbers[low] + share * numbers[high]  # type: ignore[operator]


def as_number(value: Any) -> float | None:
    """A number, also one that YAML reads as a string (1e-4); None if it is none."""
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def resolve(name: str, scopes: Iterable[Settings], tensor: str, t: float) -> Any:
    """The value of a parameter, from the innermost scope that has one.

    Args:
        name: the parameter.
        scopes: settings, innermost first. A list of filters of which none matches is passed over.
        tensor: the tensor's name.
        t: where the layer is in its slice.

    Returns:
        A scalar, or None if no scope has a value.
    """
    for scope in scopes:
        if scope is not None and name in scope:
            value = evaluate(scope[name], tensor, t)
            if value is not None:
                return value
    return None

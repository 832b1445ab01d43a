"""Which tensors belong to which layer, by their names."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxlab.merging.streaming.errors import MergeError

_LAYER = re.compile(
    r"^(?P<stack>(?:.*[./])?(?:layers|layer|blocks|block|h)[./])(?P<index>\d+)"
    r"(?P<rest>[./].*)$"
)
_EMBEDDING = re.compile(r"(?:^|[./_])(?:emb|embed\w*|wte|wpe)(?:[./_]|$)")


class LayerName(NamedTuple):
    """A tensor's name, split at its layer."""

    stack: str  # "model.layers."
    layer: int
    rest: str  # ".mlp.up_proj.weight"

    def at(self, index: int) -> str:
        """The same tensor of another layer."""
        return f"{self.stack}{index}{self.rest}"


def split(name: str) -> LayerName | None:
    """Splits a name at its layer.

    Args:
        name: such as "model.layers.3.mlp.up_proj.weight" or "layers/3/kernel".

    Returns:
        The parts, or None for a tensor outside of layers.
    """
    match = _LAYER.match(name)
    if match is None:
        return None
    return LayerName(match["stack"], int(match["index"]), match["rest"])


def is_embedding(name: str) -> bool:
    """Whether a tensor outside of layers comes before them; norms and heads come after."""
    return _EMBEDDING.search(name) is not None


class Layers(NamedTuple):
    """The tensors of a model, sorted by where they are."""

    before: tuple[str, ...]
    layers: Mapping[int, tuple[LayerName, ...]]
    after: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return max(self.layers, default=-1) + 1


def arrange(names: Iterable[str], model: str) -> Layers:
    """Sorts the tensors of a model by layer.

    Args:
        names: all tensors.
        model: the model, for the message.

    Returns:
        Names before, in and after the layers.

    Raises:
        MergeError: if layers are missing in between.
    """
    before, after = [], []
    layers: dict[int, list[LayerName]] = {}
    for name in names:
        parts = split(name)
        if parts is not None:
            layers.setdefault(parts.layer, []).append(parts)
        elif is_embedding(name):
            before.append(name)
        else:
            after.append(name)
    missing = sorted(set(range(max(layers, default=-1) + 1)) - set(layers))
    if missing:
        raise MergeError(f"{model}: layer {missing[0]} has no tensors, but later layers have")
    ordered = {i: tuple(sorted(layers[i], key=lambda n: (n.stack, n.rest))) for i in sorted(layers)}
    return Layers(tuple(sorted(before)), ordered, tuple(sorted(after)))

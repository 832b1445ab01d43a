"""Small networks and pytree helpers as pure functions over parameter pytrees."""

from jaxlab.nets.mlp import (
    LECUN_SCALE,
    PETS_SCALE,
    LayerParams,
    MLPParams,
    ensemble_apply,
    ensemble_init,
    mlp_apply,
    mlp_init,
)
from jaxlab.nets.normalizer import (
    Normalizer,
    denormalize,
    fit_normalizer,
    identity_normalizer,
    normalize,
)
from jaxlab.nets.trees import polyak, tree_where

__all__ = [
    "LECUN_SCALE",
    "PETS_SCALE",
    "LayerParams",
    "MLPParams",
    "Normalizer",
    "denormalize",
    "ensemble_apply",
    "ensemble_init",
    "fit_normalizer",
    "identity_normalizer",
    "mlp_apply",
    "mlp_init",
    "normalize",
    "polyak",
    "tree_where",
]

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
from jaxlab.nets.sharding import constrain_batch, constrain_fsdp, fsdp_specs
from jaxlab.nets.spectral import (
    SpectralState,
    constrain,
    constrain_mlp,
    init_spectral_state,
    lipschitz_upper_bound,
    spectral_norm,
)
from jaxlab.nets.transformer import (
    KVCache,
    TransformerConfig,
    TransformerParams,
    transformer_apply,
    transformer_cache,
    transformer_decay_mask,
    transformer_extend,
    transformer_init,
)
from jaxlab.nets.trees import polyak, tree_where

__all__ = [
    "LECUN_SCALE",
    "PETS_SCALE",
    "KVCache",
    "LayerParams",
    "MLPParams",
    "Normalizer",
    "SpectralState",
    "TransformerConfig",
    "TransformerParams",
    "constrain",
    "constrain_batch",
    "constrain_fsdp",
    "constrain_mlp",
    "denormalize",
    "ensemble_apply",
    "ensemble_init",
    "fit_normalizer",
    "fsdp_specs",
    "identity_normalizer",
    "init_spectral_state",
    "lipschitz_upper_bound",
    "mlp_apply",
    "mlp_init",
    "normalize",
    "polyak",
    "spectral_norm",
    "transformer_apply",
    "transformer_cache",
    "transformer_decay_mask",
    "transformer_extend",
    "transformer_init",
    "tree_where",
]

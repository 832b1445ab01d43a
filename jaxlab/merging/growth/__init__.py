"""Growing models: four families of operators in depth and width, and layers from a learngene."""

from jaxlab.merging.growth.cost import growth_timing, matmul_flops, speedup
from jaxlab.merging.growth.depth import (
    depth_of,
    gradual,
    identity_depth,
    interleave,
    random_depth,
    solar,
    stack,
    take_layers,
)
from jaxlab.merging.growth.learngene import (
    Gene,
    Linearity,
    gene_transfer,
    kd_loss,
    le_expand,
    le_fit,
    linearity_report,
    positions,
)
from jaxlab.merging.growth.ligo import LiGO, ligo_apply, ligo_init
from jaxlab.merging.growth.width import (
    mask_units,
    masked_rms_norm,
    width_direct,
    width_random,
    width_zero,
)

__all__ = [
    "Gene",
    "LiGO",
    "Linearity",
    "depth_of",
    "gene_transfer",
    "gradual",
    "growth_timing",
    "identity_depth",
    "interleave",
    "kd_loss",
    "le_expand",
    "le_fit",
    "ligo_apply",
    "ligo_init",
    "linearity_report",
    "mask_units",
    "masked_rms_norm",
    "matmul_flops",
    "positions",
    "random_depth",
    "solar",
    "speedup",
    "stack",
    "take_layers",
    "width_direct",
    "width_random",
    "width_zero",
]

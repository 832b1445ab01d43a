"""Merging models: operators on stacked pytrees, and streaming merges of checkpoints.

An operator is called as `op(base, models, **coefficients)` on one leaf whose leading axis is the
models; `merge` runs it over whole models. Coefficients are traced, so a population of recipes is
one `vmap`.
"""

from jaxlab.merging import growth, pareto
from jaxlab.merging.adaptive import Adapted, adamerging
from jaxlab.merging.axes import AxisSpec, LeafAxes
from jaxlab.merging.cma import CMAConfig, CMAState, cma_ask, cma_init, cma_tell, evolve
from jaxlab.merging.consensus import (
    agreement,
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    elected_sign,
    sce,
    ties,
)
from jaxlab.merging.elementwise import (
    expo,
    linear,
    magmax,
    nearswap,
    passthrough,
    ram,
    ramplus_tl,
    task_arithmetic,
)
from jaxlab.merging.fusion import arcee_fusion
from jaxlab.merging.gram import (
    combine,
    gram_matrix,
    karcher_coefficients,
    model_stock_ratio,
    multislerp_coefficients,
    nuslerp_coefficients,
    slerp_coefficients,
)
from jaxlab.merging.layouts import (
    join_heads,
    mlp_axes,
    split_heads,
    transformer_axes,
    widened,
)
from jaxlab.merging.masks import Elected, consensus_mask, emr, tall_masks
from jaxlab.merging.matching import (
    Matching,
    activation_matching,
    assign,
    barrier,
    weight_matching,
)
from jaxlab.merging.operators import Operator
from jaxlab.merging.paper_ties import ties_merging
from jaxlab.merging.permutations import (
    Permutations,
    identity_permutations,
    permute,
    random_permutations,
)
from jaxlab.merging.recipes import Genes, merge_genes, read_genes, route_layers
from jaxlab.merging.registry import METHODS
from jaxlab.merging.renormalization import (
    Rescaling,
    UnitStatistics,
    repair,
    rescale_units,
    unit_statistics,
)
from jaxlab.merging.soups import (
    Average,
    average_init,
    average_update,
    ema_update,
    greedy_soup,
    uniform_soup,
)
from jaxlab.merging.sparsify import band_mask, norm_match, top_mask
from jaxlab.merging.spectral import iso_c, iso_cts, tsv_m, wudi
from jaxlab.merging.spherical import karcher, model_stock, multislerp, nuslerp, slerp
from jaxlab.merging.statistics import fisher_diagonal, fisher_merge, regmean
from jaxlab.merging.trees import (
    PathSpec,
    PerLayer,
    apply_task_vectors,
    merge,
    stack_models,
    task_vectors,
)

__all__ = [
    "METHODS",
    "Adapted",
    "Average",
    "AxisSpec",
    "CMAConfig",
    "CMAState",
    "Elected",
    "Genes",
    "LeafAxes",
    "Matching",
    "Operator",
    "PathSpec",
    "PerLayer",
    "Permutations",
    "Rescaling",
    "UnitStatistics",
    "activation_matching",
    "adamerging",
    "agreement",
    "apply_task_vectors",
    "arcee_fusion",
    "assign",
    "average_init",
    "average_update",
    "band_mask",
    "barrier",
    "breadcrumbs",
    "breadcrumbs_ties",
    "cma_ask",
    "cma_init",
    "cma_tell",
    "combine",
    "consensus_mask",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "elected_sign",
    "ema_update",
    "emr",
    "evolve",
    "expo",
    "fisher_diagonal",
    "fisher_merge",
    "gram_matrix",
    "greedy_soup",
    "growth",
    "identity_permutations",
    "iso_c",
    "iso_cts",
    "join_heads",
    "karcher",
    "karcher_coefficients",
    "linear",
    "magmax",
    "merge",
    "merge_genes",
    "mlp_axes",
    "model_stock",
    "model_stock_ratio",
    "multislerp",
    "multislerp_coefficients",
    "nearswap",
    "norm_match",
    "nuslerp",
    "nuslerp_coefficients",
    "pareto",
    "passthrough",
    "permute",
    "ram",
    "ramplus_tl",
    "random_permutations",
    "read_genes",
    "regmean",
    "repair",
    "rescale_units",
    "route_layers",
    "sce",
    "slerp",
    "slerp_coefficients",
    "split_heads",
    "stack_models",
    "tall_masks",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "ties_merging",
    "top_mask",
    "transformer_axes",
    "tsv_m",
    "uniform_soup",
    "unit_statistics",
    "weight_matching",
    "widened",
    "wudi",
]

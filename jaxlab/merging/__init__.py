"""Merging models: operators on stacked pytrees, and streaming merges of checkpoints.

An operator is called as `op(base, models, **coefficients)` on one leaf whose leading axis is the
models; `merge` runs it over whole models. Coefficients are traced, so a population of recipes is
one `vmap`.
"""

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
from jaxlab.merging.masks import Elected, consensus_mask, emr, tall_masks
from jaxlab.merging.operators import Operator
from jaxlab.merging.paper_ties import ties_merging
from jaxlab.merging.registry import METHODS
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
    "Average",
    "Elected",
    "Operator",
    "PathSpec",
    "PerLayer",
    "agreement",
    "apply_task_vectors",
    "arcee_fusion",
    "average_init",
    "average_update",
    "band_mask",
    "breadcrumbs",
    "breadcrumbs_ties",
    "combine",
    "consensus_mask",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "elected_sign",
    "ema_update",
    "emr",
    "expo",
    "fisher_diagonal",
    "fisher_merge",
    "gram_matrix",
    "greedy_soup",
    "iso_c",
    "iso_cts",
    "karcher",
    "karcher_coefficients",
    "linear",
    "magmax",
    "merge",
    "model_stock",
    "model_stock_ratio",
    "multislerp",
    "multislerp_coefficients",
    "nearswap",
    "norm_match",
    "nuslerp",
    "nuslerp_coefficients",
    "passthrough",
    "ram",
    "ramplus_tl",
    "regmean",
    "sce",
    "slerp",
    "slerp_coefficients",
    "stack_models",
    "tall_masks",
    "task_arithmetic",
    "task_vectors",
    "ties",
    "ties_merging",
    "top_mask",
    "tsv_m",
    "uniform_soup",
    "wudi",
]

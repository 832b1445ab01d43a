"""All operators that are called as `op(base, models, **coefficients)`, by name."""

from jaxlab.merging.consensus import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
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
from jaxlab.merging.operators import Operator
from jaxlab.merging.spectral import iso_c, iso_cts, tsv_m, wudi
from jaxlab.merging.spherical import karcher, model_stock, multislerp, nuslerp, slerp

METHODS: dict[str, Operator] = {
    op.name: op
    for op in (
        linear,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        task_arithmetic,
        ties,
        dare_linear,
        dare_ties,
        della,
        della_linear,
        breadcrumbs,
        breadcrumbs_ties,
        sce,
        ram,
        ramplus_tl,
        model_stock,
        nearswap,
        arcee_fusion,
        passthrough,
        expo,
        magmax,
        iso_c,
        iso_cts,
        tsv_m,
        wudi,
    )
}

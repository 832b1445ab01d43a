"""Estimators, intervals, tests, and the rule that turns paired seeds into a verdict."""

from jaxlab.stats import guards as guards
from jaxlab.stats.association import cluster_bootstrap, correlation, partial_correlation, pearson
from jaxlab.stats.bootstrap import Bootstrap, resample_seeds, stratified_bootstrap
from jaxlab.stats.claim import Claim, Evidence, Guard, GuardOutcome, Status
from jaxlab.stats.intervals import (
    Interval,
    clopper_pearson_interval,
    proportion_interval,
    t_interval,
    welch_interval,
    wilson_interval,
    yuen_interval,
)
from jaxlab.stats.metrics import (
    iqm,
    normalize,
    optimality_gap,
    performance_profile,
    prob_improvement,
    replace_diverged,
    sign_proportion,
    trimmed_mean,
)
from jaxlab.stats.power import power_curve, seeds_for_power, tost_seeds
from jaxlab.stats.seeds import (
    EVALUATION_FIRST,
    ROLES,
    TUNING_SEEDS,
    evaluation_seeds,
    seed_keys,
)
from jaxlab.stats.tables import verdict_table
from jaxlab.stats.tests import (
    Equivalence,
    benjamini_hochberg,
    holm,
    kendall,
    sign_flip_test,
    spearman,
    tost,
)
from jaxlab.stats.verdict import TOP_UP_ALPHA, Verdict, combine, decide

__all__ = [
    "EVALUATION_FIRST",
    "ROLES",
    "TOP_UP_ALPHA",
    "TUNING_SEEDS",
    "Bootstrap",
    "Claim",
    "Equivalence",
    "Evidence",
    "Guard",
    "GuardOutcome",
    "Interval",
    "Status",
    "Verdict",
    "benjamini_hochberg",
    "clopper_pearson_interval",
    "cluster_bootstrap",
    "combine",
    "correlation",
    "decide",
    "evaluation_seeds",
    "guards",
    "holm",
    "iqm",
    "kendall",
    "normalize",
    "optimality_gap",
    "partial_correlation",
    "pearson",
    "performance_profile",
    "power_curve",
    "prob_improvement",
    "proportion_interval",
    "replace_diverged",
    "resample_seeds",
    "seed_keys",
    "seeds_for_power",
    "sign_flip_test",
    "sign_proportion",
    "spearman",
    "stratified_bootstrap",
    "t_interval",
    "tost",
    "tost_seeds",
    "trimmed_mean",
    "verdict_table",
    "welch_interval",
    "wilson_interval",
    "yuen_interval",
]

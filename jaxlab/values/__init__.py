"""Value learning as pure functions: targets, transforms, heads, regularisers, diagnostics."""

from jaxlab.values.action_targets import (
    conservative_q_target,
    double_q_target,
    expected_sarsa_target,
    non_greedy,
    q_lambda,
    q_target,
    retrace,
    sarsa_target,
    tree_backup,
)
from jaxlab.values.arrays import masked_mean
from jaxlab.values.categorical import (
    c51_project,
    c51_target,
    categorical_mean,
    categorical_value_loss,
    categorical_value_loss_per_example,
    edge_fraction,
    hl_gauss,
    two_hot,
)
from jaxlab.values.diagnostics import dormant_ratio, effective_rank, overestimation, td_error_stats
from jaxlab.values.ensembles import (
    diversity_penalty,
    ensemble_lcb,
    ensemble_min_target,
    gradient_diversity,
)
from jaxlab.values.heads import HeadKind, ValueHead
from jaxlab.values.imagined import imagined_q_loss
from jaxlab.values.linear import linear_td
from jaxlab.values.lipschitz import (
    local_lipschitz,
    pairwise_lipschitz,
    robust_penalty,
    value_aware_model_error,
)
from jaxlab.values.losses import cql_loss, q_learning_loss, sarsa_loss, td_value_loss
from jaxlab.values.qfunctions import (
    cql_regulariser,
    dueling,
    munchausen_reward,
    periodic_update,
    soft_value,
)
from jaxlab.values.quantile import (
    cosine_embedding,
    cosine_embedding_init,
    crossing_rate,
    quantile_huber_loss,
    quantile_huber_loss_per_example,
    quantile_midpoints,
)
from jaxlab.values.recursion import Backend, affine_reverse_scan
from jaxlab.values.supports import Support, suggest_support
from jaxlab.values.tabular import partial_value_iteration, pessimistic
from jaxlab.values.targets import (
    VTraceTargets,
    gae,
    lambda_return,
    n_step_target,
    td0_target,
    vtrace,
)
from jaxlab.values.transforms import (
    SYMLOG,
    Transform,
    hyperbolic_transform,
    signed_hyperbolic,
    signed_parabolic,
    symexp,
    symlog,
    transformed_target,
)

__all__ = [
    "SYMLOG",
    "Backend",
    "HeadKind",
    "Support",
    "Transform",
    "VTraceTargets",
    "ValueHead",
    "affine_reverse_scan",
    "c51_project",
    "c51_target",
    "categorical_mean",
    "categorical_value_loss",
    "categorical_value_loss_per_example",
    "conservative_q_target",
    "cosine_embedding",
    "cosine_embedding_init",
    "cql_loss",
    "cql_regulariser",
    "crossing_rate",
    "diversity_penalty",
    "dormant_ratio",
    "double_q_target",
    "dueling",
    "edge_fraction",
    "effective_rank",
    "ensemble_lcb",
    "ensemble_min_target",
    "expected_sarsa_target",
    "gae",
    "gradient_diversity",
    "hl_gauss",
    "hyperbolic_transform",
    "imagined_q_loss",
    "lambda_return",
    "linear_td",
    "local_lipschitz",
    "masked_mean",
    "munchausen_reward",
    "n_step_target",
    "non_greedy",
    "overestimation",
    "pairwise_lipschitz",
    "partial_value_iteration",
    "periodic_update",
    "pessimistic",
    "q_lambda",
    "q_learning_loss",
    "q_target",
    "quantile_huber_loss",
    "quantile_huber_loss_per_example",
    "quantile_midpoints",
    "retrace",
    "robust_penalty",
    "sarsa_loss",
    "sarsa_target",
    "signed_hyperbolic",
    "signed_parabolic",
    "soft_value",
    "suggest_support",
    "symexp",
    "symlog",
    "td0_target",
    "td_error_stats",
    "td_value_loss",
    "transformed_target",
    "tree_backup",
    "two_hot",
    "value_aware_model_error",
    "vtrace",
]

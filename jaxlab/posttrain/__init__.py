"""Post-training of language models: losses, estimators, rollouts and metrics as pure functions.

Conventions (`masking`): rows of one prompt lie next to each other; log-probabilities are float32;
what a mask hides may be NaN; whatever a loss takes beside the policy's own numbers is a constant of
differentiation.
"""

from jaxlab.posttrain.advantages import (
    broadcast_steps,
    dr_grpo_advantages,
    gae,
    grpo_advantages,
    reinforce_pp_advantages,
    returns_to_go,
    rloo_advantages,
    step_advantages,
    terminal_rewards,
)
from jaxlab.posttrain.aggregation import aggregate, aggregate_parts
from jaxlab.posttrain.distillation import distillation_loss, divergence, top_k_divergence
from jaxlab.posttrain.enumeration import Completions, all_completions, enumerate_policy
from jaxlab.posttrain.kl import exact_kl, kl_estimate
from jaxlab.posttrain.language_model import (
    LanguageModel,
    completion_logits,
    prefill,
    repeat,
    rwkv7_model,
    transformer_model,
)
from jaxlab.posttrain.log_probs import sequence_log_prob, token_entropy, token_log_probs
from jaxlab.posttrain.masking import (
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
)
from jaxlab.posttrain.pass_rates import (
    answer_entropy,
    best_of_k,
    distinct_answers,
    majority_answer,
    majority_at_k,
    pass_at_k,
    pass_pow_k,
)
from jaxlab.posttrain.policy_losses import (
    cispo_loss,
    importance_ratio,
    ppo_clip_loss,
    reinforce_loss,
    truncated_importance,
    value_loss,
)
from jaxlab.posttrain.preference import (
    bradley_terry_loss,
    cpo_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    log1mexp,
    orpo_loss,
    simpo_loss,
)
from jaxlab.posttrain.rollouts import (
    Rollout,
    Snapshots,
    rollout,
    rollout_with_snapshots,
    step_ends,
)
from jaxlab.posttrain.supervised import (
    exponential_weights,
    first_of_equals,
    reward_weighted_regression,
    select_correct,
    sft_loss,
)
from jaxlab.posttrain.support import (
    SupportCounts,
    SupportMetrics,
    detect_threshold,
    exact_pass_at_k,
    support_counts,
    support_from_samples,
    support_metrics,
    tilt,
)
from jaxlab.posttrain.verifiers import (
    ValueHead,
    ovm_labels,
    prm_labels,
    value_head_apply,
    value_head_init,
    verifier_loss,
    within_problem_auc,
)

__all__ = [
    "Completions",
    "LanguageModel",
    "Rollout",
    "Snapshots",
    "SupportCounts",
    "SupportMetrics",
    "ValueHead",
    "aggregate",
    "aggregate_parts",
    "all_completions",
    "answer_entropy",
    "best_of_k",
    "bradley_terry_loss",
    "broadcast_steps",
    "cispo_loss",
    "completion_logits",
    "cpo_loss",
    "detect_threshold",
    "distillation_loss",
    "distinct_answers",
    "divergence",
    "dpo_loss",
    "dr_grpo_advantages",
    "enumerate_policy",
    "exact_kl",
    "exact_pass_at_k",
    "exponential_weights",
    "first_of_equals",
    "gae",
    "grpo_advantages",
    "importance_ratio",
    "ipo_loss",
    "kl_estimate",
    "kto_loss",
    "log1mexp",
    "majority_answer",
    "majority_at_k",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "orpo_loss",
    "ovm_labels",
    "pass_at_k",
    "pass_pow_k",
    "ppo_clip_loss",
    "prefill",
    "prm_labels",
    "reinforce_loss",
    "reinforce_pp_advantages",
    "repeat",
    "returns_to_go",
    "reward_weighted_regression",
    "rloo_advantages",
    "rollout",
    "rollout_with_snapshots",
    "rwkv7_model",
    "select_correct",
    "sequence_log_prob",
    "sft_loss",
    "simpo_loss",
    "step_advantages",
    "step_ends",
    "support_counts",
    "support_from_samples",
    "support_metrics",
    "terminal_rewards",
    "tilt",
    "token_entropy",
    "token_log_probs",
    "top_k_divergence",
    "transformer_model",
    "truncated_importance",
    "value_head_apply",
    "value_head_init",
    "value_loss",
    "verifier_loss",
    "within_problem_auc",
]

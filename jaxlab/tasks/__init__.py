"""Verifiable token tasks: problems, prompts, solutions and total verifiers, all pure JAX.

Each task is a module with a frozen `Config`, `sample`, `prompt_tokens`, `solution_tokens`,
`outcome` and what is its own; `make(config)` bundles them as a `Task`. Functions take one problem;
`jax.vmap` lifts them. `modchain` of the literature is `chain` with `style="values"` and
`avoid_collapse=False`, `stackvm` is `stack`, `keysum` is `kvsum`.
"""

from jaxlab.tasks import (
    chain,
    countdown,
    countdown_exact,
    countdown_postfix,
    equiv,
    equiv_formats,
    kvsum,
    sequences,
    stack,
    stack_machine,
    tool,
    vocabulary,
)
from jaxlab.tasks.registry import TaskConfig, make_task
from jaxlab.tasks.sequences import StepLabels
from jaxlab.tasks.splits import hash32, is_test, sample_split
from jaxlab.tasks.task import Environment, Task, compact, policy_mask
from jaxlab.tasks.vocabulary import VOCAB_SIZE, CompactVocab, compact_vocab, digits

__all__ = [
    "VOCAB_SIZE",
    "CompactVocab",
    "Environment",
    "StepLabels",
    "Task",
    "TaskConfig",
    "chain",
    "compact",
    "compact_vocab",
    "countdown",
    "countdown_exact",
    "countdown_postfix",
    "digits",
    "equiv",
    "equiv_formats",
    "hash32",
    "is_test",
    "kvsum",
    "make_task",
    "policy_mask",
    "sample_split",
    "sequences",
    "stack",
    "stack_machine",
    "tool",
    "vocabulary",
]

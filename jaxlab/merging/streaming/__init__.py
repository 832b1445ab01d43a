"""Merges of safetensors checkpoints that never fit into memory, by mergekit's YAML."""

from jaxlab.merging.streaming.checkpoint import Checkpoint
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.plan import Plan, TensorPlan, make_plan
from jaxlab.merging.streaming.recipe import Recipe, parse_recipe, read_recipe
from jaxlab.merging.streaming.run import StreamOptions, merge_checkpoints, merge_trees

__all__ = [
    "Checkpoint",
    "MergeError",
    "Plan",
    "Recipe",
    "StreamOptions",
    "TensorPlan",
    "make_plan",
    "merge_checkpoints",
    "merge_trees",
    "parse_recipe",
    "read_recipe",
]

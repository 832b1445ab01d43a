"""Carries out a recipe: from checkpoints to a checkpoint, or from pytrees to a pytree."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxlab.merging.randomness import leaf_key
from jaxlab.merging.streaming.blocks import BLOCK, Sink, StreamLeaf
from jaxlab.merging.streaming.checkpoint import ArraySource, Checkpoint, Source
from jaxlab.merging.streaming.errors import MergeError
from jaxlab.merging.streaming.plan import Plan, TensorPlan, make_plan
from jaxlab.merging.streaming.recipe import Recipe
from jaxlab.merging.streaming.writer import Output, digest, lay_out
from jaxlab.merging.trees import leaf_path
from jaxlab.safetensors import DTYPES

_COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_COPIED = {"model.safetensors.index.json", "config.json", "pytorch_model.bin.index.json"}
_LARGEST_COPY = 64 << 20


@dataclass(frozen=True)
class StreamOptions:
    """How a merge is carried out.

    Args:
        memory: bytes for blocks and kept scores, besides the interpreter with its libraries.
        dtype: output dtype as safetensors spells it; that of the recipe or the inputs if None.
        shard_size: most bytes of data in one output file.
        seed: seed of random methods.
        resume: go on with what an interrupted merge left behind.
    """

    memory: int = 256 << 20
    dtype: str | None = None
    shard_size: int = 5_000_000_000
    seed: int = 0
    resume: bool = False


Report = Callable[[int, int, str], None]  # bytes written, bytes in all, tensor


def merge_checkpoints(
    recipe: Recipe,
    folder: str | Path,
    options: StreamOptions = StreamOptions(),
    *,
    models: Mapping[str, str | Path] | None = None,
    report: Report | None = None,
) -> Plan:
    """Merges checkpoints on disk within a memory budget.

    Args:
        recipe: what to merge.
        folder: the output; absent until it is complete.
        options: how.
        models: where the recipe's models are; their names are paths if None.
        report: called after each tensor.

    Returns:
        The plan that was carried out.

    Raises:
        MergeError: naming what is wrong; the output does not exist then. What an interrupted merge
            left behind lies in `<folder>.partial`.
    """
    _keep_blocks_mapped()
    with contextlib.ExitStack() as stack:
        checkpoints = {}
        for name in recipe.models:
            path = name if models is None else models[name]
            checkpoints[name] = stack.enter_context(Checkpoint(path))
        tables = {name: checkpoint.tensors for name, checkpoint in checkpoints.items()}
        plan = make_plan(recipe, tables, options.dtype)
        shards = lay_out(plan.tensors, options.shard_size)
        codes = [tensor.code for tensor in plan.tensors]  # of one width, lengths are the same
        inputs = _fingerprints(checkpoints)
        identity = digest([recipe.text, options.seed, inputs, codes, shards.lengths])
        first = recipe.slices[0]
        donor = checkpoints[first.base or first.sources[0].model]
        extra = _side_files(donor, recipe, plan, options)
        output = Output(Path(folder), shards, identity, resume=options.resume)
        stack.callback(output.close)
        sizes = {tensor.name: shards.places[tensor.name].nbytes for tensor in plan.tensors}
        written, total = 0, sum(sizes.values())
        for tensor in plan.tensors:
            if tensor.name not in output.done:
                base, others = _sources(tensor, lambda m, n: checkpoints[m].source(n))
                make_tensor(plan, tensor, base, others, output.sink(tensor), options)
                output.finish(tensor)
            written += sizes[tensor.name]
            if report is not None:
                report(written, total, tensor.name)
        output.commit(extra)
    return plan


def merge_trees(
    recipe: Recipe, trees: Mapping[str, PyTree], options: StreamOptions = StreamOptions()
) -> dict[str, np.ndarray]:
    """Merges pytrees in memory, bit for bit as `merge_checkpoints` merges the same tensors.

    Args:
        recipe: what to merge; its models are names of trees.
        trees: models by name; their leaves are named by '/'-joined paths.
        options: how; only `memory`, `dtype` and `seed` matter.

    Returns:
        The merged leaves by name.

    Raises:
        MergeError: naming what is wrong.
    """
    sources: dict[str, dict[str, ArraySource]] = {}
    for model in recipe.models:
        if model not in trees:
            raise MergeError(f"the recipe names {model}, which is not among {sorted(trees)}")
        leaves = jax.tree_util.tree_flatten_with_path(trees[model])[0]
        sources[model] = {leaf_path(path): ArraySource(leaf) for path, leaf in leaves}
    plan = make_plan(recipe, sources, options.dtype)
    merged = {}
    for tensor in plan.tensors:
        sink = _ArraySink(tensor)
        base, others = _sources(tensor, lambda m, n: sources[m][n])
        make_tensor(plan, tensor, base, others, sink, options)
        merged[tensor.name] = sink.values.reshape(tensor.shape)
    return merged


def make_tensor(
    plan: Plan,
    tensor: TensorPlan,
    base: Source | None,
    models: list[Source],
    sink: Sink,
    options: StreamOptions,
) -> None:
    """Makes one tensor of the merged model.

    Args:
        plan: the plan it belongs to.
        tensor: what to make.
        base: the base's tensor, or None.
        models: the other models' tensors.
        sink: where the elements go.
        options: memory and seed.

    Raises:
        MergeError: naming the tensor.
    """
    if tensor.values is None:
        _copy_equal(tensor, [*([] if base is None else [base]), *models], sink)
        return
    if 0 in tensor.shape:
        return
    operator = plan.operator
    values = dict(tensor.values)
    defaults = {c.name: c.default for c in operator.coefficients if not c.required}
    if operator.random:
        values["key"] = leaf_key(jax.random.key(options.seed), tensor.name)
    try:
        leaf = StreamLeaf(
            base,
            models,
            sink,
            layout=operator.layout(defaults | values),
            random=operator.random,
            dtype=DTYPES[tensor.code],
            memory=options.memory,
        )
        operator.apply(leaf, **values)
    except ValueError as error:
        raise MergeError(f"{tensor.name}: {error}") from error


def _keep_blocks_mapped() -> None:
    """Blocks are made and dropped all the time, and glibc would return each to the system.

    Once something as large was freed it keeps them for the next: half the time of a merge that only
    reads, adds and writes.
    """
    np.empty((32 << 20) - (1 << 16), np.uint8)  # just below the most that it learns from


def _sources(
    tensor: TensorPlan, find: Callable[[str, str], Source]
) -> tuple[Source | None, list[Source]]:
    base = None if tensor.base is None else find(*tensor.base)
    return base, [find(*pair) for pair in tensor.models]


def _copy_equal(tensor: TensorPlan, sources: list[Source], sink: Sink) -> None:
    size = int(np.prod(tensor.shape, dtype=np.int64))
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        blocks = []
        for source in sources:
            block = np.empty(count, DTYPES[source.code])
            source.read_into(block, start)
            blocks.append(block)
        if any(not np.array_equal(block, blocks[0]) for block in blocks):
            raise MergeError(f"{tensor.name}: integers that differ between models, not mergeable")
        sink.write(start, blocks[0].astype(DTYPES[tensor.code], copy=False))


class _ArraySink:
    def __init__(self, tensor: TensorPlan):
        size = int(np.prod(tensor.shape, dtype=np.int64))
        self.values = np.zeros(size, DTYPES[tensor.code])

    def write(self, start: int, values: np.ndarray) -> None:
        self.values[start : start + values.size] = values


def _fingerprints(checkpoints: Mapping[str, Checkpoint]) -> list[Any]:
    prints = []
    for name, checkpoint in checkpoints.items():
        stats = [(path.name, path.stat()) for path in checkpoint.files]
        prints.append([name, [[file, s.st_size, s.st_mtime_ns] for file, s in stats]])
    return prints


def _side_files(
    donor: Checkpoint, recipe: Recipe, plan: Plan, options: StreamOptions
) -> dict[str, bytes]:
    """The configuration, the tokenizer's files, the recipe and a card."""
    files = {}
    for pattern in _COPIED:
        for path in sorted(donor.folder.glob(pattern)):
            if path.name not in _NOT_COPIED and path.stat().st_size <= _LARGEST_COPY:
                files[path.name] = path.read_bytes()
    config = donor.config()
    if config is not None:
        if "num_hidden_layers" in config:
            config["num_hidden_layers"] = plan.layers
        code = options.dtype or recipe.dtype
        if code is not None:
            name = str(DTYPES[code].name)
            for key in ("torch_dtype", "dtype"):
                if key in config:
                    config[key] = name
        files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    files["mergekit_config.yml"] = recipe.text.encode()
    listed = "\n".join(f"* {model}" for model in recipe.models)
    card = (
        f"# A merged model\n\nMethod `{recipe.method}`, of:\n\n{listed}\n\n"
        f"```yaml\n{recipe.text.strip()}\n```\n"
    )
    files["README.md"] = card.encode()
    return files

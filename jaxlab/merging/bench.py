"""Measures merging against mergekit: `python -m jaxlab.merging.bench`, and within `make bench`.

Both merge the same synthetic checkpoints from disk to disk, each in a process of its own that
merges once to warm up and then again. CPU seconds are compared, which a busy machine changes least,
seconds by the clock, and the peak of memory above what the imports take.

mergekit may live in an environment of its own: `--peer /path/to/its/python`.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 6
SIZE = (4, 512, 4096)  # layers, width, vocabulary: 21 million parameters
# Models besides the base, parameters of each, parameters of all, and the ratio to be reached.
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any], float]] = {
    "ties": (3, {"weight": 0.5, "density": 0.3}, {}, 8.0),
    "breadcrumbs": (3, {"weight": 0.5, "density": 0.5, "gamma": 0.01}, {}, 8.0),
    "sce": (3, {}, {"select_topk": 0.3}, 8.0),
    "karcher": (3, {}, {}, 4.0),
    "slerp": (1, {}, {"t": 0.4}, 1.5),
    "linear": (3, {"weight": 0.5}, {}, 1.5),
}
WITHOUT_BASE = ("karcher", "linear")
MEMORY = 256 << 20  # bytes of our budget
SETTINGS = 256
NOT_INSTALLED = "| not measured: mergekit is not installed | | | | | | | |"


def write_checkpoint(folder: Path, seed: int, layers: int, width: int, vocabulary: int) -> int:
    """Writes a Llama-shaped bfloat16 checkpoint; returns its number of parameters.

    Args:
        folder: made anew.
        seed: 0 is the base; others are the base and a small change.
        layers: number of layers.
        width: of the residual stream; four times as wide inside.
        vocabulary: rows of the embeddings.
    """
    import ml_dtypes

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for i in range(layers):
        name = f"model.layers.{i}"
        for part in "qkvo":
            shapes[f"{name}.self_attn.{part}_proj.weight"] = (width, width)
        for part, rows, columns in (("gate", 4, 1), ("up", 4, 1), ("down", 1, 4)):
            shapes[f"{name}.mlp.{part}_proj.weight"] = (rows * width, columns * width)
        for part in ("input", "post_attention"):
            shapes[f"{name}.{part}_layernorm.weight"] = (width,)
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    header, position = {}, 0
    for name, shape in shapes.items():
        offsets = [position, position + 2 * int(np.prod(shape))]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    base, own = np.random.default_rng(0), np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            x = 0.02 * base.standard_normal(shape, np.float32)
            if seed:
                x += 0.002 * own.standard_normal(shape, np.float32)
            file.write(x.astype(ml_dtypes.bfloat16).tobytes())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return position // 2


def recipe(method: str, folder: Path) -> dict[str, Any]:
    """The mergekit recipe of a method for the checkpoints m0, m1, ... of a folder."""
    count, each, shared, _ = METHODS[method]
    names = [str(folder / f"m{i}") for i in range(count + 1)]
    made: dict[str, Any] = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
    models = names[1:]
    if method not in WITHOUT_BASE:
        made["base_model"] = names[0]
        models = names if method == "slerp" else models
    entries = [{"model": name} | ({"parameters": each} if each else {}) for name in models]
    return made | {"models": entries} | ({"parameters": shared} if shared else {})


def merge_ours(made: dict[str, Any], out: str) -> None:
    """One merge by this library."""
    from jaxlab.merging.streaming import StreamOptions, merge_checkpoints, parse_recipe

    merge_checkpoints(parse_recipe(json.dumps(made)), Path(out), StreamOptions(memory=MEMORY))


def merge_theirs(made: dict[str, Any], out: str) -> None:
    """One merge by mergekit."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(made), out, options)


def worker(side: str, path: str, out: str) -> None:
    """Merges a few times in this process; prints seconds, and MB above the imports."""
    import shutil

    merge: Callable[[dict[str, Any], str], None]
    if side == "theirs":
        import mergekit.merge  # noqa: F401

        merge = merge_theirs
    else:
        import jax

        import jaxlab.merging.streaming  # noqa: F401

        jax.block_until_ready(jax.numpy.zeros(()))  # starts the back end
        merge = merge_ours

    def memory() -> int:
        # Not getrusage, whose maximum starts at that of the parent.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024

    made, before, seconds = json.loads(Path(path).read_text()), memory(), []
    for _ in range(1 + REPEATS):
        shutil.rmtree(out, ignore_errors=True)
        began = time.process_time(), time.perf_counter()
        merge(made, out)
        seconds.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    print(json.dumps({"seconds": seconds, "memory": memory() - before}))


def measure(
    side: str, made: dict[str, Any], scratch: Path, python: str
) -> tuple[float, float, float, int]:
    """CPU seconds of the first merge and of later ones, their seconds by the clock, and MB above
    the imports (Linux)."""
    path = scratch / "recipe.json"
    path.write_text(json.dumps(made))
    # By its path, and without its folder on the path: the peer's environment need not have jaxlab.
    script = ["-P", __file__] if side == "theirs" else ["-m", "jaxlab.merging.bench"]
    command = [python, *script, "--worker", side, str(path), str(scratch / f"out-{side}")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{process.stderr[-2000:]}")
    found = json.loads(process.stdout.strip().splitlines()[-1])
    first, *later = found["seconds"]
    cpu, wall = map(statistics.median, zip(*later))
    return first[0], cpu, wall, max(found["memory"], 1)


def against_mergekit(
    peer: str | None = None, methods: tuple[str, ...] = tuple(METHODS)
) -> list[str]:
    """One row per method, or one that says why there is none.

    Args:
        peer: Python with mergekit; this one if None.
        methods: which.

    Returns:
        Rows of a table: method, our seconds and mergekit's, their ratio, that by the clock, memory
        of both, and its ratio.
    """
    if peer is None and importlib.util.find_spec("mergekit") is None:
        return [NOT_INSTALLED]
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        for i in range(4):
            count = write_checkpoint(scratch / f"m{i}", i, *SIZE)
        for method in methods:
            made = recipe(method, scratch)
            cold, ours, clock, small = measure("ours", made, scratch, sys.executable)
            first, theirs, other, large = measure("theirs", made, scratch, peer or sys.executable)
            rows.append(
                f"| {method}, {count / 1e6:.1f} M | {ours:.3f} s (first {cold:.2f} s) | "
                f"{theirs:.3f} s (first {first:.2f} s) | "
                f"{theirs / ours:.1f}× (at least {METHODS[method][3]:g}×) | {other / clock:.1f}× | "
                f"{small} MB | {large} MB | {small / large:.2f} (at most 0.5) |"
            )
    return rows


def settings(elements: int = 1 << 20, models: int = 3) -> list[str]:
    """One setting of the coefficients against many in one vmapped call; two rows.

    Args:
        elements: of the leaf.
        models: how many are merged.

    Returns:
        Rows of a table: what, seconds of one setting and of all, and their ratio. The first judges
        recipes by the Gram matrix, which reads the weights once however many there are; the second
        makes every merged leaf, which cannot be cheaper than to write them.
    """
    import jax

    from jaxlab.merging import combine, gram_matrix, multislerp_coefficients

    keys = jax.random.split(jax.random.key(0), 3)
    base = jax.random.normal(keys[0], (elements,))
    stacked = base[None] + 0.1 * jax.random.normal(keys[1], (models, elements))
    weights = jax.random.uniform(keys[2], (SETTINGS, models), minval=0.1)

    def coefficients(weight: Any, base: Any, stacked: Any) -> Any:
        return multislerp_coefficients(gram_matrix(stacked, base), weight)[0]

    def merged(weight: Any, base: Any, stacked: Any) -> Any:
        return combine(stacked, coefficients(weight, base, stacked)[None], base)[0]

    rows = []
    for name, function, bar in (
        ("coefficients of multislerp", coefficients, " (at most 10×)"),
        ("merged leaves", merged, ""),
    ):
        run = jax.jit(jax.vmap(function, in_axes=(0, None, None)))
        times: dict[int, list[float]] = {1: [], SETTINGS: []}
        for _ in range(8):  # in turn; the first round compiles
            for count in times:
                began = time.perf_counter()
                jax.block_until_ready(run(weights[:count], base, stacked))
                times[count].append(time.perf_counter() - began)
        one, many = (statistics.median(seconds[1:]) for seconds in times.values())
        what = f"{name}, {elements / 1e6:.1f} M elements, {models} models"
        rows.append(
            f"| {what} | {1e3 * one:.2f} ms | {1e3 * many:.2f} ms | {many / one:.1f}×{bar} |"
        )
    return rows


def report(peer: str | None = None, methods: tuple[str, ...] = tuple(METHODS)) -> list[str]:
    """Both tables, as lines of Markdown."""
    return [
        "CPU seconds from disk to disk, bfloat16 in and out, float32 between; compilation is in "
        "the first merge alone. Memory is the peak above the imports.",
        "",
        "| method | ours | mergekit | ratio | by the clock | our memory | mergekit's | ratio |",
        "|---|---|---|---|---|---|---|---|",
        *against_mergekit(peer, methods),
        "",
        f"| what | one setting | {SETTINGS} settings, vmapped | ratio |",
        "|---|---|---|---|",
        *settings(),
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="Python of an environment with mergekit")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
    else:
        print("\n".join(report(options.peer, tuple(options.methods))))


if __name__ == "__main__":
    main()

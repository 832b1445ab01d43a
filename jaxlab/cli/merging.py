"""`jaxlab merge CONFIG.yml OUT`: checkpoints merged by a mergekit recipe within a budget."""

from __future__ import annotations

import dataclasses
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from jaxlab.cli.usage import UsageError, parse

if TYPE_CHECKING:
    from jaxlab.merging.streaming import Plan, Recipe, StreamOptions

SIGTERM_STATUS, SIGINT_STATUS = 143, 130
PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal
ABOUT = (
    "Merge safetensors checkpoints by a mergekit recipe. Not supported, and refused: merging of "
    "tokenizers, chat templates, LoRA adapters, several modules, models that are not on this disk."
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "B": 10**9}  # "5B" is mergekit's


def main(words: Sequence[str]) -> int:
    """Merges checkpoints into a new folder.

    Args:
        words: what was typed after `merge`: the recipe, the output folder, then options.

    Returns:
        0 when the folder is complete.

    Raises:
        UsageError: a recipe, an input or an output that cannot be used; nothing has the final name.
        SystemExit: interrupted, after saying how to go on.
    """
    typed = _options(words)
    if len(typed.paths) != 2:
        raise UsageError(
            f"name a recipe and a folder: jaxlab merge CONFIG.yml OUT, got {typed.paths}"
        )
    path, folder = (Path(name) for name in typed.paths)
    from jaxlab.merging.streaming import MergeError, merge_checkpoints, read_recipe

    options = _stream_options(typed)
    began = time.monotonic()
    try:
        recipe = read_recipe(path)
        models = {name: _find(name, path) for name in recipe.models}
        with _Reporter(folder.name, typed.progress) as report, _SigtermExits():
            plan = merge_checkpoints(recipe, folder, options, models=models, report=report)
    except MergeError as error:
        raise UsageError(str(error)) from error
    except (KeyboardInterrupt, SystemExit) as stop:
        again = shlex.join(["jaxlab", "merge", *words, *([] if typed.resume else ["--resume"])])
        print(f"\nstopped; go on with:\n  {again}", file=sys.stderr)
        code = SIGINT_STATUS if isinstance(stop, KeyboardInterrupt) else stop.code
        raise SystemExit(code) from None
    print(_summary(recipe, plan, folder, time.monotonic() - began))
    return 0


def _options(words: Sequence[str]) -> Any:
    from tyro.conf import Positional, arg

    paths = arg(help="The recipe (YAML) and the output folder.", metavar="CONFIG.yml OUT")
    fields: list[tuple[str, Any, Any]] = [
        ("paths", Annotated[tuple[str, ...], Positional, paths], ()),
        ("memory", Annotated[str, arg(help="For weights; the interpreter comes on top.")], "256M"),
        ("dtype", Annotated[str, arg(help="float32, bfloat16, ...; the recipe's if empty.")], ""),
        ("shard_size", Annotated[str, arg(help="Most bytes in one output file.")], "5G"),
        ("seed", Annotated[int, arg(help="Of random methods.")], 0),
        ("resume", Annotated[bool, arg(help="Go on with an interrupted merge.")], False),
        ("progress", Annotated[bool, arg(help="Show progress.")], True),
    ]
    options_type = dataclasses.make_dataclass("MergeOptions", fields, frozen=True)
    return parse(options_type, words, options_type(), "jaxlab merge", ABOUT)


def _stream_options(typed: Any) -> StreamOptions:
    from jaxlab.merging.streaming import StreamOptions
    from jaxlab.merging.streaming.recipe import FLOAT_DTYPES

    if typed.dtype and typed.dtype not in FLOAT_DTYPES:
        known = ", ".join(FLOAT_DTYPES)
        raise UsageError(f"dtype: expected one of {known}, got {typed.dtype!r}")
    return StreamOptions(
        memory=_bytes("memory", typed.memory),
        dtype=FLOAT_DTYPES[typed.dtype] if typed.dtype else None,
        shard_size=_bytes("shard-size", typed.shard_size),
        seed=typed.seed,
        resume=typed.resume,
    )


def _bytes(flag: str, text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B?|[KMG](?:i?B)?)", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{flag}: expected a size such as 256M or 2G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2][:1].upper()])


def _find(name: str, recipe: Path) -> Path:
    """A model's path, as seen from here or else from the recipe's folder."""
    for path in (Path(name).expanduser(), recipe.parent / name):
        if path.exists():
            return path
    raise UsageError(f"model {name!r} is no folder here or beside {recipe.name}")


def _summary(recipe: Recipe, plan: Plan, folder: Path, seconds: float) -> str:
    import math

    count = sum(math.prod(tensor.shape) for tensor in plan.tensors)
    return (
        f"{folder}: {len(plan.tensors)} tensors, {count / 1e6:.4g} M parameters, "
        f"{recipe.method} of {len(recipe.models)} models in {seconds:.1f} s"
    )


class _SigtermExits:
    """SIGTERM unwinds like Ctrl-C, so that what is done is noted."""

    def __enter__(self) -> None:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._previous = signal.signal(signal.SIGTERM, self._leave)

    def __exit__(self, *_: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._previous)

    @staticmethod
    def _leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(SIGTERM_STATUS)


class _Reporter:
    """A live bar in a terminal, plain lines elsewhere."""

    def __init__(self, label: str, enabled: bool):
        self.label, self.enabled = label, enabled
        self._bar: Any = None
        self._task: Any = None
        self._last = time.monotonic()

    def __enter__(self) -> _Reporter:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[tensor]}", markup=False),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=None, tensor="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, written: int, total: int, tensor: str) -> None:
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=written, total=total, tensor=tensor)
        elif self.enabled and now - self._last >= PLAIN_INTERVAL:
            share = f"{written / 1e6:.0f} of {total / 1e6:.0f} MB"
            print(f"{self.label}: {share}, {tensor}", file=sys.stderr, flush=True)
            self._last = now

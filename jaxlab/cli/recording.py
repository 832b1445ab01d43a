"""`jaxlab dataset ENV LEVEL OUT`: an offline data set, made by a policy that is trained for it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from jaxlab.cli.usage import UsageError, parse, unknown

if TYPE_CHECKING:
    from jaxlab.datasets import Dataset

ABOUT = (
    "Make an offline data set: train a soft actor-critic in ENV and record its transitions at "
    "LEVEL (random, medium, medium-replay, expert) to OUT. The same words give the same bytes. "
    "With --check FILE: verify a data set and say what it holds."
)


def main(words: Sequence[str]) -> int:
    """Makes a data set, or verifies one.

    Args:
        words: what was typed after `dataset`: environment, level and file, then options.

    Returns:
        0 when the file is complete, or is what was written.

    Raises:
        UsageError: words that name no data set, a training without a policy of that level, or a
            file that is not what was written.
    """
    options = _options(words)
    if options.check:
        print(_describe(Path(options.check), _load(Path(options.check))))
        return 0
    if len(options.words) != 3:
        raise UsageError(
            f"name three words: jaxlab dataset ENV LEVEL OUT, got {' '.join(options.words)!r}"
        )
    from jaxlab import envs
    from jaxlab.datasets import LEVELS, DatasetError, generate, save

    env, level, out = options.words
    if env not in envs.names():
        raise unknown("environment", env, envs.names())
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    wanted = {"episode_length": options.episode_length, "backend": options.backend}
    began = time.monotonic()
    try:
        dataset = generate(
            env,
            level,
            seed=options.seed,
            rows=options.rows,
            config=options.training,
            options={name: value for name, value in wanted.items() if value},
        )
        save(Path(out), dataset)
    except (DatasetError, ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
    print(_describe(Path(out), _load(Path(out))))
    print(f"{time.monotonic() - began:.0f} s")
    return 0


def _options(words: Sequence[str]) -> Any:
    from tyro.conf import Positional, arg

    from jaxlab.datasets import BehaviourConfig

    names = arg(help="Environment, level and file.", metavar="ENV LEVEL OUT")
    fields: list[tuple[str, Any, Any]] = [
        ("words", Annotated[tuple[str, ...], Positional, names], ()),
        ("rows", Annotated[int, arg(help="Transitions (not of medium-replay).")], 10_000),
        ("seed", Annotated[int, arg(help="Of everything random.")], 0),
        ("episode_length", Annotated[int, arg(help="The environment's own if 0.")], 0),
        ("backend", Annotated[str, arg(help="Of brax; its default if empty.")], ""),
        ("check", Annotated[str, arg(help="Verify this file and say what it holds.")], ""),
        ("training", Annotated[BehaviourConfig, arg(help="Of the policy.")], BehaviourConfig()),
    ]
    options_type = dataclasses.make_dataclass("DatasetOptions", fields, frozen=True)
    return parse(options_type, words, options_type(), "jaxlab dataset", ABOUT)


def _load(path: Path) -> Dataset:
    from jaxlab.datasets import DatasetError, load

    try:
        return load(path)
    except DatasetError as error:
        raise UsageError(str(error)) from error


def _describe(path: Path, dataset: Dataset) -> str:
    about = dataset.about
    expert = about["expert_return"]
    reference = "no reference" if expert is None else f"reference {expert:.1f}"
    return (
        f"{path}: {about['env']} {about['level']}, {len(dataset)} transitions in "
        f"{int(dataset.episode[-1]) + 1} episodes; the policy returns {about['return']:.1f} "
        f"(score {about['score']:.0f}; uniform actions {about['random_return']:.1f}, {reference}); "
        "the checksum holds"
    )

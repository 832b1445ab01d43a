"""`jaxlab run NAME`: from claims to verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from jaxlab.cli.usage import UsageError, parse, unknown

if TYPE_CHECKING:
    from jaxlab.report import Program, Record
    from jaxlab.stats import Claim

HELP = """usage: jaxlab run NAME [--preset small] [options]

  jaxlab list              the names, and their presets
  jaxlab run NAME --help   every option of an experiment
"""
SIGTERM_STATUS, SIGINT_STATUS = 143, 130
_MOST_CPU_DEVICES = 8  # members are few: studies have 16 seeds or more


def main(words: Sequence[str]) -> int:
    """Runs one experiment to its verdict.

    Args:
        words: what was typed after `run`: the name, then options.

    Returns:
        0 when the run ended, whatever the verdict, and after help.

    Raises:
        UsageError: unknown name, preset or option, or a folder that belongs to another run, cannot
            be written or holds checkpoints that cannot be used.
        SystemExit: interrupted, after saying how to go on.
    """
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    from jaxlab.ensemble import CheckpointError
    from jaxlab.report import RegistrationError, configs, provenance, register
    from jaxlab.report.registration import checkpoints

    _use_every_core()  # before an experiment is imported, which may compute
    program = _find(words)
    options = _options(program, words[1:])
    config = options.config
    for name, value in configs.flatten(config).items():
        if name.rpartition(".")[2] == "seeds" and value < 1:
            raise UsageError(f"{name}: expected at least 1, got {value}")
    directory = options.out or Path("runs") / f"{program.name}-{config.preset}"
    _keep_compiled(directory)
    try:
        claims = program.claims(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    git = provenance.commit(program.path)
    try:
        resumed = register(directory, program, config, claims, resume=options.resume)
    except RegistrationError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"{directory} cannot hold a run: {error.strerror}") from error
    _announce(program, config, claims, directory, resumed)
    reused = resumed and bool(checkpoints(directory))
    try:
        record = _run(program, options, directory, reused, git)
    except CheckpointError as error:
        raise UsageError(f"give another --out, or --no-resume to start over: {error}") from error
    _conclude(record, directory)
    return 0


def _use_every_core() -> None:
    """A CPU device per core, so that members run side by side on a machine without accelerators.

    One device's own threads leave cores idle between the small operations of most updates.
    """
    import jax

    from jaxlab.report import provenance

    chosen = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if not chosen and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(provenance.cpu_count(), _MOST_CPU_DEVICES))


def _keep_compiled(directory: Path) -> None:
    """Compiled programs stay in the run's folder, so that going on with it compiles nothing.

    Must come before anything is compiled: JAX looks at the setting once.
    """
    import jax

    from jaxlab.report.registration import compiled_folder

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        folder = compiled_folder(directory).resolve()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _find(words: Sequence[str]) -> Program:
    from jaxlab.report import discover, load_program

    found = discover()
    if not words:
        raise UsageError(f"name an experiment: jaxlab run NAME, one of: {', '.join(found)}")
    if words[0] not in found:
        raise unknown("experiment", words[0], found)
    try:
        return load_program(found[words[0]])
    except ValueError as error:
        raise UsageError(str(error)) from error


def _preset(program: Program, words: Sequence[str]) -> str:
    """The preset decides the defaults of every other option, so it is read first."""
    name = "small" if "small" in program.presets else next(iter(program.presets))
    for word, following in zip(words, (*words[1:], "")):
        if word == "--preset":
            name = following
        elif word.startswith("--preset="):
            name = word.partition("=")[2]
    if name not in program.presets:
        raise unknown("preset", name, program.presets)
    return name


def _options(program: Program, words: Sequence[str]) -> Any:
    """The experiment's config and the options of `run`, on one level of flags."""
    from tyro.conf import arg

    config = program.presets[_preset(program, words)]
    fields: list[tuple[str, Any, Any]] = [
        ("config", Annotated[program.config_type, arg(name="")], config),
        (
            "out",
            Annotated[Path | None, arg(help="The run's folder; runs/NAME-PRESET if none.")],
            None,
        ),
        ("resume", Annotated[bool, arg(help="Go on with what the folder holds.")], True),
        ("progress", Annotated[bool, arg(help="Show progress.")], True),
    ]
    options_type = dataclasses.make_dataclass("RunOptions", fields, frozen=True)
    prog = f"jaxlab run {program.name}"
    return parse(options_type, words, options_type(), prog, program.summary)


def _announce(
    program: Program, config: Any, claims: Sequence[Claim], directory: Path, resumed: bool
) -> None:
    from jaxlab.report import configs
    from jaxlab.report.summary import criterion

    paper = program.paper
    print(f"{program.name}: {paper.title} ({paper.authors}, {paper.venue} {paper.year})")
    print(f"  {_setting(config, configs.changes(config, program.presets[config.preset]))}")
    for claim in claims:
        secondary = "" if claim.required else ", secondary"
        rule = f"{criterion(claim)}, {claim.n_seeds} seeds{secondary}"
        print(f"  claim {claim.name} ({rule}): {claim.statement}")
    print(f"  {'resumes' if resumed else 'writes to'} {directory}", flush=True)


def _setting(config: Any, changed: dict[str, tuple[Any, Any]]) -> str:
    from jaxlab.report import configs

    words = f"preset {config.preset}, {config.seeds} seeds"
    return f"{words}, modified: {', '.join(configs.describe(changed))}" if changed else words


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, also while no engine that listens for it is running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(SIGTERM_STATUS)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(
    program: Program, options: Any, directory: Path, resumed: bool, git: dict[str, Any] | None
) -> Record:
    from jaxlab.report import save
    from jaxlab.report.results import command

    started = time.monotonic()
    try:
        with _sigterm_exits():
            outcome = program.run(
                options.config,
                directory=directory,
                resume=options.resume,
                progress=options.progress,
            )
            return save(
                directory,
                program,
                options.config,
                outcome,
                git=git,
                wall_seconds=time.monotonic() - started,
                resumed=resumed,
            )
    except (KeyboardInterrupt, SystemExit) as stop:
        again = command(program, options.config)
        if options.out is not None:
            again += f" --out {shlex.quote(str(options.out))}"
        print(
            f"\nstopped; everything up to the last checkpoint is kept. Go on with:\n  {again}",
            file=sys.stderr,
        )
        code = SIGINT_STATUS if isinstance(stop, KeyboardInterrupt) else stop.code
        raise SystemExit(code if isinstance(code, int) and code else SIGTERM_STATUS) from None


def _conclude(record: Record, directory: Path) -> None:
    from jaxlab.report.summary import duration
    from jaxlab.stats import verdict_table

    parts = [(part.claim, part.verdict) for part in record.parts]
    modified = f", modified: {', '.join(record.modified)}" if record.modified else ""
    print(f"\npreset {record.preset}{modified}\n\n{verdict_table(parts)}\n")
    for claim, verdict in parts:
        for note in () if verdict.status == "smoke" else verdict.notes:
            print(f"  {claim.name}: {note}")
    for note in record.notes:
        print(f"  {note}")
    print(f"\n{record.conclusion}")
    print(f"{duration(record.wall_seconds)}; verdict.json, datasets and plots are in {directory}")
    print("The exit status is 0 because the run ended; the verdict does not change it.")

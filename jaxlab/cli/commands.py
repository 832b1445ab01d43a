"""Picks the command; nothing heavy is imported before it is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from jaxlab.cli.usage import UsageError, unknown

HELP = """usage: jaxlab COMMAND ...

  jaxlab list                                  experiments, their presets and stored verdicts
  jaxlab run NAME [--preset small] [options]   run an experiment to its verdict
  jaxlab run NAME --help                       every option of an experiment
  jaxlab report [DIR ...] [--out report.html]  all stored verdicts on one page
  jaxlab generate --weights FILE --vocab FILE   text from RWKV-7 weights
  jaxlab merge CONFIG.yml OUT                  merge checkpoints by a mergekit recipe
  jaxlab dataset ENV LEVEL OUT                 an offline data set of a policy it trains
  jaxlab --version
"""


def _list(words: Sequence[str]) -> int:
    from jaxlab.cli.listing import main

    return main(words)


def _run(words: Sequence[str]) -> int:
    from jaxlab.cli.running import main

    return main(words)


def _report(words: Sequence[str]) -> int:
    from jaxlab.cli.reporting import main

    return main(words)


def _generate(words: Sequence[str]) -> int:
    from jaxlab.cli.generating import main

    return main(words)


def _merge(words: Sequence[str]) -> int:
    from jaxlab.cli.merging import main

    return main(words)


def _dataset(words: Sequence[str]) -> int:
    from jaxlab.cli.recording import main

    return main(words)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": _list,
    "run": _run,
    "report": _report,
    "generate": _generate,
    "merge": _merge,
    "dataset": _dataset,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: words after the program's name, those of the process if None.

    Returns:
        The exit status: 0, or 2 for a command that cannot be carried out as typed. A verdict is a
        result and never changes it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        import jaxlab

        print(f"jaxlab {jaxlab.__version__}")
        return 0
    try:
        command = COMMANDS.get(words[0])
        if command is None:
            raise unknown("command", words[0], COMMANDS)
        return command(words[1:])
    except UsageError as error:
        print(f"jaxlab: {error}", file=sys.stderr)
        return 2

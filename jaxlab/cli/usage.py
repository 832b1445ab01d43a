"""What the user typed, understood or answered with one clear sentence."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """A command that cannot be carried out as typed; printed as one sentence, exit status 2."""


def unknown(kind: str, got: str, known: Iterable[str]) -> UsageError:
    """The error for a name nobody knows, with the nearest known ones.

    Args:
        kind: what was named, "experiment".
        got: what was typed.
        known: what could have been typed.

    Returns:
        The exception, to be raised by the caller.
    """
    choices = list(known)
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(got.lower(), list(lowered), n=1, cutoff=0.5)
    if near:
        hint = f"did you mean {lowered[near[0]]!r}?"
    elif choices:
        hint = f"known: {', '.join(choices)}"
    else:
        hint = "there is none here"
    return UsageError(f"unknown {kind} {got!r}; {hint}")


def flag_names(options: Any, prefix: str = "--") -> list[str]:
    """Every flag of a (nested) dataclass instance, as tyro spells them."""
    from jaxlab.report.configs import holds_dataclasses

    names: list[str] = []
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            names += flag_names(value, "--" if name == "config" else f"{prefix}{name}.")
        elif holds_dataclasses(value):
            for i, entry in enumerate(value):
                names += flag_names(entry, f"{prefix}{name}.{i}.")
        elif isinstance(value, bool):
            names += [f"{prefix}{name}", f"{prefix}no-{name}"]
        else:
            names.append(f"{prefix}{name}")
    return names


def parse(options_type: type[T], words: Sequence[str], default: Any, prog: str, about: str) -> T:
    """Fills a frozen dataclass from the command line.

    Args:
        options_type: the dataclass.
        words: what was typed after the command.
        default: an instance whose values hold where nothing was typed.
        prog: the command, for help.
        about: one sentence for help.

    Returns:
        The filled dataclass.

    Raises:
        UsageError: an unknown flag, a stray word, or a value that the dataclass refuses.
        SystemExit: after help, or after tyro has explained a value of the wrong type.
    """
    import tyro

    try:
        options, rest = tyro.cli(
            options_type,
            args=list(words),
            default=default,
            prog=prog,
            description=about,
            return_unknown_args=True,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if rest and not rest[0].startswith("-"):
        raise UsageError(f"unexpected word {rest[0]!r}; options are in {prog} --help")
    if rest:
        raise unknown("option", rest[0].partition("=")[0], flag_names(default))
    return options

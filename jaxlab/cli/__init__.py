"""The command line: `jaxlab list | run NAME | report | generate`."""

from jaxlab.cli.commands import main

__all__ = ["main"]

"""The command line: `jaxlab list | run NAME | report | generate | merge | dataset`."""

from jaxlab.cli.commands import main

__all__ = ["main"]

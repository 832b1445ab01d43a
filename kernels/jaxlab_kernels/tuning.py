"""What was measured to be fastest, per device kind, key width and dtype.

`python -m jaxlab_kernels.autotune` writes the table; nothing is ever timed while tracing.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("tuned.json")


class Choice(NamedTuple):
    """How "auto" runs: an implementation, its chunk, below which T the scan is faster, and options
    of the implementation's own.
    """

    impl: str = "xla"
    chunk: int = 32
    scan_below: int = 16
    options: tuple[tuple[str, int], ...] = ()


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, dict[int, Choice]]]:
    """Read the shipped table: device kind, dtype, key width."""
    choices: dict[str, dict[str, dict[int, Choice]]] = {}
    for row in json.loads(TABLE.read_text()):
        by_width = choices.setdefault(row["device_kind"], {}).setdefault(row["dtype"], {})
        options = tuple(sorted(row["options"].items()))
        by_width[row["width"]] = Choice(row["impl"], row["chunk"], row["scan_below"], options)
    return choices


def lookup(device_kind: str, width: int, dtype: str) -> Choice:
    """Find the entry of the nearest width; plain XLA in chunks of 32 where nothing was measured.

    So "auto" never picks a kernel on a kind of device on which nobody has run it.
    """
    by_width = table().get(device_kind, {}).get(dtype, {})
    if not by_width:
        return Choice()
    return by_width[min(by_width, key=lambda known: abs(known - width))]

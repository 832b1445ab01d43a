"""One progress line: a live bar in a terminal, plain lines elsewhere."""

import math
import sys
import time
from typing import Any

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


class Progress:
    """Reports what a run does: compilation, steps per second, members, time left."""

    def __init__(self, label: str, members: int, steps: int, enabled: bool):
        self.label, self.members, self.steps = label, members, steps
        self.enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._first = (0, 0.0)  # step and time that the rate is measured from
        self._last = -math.inf

    def __enter__(self):
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.steps, status="tracing")
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Shows a sentence that must not get lost."""
        if self._bar is not None:
            self._bar.console.print(f"{self.label}: {text}", highlight=False, markup=False)
        elif self.enabled:
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def begin(self, step: int) -> None:
        """Starts the clock, at the step the run starts or resumes from."""
        self._first = (step, time.monotonic())
        self._last = -math.inf

    def update(self, step: int, dead: int) -> None:
        """Reports the number of updates that every member has done."""
        first, since = self._first
        now = time.monotonic()
        rate = (step - first) / max(now - since, 1e-9)
        left = (self.steps - step) / rate if rate > 0 else math.inf
        status = (
            f"{step}/{self.steps} steps  {rate:.3g} steps/s  "
            f"{self.members} members{f' ({dead} dead)' if dead else ''}  ETA {_clock(left)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
        elif self.enabled and (step == self.steps or now - self._last >= PLAIN_INTERVAL):
            print(f"{self.label}: {status}", file=sys.stderr, flush=True)
            self._last = now


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

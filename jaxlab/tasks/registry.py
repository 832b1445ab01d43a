"""From a configuration to its task."""

from __future__ import annotations

from jaxlab.tasks import chain, countdown, equiv, kvsum, stack, tool
from jaxlab.tasks.task import Task

TaskConfig = (
    chain.Config | countdown.Config | stack.Config | kvsum.Config | equiv.Config | tool.Config
)


def make_task(config: TaskConfig) -> Task:
    """Makes the task that a configuration is of.

    Args:
        config: of any task.

    Returns:
        The task.

    Raises:
        ValueError: a configuration of no task.
    """
    for module in (chain, countdown, stack, kvsum, equiv, tool):
        if isinstance(config, module.Config):
            return module.make(config)
    raise ValueError(f"config: expected the Config of a task, got {type(config).__name__}")

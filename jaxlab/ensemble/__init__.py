"""The ensemble engine: many members of one experiment as one program, resumable and exact."""

from jaxlab.ensemble.engine import Preempted, load, run, states
from jaxlab.ensemble.experiment import Experiment
from jaxlab.ensemble.storage import CheckpointError
from jaxlab.ensemble.sweeps import merge, sweep

__all__ = ["CheckpointError", "Experiment", "Preempted", "load", "merge", "run", "states", "sweep"]

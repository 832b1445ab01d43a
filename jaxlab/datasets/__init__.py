"""Offline data sets: policies of several levels, their transitions, one file format."""

from jaxlab.datasets.behaviour import Behaviour, BehaviourConfig, train
from jaxlab.datasets.files import Dataset, DatasetError, load, save
from jaxlab.datasets.recording import LEVELS, Level, generate, record

__all__ = [
    "LEVELS",
    "Behaviour",
    "BehaviourConfig",
    "Dataset",
    "DatasetError",
    "Level",
    "generate",
    "load",
    "record",
    "save",
    "train",
]

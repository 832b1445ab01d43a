"""Experiment programs, their stored verdicts, and the page that shows them."""

from jaxlab.report.configs import seeded
from jaxlab.report.discovery import discover, experiments_folder, load_program, programs_in
from jaxlab.report.files import read_dataset, write_dataset
from jaxlab.report.program import Curves, Fronts, Landscape, Outcome, Paper, Program
from jaxlab.report.record import Part, Record, collect, load
from jaxlab.report.registration import RegistrationError, register, registered_digests
from jaxlab.report.results import save

__all__ = [
    "Curves",
    "Fronts",
    "Landscape",
    "Outcome",
    "Paper",
    "Part",
    "Program",
    "Record",
    "RegistrationError",
    "collect",
    "discover",
    "experiments_folder",
    "load",
    "load_program",
    "programs_in",
    "read_dataset",
    "register",
    "registered_digests",
    "save",
    "seeded",
    "write_dataset",
]

"""Pure-function world models, value learners and vectorised ensembles of experiments in JAX."""

__version__ = "0.1.0"

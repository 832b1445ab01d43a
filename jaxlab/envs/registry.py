"""Environments by name."""

import difflib
from typing import Any

from jaxlab.envs.brax import BRAX_NAMES, brax_env
from jaxlab.envs.cartpole import cartpole_swingup
from jaxlab.envs.core import Env
from jaxlab.envs.pendulum import pendulum
from jaxlab.envs.point_mass import point_mass

_FACTORIES = {
    "pendulum": pendulum,
    "cartpole_swingup": cartpole_swingup,
    "point_mass": point_mass,
}


def names() -> tuple[str, ...]:
    """Every name that `make` knows."""
    return (*_FACTORIES, *(f"brax/{name}" for name in BRAX_NAMES))


def make(name: str, **options: Any) -> Env:
    """Build an environment from its name.

    Args:
        name: one of `names()`, such as "pendulum" or "brax/hopper".
        **options: keyword arguments of the environment's factory (`episode_length`; for brax
            also `backend`; for the point mass `dims`).

    Returns:
        The raw environment.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name in _FACTORIES:
        return _FACTORIES[name](**options)
    if name in names():
        return brax_env(name.removeprefix("brax/"), **options)
    near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names())}"
    raise ValueError(f"name: no environment is called {name!r}; {hint}")

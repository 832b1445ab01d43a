"""Helpers that let one formula serve JAX (traced, float32) and NumPy (host, float64)."""

from types import ModuleType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

AnyArray: TypeAlias = jax.Array | np.ndarray
AnyResult: TypeAlias = jax.Array | np.ndarray | np.generic  # NumPy reduces to its scalars


def as_float(x: Any) -> Any:
    """Returns `x` as a floating array; NumPy stays NumPy, everything else becomes a JAX array."""
    x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)


def namespace(*arrays: Any) -> ModuleType | Any:
    """Returns numpy if all `arrays` are NumPy (so float64 survives), otherwise jax.numpy."""
    return np if all(isinstance(a, np.ndarray) for a in arrays) else jnp


def check_size(name: str, x: Any, least: int) -> None:
    """Raises ValueError unless the last axis of `x` holds at least `least` values."""
    if x.ndim == 0 or x.shape[-1] < least:
        raise ValueError(
            f"{name}: expected at least {least} values on the last axis, got shape {x.shape}"
        )


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError unless `value` lies strictly between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number strictly between 0 and 1, got {value!r}")

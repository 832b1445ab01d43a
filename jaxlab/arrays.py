"""Elementary functions that stay differentiable where the textbook ones are not."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def safe_sqrt(x: Any) -> Any:
    """Square root whose gradient is zero at zero, and below, where rounding may lead.

    Args:
        x: an array; NumPy stays NumPy, and NaN stays NaN.

    Returns:
        Roots, 0 where x is not positive.
    """
    xp = np if isinstance(x, np.ndarray | np.generic) else jnp
    zero = x <= 0
    return xp.where(zero, xp.zeros_like(x), xp.sqrt(xp.where(zero, xp.ones_like(x), x)))

"""Elementary functions at their edges."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.arrays import safe_sqrt
from jaxlab.worldmodels.uncertainty import uncertainty


def test_a_root_is_flat_at_zero_and_keeps_what_is_no_number():
    x = jnp.asarray([4.0, 0.0, -1e-9, jnp.nan])
    np.testing.assert_array_equal(safe_sqrt(x), [2, 0, 0, np.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(safe_sqrt))(x)[:3], [0.25, 0, 0])
    assert safe_sqrt(np.asarray([2.0]))[0] == np.sqrt(2.0)  # NumPy, in float64
    assert safe_sqrt(jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_model_without_numbers_is_not_certain():
    mean = jnp.asarray([[[jnp.nan]], [[1.0]]])
    for kind in ("pairwise", "ensemble_std"):
        assert jnp.isnan(uncertainty(mean, None, kind)).all()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm
from jaxlab.worldmodels.uncertainty import uncertainty


def test_against_numpy(key):
    mean = jax.random.normal(key, (4, 5, 3))
    logvar = jax.random.normal(jax.random.fold_in(key, 1), (4, 5, 3))
    m, sigma = np.asarray(mean, np.float64), np.exp(0.5 * np.asarray(logvar, np.float64))
    apart = m - m.mean(0)
    expected = {
        "aleatoric": np.linalg.norm(sigma, axis=-1).max(0),
        "pairwise": np.linalg.norm(apart, axis=-1).max(0),
        "ensemble_std": np.sqrt((m.std(0) ** 2).mean(-1)),
    }
    for kind, wanted in expected.items():
        got = jax.jit(lambda m, v, k=kind: uncertainty(m, v, k))(mean, logvar)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_members_that_agree_are_certain():
    mean = jnp.ones((3, 2, 4))
    for kind in ("pairwise", "ensemble_std"):
        np.testing.assert_array_equal(uncertainty(mean, None, kind), 0.0)
    with pytest.raises(ValueError, match="logvar: expected an array for 'aleatoric', got None"):
        uncertainty(mean, None, "aleatoric")
    with pytest.raises(ValueError, match=r"kind: expected one of .*, got 'max'"):
        uncertainty(mean, None, "max")


def test_a_single_member_has_a_certain_gradient(key):
    config = wm.EnsembleConfig(members=1, elites=1, hidden=(4,), deterministic=True)
    state = wm.init(key, config, 2, 1)
    obs, never = jnp.ones((3, 2)), lambda o, a, n: jnp.zeros(n.shape[:-1], bool)
    step = wm.make_step_fn(state, config, never, penalty="pairwise")

    def penalised(action):
        _, reward, _, info = step(key, obs, action)
        return jnp.sum(reward - info["uncertainty"] - info["disagreement"])

    plain = jax.grad(lambda action: jnp.sum(step(key, obs, action)[1]))(jnp.zeros((3, 1)))
    assert np.all(np.isfinite(plain)) and np.all(np.asarray(plain) != 0)
    np.testing.assert_allclose(jax.grad(penalised)(jnp.zeros((3, 1))), plain, rtol=1e-6)


@pytest.mark.slow
def test_the_step_function_reports_it_of_the_elites_alone(key):
    config = wm.EnsembleConfig(members=3, elites=2, hidden=(4,))
    state = wm.init(key, config, 2, 1)
    obs, action = jax.random.normal(key, (6, 2)), jnp.zeros((6, 1))
    never = lambda o, a, n: jnp.zeros(n.shape[:-1], bool)  # noqa: E731
    step = wm.make_step_fn(state, config, never, penalty="aleatoric")
    info = step(key, obs, action)[3]
    mean, logvar = wm.apply(state, config, obs, action)
    np.testing.assert_allclose(
        info["uncertainty"], uncertainty(mean[:2], logvar[:2], "aleatoric"), rtol=1e-6
    )
    plain = wm.make_step_fn(state, config, never)(key, obs, action)
    assert "uncertainty" not in plain[3]
    np.testing.assert_array_equal(plain[0], step(key, obs, action)[0])

import jax
import numpy as np
import pytest

from jaxlab.envs import make, restored_step_fn
from jaxlab.envs.restored import RUNNERS


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNERS)
def test_restored_steps_are_the_environments(name, key):
    env = make(f"brax/{name}", backend="generalized")
    reset, step = jax.jit(jax.vmap(env.reset)), jax.jit(jax.vmap(env.step))
    model = jax.jit(restored_step_fn(name))
    state, obs = reset(jax.random.split(key, 64))
    seen = []
    for t in range(30):
        action = jax.random.uniform(
            jax.random.fold_in(key, t), (64, env.spec.action_dim), minval=-1.0, maxval=1.0
        )
        state, out = step(state, action, jax.random.split(key, 64))
        next_obs, reward, terminated, info = model(key, obs, action)
        physics = state.physics.pipeline_state
        unit = np.matmul(physics.mass_mx, physics.mass_mx_inv)
        sound = np.abs(unit - np.eye(unit.shape[-1])).max(axis=(1, 2)) < 1e-3
        nudges = 1e-5 * jax.random.normal(key, (4, *obs.shape))
        nudged = np.stack([model(key, obs + nudge, action)[0] for nudge in nudges])
        steady = np.abs(nudged - np.asarray(next_obs)[None]).max(axis=(0, 2)) < 1e-2
        # Beyond a clipped velocity nothing is promised, nor once brax's inverse is none, nor where
        # a contact hangs on the last digits.
        known = (np.abs(np.asarray(obs)).max(axis=1) < 10) & sound & steady
        np.testing.assert_allclose(next_obs[known], out.next_obs[known], rtol=1e-2, atol=2e-2)
        np.testing.assert_allclose(reward[known], out.reward[known], atol=5e-3)
        seen.append((np.asarray(terminated) == np.asarray(out.terminated))[known])
        assert info == {}
        obs = out.next_obs
    assert np.concatenate(seen).mean() >= 0.999 and np.concatenate(seen).size > 100


def test_refusals():
    with pytest.raises(ValueError, match=r"name: expected one of .*got 'ant'"):
        restored_step_fn("ant")
    with pytest.raises(ValueError, match=r"backend: expected one of .*got 'spring'"):
        restored_step_fn("hopper", backend="spring")

"""The returns that stand in the specs, measured again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.envs import episode_returns, exact_step_fn, make, uniform_policy

PLANS, ELITES, ITERATIONS = 128, 16, 4


def planned_returns(key, env, *, horizon, episodes):
    """Returns of model-predictive control by the cross-entropy method on the exact dynamics."""
    model = exact_step_fn(env)

    def value(obs, plans):
        def ahead(carry, action):
            obs, alive, total = carry
            obs, reward, terminated, _ = model(jax.random.key(0), obs, action)
            total = total + jnp.where(alive, reward, 0)
            return (obs, alive & ~terminated, total), None

        start = (jnp.broadcast_to(obs, (PLANS, obs.size)), jnp.ones(PLANS, bool), jnp.zeros(PLANS))
        (_, _, total), _ = jax.lax.scan(ahead, start, jnp.swapaxes(plans, 0, 1))
        return total

    def plan(key, obs, mean):
        def improve(carry, key):
            mean, std = carry
            noise = jax.random.normal(key, (PLANS, *mean.shape))
            plans = jnp.clip(mean[None] + std[None] * noise, -1, 1)
            elites = plans[jnp.argsort(-value(obs, plans))[:ELITES]]
            return (elites.mean(0), elites.std(0)), None

        keys = jax.random.split(key, ITERATIONS)
        (mean, _), _ = jax.lax.scan(improve, (mean, jnp.ones_like(mean)), keys)
        return mean

    def episode(key):
        def act(carry, key):
            state, obs, mean, alive = carry
            plan_key, step_key = jax.random.split(key)
            mean = plan(plan_key, obs, mean)
            state, out = env.step(state, mean[0], step_key)
            mean = jnp.concatenate([mean[1:], jnp.zeros_like(mean[:1])])
            return (state, out.obs, mean, alive & ~out.terminated), out.reward * alive.astype(
                jnp.float32
            )

        reset_key, key = jax.random.split(key)
        state, obs = env.reset(reset_key)
        start = (state, obs, jnp.zeros((horizon, env.spec.action_dim)), jnp.array(True))
        return jax.lax.scan(act, start, jax.random.split(key, env.spec.episode_length))[1].sum()

    return jax.jit(jax.vmap(episode))(jax.random.split(key, episodes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options",
    [
        ("pendulum", {}),
        ("cartpole_swingup", {}),
        ("brax/inverted_pendulum", {"backend": "spring"}),
        ("brax/inverted_pendulum", {"backend": "generalized"}),
        ("brax/hopper", {}),
    ],
)
def test_random_return(name, options):
    env = make(name, **options)
    returns = jax.jit(lambda key: episode_returns(key, env, uniform_policy(env), 1024))(
        jax.random.key(1)
    )
    np.testing.assert_allclose(env.spec.random_return, returns.mean(), rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name, horizon", [("pendulum", 25), ("cartpole_swingup", 50)])
def test_expert_return(name, horizon):
    env = make(name)
    returns = planned_returns(jax.random.key(2), env, horizon=horizon, episodes=64)
    np.testing.assert_allclose(env.spec.expert_return, returns.mean(), rtol=0.1)

"""Critics kept flat: bounded kernels, penalties on changes, and that off is off to the last bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import DynaConfig, SACConfig, dyna, flat_critics, sac, state_values
from jaxlab.agents.sac_config import UNBOUNDED
from jaxlab.envs import pendulum
from jaxlab.types import Transition
from jaxlab.worldmodels import EnsembleConfig, FitConfig

OBS, ACTION, ROWS = 3, 2, 16
PLAIN = SACConfig(hidden=(16,))


@pytest.fixture(scope="module")
def batches():
    keys = jax.random.split(jax.random.key(5), 4)
    return Transition(
        obs=jax.random.normal(keys[0], (4, ROWS, OBS)) * jnp.array([0.1, 1.0, 8.0])[None, None],
        action=jax.random.uniform(keys[1], (4, ROWS, ACTION), minval=-1.0),
        reward=10 * jax.random.normal(keys[2], (4, ROWS)),
        terminated=jnp.zeros((4, ROWS), bool),
        truncated=jnp.zeros((4, ROWS), bool),
        next_obs=jax.random.normal(keys[3], (4, ROWS, OBS)),
    )


def train(config, batches, **hparams):
    """An agent after four updates with large steps."""

    @jax.jit
    def run(scalars):
        state = sac.init(jax.random.key(0), config, scalars, OBS, ACTION)
        return sac.update_many(jax.random.key(1), state, batches, config, scalars)

    return run(sac.hyperparams(ACTION, critic_lr=0.1, tau=0.5, **hparams))


def norms(critics):
    return [np.linalg.norm(np.asarray(layer["kernel"]), 2, axis=(1, 2)) for layer in critics]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "hparams"),
    [
        ("spectral", {"spectral_beta": UNBOUNDED}),
        ("robust", {"robust_coef": 0.0}),
        ("noise", {"robust_coef": 0.0}),
    ],
)
def test_a_regulariser_without_weight_is_none_to_the_last_bit(kind, hparams, batches):
    plain, metrics = train(PLAIN, batches)
    same, same_metrics = train(
        dataclasses.replace(PLAIN, critic_regulariser=kind), batches, **hparams
    )
    plain, same = (dataclasses.replace(s, spectral=None) for s in (plain, same))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(metrics["critic_loss"]) == float(same_metrics["critic_loss"])
    # And one with weight is not.
    on, _ = train(dataclasses.replace(PLAIN, critic_regulariser=kind), batches, spectral_beta=0.5)
    assert not np.array_equal(on.critics[0]["kernel"], plain.critics[0]["kernel"])


@pytest.mark.slow
def test_critics_are_evaluated_within_the_bound_and_trained_beyond_it(batches):
    config = dataclasses.replace(PLAIN, critic_regulariser="spectral")
    state, _ = train(config, batches, spectral_beta=0.7)
    for critics, raw in zip(sac.evaluated_critics(state), (state.critics, state.target_critics)):
        for bounded, kept in zip(norms(critics), norms(raw)):
            assert (kept > 0.75).all()
            # One power iteration per update follows a kernel that moves fast from below.
            assert (bounded < 0.75).all() and (bounded > 0.69).all()
    # The targets' and the actor's critics are the bounded ones.
    still = dataclasses.replace(state, spectral=None)
    bounded, target = sac.evaluated_critics(state)
    still = dataclasses.replace(still, critics=bounded, target_critics=target)
    hparams = sac.hyperparams(ACTION)
    batch = jax.tree.map(lambda x: x[0], batches)
    noise = jnp.ones((ROWS, ACTION))
    found = sac.targets(state, batch, noise, config, hparams)
    np.testing.assert_allclose(
        found, sac.targets(still, batch, noise, PLAIN, hparams), rtol=1e-5, atol=1e-6
    )
    update = jax.jit(sac.update, static_argnums=3)
    _, metrics = update(jax.random.key(2), dataclasses.replace(state), batch, config, hparams)
    frozen = sac.hyperparams(ACTION, critic_lr=0.0, tau=0.0)
    after, metrics = update(jax.random.key(2), state, batch, config, frozen)
    _, expected = update(jax.random.key(2), still, batch, PLAIN, frozen)
    np.testing.assert_allclose(metrics["actor_loss"], expected["actor_loss"], rtol=2e-2)
    np.testing.assert_array_equal(after.critics[0]["kernel"], state.critics[0]["kernel"])
    # Values of states that a model loss asks are those too.
    values = state_values.value_fn(state, config)(batch.obs[0])
    np.testing.assert_allclose(
        values, state_values.value_fn(still, PLAIN)(batch.obs[0]), rtol=1e-5, atol=1e-6
    )
    slope = jax.jacobian(state_values.value_fn(state, config))(batch.obs[0])
    assert float(jnp.sqrt(jnp.max(jnp.sum(slope**2, -1)))) < 0.75**2


def test_penalty_of_linear_critics_in_closed_form(key):
    kernel = jax.random.normal(key, (3, OBS + ACTION, 1))
    critics = ({"kernel": kernel, "bias": jnp.zeros((3, 1))},)
    obs = jax.random.normal(key, (50, OBS)) * jnp.array([0.1, 1.0, 8.0])[None]
    config = SACConfig(hidden=(), critics=3)
    action = jnp.zeros((50, ACTION))
    penalty = jax.jit(
        lambda eps, steps: flat_critics.robust_penalty(
            key, critics, lambda p, s: sac.q_values(p, config, s, action), obs, eps, steps
        ),
        static_argnums=1,
    )
    weight = np.abs(np.asarray(kernel, np.float64)[:, :OBS, 0]) @ np.asarray(obs).std(0)
    np.testing.assert_allclose(penalty(0.2, 3), np.sum((0.2 * weight) ** 2), rtol=1e-4)
    # A uniform perturbation: the variance of a sum of uniform ones.
    squares = np.asarray(kernel, np.float64)[:, :OBS, 0] ** 2 @ np.asarray(obs).var(0)
    np.testing.assert_allclose(penalty(0.2, 0), np.sum(0.04 * squares / 3), rtol=0.5)
    assert float(penalty(0.0, 1)) < 1e-10


def test_penalties_flatten_and_the_worst_case_does_so_more(batches):
    def steepness(kind, coef):
        config = dataclasses.replace(PLAIN, critic_regulariser=kind)
        state, metrics = train(config, batches, robust_coef=coef, robust_eps=1.0)
        assert float(metrics["critic_penalty"]) > 0

        def change(shift):
            q = sac.q_values(state.critics, config, batches.obs[0] + shift, batches.action[0])
            return q - sac.q_values(state.critics, config, batches.obs[0], batches.action[0])

        return float(jnp.mean(change(jnp.array([[0.1, 1.0, 8.0]])) ** 2))

    weak, strong = (steepness("robust", coef) for coef in (1e-3, 10.0))
    assert strong < 0.7 * weak
    assert steepness("noise", 1e-3) > strong


def test_sweeps_are_a_vmap(batches):
    config = dataclasses.replace(PLAIN, critic_regulariser="robust")

    @jax.jit
    @jax.vmap
    def swept(coef, eps):
        hparams = sac.hyperparams(ACTION, robust_coef=coef, robust_eps=eps)
        state = sac.init(jax.random.key(0), config, hparams, OBS, ACTION)
        return sac.update_many(jax.random.key(1), state, batches, config, hparams)[1]

    found = swept(jnp.array([0.0, 1.0, 1.0]), jnp.array([0.1, 0.1, 0.5]))["critic_penalty"]
    assert found[0] == 0 and 0 < found[1] < found[2]


def test_the_default_bound_is_finite_as_a_healthy_state_must_be():
    assert all(np.isfinite(x) for x in jax.tree.leaves(sac.hyperparams(ACTION)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spectral", "robust"])
def test_a_dyna_loop_runs_with_it_and_stays_finite(kind):
    config = DynaConfig(
        sac=SACConfig(hidden=(8,), critic_regulariser=kind),
        model=EnsembleConfig(members=1, elites=1, hidden=(8,)),
        fit=FitConfig(batch_size=16, max_epochs=1, max_holdout=8),
        batch_size=8,
        utd=1,
        capacity=48,
        initial_steps=20,
        model_train_freq=4,
        rollout_batch=8,
        eval_episodes=1,
    )
    loop = dyna.make(pendulum(episode_length=10), config)
    state = jax.jit(loop.init)(jax.random.key(0), {"spectral_beta": 0.5, "robust_eps": 0.1})
    state, metrics = jax.jit(loop.update)(state)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(bool(jnp.isfinite(x).all()) for x in floats)
    assert ("critic_penalty" in metrics) == (kind == "robust")


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="critic_regulariser: expected one of"):
        SACConfig(critic_regulariser="dropout")
    with pytest.raises(ValueError, match="robust_steps: expected at least 1, got 0"):
        SACConfig(robust_steps=0)

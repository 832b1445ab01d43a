"""Offline model-based learning: what goes into the rows, what the arms change and what not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, values, worldmodels
from jaxlab.agents import interaction, offline, sac
from jaxlab.agents.offline_config import OfflineConfig, hyperparams
from jaxlab.agents.sac import SACConfig
from jaxlab.envs import auto_reset, exact_step_fn, point_mass
from jaxlab.worldmodels import EnsembleConfig, FitConfig

EXACT = OfflineConfig(
    sac=SACConfig(hidden=(8,)),
    exact_model=True,
    start="initial",
    horizon=2,
    rollout_batch=12,
    retain_epochs=2,
    updates=2,
    batch_size=16,
    eval_episodes=2,
)
LEARNED = dataclasses.replace(
    EXACT,
    exact_model=False,
    start="data",
    model=EnsembleConfig(members=2, elites=2, hidden=(8,)),
    fit=FitConfig(batch_size=16, max_epochs=2, max_holdout=8),
    penalty="aleatoric",
)


def mass():
    return envs.make("point_mass", dims=3, episode_length=6)


@functools.cache
def data():
    """Transitions of uniform actions whose reward is 3 throughout."""
    _, _, rows = interaction.explore(jax.random.key(9), auto_reset(mass()), 60)
    return dataclasses.replace(rows, reward=jnp.full(60, 3.0))


COMMON = {"penalty_coef": 0.0, "real_ratio": 0.0, "gamma": 0.99}


@functools.cache
def compiled(config, with_data=False, **options):
    experiment = offline.make(mass(), config, data() if with_data else None, **options)
    return tuple(jax.jit(f) for f in experiment)


def run(init, update, hparams=None, epochs=2):
    """States and metrics of some epochs."""
    states, metrics = [init(jax.random.key(3), COMMON | (hparams or {}))], []
    for _ in range(epochs):
        state, one = update(states[-1])
        states.append(state)
        metrics.append(one)
    return states, metrics


def same(a, b):
    return all(
        np.array_equal(jax.random.key_data(x), jax.random.key_data(y))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        else np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.slow
def test_rows_are_steps_of_the_exact_model_and_end_in_a_truncation():
    init, update, _ = compiled(EXACT)
    states, metrics = run(init, update, epochs=3)
    assert [int(s.imagined.count) for s in states] == [0, 24, 48, 48]
    rows = states[2].imagined.data
    expected = jax.jit(exact_step_fn(mass()))(jax.random.key(0), rows.obs, rows.action)
    np.testing.assert_allclose(rows.next_obs, expected[0], atol=1e-6)
    np.testing.assert_allclose(rows.reward, expected[1], atol=1e-6)
    np.testing.assert_array_equal(rows.t, np.tile(np.repeat([1, 2], 12), 2))
    np.testing.assert_array_equal(rows.truncated, rows.t == 2)
    assert not bool(jnp.any(rows.terminated))
    np.testing.assert_array_equal(rows.obs[12:24], rows.next_obs[:12])
    # Branches start where episodes do.
    start = rows.obs[rows.t == 1]
    assert float(jnp.max(jnp.abs(start))) <= point_mass.HALF_WIDTH
    assert len(np.unique(np.asarray(start[:, 0]))) == len(start)
    for name, value in metrics[-1].items():
        assert value.shape == () and value.dtype == jnp.float32 and np.isfinite(value), name
    assert rows.value is None and "edge_fraction" not in metrics[0]


@pytest.mark.slow
def test_a_penalty_for_model_uncertainty_changes_no_bit_of_an_exact_model():
    base, _ = run(*compiled(EXACT)[:2])
    for penalty in ("aleatoric", "pairwise"):
        config = dataclasses.replace(EXACT, penalty=penalty)
        mopo, metrics = run(*compiled(config)[:2], {"penalty_coef": 5.0})
        assert float(metrics[0]["uncertainty"]) == 0
        for a, b in zip(base, mopo, strict=True):
            assert same(dataclasses.replace(a, hparams=None), dataclasses.replace(b, hparams=None))


@pytest.mark.slow
def test_a_learned_model_is_penalised_by_its_uncertainty():
    init, update, _ = compiled(LEARNED, with_data=True)
    plain, first = run(init, update, epochs=1)
    mopo, second = run(init, update, {"penalty_coef": 2.0}, epochs=1)
    uncertainty = float(first[0]["uncertainty"])
    assert uncertainty > 0 and float(second[0]["uncertainty"]) == uncertainty
    gap = float(first[0]["imagined_reward"] - second[0]["imagined_reward"])
    np.testing.assert_allclose(gap, 2 * uncertainty, rtol=1e-3)
    np.testing.assert_array_equal(plain[1].imagined.data.next_obs, mopo[1].imagined.data.next_obs)
    # Branches start at states of the data set.
    start = np.asarray(plain[1].imagined.data.obs[:12])
    assert np.isin(start[:, 0], np.asarray(data().obs[:, 0])).all()
    # The reward was learned: it is 3 wherever the data are.
    assert plain[0].model is not None


def test_a_deterministic_model_is_fitted_by_its_squared_error():
    # States change by half the action, which a linear network can say.
    config = dataclasses.replace(
        LEARNED,
        model=EnsembleConfig(members=2, elites=2, hidden=(), deterministic=True, weight_decay=0.0),
        fit=FitConfig(batch_size=16, max_epochs=60),
        penalty="pairwise",
    )
    recorded = jax.tree.map(np.asarray, data())  # as `datasets.load` gives them
    init = jax.jit(offline.make(mass(), config, recorded).init)
    state = init(jax.random.key(3), {"model_lr": 3e-2})
    mean, logvar = worldmodels.apply(state.model, config.model, data().obs, data().action)
    assert logvar is None
    change = data().next_obs - data().obs
    np.testing.assert_allclose(mean[..., :3], np.stack([change, change]), atol=0.02)


@pytest.mark.slow
def test_the_real_ratio_says_what_is_learned_from():
    init, update, _ = compiled(LEARNED, with_data=True)
    _, metrics = run(init, update, {"real_ratio": 1.0, "gamma": 0.0}, epochs=1)
    np.testing.assert_allclose(metrics[0]["target_mean"], 3.0, rtol=1e-6)
    _, metrics = run(init, update, {"penalty_coef": 50.0, "gamma": 0.0}, epochs=1)
    assert float(metrics[0]["target_mean"]) < 2.0


def all_edge(t, obs):
    return t == 2


def seven(key, agent, obs):
    return jnp.full(len(obs), 7.0)


@pytest.mark.slow
def test_the_patch_replaces_the_bootstrap_at_the_edge_and_nowhere_else():
    hparams = {"gamma": 0.5, "init_alpha": 1e-6}
    patched = compiled(EXACT, edge_of_reach=all_edge, true_value=seven)
    base = compiled(EXACT)
    states, metrics = run(*patched[:2], hparams, epochs=1)
    _, plain_metrics = run(*base[:2], hparams, epochs=1)
    assert float(metrics[0]["edge_fraction"]) == 1.0
    rows = states[1].imagined.data
    np.testing.assert_array_equal(rows.value[:24], 7.0)
    # Half of the rows are at the edge; untrained critics are near 0, the patch is worth 3.5.
    gap = float(metrics[0]["target_mean"] - plain_metrics[0]["target_mean"])
    assert 0.3 * 3.5 < gap < 0.7 * 3.5


@pytest.mark.slow
def test_without_an_edge_the_patch_changes_no_bit():
    never = compiled(EXACT, edge_of_reach=lambda t, obs: t > 2, true_value=seven)
    unpatched, metrics = run(*never[:2], epochs=1)
    assert same(unpatched[1].agent, run(*compiled(EXACT)[:2], epochs=1)[0][1].agent)
    assert float(metrics[0]["edge_fraction"]) == 0.0


def test_terminal_rows_are_worth_their_reward_and_truncated_ones_bootstrap(key):
    config = SACConfig(hidden=(4,))
    hparams = sac.hyperparams(3, gamma=0.9, init_alpha=1e-6)
    agent = sac.init(key, config, hparams, 3, 3)
    rows = data()
    ends = jnp.arange(60) % 2 == 0
    batch = offline.BranchRow(
        **offline._fields(dataclasses.replace(rows, terminated=ends, truncated=~ends)),
        t=jnp.ones(60, jnp.int32),
        value=jnp.full(60, 10.0),
    )
    hooks = sac.CriticHooks(bootstrap=lambda batch, value: batch.value)
    noise = jnp.zeros((60, 3))
    target = sac.targets(agent, batch, noise, config, hparams, hooks)
    np.testing.assert_array_equal(target[ends], 3.0)
    np.testing.assert_allclose(target[~ends], 3 + 0.9 * 10, rtol=1e-4)
    free = sac.targets(agent, batch, noise, config, hparams)
    assert float(jnp.max(jnp.abs(free[~ends] - 3.0))) < 9.0


@pytest.mark.slow
def test_branches_never_go_on_from_a_terminal_state():
    raw = envs.make("cartpole_swingup", episode_length=30)
    at_border = raw.reset(jax.random.key(0))[1].at[0].set(2.39).at[1].set(3.0)
    env = raw._replace(reset=lambda key: (raw.reset(key)[0], at_border))
    config = dataclasses.replace(EXACT, horizon=5)
    experiment = offline.make(env, config)
    state, _ = jax.jit(experiment.update)(experiment.init(jax.random.key(0), {}))
    rows = jax.tree.map(lambda x: x[:60], state.imagined.data)
    assert int(jnp.sum(rows.terminated)) > 10
    assert float(jnp.max(jnp.abs(rows.obs[:, 0]))) <= 2.4
    assert not bool(jnp.any(rows.terminated & rows.truncated))


def test_diversity_is_that_of_the_values_package(key):
    config = SACConfig(critics=3, hidden=(8,))
    critics = jax.jit(lambda k: sac.init(k, config, sac.hyperparams(2), 4, 2))(key).critics
    obs, action = jax.random.normal(key, (7, 4)), jax.random.uniform(key, (7, 2))

    @jax.jit
    def both(c):
        def q_fn(s, a):
            return sac.q_values(c, config, s, a)

        ours = jax.value_and_grad(lambda c: offline.critic_diversity(c, config, obs, action))
        return ours(c), values.diversity_penalty(q_fn, obs, action)

    (got, _), expected = both(critics)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), critics)
    np.testing.assert_allclose(both(alike)[0][0], 3, rtol=1e-3)
    # Of three critics two opposite ones and one without a direction: the cosine -1, twice, halved.
    flat = jax.tree.map(lambda x: jnp.stack([x[0], x[0], 0 * x[0]]), critics)
    flat[-1]["kernel"] = flat[-1]["kernel"].at[1].multiply(-1)
    (got, gradient), _ = both(flat)
    np.testing.assert_allclose(got, -1, rtol=1e-3)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(gradient))


def test_diversity_costs_nothing_when_it_is_off():
    many = dataclasses.replace(EXACT, sac=SACConfig(critics=4, hidden=(8,)))
    diverse = dataclasses.replace(many, diversity=True)

    def products(config):
        experiment = offline.make(mass(), config)
        state = jax.eval_shape(experiment.init, jax.random.key(0), COMMON)
        _, metrics = jax.eval_shape(experiment.update, state)
        jaxpr = str(jax.make_jaxpr(experiment.update)(state))
        return jaxpr.count("dot_general"), "critic_penalty" in metrics

    (plain, reported), (second, also) = products(many), products(diverse)
    assert plain < second and not reported and also


@pytest.mark.slow
def test_diversity_is_learned():
    config = SACConfig(critics=4, hidden=(8,))
    init, update, _ = compiled(dataclasses.replace(EXACT, sac=config, diversity=True, updates=100))

    def diversity(weight):
        states, metrics = run(init, update, {"diversity_coef": weight, "critic_lr": 3e-3})
        rows = states[-1].imagined.data
        critics = states[-1].agent.critics
        return offline.critic_diversity(critics, config, rows.obs, rows.action), metrics

    weak, metrics = diversity(0.0)
    assert float(metrics[-1]["critic_penalty"]) == 0.0
    strong, _ = diversity(10.0)
    assert float(strong) < float(weak) - 0.5


@pytest.mark.slow
def test_members_under_vmap_equal_members_alone():
    init, update, evaluate = compiled(EXACT)
    keys = jax.random.split(jax.random.key(5), 2)
    hparams = [COMMON | {"critic_lr": 1e-4}, COMMON | {"critic_lr": 1e-2, "gamma": 0.5}]
    alone = [init(key, h) for key, h in zip(keys, hparams)]
    together = jax.vmap(update)(jax.tree.map(lambda *x: jnp.stack(x), *alone))
    for i, state in enumerate(alone):
        expected, metrics = update(state)
        for a, b in zip(
            jax.tree.leaves(expected.agent), jax.tree.leaves(together[0].agent), strict=True
        ):
            np.testing.assert_allclose(b[i], a, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            together[1]["q_mean"][i], metrics["q_mean"], rtol=1e-3, atol=1e-5
        )
    out = evaluate(alone[0], keys[0])
    assert float(out["episode_length"]) == 6.0
    assert 0 < float(out["return"]) < 6 and np.isfinite(out["start_value"])


def test_what_is_missing_is_named():
    with pytest.raises(
        ValueError, match="data: expected transitions to fit the model to, got None"
    ):
        offline.make(mass(), dataclasses.replace(LEARNED, start="initial"))
    with pytest.raises(ValueError, match="data: expected transitions to start branches from"):
        offline.make(mass(), dataclasses.replace(EXACT, start="data"))
    with pytest.raises(ValueError, match="edge_of_reach: expected a function together with"):
        offline.make(mass(), EXACT, true_value=seven)
    for changes, sentence in (
        ({"penalty": "max"}, "penalty: expected one of"),
        ({"start": "here"}, "start: expected one of"),
        ({"horizon": 0}, "horizon: expected at least 1, got 0"),
        ({"diversity": True, "sac": SACConfig(critics=1)}, "sac.critics: expected at least 2"),
        ({"model": EnsembleConfig(deterministic=True)}, "penalty: 'aleatoric' needs a model"),
        ({"sac": SACConfig(policy_every=3)}, "updates: expected a multiple of policy_every"),
    ):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(LEARNED, **changes)
    with pytest.raises(ValueError, match=r"hparams: unknown \['eta'\]"):
        hyperparams({"eta": 1.0}, 2)

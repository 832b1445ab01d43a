import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.search import ICEMConfig, init_icem, plan_icem


def record(config, returns, state=None, **options):
    """Runs one search; gives every evaluated population too."""
    seen = []

    def evaluate(plans):
        jax.debug.callback(lambda p: seen.append(np.array(p)), plans)
        return returns(plans)

    state = init_icem(config) if state is None else state
    plan = jax.jit(lambda s, o: plan_icem(jax.random.key(0), evaluate, s, config, **o))
    out = plan(state, options)
    jax.effects_barrier()
    return seen, *out


def towards(target):
    return lambda plans: -jnp.sum((plans - target) ** 2, axis=(1, 2))


def test_population_shrinks_to_twice_the_elites():
    config = ICEMConfig(2, 1, population=50, num_elites=10, iterations=3, decay=1.6)
    assert config.populations == (50, 31, 20)
    assert config.kept == 3
    seen, *_ = record(config, towards(0.0))
    # Three kept elites beside the new plans, and the mean in the last iteration.
    assert [len(p) for p in seen] == [53, 34, 24]


def test_elites_are_kept_within_a_call_and_shifted_between_calls():
    config = ICEMConfig(3, 1, population=20, num_elites=5, iterations=2, keep_fraction=0.4)
    returns = towards(0.4)
    seen, _, state, _ = record(config, returns)
    first = seen[0][:20]
    best = first[np.argsort(-np.asarray(returns(first)))[:2]]
    np.testing.assert_array_equal(seen[1][16:18], best)
    last = seen[1]
    best = last[np.argsort(-np.asarray(returns(last)))[:2]]
    np.testing.assert_array_equal(state.kept[:, :-1], best[:, 1:])
    np.testing.assert_array_equal(state.kept[:, -1], 0.0)
    assert bool(state.valid.all())
    seen, *_ = record(config, returns, state)
    np.testing.assert_array_equal(seen[0][20:], state.kept)


def test_the_mean_is_a_candidate_of_the_last_iteration_only():
    config = ICEMConfig(2, 1, population=10, num_elites=4, iterations=2, keep_fraction=0.0)
    start = init_icem(config)
    start = start._replace(mean=jnp.full((2, 1), 0.123))
    seen, *_ = record(config, lambda p: jnp.zeros(p.shape[0]), start, alpha=1.0)
    assert seen[0].shape == (10, 2, 1) and seen[1].shape == (9, 2, 1)  # 8 new ones and the mean
    np.testing.assert_allclose(seen[1][-1], 0.123, rtol=1e-6)
    assert not np.any(np.isclose(seen[0], 0.123, atol=1e-6))


def test_missing_elites_of_a_first_call_are_never_chosen():
    # Mid-range plans, which the empty memory holds, would be the best ones.
    config = ICEMConfig(2, 1, population=12, num_elites=6, iterations=1, keep_fraction=1.0)
    seen, plan, _, info = record(config, towards(0.0), sigma=0.9, alpha=0.0)
    sampled = seen[0][:12]
    returns = np.asarray(towards(0.0)(jnp.asarray(np.concatenate([sampled, seen[0][-1:]]))))
    candidates = np.concatenate([sampled, seen[0][-1:]])
    best = candidates[np.argsort(-returns)[:6]]
    np.testing.assert_allclose(plan, best.mean(0), rtol=1e-5, atol=1e-6)
    assert float(info.finite_fraction[0]) == 1.0


def test_best_and_mean_differ_in_what_they_return():
    returns = towards(0.35)
    for choose in ("best", "mean"):
        config = ICEMConfig(2, 1, population=30, num_elites=6, iterations=1, choose=choose)
        seen, plan, state, _ = record(config, returns, alpha=0.2, sigma=0.4)
        scores = np.asarray(returns(jnp.asarray(seen[0])))
        usable = np.ones(len(scores), bool)
        usable[30:-1] = False
        order = np.argsort(-np.where(usable, scores, -np.inf))
        mean = 0.8 * seen[0][order[:6]].mean(0)  # the old mean is zero
        expected = seen[0][order[0]] if choose == "best" else mean
        np.testing.assert_allclose(plan, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.mean[0], mean[1], rtol=1e-5, atol=1e-6)


def test_noise_is_as_coloured_as_asked():
    config = ICEMConfig(16, 1, population=4000, num_elites=10, iterations=1)
    for beta, low, high in ((0.0, -0.03, 0.03), (2.0, 0.7, 0.95)):
        seen, *_ = record(config, towards(0.0), noise_beta=beta, sigma=0.1)
        x = seen[0][:4000, :, 0] / 0.1
        assert low < np.mean(x[:, 1:] * x[:, :-1]) < high
        np.testing.assert_allclose(np.mean(x**2), 1.0, atol=0.05)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_elites": 0}, "num_elites: expected at least 1"),
        ({"decay": 0.9}, r"decay: expected at least 1, got 0\.9"),
        ({"keep_fraction": 1.5}, r"keep_fraction: expected within \[0, 1\]"),
        ({"choose": "median"}, "choose: expected one of"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ICEMConfig(2, 1, **changes)

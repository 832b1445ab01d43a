import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.search import MPPIConfig, MPPIState, init_mppi, plan_mppi


def record(config, returns, state=None, **options):
    seen = []

    def evaluate(plans):
        jax.debug.callback(lambda p: seen.append(np.array(p)), plans)
        return returns(plans)

    state = init_mppi(config) if state is None else state
    out = plan_mppi(jax.random.key(0), evaluate, state, config, **options)
    jax.effects_barrier()
    return seen, *out


def test_plan_is_the_weighted_mean_of_the_samples():
    config = MPPIConfig(3, 2, population=50)
    returns = lambda p: 7 - 3 * jnp.sum((p - 0.2) ** 2, axis=(1, 2))  # noqa: E731
    seen, plan, _, info = record(config, returns, gamma=2.0)
    scores = np.asarray(returns(jnp.asarray(seen[0])), np.float64)
    weight = np.exp(2.0 * (scores - scores.max()))
    weight /= weight.sum()
    np.testing.assert_allclose(plan, np.einsum("p,pha->ha", weight, seen[0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.mean_return, [weight @ scores], rtol=1e-5)
    np.testing.assert_allclose(info.effective_plans, [1 / (weight**2).sum()], rtol=1e-5)


def test_weights_do_not_depend_on_the_level_of_the_returns():
    config = MPPIConfig(2, 1, population=40)
    score = lambda p: p[:, 0, 0]  # noqa: E731
    plans = [
        record(config, lambda p, c=c: score(p) + c, gamma=8.0)[1] for c in (0.0, -1024.0, 1024.0)
    ]
    np.testing.assert_allclose(plans[1], plans[0], atol=2e-3)  # what adding to 1024 rounds off
    np.testing.assert_allclose(plans[2], plans[0], atol=2e-3)


def test_limits_of_the_temperature():
    config = MPPIConfig(2, 1, population=64)
    returns = lambda p: jnp.sum(p, axis=(1, 2))  # noqa: E731
    seen, plan, _, info = record(config, returns, gamma=0.0)
    np.testing.assert_allclose(plan, seen[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(info.effective_plans, 64.0, rtol=1e-5)
    seen, plan, _, info = record(config, returns, gamma=1e6)
    np.testing.assert_allclose(plan, seen[0][seen[0].sum((1, 2)).argmax()], atol=1e-6)
    np.testing.assert_allclose(info.effective_plans, 1.0, rtol=1e-5)


def test_smoothing_follows_its_recursion_from_the_action_before():
    config = MPPIConfig(4, 1, population=5)
    state = MPPIState(mean=jnp.array([[0.1], [0.2], [-0.3], [0.4]]), previous=jnp.array([0.5]))
    zero = lambda p: jnp.zeros(p.shape[0])  # noqa: E731
    rough = record(config, zero, state, beta=1.0, sigma=0.1)[0][0]
    smooth = record(config, zero, state, beta=0.6, sigma=0.1)[0][0]
    expected, previous = [], np.full((5, 1), 0.5)
    for t in range(4):
        previous = 0.6 * rough[:, t] + 0.4 * previous
        expected.append(previous)
    np.testing.assert_allclose(smooth, np.stack(expected, 1), rtol=1e-5, atol=1e-6)


def test_next_call_knows_the_action_that_was_taken():
    config = MPPIConfig(3, 1, population=8, iterations=2)
    _, plan, state, info = record(config, lambda p: p[:, 0, 0])
    np.testing.assert_array_equal(state.previous, plan[0])
    np.testing.assert_array_equal(state.mean[:-1], plan[1:])
    assert info.effective_plans.shape == (2,)


def test_without_noise_or_smoothing_the_plan_stays():
    config = MPPIConfig(3, 1, population=4, iterations=3)
    state = init_mppi(config)._replace(mean=jnp.array([[0.1], [0.2], [0.3]]))
    _, plan, _, _ = record(config, lambda p: p[:, 0, 0], state, sigma=0.0, beta=1.0)
    np.testing.assert_allclose(plan, state.mean, rtol=1e-6)


def test_an_infinite_inverse_temperature_takes_the_best():
    config = MPPIConfig(2, 1, population=64)
    for sign in (1, -1):  # returns of either sign
        returns = lambda p, s=sign: jnp.sum(p, axis=(1, 2)) + 5 * s  # noqa: E731
        seen, plan, _, info = record(config, returns, gamma=jnp.inf)
        np.testing.assert_allclose(plan, seen[0][seen[0].sum((1, 2)).argmax()], atol=1e-6)
        np.testing.assert_allclose(info.effective_plans, 1.0)
    ties = lambda p: jnp.where(p[:, 0, 0] > 0, 0.0, -1.0)  # noqa: E731
    seen, plan, _, _ = record(config, ties, gamma=jnp.inf)
    np.testing.assert_allclose(plan, seen[0][seen[0][:, 0, 0] > 0].mean(0), atol=1e-6)

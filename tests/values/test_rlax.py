"""Agreement with rlax where it implements the same function and is right; it is an extra."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values
from jaxlab.values import Support, ValueHead

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its own imports warn of
    rlax = pytest.importorskip("rlax")

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

STEPS, ACTIONS, ATOMS = 7, 3, 11


@pytest.fixture(autouse=True)
def lenient():
    """The peer relies on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def trajectory(seed=0):
    """Rewards, discounts with one end, values whose next is the following row's, and ratios."""
    rng = np.random.default_rng(seed)
    r, rho = rng.normal(size=STEPS), np.exp(rng.normal(size=STEPS))
    d = 0.95 * np.ones(STEPS)
    d[3] = 0
    v = rng.normal(size=STEPS + 1)
    return tuple(jnp.asarray(x, jnp.float32) for x in (r, d, v[:-1], v[1:], rho))


def actions(seed=0):
    rng = np.random.default_rng(seed)
    q, q_next = rng.normal(size=(2, STEPS, ACTIONS))
    a, a_next = rng.integers(ACTIONS, size=(2, STEPS))
    pi, mu = rng.dirichlet(np.ones(ACTIONS), size=(2, STEPS))
    floats = [jnp.asarray(x, jnp.float32) for x in (q, q_next, pi, mu)]
    return *floats, jnp.asarray(a), jnp.asarray(a_next)


def close(ours, theirs, tolerance=2e-6):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_multi_step_returns(lam):
    r, d, v, v_next, rho = trajectory()
    close(values.lambda_return(r, d, v_next, lam), rlax.lambda_returns(r, d, v_next, lam))
    theirs = rlax.truncated_generalized_advantage_estimation(r, d, lam, jnp.append(v, v_next[-1]))
    close(values.gae(r, d, v, v_next, lam), theirs)
    ours = values.vtrace(v, v_next, r, d, rho, lam, rho_bar=0.9, pg_rho_bar=1.1)
    theirs = rlax.vtrace_td_error_and_advantage(v, v_next, r, d, rho, lam, 0.9, 1.1)
    close(ours.value - v, theirs.errors)
    close(ours.advantage, theirs.pg_advantage)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_returns(n):
    r, d, _, v_next, _ = trajectory()
    close(values.n_step_target(r, d, v_next, n), rlax.n_step_bootstrapped_returns(r, d, v_next, n))


def test_one_step_targets():
    r, d, v, v_next, _ = trajectory()
    q, q_next, pi, _, a, a_next = actions()
    close(values.td0_target(r, d, v_next) - v, jax.vmap(rlax.td_learning)(v, r, d, v_next))
    qa = values.sarsa_target(jnp.zeros(STEPS), jnp.ones(STEPS), q, a)  # q[t, a[t]]
    errors = {
        "sarsa": (values.sarsa_target(r, d, q_next, a_next), rlax.sarsa, (q_next, a_next)),
        "expected": (
            values.expected_sarsa_target(r, d, q_next, pi),
            rlax.expected_sarsa,
            (q_next, pi),
        ),
        "q": (values.q_target(r, d, q_next), rlax.q_learning, (q_next,)),
        "double": (values.double_q_target(r, d, q_next, q), rlax.double_q_learning, (q_next, q)),
    }
    for target, theirs, arguments in errors.values():
        close(target - qa, jax.vmap(theirs)(q, a, r, d, *arguments))
    close(values.q_lambda(r, d, q_next, 0.8) - qa, rlax.q_lambda(q, a, r, d, q_next, 0.8))


def test_off_policy_returns():
    r, d, *_ = trajectory()
    q, q_next, pi, mu, a, a_next = actions()
    qa = values.sarsa_target(jnp.zeros(STEPS), jnp.ones(STEPS), q, a)
    mu_a = jnp.take_along_axis(mu, a_next[:, None], 1)[:, 0]
    ours = values.retrace(r, d, q_next, a_next, pi, mu_a, 0.9)
    close(ours - qa, rlax.retrace(q, q_next, a, a_next, r, d, pi, mu_a, 0.9), 1e-5)
    trace = 0.9 * jnp.take_along_axis(pi, a_next[:, None], 1)[:, 0]
    theirs = rlax.general_off_policy_returns_from_action_values(q_next, a_next, r, d, trace, pi)
    close(values.tree_backup(r, d, q_next, a_next, pi, 0.9), theirs)


def test_categorical_projection_and_loss(key):
    support = Support(-2.0, 2.0, ATOMS)
    z = jnp.linspace(-2.0, 2.0, ATOMS)
    logits, logits_next = jax.random.normal(key, (2, 5, ATOMS))
    r, d = jnp.linspace(-3.0, 3.0, 5), jnp.array([0.9, 0.0, 0.9, 0.5, 0.9])
    source = r[:, None] + d[:, None] * z
    close(
        values.c51_project(source, jax.nn.softmax(logits), support),
        jax.vmap(rlax.categorical_l2_project, (0, 0, None))(source, jax.nn.softmax(logits), z),
        1e-5,
    )
    theirs = jax.vmap(rlax.categorical_td_learning, (None, 0, 0, 0, None, 0))(
        z, logits, r, d, z, logits_next
    )
    close(
        ValueHead("c51", support).bootstrap_loss(logits, r, d, logits_next)[0], theirs.mean(), 1e-5
    )


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_quantile_loss(key, kappa):
    theta, target = jax.random.normal(key, (2, 4, 9))
    tau = jnp.broadcast_to(values.quantile_midpoints(9), (4, 9))
    theirs = jax.vmap(rlax.quantile_regression_loss, (0, 0, 0, None))(theta, tau, target, kappa)
    close(values.quantile_huber_loss_per_example(theta, tau, target, kappa), theirs, 1e-5)


def test_transforms_where_the_peer_is_accurate():
    x = jnp.array([-1e4, -30.0, -2.0, 0.0, 2.0, 30.0, 1e4])
    close(values.signed_hyperbolic(x), rlax.signed_hyperbolic(x), 1e-5)
    close(values.signed_parabolic(x[1:-1]), rlax.signed_parabolic(x[1:-1]), 2e-3)
    close(values.symlog(x), rlax.signed_logp1(x), 1e-6)
    close(values.symexp(x[1:-1]), rlax.signed_expm1(x[1:-1]), 1e-5)
    ours = values.two_hot(jnp.array([-0.93, 0.2, 0.41]), Support(-1.0, 1.0, 11))
    close(ours, rlax.transform_to_2hot(jnp.array([-0.93, 0.2, 0.41]), -1.0, 1.0, 11), 2e-4)


class TestDefectsOfThePeerAreAbsent:
    """Each one is shown in the peer first: a test that no longer holds there has lost its point."""

    def test_whole_numbers_are_refused(self):
        r, d, v = jnp.array([1, 2]), jnp.array([1, 1]), jnp.array([3, 4])
        with pytest.raises(AssertionError):
            rlax.lambda_returns(r, d, v, 0.5)
        np.testing.assert_allclose(values.lambda_return(r, d, v, 0.5), [5.5, 6.0])

    def test_only_single_trajectories_are_accepted(self):
        r = jnp.ones((4, 2))
        with pytest.raises(AssertionError):
            rlax.lambda_returns(r, r, r, 0.5)
        np.testing.assert_array_equal(
            values.lambda_return(r, r, r, 0.5)[:, 1],
            values.lambda_return(r[:, 0], r[:, 0], r[:, 0], 0.5),
        )

    def test_half_precision_returns_stall(self):
        ones = jnp.ones(1000, jnp.bfloat16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                theirs = float(rlax.lambda_returns(ones, ones, jnp.zeros_like(ones), 1.0)[0])
            except TypeError:  # its loop mixes dtypes
                theirs = 0.0
        assert theirs < 300
        assert float(values.lambda_return(ones, ones, jnp.zeros_like(ones), 1.0)[0]) == 1000

    def test_inverse_of_the_hyperbolic_transform_cancels(self):
        exact = 1e-4
        y = jnp.float32(np.sqrt(1 + exact) - 1 + 1e-3 * exact)
        theirs, ours = float(rlax.signed_parabolic(y)), float(values.signed_parabolic(y))
        assert abs(theirs / exact - 1) > 0.3
        assert abs(ours / exact - 1) < 1e-6

    def test_two_hot_moves_the_mean(self):
        y, support = jnp.float32(0.123456), Support(-1.0, 1.0, 201)
        z = np.linspace(-1, 1, 201)
        theirs = np.asarray(rlax.transform_to_2hot(y, -1.0, 1.0, 201), np.float64)
        ours = np.asarray(values.two_hot(y, support), np.float64)
        assert abs(theirs @ z - float(y)) > 1e-6
        assert abs(ours @ z - float(y)) < 1e-7
        assert np.abs(theirs - ours).max() > 1e-4

    def test_slopes_of_transforms_vanish_at_zero(self):
        assert float(jax.grad(rlax.signed_logp1)(0.0)) == 0.0
        assert float(jax.grad(rlax.signed_hyperbolic)(0.0)) == pytest.approx(1e-3)
        assert float(jax.grad(values.symlog)(0.0)) == 1.0
        assert float(jax.grad(values.signed_hyperbolic)(0.0)) == pytest.approx(0.501)

    def test_time_limits_leak(self):
        """Two episodes of one step each in a window, separated by a time limit."""
        r, d, v_next = jnp.array([1.0, 100.0]), jnp.array([0.5, 0.5]), jnp.array([2.0, 0.0])
        assert float(rlax.lambda_returns(r, d, v_next, 1.0)[0]) == 51.0
        ours = values.lambda_return(r, d, v_next, 1.0, jnp.array([1.0, 0.0]))
        assert float(ours[0]) == 2.0
        # One array of values for all states cannot tell the last state from the next first one.
        advantage = values.gae(r, d, jnp.array([0.5, 7.0]), v_next, 1.0, jnp.array([1.0, 0.0]))
        np.testing.assert_allclose(advantage, [1.5, 93.0])

    def test_what_is_missing_there(self):
        for name in ("hl_gauss", "dueling", "incremental_update", "cql_regulariser"):
            assert not hasattr(rlax, name)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain
from jaxlab.posttrain import SupportCounts


@pytest.mark.parametrize(
    ("counts", "retention", "discovery", "net"),
    [((2400, 36, 163, 805), 0.94, 0.01, -0.05), ((2388, 48, 175, 793), 0.93, 0.02, -0.05),
     ((2715, 28, 56, 605), 0.98, 0.01, -0.01), ((2685, 26, 86, 607), 0.97, 0.01, -0.02)],
)  # fmt: skip
def test_counts_of_the_paper(counts, retention, discovery, net):
    """Counts of its table 1 by the definitions; the printed columns where they are known."""
    got = posttrain.support_metrics(SupportCounts(*map(jnp.asarray, counts)))
    assert round(float(got.retention), 2) == retention
    assert round(float(got.discovery), 2) == discovery
    assert round(float(got.net_change), 2) == net
    mean = 2 * float(got.retention) * float(got.discovery)
    mean /= float(got.retention) + float(got.discovery)
    assert float(got.dynamics) == pytest.approx(mean, rel=1e-5)


def test_nothing_and_equality_and_swapping():
    none = posttrain.support_metrics(SupportCounts(*map(jnp.asarray, (0, 0, 0, 9))))
    assert [float(x) for x in none] == [0, 0, 0, 0]
    rng = np.random.default_rng(0)
    base, trained = (jnp.asarray(rng.dirichlet(np.ones(8) * 0.3, 5), jnp.float32) for _ in range(2))
    correct = jnp.asarray(rng.random((5, 8)) < 0.5)
    for level in ("completion", "problem"):
        same = posttrain.support_metrics(posttrain.support_counts(base, base, correct, 0.05, level))
        assert (float(same.retention), float(same.discovery), float(same.net_change)) == (1, 0, 0)
        there = posttrain.support_counts(base, trained, correct, 0.05, level)
        back = posttrain.support_counts(trained, base, correct, 0.05, level)
        assert int(there.expanded) == int(back.shrunk) and int(there.shrunk) == int(back.expanded)
        one, other = (float(posttrain.support_metrics(x).net_change) for x in (there, back))
        assert one == -other
        total = int(correct.sum()) if level == "completion" else 5
        assert sum(int(x) for x in there) == total
    reached = (np.asarray(base) * np.asarray(correct)).sum(1) > 0.05
    problem = posttrain.support_counts(base, trained, correct, 0.05, "problem")
    assert int(problem.preserved) + int(problem.shrunk) == reached.sum()
    with pytest.raises(ValueError, match="level: expected one of"):
        posttrain.support_counts(base, base, correct, 0.05, "answer")


def test_samples():
    got = posttrain.support_from_samples(jnp.asarray([3, 0, 1, 0]), jnp.asarray([1, 2, 0, 0]))
    assert [int(x) for x in got] == [1, 1, 1, 1]
    assert posttrain.detect_threshold(8192) == pytest.approx(3.66e-4, rel=1e-2)


def test_exact_pass_at_k():
    p = jnp.asarray([0.0, 1e-6, 0.3, 1.0])
    np.testing.assert_allclose(posttrain.exact_pass_at_k(p, 1), p, rtol=1e-5)
    got = np.asarray([posttrain.exact_pass_at_k(p, k) for k in (1, 10, 1000)])
    assert (np.diff(got, axis=0) >= 0).all()
    assert got[1, 1] == pytest.approx(1e-5, rel=1e-3)  # float32's 1 - (1 - p)^k would be 9.5e-6
    assert np.isfinite(jax.grad(lambda p: posttrain.exact_pass_at_k(p, 8).sum())(p)).all()


def test_tilting():
    q = jnp.asarray([0.5, 0.25, 0.2, 0.05, 0.0])
    r = jnp.asarray([0.0, 1.0, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(posttrain.tilt(q, r, 0.0), q, rtol=1e-6)
    p = np.asarray(posttrain.tilt(q, r, 1.3))
    want = np.asarray(q) * np.exp(1.3 * np.asarray(r))
    np.testing.assert_allclose(p, want / want.sum(), rtol=1e-5)
    assert p[1] / p[3] == pytest.approx(5, rel=1e-5) and p[0] / p[2] == pytest.approx(2.5, rel=1e-5)
    for beta in (1e4, np.inf):
        np.testing.assert_allclose(
            posttrain.tilt(q, r, beta), [0, 0.25 / 0.3, 0, 0.05 / 0.3, 0], rtol=1e-5
        )

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

RNG = np.random.default_rng(0)
LW, LL, RW, RL = (jnp.asarray(RNG.normal(size=6) * 3 - 8, jnp.float32) for _ in range(4))
NW, NL = jnp.asarray([1.0, 2, 3, 4, 5, 6]), jnp.asarray([6.0, 5, 4, 3, 2, 1])


def log_sigmoid(x):
    return -np.logaddexp(0, -np.asarray(x, np.float64))


def value(loss, *args, **options):
    return float(loss(*args, **options)[0])


@pytest.mark.parametrize("beta", [0.05, 0.1, 3.0])
def test_at_the_reference(beta):
    assert value(posttrain.dpo_loss, LW, LL, LW, LL, beta=beta) == pytest.approx(math.log(2))
    got = value(posttrain.ipo_loss, LW, LL, LW, LL, NW, NL, beta=beta)
    assert got == pytest.approx(1 / (4 * beta**2), rel=1e-5)
    good = jnp.asarray([True, False] * 3)
    assert value(posttrain.kto_loss, LW, LW, good, LL, LL, beta=beta) == pytest.approx(0.5)
    slopes = jax.grad(lambda w, m: posttrain.dpo_loss(w, m, LW, LL, beta=beta)[0], argnums=(0, 1))(
        LW, LL
    )
    np.testing.assert_allclose(slopes[0], -beta / 2 / 6, rtol=1e-5)
    np.testing.assert_allclose(slopes[1], beta / 2 / 6, rtol=1e-5)


def test_formulas():
    h = np.asarray((LW - RW) - (LL - RL), np.float64)
    right, wrong = log_sigmoid(0.1 * h), log_sigmoid(-0.1 * h)
    pair = (LW, LL, RW, RL)
    assert value(posttrain.dpo_loss, *pair) == pytest.approx(-right.mean(), rel=1e-5)
    got = value(posttrain.dpo_loss, *pair, label_smoothing=0.2)
    assert got == pytest.approx((-0.8 * right - 0.2 * wrong).mean(), rel=1e-5)
    got = value(posttrain.dpo_loss, *pair, label_smoothing=0.2, kind="robust")
    assert got == pytest.approx(((-0.8 * right + 0.2 * wrong) / 0.6).mean(), rel=1e-5)
    got = value(posttrain.dpo_loss, *pair, kind="hinge")
    assert got == pytest.approx(np.maximum(1 - 0.1 * h, 0).mean(), rel=1e-5)
    average = np.asarray((LW - RW) / NW - (LL - RL) / NL)
    got = value(posttrain.ipo_loss, *pair, NW, NL, beta=0.3)
    assert got == pytest.approx(((average - 1 / 0.6) ** 2).mean(), rel=1e-5)
    m = np.asarray(2.5 * (LW / NW - LL / NL))
    assert value(posttrain.simpo_loss, LW, LL, NW, NL) == pytest.approx(
        -log_sigmoid(m - 0.5).mean(), rel=1e-5
    )
    up, down = np.asarray(LW / NW, np.float64), np.asarray(LL / NL, np.float64)
    odds = np.log(np.exp(up) / (1 - np.exp(up))) - np.log(np.exp(down) / (1 - np.exp(down)))
    want = (-up - 0.1 * log_sigmoid(odds)).mean()
    assert value(posttrain.orpo_loss, LW, LL, NW, NL) == pytest.approx(want, rel=1e-4)
    got = value(posttrain.cpo_loss, LW, LL, NW, beta=0.2, alpha=0.5)
    want = (-log_sigmoid(0.2 * (LW - LL)) - 0.5 * up).mean()
    assert got == pytest.approx(want, rel=1e-5)


def test_kto_formula_and_reference_point():
    good = jnp.asarray([True, False, True, True, False, False])
    for mismatched in (LL, RL - 100.0):
        z = max(0.0, float((mismatched - RL).mean()))
        r = np.asarray(LW - RW, np.float64)
        sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
        want = np.where(good, 2 * (1 - sigmoid(0.1 * (r - z))), 1 - sigmoid(0.1 * (z - r))).mean()
        got = value(posttrain.kto_loss, LW, RW, good, mismatched, RL, desirable_weight=2.0)
        assert got == pytest.approx(want, rel=1e-5)
    slope = jax.grad(lambda m: posttrain.kto_loss(LW, RW, good, m, RL)[0])(LL)
    np.testing.assert_array_equal(slope, 0)
    with pytest.raises(ValueError, match="log_probs: expected at least 2 rows"):
        posttrain.kto_loss(*(x[:1] for x in (LW, RW, good, LL, RL)))


def test_bradley_terry():
    assert value(posttrain.bradley_terry_loss, LW, LW) == pytest.approx(math.log(2))
    got = value(posttrain.bradley_terry_loss, LW, LL, margin=0.5, centring=0.01)
    want = -log_sigmoid(LW - LL - 0.5).mean() + 0.01 * float(((LW + LL) ** 2).mean())
    assert got == pytest.approx(want, rel=1e-5)
    shifted = value(posttrain.bradley_terry_loss, LW + 3, LL + 3)
    assert shifted == pytest.approx(value(posttrain.bradley_terry_loss, LW, LL), rel=1e-5)
    accuracy = [
        float(posttrain.bradley_terry_loss(*p)[1]["accuracy"]) for p in ((LW, LL), (LL, LW))
    ]
    assert sum(accuracy) == pytest.approx(1.0)
    assert float(posttrain.bradley_terry_loss(LW, LW)[1]["accuracy"]) == 0.5


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "hinge"])
def test_a_pair_of_equals_has_no_gradient(kind):
    def loss(x):
        return posttrain.dpo_loss(x, x, RW, RW, kind=kind)[0]

    np.testing.assert_array_equal(jax.grad(loss)(LW), 0)


def test_the_optimum_of_dpo_is_the_tilted_reference():
    """Pairs from the reference with Bradley-Terry labels: no gradient at ref exp(r / beta)."""
    reference = jax.nn.log_softmax(jnp.asarray([0.3, -1.0, 0.8, 0.0]))
    r, beta = jnp.asarray([1.0, 0.2, -0.5, 0.7]), 0.4
    i, j = (x.ravel() for x in np.meshgrid(np.arange(4), np.arange(4)))

    def expected(logits, divergence):
        log_p = jax.nn.log_softmax(logits)
        each = jax.vmap(
            lambda a, b, c, d: posttrain.dpo_loss(
                a[None], b[None], c[None], d[None], beta=beta, divergence=divergence
            )[0]
        )(log_p[i], log_p[j], reference[i], reference[j])
        weight = jnp.exp(reference[i] + reference[j]) * jax.nn.sigmoid(r[i] - r[j])
        return jnp.sum(weight * each)

    best = jnp.log(posttrain.tilt(jnp.exp(reference), r, 1 / beta))
    np.testing.assert_allclose(jax.grad(expected)(best, "reverse_kl"), 0, atol=1e-6)
    assert np.abs(jax.grad(expected)(reference, "reverse_kl")).max() > 1e-3
    # Another divergence has another optimum: f'(p / ref) = r / beta up to a constant.
    assert np.abs(jax.grad(expected)(best, "forward_kl")).max() > 1e-3


@pytest.mark.parametrize(
    ("divergence", "score"),
    [("forward_kl", lambda t: -1 / t), ("jensen_shannon", lambda t: np.log(2 * t / (1 + t))),
     ("alpha", lambda t: (t**-0.5) / -0.5)],
)  # fmt: skip
def test_scores_of_other_divergences(divergence, score):
    """The derivative of f at the ratio, of which constants cancel in the pair."""
    margin = score(np.exp(np.asarray(LW - RW, np.float64))) - score(
        np.exp(np.asarray(LL - RL, np.float64))
    )
    got = value(posttrain.dpo_loss, LW, LL, RW, RL, divergence=divergence)
    assert got == pytest.approx(-log_sigmoid(0.1 * margin).mean(), rel=1e-4)


def test_the_optimum_of_ipo():
    """For two completions the margin is (2 q - 1) / (2 beta) with q the preference."""
    beta, q = 0.5, 0.8
    one = jnp.ones(1)

    def expected(h):
        zero = jnp.zeros(1)
        pair = posttrain.ipo_loss(h[None], zero, zero, zero, one, one, beta=beta)[0]
        other = posttrain.ipo_loss(zero, h[None], zero, zero, one, one, beta=beta)[0]
        return q * pair + (1 - q) * other

    assert float(jax.grad(expected)(jnp.float32((2 * q - 1) / (2 * beta)))) == pytest.approx(
        0, abs=1e-6
    )


def test_log1mexp_at_both_ends():
    x = np.asarray([-1e-6, -1e-3, -0.5, -0.7, -5.0, -50.0], np.float64)
    got = posttrain.log1mexp(jnp.asarray(x, jnp.float32))
    want = np.where(x > -0.7, np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    slopes = jax.vmap(jax.grad(posttrain.log1mexp))(jnp.asarray([-1e-9, -1.0, -200.0, 0.0]))
    assert np.isfinite(slopes).all()


def test_long_completions_keep_their_odds():
    """A thousand tokens of the same mean give the same odds as ten."""
    short = posttrain.orpo_loss(-10.0 * jnp.ones(1), -12.0 * jnp.ones(1), *[jnp.full(1, 10.0)] * 2)
    long = posttrain.orpo_loss(-1e3 * jnp.ones(1), -1.2e3 * jnp.ones(1), *[jnp.full(1, 1e3)] * 2)
    assert float(short[0]) == pytest.approx(float(long[0]), rel=1e-5)


def test_transformations_and_refusals():
    def all_of(w, m):
        n = jnp.full_like(w, 3.0)
        return (
            posttrain.dpo_loss(w, m, RW, RL)[0] + posttrain.simpo_loss(w, m, n, n)[0]
            + posttrain.orpo_loss(w, m, n, n)[0] + posttrain.cpo_loss(w, m, n)[0]
            + posttrain.ipo_loss(w, m, RW, RL, n, n)[0]
        )  # fmt: skip

    both = jax.jit(jax.vmap(jax.value_and_grad(all_of)))(jnp.stack([LW, LL]), jnp.stack([LL, LW]))
    assert float(both[0][0]) == pytest.approx(float(all_of(LW, LL)), rel=1e-5)
    assert np.isfinite(both[1]).all()
    slope = jax.grad(lambda r: posttrain.dpo_loss(LW, LL, r, RL)[0])(RW)
    np.testing.assert_array_equal(slope, 0)
    with pytest.raises(ValueError, match="kind: expected one of"):
        posttrain.dpo_loss(LW, LL, RW, RL, kind="other")
    with pytest.raises(ValueError, match="divergence: expected one of"):
        posttrain.dpo_loss(LW, LL, RW, RL, divergence="other")


def test_numbers_that_the_loss_would_divide_by_are_refused():
    four = (LW, LL, LW, LL)
    for smoothing in (0.5, -0.1):
        with pytest.raises(ValueError, match="label_smoothing: expected 0 to 1/2 exclusive, got"):
            posttrain.dpo_loss(*four, kind="robust", label_smoothing=smoothing)
    with pytest.raises(ValueError, match="alpha: expected another number than 1"):
        posttrain.dpo_loss(*four, divergence="alpha", alpha=1)


@pytest.mark.parametrize(
    "loss, count",
    [
        (posttrain.bradley_terry_loss, 2),
        (posttrain.dpo_loss, 4),
        (posttrain.ipo_loss, 6),
        (posttrain.kto_loss, 5),
        (posttrain.orpo_loss, 4),
        (posttrain.simpo_loss, 4),
        (posttrain.cpo_loss, 3),
    ],
)
def test_shapes_that_would_broadcast_are_refused(loss, count):
    args = [LW, LL, LW < LL, RW, RL] if count == 5 else [LW, LL, NW, NL, NW, NL][:count]
    for place in range(1, count):
        wrong = [a[:, None] if i == place else a for i, a in enumerate(args)]
        with pytest.raises(ValueError, match=r": expected the shape of .*, \(6,\), got \(6, 1\)"):
            loss(*wrong)

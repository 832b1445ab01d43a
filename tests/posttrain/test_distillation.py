import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

RNG = np.random.default_rng(0)
S, T = (jnp.asarray(RNG.normal(size=(2, 3, 6)) * 2, jnp.float32) for _ in range(2))
P, Q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (T, S))


def kl(a, b):
    return (a * np.log(a / b)).sum(-1)


def test_divergences_are_their_sums():
    np.testing.assert_allclose(posttrain.divergence(S, T), kl(P, Q), rtol=1e-4)
    np.testing.assert_allclose(posttrain.divergence(S, T, "reverse_kl"), kl(Q, P), rtol=1e-4)
    for beta in (0.1, 0.5):
        m = beta * P + (1 - beta) * Q
        want = beta * kl(P, m) + (1 - beta) * kl(Q, m)
        got = posttrain.divergence(S, T, "jsd", beta=beta)
        np.testing.assert_allclose(got, want, rtol=1e-4)
    tempered = [np.asarray(jax.nn.softmax(x / 2), np.float64) for x in (T, S)]
    np.testing.assert_allclose(posttrain.divergence(S, T, tau=2.0), kl(*tempered), rtol=1e-4)


def test_limits_of_the_generalised_divergence():
    half = posttrain.divergence(S, T, "jsd")
    np.testing.assert_allclose(half, posttrain.divergence(T, S, "jsd"), rtol=1e-4)
    far = posttrain.divergence(S * 100, T * 100, "jsd")
    assert (np.asarray(far) <= np.log(2) + 1e-5).all() and (np.asarray(far) >= 0).all()
    small = posttrain.divergence(S, T, "jsd", beta=1e-3) / 1e-3
    np.testing.assert_allclose(small, kl(P, Q), rtol=2e-2)
    assert float(posttrain.divergence(S, T, "jsd", beta=1e-6).max()) < 1e-4


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_equality_is_a_minimum_and_the_teacher_a_constant(kind):
    value, slopes = jax.value_and_grad(
        lambda s, t: posttrain.divergence(s, t, kind).sum(), argnums=(0, 1)
    )(S, S)
    assert float(value) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(slopes[0], 0, atol=1e-6)
    teacher = jax.grad(lambda t: posttrain.divergence(S, t, kind).sum())(T)
    np.testing.assert_array_equal(teacher, 0)
    if kind == "forward_kl":  # the gradient of cross-entropy with soft targets
        slope = jax.grad(lambda s: posttrain.divergence(s, T, kind).sum())(S)
        np.testing.assert_allclose(slope, Q - P, atol=1e-5)


def test_top_k_variants():
    for variant, want in (
        ("tail", kl(P, Q)), ("renormalised", kl(P, Q)),
        ("cross_entropy", -(P * np.log(Q)).sum(-1)),
    ):  # fmt: skip
        got = posttrain.top_k_divergence(S, T, 6, variant)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    order = np.argsort(-P, axis=-1)[..., :2]
    p, q = (np.take_along_axis(x, order, -1) for x in (P, Q))
    rest_p, rest_q = 1 - p.sum(-1), 1 - q.sum(-1)
    tail = (p * np.log(p / q)).sum(-1) + rest_p * np.log(rest_p / rest_q)
    np.testing.assert_allclose(posttrain.top_k_divergence(S, T, 2), tail, rtol=1e-4)
    assert (tail <= kl(P, Q) + 1e-9).all()
    unit = [x / x.sum(-1, keepdims=True) for x in (p, q)]
    got = posttrain.top_k_divergence(S, T, 2, "renormalised")
    np.testing.assert_allclose(got, kl(*unit), rtol=1e-4)
    got = posttrain.top_k_divergence(S, T, 2, "cross_entropy")
    np.testing.assert_allclose(got, -(p * np.log(q)).sum(-1), rtol=1e-4)
    for k in (2, 6):
        slope = jax.jit(jax.grad(lambda s: posttrain.top_k_divergence(s, T, k).sum()))(S)
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0
    with pytest.raises(ValueError, match="k: expected 1 to 6"):
        posttrain.top_k_divergence(S, T, 7)
    with pytest.raises(ValueError, match="variant: expected one of"):
        posttrain.top_k_divergence(S, T, 2, "other")


def test_the_loss_is_masked_and_keeps_its_scale():
    mask = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    junk = [jnp.where(mask[..., None] > 0, x, jnp.nan) for x in (S, T)]
    loss, metrics = posttrain.distillation_loss(*junk, mask, tau=2.0)
    each = np.asarray(posttrain.divergence(S, T, tau=2.0))
    assert float(loss) == pytest.approx(4 * (each * np.asarray(mask)).sum() / 3, rel=1e-5)
    same = (np.argmax(Q, -1) == np.argmax(P, -1)) * np.asarray(mask)
    assert float(metrics["agreement"]) == pytest.approx(same.sum() / 3)
    slope = jax.grad(lambda s: posttrain.distillation_loss(s, junk[1], mask)[0])(junk[0])
    assert np.isfinite(slope).all()
    # tau^2 KL tends to half the variance of the difference of the logits.
    hot = 1e4 * float(posttrain.divergence(S, T, tau=100.0)[0, 0])
    assert hot == pytest.approx(float(np.var(np.asarray(S - T)[0, 0]) / 2), rel=0.05)
    with pytest.raises(ValueError, match="kind: expected one of"):
        posttrain.distillation_loss(S, T, mask, "other")


@pytest.mark.parametrize(
    "measure",
    [
        lambda s, t: posttrain.divergence(s, t, "forward_kl"),
        lambda s, t: posttrain.divergence(s, t, "reverse_kl"),
        lambda s, t: posttrain.divergence(s, t, "jsd", beta=0.3),
        lambda s, t: posttrain.top_k_divergence(s, t, s.shape[-1], "renormalised"),
        lambda s, t: posttrain.top_k_divergence(s, t, s.shape[-1], "cross_entropy"),
        lambda s, t: posttrain.top_k_divergence(s, t, 3, "tail"),
    ],
)
def test_ids_that_neither_model_can_say_change_nothing(measure):
    """The same as without them, also the gradient."""
    teacher, student = jnp.asarray([1.0, 0.2, -0.3]), jnp.asarray([0.3, 1.0, 0.1])
    wide = lambda x: jnp.concatenate([x, jnp.full(2, -jnp.inf)])  # noqa: E731
    got, slope = jax.value_and_grad(measure)(wide(student), wide(teacher))
    want, there = jax.value_and_grad(measure)(student, teacher)
    assert float(got) == pytest.approx(float(want), rel=1e-6)
    np.testing.assert_allclose(slope, [*there, 0.0, 0.0], atol=1e-6)


def test_a_tail_that_the_student_cannot_say_is_infinitely_far():
    teacher, student = jnp.asarray([1.0, 0.2, -0.3]), jnp.asarray([0.3, 1.0, -jnp.inf])
    assert float(posttrain.top_k_divergence(student, teacher, 2, "tail")) == np.inf


@pytest.mark.parametrize("beta", [0.0, 1.0, 1.2])
def test_a_mixture_of_one_part_is_refused(beta):
    with pytest.raises(ValueError, match="beta: expected strictly between 0 and 1, got"):
        posttrain.divergence(jnp.zeros(2), jnp.zeros(2), "jsd", beta=beta)

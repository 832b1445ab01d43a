"""What each estimator is an estimate of, by summing over all completions: equalities, no sampling.

The policy is a table with a row of logits for every prefix, so every gradient has its own place.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain

V, T, STOP = 3, 3, 2
PROMPT = jnp.asarray([1])


@pytest.fixture(scope="module")
def world(make_table):
    """Model, parameters, completions and a reward in {0, 1} that depends on all of them."""
    model = make_table(V, T + 1)
    params = model.init(jax.random.key(0))
    completions = posttrain.all_completions(V, T, STOP)
    count = completions.tokens.shape[0]
    rewards = jnp.asarray(np.random.default_rng(3).random(count) < 0.4, jnp.float32)

    def log_probs(params):
        return posttrain.enumerate_policy(model, params, PROMPT, completions)

    return model, params, completions, rewards, log_probs


def exact_gradient(world, rewards=None):
    _, params, _, r, log_probs = world
    r = r if rewards is None else rewards
    return jax.grad(lambda p: jnp.sum(jnp.exp(log_probs(p)[1]) * r))(params)


def test_completions_are_all_there(make_table):
    completions = posttrain.all_completions(V, T, STOP)
    assert completions.tokens.shape == (1 + 2 + 4 + 8, T)
    rows = {tuple(r[m > 0]) for r, m in zip(*map(np.asarray, completions))}
    want = {
        row[: row.index(STOP) + 1] if STOP in row else row
        for row in itertools.product(range(V), repeat=T)
    }
    assert rows == want
    for vocab, length, stop in ((3, 3, 3), (3, 0, 2), (50, 5, 1)):
        with pytest.raises(ValueError, match=r"(stop|length): expected"):
            posttrain.all_completions(vocab, length, stop)


def test_probabilities_sum_to_one(world, small_rwkv7):
    _, params, _, _, log_probs = world
    assert float(jnp.exp(log_probs(params)[1]).sum()) == pytest.approx(1, abs=1e-6)
    model, params, _ = small_rwkv7
    completions = posttrain.all_completions(20, 2, 3)
    each = jax.jit(lambda p: posttrain.enumerate_policy(model, p, jnp.asarray([4, 7]), completions))
    assert float(jnp.exp(each(params)[1]).sum()) == pytest.approx(1, abs=1e-5)


def expected_loss_gradient(world, group, loss, batch=None):
    """Gradient of the mean loss over all groups of independent samples, weights held constant."""
    _, params, completions, rewards, log_probs = world
    count = completions.tokens.shape[0]
    tuples = jnp.asarray(list(itertools.product(range(count), repeat=group)))

    def total(params):
        per_token, whole = log_probs(params)
        weight = jax.lax.stop_gradient(jnp.exp(jnp.sum(whole[tuples], axis=1)))
        each = jax.vmap(lambda i: loss(per_token[i], completions.mask[i], rewards[i]))(tuples)
        return jnp.sum(weight * each)

    return jax.jit(jax.grad(total))(params)


def with_advantages(estimate, mode="seq_mean_token_sum"):
    def loss(logp, mask, r):
        return posttrain.reinforce_loss(logp, estimate(r), mask, mode=mode)[0]

    return loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "group", "estimate", "factor"),
    [
        ("reinforce", 1, lambda r: r, 1.0),
        ("a constant baseline", 1, lambda r: r - 0.7, 1.0),
        ("rloo", 2, lambda r: posttrain.rloo_advantages(r, 2), 1.0),
        ("dr_grpo", 2, lambda r: posttrain.dr_grpo_advantages(r, 2), 1 - 1 / 2),
        ("dr_grpo of three", 3, lambda r: posttrain.dr_grpo_advantages(r, 3), 1 - 1 / 3),
        ("rloo of three", 3, lambda r: posttrain.rloo_advantages(r, 3), 1.0),
        # Two different rewards in {0, 1} have deviation 1 / sqrt 2 (ddof 1): a constant factor.
        ("grpo", 2, lambda r: posttrain.grpo_advantages(r, 2), 0.5 / (0.5**0.5 + 1e-4)),
    ],
)
def test_expected_gradients(world, name, group, estimate, factor):
    got = -expected_loss_gradient(world, group, with_advantages(estimate))
    want = factor * exact_gradient(world)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(want).max() > 1e-2


def test_means_over_tokens_are_biased_and_constants_are_not(world):
    """Dividing by the length prefers short right answers; a constant only scales."""
    want = np.asarray(exact_gradient(world))

    def plain(r):
        return r

    biased = -expected_loss_gradient(world, 1, with_advantages(plain, "seq_mean_token_mean"))
    scale = (np.asarray(biased) * want).sum() / (want**2).sum()
    assert np.abs(biased - scale * want).max() > 1e-2

    def constant(logp, mask, r):
        return posttrain.reinforce_loss(logp, r, mask, mode="seq_mean_token_sum_norm", norm=T)[0]

    np.testing.assert_allclose(-expected_loss_gradient(world, 1, constant), want / T, atol=1e-6)


def test_ppo_on_its_own_samples_is_reinforce(world):
    def loss(logp, mask, r):
        return posttrain.ppo_clip_loss(logp, logp, r, mask, mode="seq_mean_token_sum")[0]

    got = -expected_loss_gradient(world, 1, loss)
    np.testing.assert_allclose(got, exact_gradient(world), atol=1e-6)


def test_importance_weights_of_sequences_are_unbiased_those_of_tokens_are_not(world):
    model, params, completions, rewards, log_probs = world
    behavior = log_probs(model.init(jax.random.key(9)))

    def estimate(level):
        def total(params):
            per_token, whole = log_probs(params)
            if level == "sequence":
                ratio = jnp.exp(whole - behavior[1])[:, None] * jnp.ones_like(completions.mask)
            else:
                ratio = posttrain.importance_ratio(per_token, behavior[0], completions.mask)
            loss = jax.vmap(
                lambda logp, w, r, m: posttrain.reinforce_loss(
                    logp[None], r[None], m[None], weights=w[None]
                )[0]
            )(per_token, ratio, rewards, completions.mask)
            return jnp.sum(jnp.exp(behavior[1]) * loss)

        return -np.asarray(jax.grad(total)(params))

    want = exact_gradient(world)
    np.testing.assert_allclose(estimate("sequence"), want, atol=1e-6)
    assert np.abs(estimate("token") - want).max() > 1e-2


def test_entropy_bonus_and_baseline_by_step(world):
    """Sampled log-probabilities have the exact entropy of the sequence as their mean."""
    _, params, completions, _, log_probs = world
    _, whole = log_probs(params)
    p = jnp.exp(whole)
    mean = -jnp.sum(p * whole)
    model = world[0]
    logits = posttrain.completion_logits(model, params, PROMPT[None], completions.tokens)
    entropy = posttrain.token_entropy(logits)
    chain_rule = jnp.sum(p * posttrain.masked_sum(entropy, completions.mask, axis=1))
    assert float(mean) == pytest.approx(float(chain_rule), rel=1e-5)


KL_GRADIENTS = {"k1": "zero", "k2": "forward", "k3": "reverse"}


@pytest.mark.parametrize("kind", KL_GRADIENTS)
def test_kl_estimators(world, kind):
    model, params, _, _, log_probs = world
    reference = log_probs(model.init(jax.random.key(5)))[1]

    def kl(params, swap=False):
        whole = log_probs(params)[1]
        if swap:
            return jnp.sum(jnp.exp(reference) * (reference - whole))
        return jnp.sum(jnp.exp(whole) * (whole - reference))

    def estimated(params, gradient=None):
        whole = log_probs(params)[1]
        each = posttrain.kl_estimate(whole, reference, kind, gradient=gradient)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(whole)) * each)

    exact, slope = jax.value_and_grad(kl)(params)
    value, got = jax.value_and_grad(estimated)(params)
    want = {
        "zero": jnp.zeros_like(slope), "forward": slope, "reverse": jax.grad(kl)(params, True)
    }[KL_GRADIENTS[kind]]  # fmt: skip
    np.testing.assert_allclose(got, want, atol=1e-5)
    if kind != "k2":
        assert float(value) == pytest.approx(float(exact), rel=1e-4)
    else:
        assert abs(float(value) - float(exact)) > 1e-3  # biased
    straight, through = jax.value_and_grad(estimated)(params, "k2")
    assert float(straight) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_allclose(through, slope, atol=1e-5)


def test_kl_in_the_reward_is_the_gradient_of_the_kl(world):
    """Minus k1 as a reward: the score-function route."""
    model, params, _, _, log_probs = world
    reference = log_probs(model.init(jax.random.key(5)))[1]
    rewards = -posttrain.kl_estimate(log_probs(params)[1], reference, "k1")

    def kl(params):
        whole = log_probs(params)[1]
        return jnp.sum(jnp.exp(whole) * (whole - reference))

    def loss(params):
        whole = log_probs(params)[1]
        each = -jax.lax.stop_gradient(jnp.exp(whole) * rewards) * whole
        return jnp.sum(each)

    np.testing.assert_allclose(jax.grad(loss)(params), jax.grad(kl)(params), atol=1e-5)


def test_kl_details():
    d = jnp.asarray([-300.0, -1.0, 0.0, 2.0, 300.0])
    zero = jnp.zeros(5)
    assert (posttrain.kl_estimate(d, zero, "k3") >= 0).all()
    slope = jax.grad(lambda x: posttrain.kl_estimate(x, zero).sum())(d)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(
        jax.grad(lambda x: posttrain.kl_estimate(d, x, "k2").sum())(zero), 0
    )
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(2, 4)), jnp.float32) for _ in range(2))
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (a, b))
    np.testing.assert_allclose(posttrain.exact_kl(a, b), (p * np.log(p / q)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(posttrain.exact_kl(a, a), 0, atol=1e-7)
    impossible = jnp.asarray([0.0, 1.0, -jnp.inf])
    assert np.isfinite(posttrain.exact_kl(impossible, impossible))
    for options in ({"kind": "k4"}, {"gradient": "k4"}):
        with pytest.raises(ValueError, match="expected one of k1, k2, k3"):
            posttrain.kl_estimate(d, zero, **options)


def test_gae_with_lambda_one_and_values_as_baseline_is_unbiased(world):
    """The value of each prefix is subtracted from a reward at the end: the mean does not move."""
    _, params, completions, rewards, log_probs = world
    _, whole = log_probs(params)
    p = jnp.exp(whole)
    tokens, mask = np.asarray(completions.tokens), np.asarray(completions.mask)
    values = np.zeros_like(mask)
    for row, t in zip(*np.nonzero(mask)):
        same = (tokens[:, :t] == tokens[row, :t]).all(1) & (mask[:, t] > 0)
        values[row, t] = (p * rewards)[same].sum() / p[same].sum()
    ends = posttrain.terminal_rewards(rewards, completions.mask)
    advantages, _ = posttrain.gae(ends, jnp.asarray(values), completions.mask, 1.0, 1.0)
    # With the exact values every lambda is unbiased, because each error has mean zero.
    for lam in (0.0, 0.5):
        other, _ = posttrain.gae(ends, jnp.asarray(values), completions.mask, 1.0, lam)

        def loss(params, a=other):
            per_token = log_probs(params)[0]
            return -jnp.sum(p[:, None] * a * per_token)

        np.testing.assert_allclose(-jax.grad(loss)(params), exact_gradient(world), atol=1e-6)
    assert float(jnp.sum(p[:, None] * advantages * completions.mask)) == pytest.approx(0, abs=1e-5)
    variance = jnp.sum(p[:, None] * (advantages * completions.mask) ** 2)
    plain = jnp.sum(p[:, None] * (rewards[:, None] * completions.mask) ** 2)
    assert float(variance) < float(plain)


def test_k3_is_accurate_and_not_negative_next_to_the_reference():
    for size in (1e-6, 1e-4, 1e-3, 1e-2):
        d = np.linspace(-size, size, 2001).astype(np.float32)
        exact = np.expm1(-d.astype(np.float64)) + d
        got = posttrain.kl_estimate(jnp.asarray(d), jnp.zeros(len(d)), "k3")
        assert (got >= 0).all()
        # To the rounding of d, where exp(-d) - 1 would have that of 1.
        np.testing.assert_allclose(got, exact, rtol=0, atol=5e-7 * size)


def test_estimates_refuse_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match=r"reference: expected the shape of log_probs, \(3,\)"):
        posttrain.kl_estimate(jnp.zeros(3), jnp.zeros((3, 1)))

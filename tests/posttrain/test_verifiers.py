import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import posttrain, tasks

MASK = jnp.asarray([[1.0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])


def test_labels():
    got = posttrain.ovm_labels(jnp.asarray([1.0, 0.0]), MASK)
    assert got.tolist() == [[1, 1, 1, 1, 0], [0] * 5]
    got = posttrain.prm_labels(
        jnp.asarray([[1.0, 0.0], [1.0, 1.0]]), jnp.asarray([[1, 3], [0, 5]]), MASK
    )
    assert got.tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    task = tasks.chain
    config = task.Config(n_steps=2)

    @jax.jit
    def label(key):
        problem, _ = task.sample(key, config)
        tokens = task.solution_tokens(problem, config).at[3].add(1)  # a wrong operand
        labels = task.step_labels(problem, tokens, config)
        mask = jnp.ones(tokens.shape)[None]
        return posttrain.prm_labels(labels.label[None], labels.end[None], mask)[0]

    assert label(jax.random.key(0)).tolist() == [0] * 6 + [1] * 6 + [1] * 3


def test_the_loss_counts_as_the_paper_does():
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    labels = posttrain.ovm_labels(jnp.asarray([1.0, 0.0]), MASK)
    loss, _ = posttrain.verifier_loss(jnp.where(MASK > 0, values, jnp.nan), labels, MASK)
    squares = (np.asarray(values) - np.asarray(labels)) ** 2 * np.asarray(MASK)
    assert float(loss) == pytest.approx(squares.sum() / 2, rel=1e-5)
    mean, _ = posttrain.verifier_loss(values, labels, MASK, "token_mean")
    assert float(mean) == pytest.approx(squares.sum() / 6, rel=1e-5)

    def wider(x, times):
        return jnp.concatenate([x] * times, axis=1)

    padded = [jnp.pad(x, ((0, 0), (0, 7))) for x in (values, labels, MASK)]
    assert float(posttrain.verifier_loss(*padded)[0]) == pytest.approx(float(loss), rel=1e-6)
    twice = [wider(x, 2) for x in (values, labels, MASK)]
    assert float(posttrain.verifier_loss(*twice)[0]) == pytest.approx(2 * float(loss), rel=1e-6)
    slope = jax.grad(lambda v: posttrain.verifier_loss(v, labels, MASK)[0])(
        jnp.where(MASK > 0, values, jnp.nan)
    )
    assert np.isfinite(slope).all()
    with pytest.raises(ValueError, match="reduction: expected one of"):
        posttrain.verifier_loss(values, labels, MASK, "mean")


def test_regression_on_outcomes_is_the_value():
    """The minimiser at each prefix is the mean outcome of the solutions that pass through it."""
    prefix = jnp.asarray([0, 0, 0, 1, 1])
    outcome = jnp.asarray([1.0, 0.0, 1.0, 0.0, 0.0])
    mask = jnp.ones((5, 1))

    def loss(table):
        labels = posttrain.ovm_labels(outcome, mask)
        return posttrain.verifier_loss(table[prefix][:, None], labels, mask)[0]

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray([2 / 3, 0.0])), 0, atol=1e-6)


def test_the_head():
    weight = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    head = posttrain.value_head_init(jax.random.key(0), weight)
    np.testing.assert_allclose(head.weight, weight.mean(0), rtol=1e-6)
    hidden = jnp.ones((2, 3, 4), jnp.bfloat16)
    got = posttrain.value_head_apply(head, hidden)
    want = float((head.gain + head.bias) * head.weight.sum())
    assert got.shape == (2, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_auc_within_problems():
    truth = jnp.asarray([[0.0, 0.5, 1.0, 9.0], [0.0, 0.0, 1.0, 9.0]])
    mask = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 0]])
    perfect = truth + jnp.asarray([[0.0], [100.0]])
    assert float(posttrain.within_problem_auc(perfect, truth, mask)) == 1.0
    assert float(posttrain.within_problem_auc(-perfect, truth, mask)) == 0.0
    # Knowing the problem alone ranks nothing within it.
    known = jnp.broadcast_to(jnp.asarray([[1.0], [2.0]]), truth.shape)
    assert float(posttrain.within_problem_auc(known, truth, mask)) == 0.5
    one_wrong = jnp.asarray([[0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert float(posttrain.within_problem_auc(one_wrong, truth, mask)) == pytest.approx(4 / 5)
    assert float(posttrain.within_problem_auc(truth, truth * 0, mask)) == 0.5

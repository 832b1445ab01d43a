import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values


def test_dueling(key):
    v, adv = jax.random.normal(key, (4,)), jax.random.normal(key, (4, 3))
    mean = values.dueling(v, adv)
    np.testing.assert_allclose(mean.mean(-1), v, atol=1e-6)
    top = values.dueling(v, adv, "max")
    np.testing.assert_array_equal(top.max(-1), v)
    assert np.all(np.asarray(top) <= np.asarray(v)[:, None])
    for q in (mean, top):
        np.testing.assert_array_equal(q.argmax(-1), adv.argmax(-1))
        np.testing.assert_allclose(q[:, 1] - q[:, 0], adv[:, 1] - adv[:, 0], atol=1e-6)
    # What an advantage cannot express: a constant added to all of them.
    np.testing.assert_allclose(values.dueling(v, adv + 5), mean, atol=2e-6)
    with pytest.raises(ValueError, match="mode: expected one of"):
        values.dueling(v, adv, "sum")
    with pytest.raises(ValueError, match=r"v: expected shape \(4,\), got \(3,\)"):
        values.dueling(v[:3], adv)


def _trees():
    target = {"w": jnp.array([1.0, 2.0]), "b": jnp.array([4.0], jnp.bfloat16), "n": jnp.int32(3)}
    online = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([8.0], jnp.bfloat16), "n": jnp.int32(9)}
    return target, online


def _dtypes(tree):
    return jax.tree.map(lambda x: x.dtype, tree)


def test_copies():
    target, online = _trees()
    online["w"] = online["w"].astype(jnp.float16)
    update = jax.jit(values.periodic_update)
    for step, expected in ((7, [1.0, 2.0]), (8, [3.0, 0.0]), (0, [3.0, 0.0])):
        out = update(target, online, step, 4)
        np.testing.assert_array_equal(out["w"], expected)
        assert int(out["n"]) == 3 and _dtypes(out) == _dtypes(target)


def test_conservative_penalty():
    q = jnp.array([[0.0, np.log(3.0)], [5.0, 5.0]])
    penalty = values.cql_regulariser(q, jnp.array([0, 1]))
    np.testing.assert_allclose(penalty, [np.log(4.0), np.log(2.0)], rtol=1e-6)
    gradient = jax.grad(lambda q: values.cql_regulariser(q, jnp.array([0, 1])).sum())(q)
    np.testing.assert_allclose(gradient, [[-0.75, 0.75], [0.5, -0.5]], atol=1e-6)
    # Far apart values do not overflow.
    assert float(values.cql_regulariser(jnp.array([1e4, 0.0]), jnp.int32(0))) == 0.0


def test_soft_value_lies_between_its_bounds_and_is_the_best_entropic_mean(key):
    q = jax.random.normal(key, (5,))
    for temperature in (0.01, 0.5, 3.0):
        v = float(values.soft_value(q, temperature))
        assert float(q.max()) <= v <= float(q.max()) + temperature * np.log(5) + 1e-6
        log_pi = jax.nn.log_softmax(q / temperature)
        entropic = jnp.sum(jnp.exp(log_pi) * (q - temperature * log_pi))
        np.testing.assert_allclose(v, entropic, rtol=1e-5)
    assert float(values.soft_value(jnp.array([1e3, 0.0]), 0.01)) == 1e3


def test_munchausen_reward():
    q = jnp.array([[0.0, 0.03 * np.log(3.0)], [0.0, 100.0]])
    out = values.munchausen_reward(jnp.array([1.0, 1.0]), q, jnp.array([0, 0]))
    np.testing.assert_allclose(out, [1 + 0.9 * 0.03 * np.log(0.25), 1 - 0.9], rtol=1e-6)
    best = values.munchausen_reward(jnp.array([1.0, 1.0]), q, jnp.array([0, 1]))
    np.testing.assert_allclose(best[1], 1.0)

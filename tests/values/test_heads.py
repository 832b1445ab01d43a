import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import values
from jaxlab.values import Support, ValueHead

ATOMS, BINS = Support(-4.0, 16.0, 26), Support(-4.0, 16.0, 26, "bins")
HEADS = {
    "scalar": ValueHead(),
    "scalar_clip": ValueHead("scalar_clip", ATOMS),
    "mse_softmax": ValueHead("mse_softmax", ATOMS),
    "two_hot": ValueHead("two_hot", ATOMS),
    "hl_gauss": ValueHead("hl_gauss", BINS),
    "c51": ValueHead("c51", ATOMS),
    "quantile": ValueHead("quantile", ATOMS, num_quantiles=9),
    "scalar, symlog": ValueHead("scalar", Support(-4.0, 4.0, 2, tx=values.SYMLOG)),
    "hl_gauss, symlog": ValueHead("hl_gauss", Support(-4.0, 4.0, 41, "bins", values.SYMLOG)),
    "c51, symexp": ValueHead("c51", Support(-3.0, 3.0, 31, tx=values.SYMLOG, unbiased=True)),
    "quantile, symlog": ValueHead(
        "quantile", Support(-3.0, 3.0, 2, tx=values.SYMLOG), num_quantiles=5
    ),
}


@functools.cache
def train(name, steps=600):
    """Fits one value per row of a one-hot feature to noisy targets, by the head's own loss."""
    head = HEADS[name]
    key = jax.random.key(0)
    rows = jnp.eye(3)
    means = jnp.array([0.5, 4.0, 8.0])
    params = head.init(key, 3, 1)

    def step(carry, key):
        params, velocity = carry
        y = means[None] + jax.random.uniform(key, (64, 3), minval=-0.5, maxval=0.5)

        def loss(params):
            raw = head.apply(params, jnp.broadcast_to(rows, (64, 3, 3)))[:, :, 0]
            return head.loss(raw, y)[0]

        gradient = jax.grad(loss)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        rate = 0.02 if head.kind in ("scalar", "scalar_clip", "mse_softmax") else 0.2
        params = jax.tree.map(lambda p, v: p - rate * v, params, velocity)
        return (params, velocity), None

    zero = jax.tree.map(jnp.zeros_like, params)
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, p, jax.random.split(key, steps)))(
        (params, zero)
    )
    return np.asarray(head.mean(head.apply(params, rows))[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scalar", "mse_softmax", "two_hot", "hl_gauss", "quantile"])
def test_every_kind_learns_the_mean(name):
    np.testing.assert_allclose(train(name), [0.5, 4.0, 8.0], atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["scalar", "scalar_clip", "mse_softmax", "hl_gauss", "c51, symexp", "quantile"]
)
def test_shapes_start_and_gradients(name, key):
    head = HEADS[name]
    features = jax.random.normal(key, (5, 2, 16))
    params = jax.jit(head.init, static_argnums=(1, 2))(key, 16, 3)

    @jax.jit
    def run(params, features):
        raw = head.apply(params, features)
        return raw, head.mean(raw), head.select(raw, jnp.full((5, 2), 1))

    raw, mean, chosen = run(params, features)
    tail = () if head.width is None else (head.width,)
    assert raw.shape == (5, 2, 3, *tail) and mean.shape == (5, 2, 3)
    np.testing.assert_array_equal(chosen, raw[:, :, 1])
    # All kinds of one support start at its centre.
    centre = (
        0.0 if head.support is None else head.support.value_of(jnp.float32(head.support.centre))
    )
    np.testing.assert_allclose(mean, centre, atol=0.6)
    still = jax.tree.map(jnp.zeros_like, params) | {"bias": params["bias"]}
    np.testing.assert_allclose(run(still, features)[1], centre, atol=1e-6)

    y = jnp.array([[0.5, 3.0]] * 5)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def loss(params, y):
        raw = head.select(head.apply(params, features), jnp.full((5, 2), 1))
        return head.loss(raw, y, jnp.array([[1, 0]] * 5))

    (value, metrics), (gradient, to_target) = loss(params, y)
    assert value.shape == () and all(m.shape == () for m in metrics.values())
    assert np.isfinite(value) and "td_error" in metrics
    assert ("edge_fraction" in metrics) == (head.kind == "hl_gauss")
    np.testing.assert_array_equal(to_target, 0)
    columns = gradient["kernel"].reshape(16, 3, -1)
    assert np.abs(columns[:, 1]).max() > 0
    np.testing.assert_array_equal(columns[:, [0, 2]], 0)
    # The second row of every pair is masked.
    other, _ = loss(params, y.at[:, 1].set(9.0))
    np.testing.assert_allclose(other[0], value, rtol=1e-6)


@pytest.mark.parametrize("name", ["hl_gauss", "quantile, symlog"])
def test_members_under_vmap_are_members_alone(name):
    head = HEADS[name]
    keys = jax.random.split(jax.random.key(1), 3)
    h, y = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4), jnp.array([1.0, 2.0])

    def loss(key):
        params = head.init(key, 4, 1)
        return jax.value_and_grad(lambda p: head.loss(head.apply(p, h)[:, 0], y)[0])(params)

    together = jax.jit(jax.vmap(loss))(keys)
    alone = jax.jit(loss)(keys[2])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2], b, rtol=1e-5, atol=1e-6), together, alone
    )


@pytest.mark.parametrize("name", ["scalar, symlog", "c51, symexp", "quantile, symlog"])
def test_terminal_bootstrap_is_the_loss_of_the_reward(name, key):
    head = HEADS[name]
    tail = () if head.width is None else (head.width,)
    raw, raw_next = jax.random.normal(key, (2, 4, *tail))
    r, d = jnp.array([0.5, 1.0, -0.7, 2.0]), jnp.zeros(4)
    bootstrap = jax.jit(head.bootstrap_loss)
    np.testing.assert_allclose(
        bootstrap(raw, r, d, raw_next)[0], jax.jit(head.loss)(raw, r)[0], rtol=1e-5
    )
    gradient = jax.grad(lambda x: bootstrap(raw, r, jnp.full(4, 0.9), x)[0])(raw_next)
    np.testing.assert_array_equal(gradient, 0)


def test_bootstrap_of_the_distributional_kinds_moves_the_whole_law():
    """Two equally likely next values: c51 keeps them apart, HL-Gauss sees their mean."""

    @jax.jit
    def losses(r, d, wide, moved, raw, theta):
        wide = jnp.log(values.two_hot(wide, ATOMS).mean(0) + 1e-30)[None]
        moved = values.two_hot(moved, ATOMS).mean(0)[None]
        pair = ValueHead("quantile", num_quantiles=2)
        tau = jnp.array([[0.25, 0.75]])
        return (
            (values.c51_target(r, d, wide, ATOMS), moved),
            (
                HEADS["c51"].bootstrap_loss(raw, r, d, wide)[0],
                values.categorical_value_loss(raw, moved)[0],
            ),
            (
                HEADS["two_hot"].bootstrap_loss(raw, r, d, wide)[0],
                HEADS["two_hot"].loss(raw, jnp.array([3.0]))[0],
            ),
            (
                pair.bootstrap_loss(theta, r, d, jnp.array([[0.0, 8.0]]))[0],
                values.quantile_huber_loss(theta, tau, jnp.array([[1.0, 5.0]]))[0],
            ),
        )

    pairs = losses(
        jnp.array([1.0]),
        jnp.array([0.5]),
        jnp.array([0.0, 8.0]),
        jnp.array([1.0, 5.0]),
        jnp.linspace(0.0, 1.0, 26)[None],
        jnp.array([[0.0, 1.0]]),
    )
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_squared_errors_by_hand():
    y = jnp.array([20.0, 2.0])
    assert float(HEADS["scalar"].loss(jnp.zeros(2), y)[0]) == 202.0
    assert float(HEADS["scalar_clip"].loss(jnp.zeros(2), y)[0]) == 130.0  # 16^2 and 2^2
    np.testing.assert_allclose(HEADS["mse_softmax"].loss(jnp.zeros((2, 26)), y)[0], 106.0)
    np.testing.assert_allclose(
        HEADS["scalar, symlog"].loss(jnp.zeros(2), y)[0],
        (np.log(21.0) ** 2 + np.log(3.0) ** 2) / 2,
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        HEADS["scalar, symlog"].mean(jnp.float32(np.log(21.0))), 20.0, rtol=1e-6
    )
    # The error that is reported is that of the value, whatever the units of the loss.
    _, metrics = HEADS["scalar, symlog"].loss(jnp.zeros(2), y)
    np.testing.assert_allclose(metrics["td_error"], np.sqrt(202.0), rtol=1e-6)


def test_heads_are_static_and_bfloat16_runs(key):
    assert hash(HEADS["hl_gauss"]) == hash(dataclasses.replace(HEADS["hl_gauss"]))
    head = HEADS["hl_gauss"]

    @jax.jit
    def run(key):
        params = head.init(key, 4, 2, jnp.bfloat16)
        raw = head.apply(params, jnp.ones((3, 4), jnp.bfloat16))
        return raw, head.mean(raw), head.loss(raw, jnp.ones((3, 2), jnp.bfloat16))[0]

    raw, mean, loss = run(key)
    assert raw.dtype == jnp.bfloat16 and mean.dtype == jnp.float32
    assert loss.dtype == jnp.float32 and np.isfinite(loss)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("mse",), "kind: expected one of"),
        (("two_hot",), "support: expected a Support for kind 'two_hot', got None"),
        (("hl_gauss", ATOMS), "support: expected kind 'bins', got 'atoms'"),
        (("scalar", Support(-1, 1, 2, "atoms", values.SYMLOG, True)), "takes no unbiased support"),
        (("quantile", None, 0.75, 0), "num_quantiles: expected at least 1"),
    ],
)
def test_impossible_heads_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ValueHead(*arguments)


def test_misuse_is_refused():
    head = HEADS["two_hot"]
    with pytest.raises(ValueError, match=r"y: expected shape \(2,\), got \(2, 1\)"):
        head.loss(jnp.zeros((2, 26)), jnp.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"action: expected shape \(2,\), got \(3,\)"):
        head.select(jnp.zeros((2, 4, 26)), jnp.zeros(3, jnp.int32))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_what_a_mask_hides_has_no_influence_on_gradients(name):
    head = HEADS[name]
    shape = (3,) if head.width is None else (3, head.width)
    raw = jax.random.normal(jax.random.key(0), shape)
    mask, y = jnp.array([1.0, 0.0, 1.0]), jnp.array([2.0, jnp.nan, 5.0])
    half = jnp.full(3, 0.5)

    def losses(raw, raw_next, y, mask):
        discount = half[: len(y)].at[0].multiply(y[0] / y[0])
        return head.loss(raw, y, mask)[0] + head.bootstrap_loss(raw, y, discount, raw_next, mask)[0]

    hidden = raw.at[1].set(jnp.nan)
    loss, slope = jax.value_and_grad(losses)(hidden, hidden, y, mask)
    keep = jnp.array([0, 2])
    want, there = jax.value_and_grad(losses)(raw[keep], raw[keep], y[keep], None)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(slope[keep], there, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(slope[1], 0.0)

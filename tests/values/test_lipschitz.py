import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets, values

W = jnp.array([3.0, -1.0, 0.5])
OBS = jax.random.normal(jax.random.key(7), (6, 3))


value_aware_model_error = jax.jit(values.value_aware_model_error, static_argnums=0)


def penalty(value_fn, obs=OBS, key=None, **options):
    key = jax.random.key(1) if key is None else key
    return jax.jit(lambda o, k: values.robust_penalty(value_fn, o, k, **options))(obs, key)


def test_of_a_linear_value_is_the_dual_norm_squared():
    scale = jnp.array([0.1, 10.0, 2.0])
    eps = np.array([0.0, 0.1, 0.7])

    @jax.jit
    @jax.vmap
    def penalties(eps):
        search = lambda **options: values.robust_penalty(  # noqa: E731
            lambda s: s @ W, OBS, jax.random.key(1), eps=eps, **options
        )
        box, metrics = search(steps=3)
        ball, _ = search(steps=8, ball="l2")
        return box, ball, search(steps=3, scale=scale)[0], metrics["perturbation"]

    box, ball, scaled, size = penalties(jnp.asarray(eps, jnp.float32))
    np.testing.assert_allclose(box, (eps * 4.5) ** 2, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(ball, eps**2 * float(W @ W), rtol=1e-3, atol=1e-12)
    expected = (eps * float(jnp.abs(W) @ scale)) ** 2
    np.testing.assert_allclose(scaled, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(size[1:], 1.0, rtol=1e-6)


def test_random_start_leaves_a_stationary_point():
    bowl = lambda s: 0.5 * jnp.sum(s**2, axis=-1)  # noqa: E731
    out, _ = penalty(bowl, jnp.zeros((4, 3)), eps=0.5, ball="l2", steps=5)
    np.testing.assert_allclose(out, 0.5**4 / 4, rtol=1e-4)


def test_a_constant_value_costs_nothing_and_has_no_gradient():
    def cost(bias):
        return values.robust_penalty(
            lambda s: jnp.full(s.shape[:1], bias), OBS, jax.random.key(0), eps=0.3, ball="l2"
        )[0]

    value, gradient = jax.value_and_grad(cost)(jnp.float32(2.0))
    assert float(value) == 0.0 and float(gradient) == 0.0


def test_grows_with_the_radius_and_with_the_steps(key):
    params = nets.mlp_init(key, (3, 32, 1))
    net = lambda s: nets.mlp_apply(params, s)[:, 0]  # noqa: E731
    sizes = jax.jit(jax.vmap(lambda e: values.robust_penalty(net, OBS, key, eps=e, steps=3)[0]))(
        jnp.array([0.01, 0.1, 0.5, 1.0])
    )
    assert np.all(np.diff(np.asarray(sizes)) > 0)
    noise, one, many = (
        float(penalty(net, key=key, eps=0.3, steps=steps)[0]) for steps in (0, 1, 10)
    )
    assert noise < one <= many * 1.001
    # Never outside of the ball: a convex value is largest at its corners.
    corners = jnp.stack(jnp.meshgrid(*[jnp.array([-1.0, 1.0])] * 3), axis=-1).reshape(-1, 3)
    bowl = lambda s: jnp.sum(s**2, axis=-1)  # noqa: E731
    best = jnp.max(
        jax.vmap(lambda c: (bowl(OBS + 0.3 * c[None]) - bowl(OBS)) ** 2)(corners), axis=0
    )
    out, _ = penalty(bowl, eps=0.3, steps=20)
    assert float(out) <= float(jnp.mean(best)) * 1.0001


def test_noise_is_uniform_in_the_ball():
    for ball, dims in (("linf", 2), ("l2", 2)):
        obs = jnp.zeros((20000, dims))
        # A value that counts how far out the perturbation is.
        radius = (
            (lambda s: jnp.max(jnp.abs(s), axis=-1))
            if ball == "linf"
            else (lambda s: jnp.sqrt(jnp.sum(s**2, axis=-1) + 1e-20))
        )
        out, _ = penalty(radius, obs, eps=2.0, ball=ball, steps=0)
        # The radius of a uniform point has density d r^(d-1): E r^2 = d / (d + 2).
        np.testing.assert_allclose(out, 4 * dims / (dims + 2), rtol=0.02)


def test_gradient_is_of_both_ends_and_ignores_the_search():
    def cost(w, detach):
        return values.robust_penalty(
            lambda s: s @ w, OBS, jax.random.key(0), eps=0.2, steps=3, detach_clean=detach
        )[0]

    both = jax.grad(cost)(W, False)
    np.testing.assert_allclose(both, 2 * 0.2**2 * 4.5 * jnp.sign(W), rtol=1e-5)
    # Detached, the derivative of (V(s + d) - const)^2 holds the state too.
    alone = jax.grad(cost)(W, True)
    assert float(jnp.max(jnp.abs(alone - both))) > 0.01


def test_perturbation_is_a_constant_of_differentiation():
    def cost(b):
        # The second term is always zero, but it turns the search into another direction.
        value = lambda s: s @ W + b * jnp.sum(s - jax.lax.stop_gradient(s), axis=-1)  # noqa: E731
        return values.robust_penalty(value, OBS, jax.random.key(0), eps=0.2, ball="l2")[0]

    assert float(cost(0.0)) != float(cost(5.0))
    assert float(jax.grad(cost)(0.5)) == 0.0


def test_every_critic_has_its_own_worst_case():
    critics = jnp.array([[3.0, 0.0, 0.0], [0.0, -1.0, 2.0]])
    keys = jax.random.split(jax.random.key(0))
    together = jax.vmap(
        lambda w, k: values.robust_penalty(lambda s: s @ w, OBS, k, eps=0.1, steps=3)[0]
    )(critics, keys)
    # The coordinates without effect stay where they started; the others reach the corner.
    np.testing.assert_allclose(together, [0.09, 0.09], rtol=1e-5)


def test_masked_rows_do_not_count():
    value = lambda s: s[:, 0] ** 2  # noqa: E731
    obs = OBS.at[3:].set(jnp.nan)
    out, metrics = penalty(value, obs, eps=0.1, mask=jnp.array([1, 1, 1, 0, 0, 0]))
    assert np.isfinite(out) and np.isfinite(metrics["perturbation"])


def test_local_slopes():
    value = lambda s: s @ W  # noqa: E731
    out = values.local_lipschitz(value, OBS)
    for name in ("lipschitz_mean", "lipschitz_p95", "lipschitz_max"):
        np.testing.assert_allclose(out[name], np.sqrt(10.25), rtol=1e-6)
    scaled = values.local_lipschitz(value, OBS, jnp.array([2.0, 0.0, 0.0]))
    np.testing.assert_allclose(scaled["lipschitz_mean"], 6.0, rtol=1e-6)
    line = jnp.linspace(0.0, 1.0, 101)[:, None]
    curved = values.local_lipschitz(lambda s: s[:, 0] ** 2, line)
    np.testing.assert_allclose(curved["lipschitz_mean"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(curved["lipschitz_p95"], 1.9, rtol=1e-5)
    np.testing.assert_allclose(curved["lipschitz_max"], 2.0, rtol=1e-5)


def test_slopes_between_pairs():
    obs = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.5], [9.0, 9.0], [9.0, 9.0]])
    v = jnp.array([0.0, 2.0, 5.0, 100.0, 100.0])
    assert float(values.pairwise_lipschitz(v, obs, 1.05)) == pytest.approx(6.0)
    assert float(values.pairwise_lipschitz(v, obs, 0.4)) == 0.0
    scaled = values.pairwise_lipschitz(v, obs, 1.0, jnp.array([1.0, 0.25]))
    assert float(scaled) == pytest.approx(2.0)  # the second pair is now 2 apart


def test_value_aware_error(key):
    real = jax.random.normal(key, (50, 3))
    linear = lambda s: s @ W  # noqa: E731
    assert float(value_aware_model_error(linear, real, real[None])) == 0.0
    shift = jax.random.normal(jax.random.fold_in(key, 1), (4, 50, 3))
    error = value_aware_model_error(linear, real, real[None] + shift)
    np.testing.assert_allclose(error, jnp.mean(jnp.abs(jnp.mean(shift, 0) @ W)), rtol=1e-5)
    # Bounded by the Lipschitz constant times the distance, for a deterministic model.
    params = nets.mlp_init(key, (3, 16, 16, 1))
    net = lambda s: nets.mlp_apply(params, s, jax.nn.relu)[:, 0]  # noqa: E731
    error = value_aware_model_error(net, real, real[None] + shift[:1])
    distance = jnp.mean(jnp.sqrt(jnp.sum(shift[0] ** 2, -1)))
    assert float(error) <= float(nets.lipschitz_upper_bound(params) * distance)
    # Noise of the right mean shifts a quadratic value by half the trace, and that is the error.
    noise = 0.3 * jax.random.normal(key, (20000, 2, 3))
    quadratic = lambda s: 0.5 * jnp.sum(s**2 * jnp.array([1.0, 2.0, 4.0])[None], -1)  # noqa: E731
    error = value_aware_model_error(quadratic, real[:2], real[None, :2] + noise)
    np.testing.assert_allclose(error, 0.5 * 0.09 * 7, rtol=0.05)


def test_training_with_the_penalty_flattens_the_value(key):
    obs = jax.random.uniform(key, (64, 1), minval=-1.0, maxval=1.0)
    y = jnp.sign(obs[:, 0])

    @functools.partial(jax.jit, static_argnums=1)
    def slope(weight, steps):
        def loss(params, key):
            net = lambda s: nets.mlp_apply(params, s, jax.nn.tanh)[:, 0]  # noqa: E731
            fit = jnp.mean((net(obs) - y) ** 2)
            return fit + weight * values.robust_penalty(net, obs, key, eps=0.3)[0]

        def step(params, key):
            gradient = jax.grad(loss)(params, key)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), None

        params = nets.mlp_init(key, (1, 16, 1))
        params, _ = jax.lax.scan(step, params, jax.random.split(key, steps))
        net = lambda s: nets.mlp_apply(params, s, jax.nn.tanh)[:, 0]  # noqa: E731
        return values.local_lipschitz(net, obs)["lipschitz_max"]

    free, held = (float(slope(w, 500)) for w in (0.0, 3.0))
    assert held < 0.5 * free


def test_misuse_is_refused():
    value = lambda s: s[:, 0]  # noqa: E731
    with pytest.raises(ValueError, match="ball: expected one of"):
        values.robust_penalty(value, OBS, jax.random.key(0), eps=0.1, ball="l1")
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        values.robust_penalty(value, OBS, jax.random.key(0), eps=0.1, steps=-1)
    with pytest.raises(ValueError, match="values: expected the shape of"):
        values.pairwise_lipschitz(jnp.ones(5), OBS, 1.0)
    with pytest.raises(ValueError, match="model_samples"):
        values.value_aware_model_error(value, OBS, OBS)


def test_masked_rows_have_no_gradient():
    hidden, mask = OBS.at[3:].set(jnp.nan), jnp.array([1, 1, 1, 0, 0, 0])

    def cost(w, obs, mask):
        value = lambda s: jnp.tanh(s @ w)  # noqa: E731
        noise = jnp.stack([obs + 0.1, obs - 0.3])
        return (
            values.robust_penalty(value, obs, jax.random.key(0), eps=0.1, steps=0, mask=mask)[0]
            + values.value_aware_model_error(value, obs, noise, mask)
            + values.diversity_penalty(lambda s, a: jnp.stack([a @ w, s @ a]), obs, obs, mask)
        )

    got = jax.value_and_grad(cost)(W, hidden, mask)
    want = jax.value_and_grad(cost)(W, OBS.at[3:].set(0.0), mask)
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5)

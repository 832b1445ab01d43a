import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxlab import nets
from jaxlab import worldmodels as wm
from jaxlab.worldmodels.ensemble import forward, regulariser

CONFIG = wm.EnsembleConfig(members=3, elites=2, hidden=(8, 6))
OBS, ACTION = jnp.array([[0.5, -1.0], [2.0, 0.1]]), jnp.array([[0.3], [-0.7]])


def fitted_normalizers(state):
    """A state whose normalisers are not trivial."""
    return dataclasses.replace(
        state,
        input_normalizer=nets.Normalizer(jnp.array([1.0, -2.0, 0.1]), jnp.array([2.0, 0.5, 0.3])),
        target_normalizer=nets.Normalizer(jnp.array([0.2, 0.1, -9.0]), jnp.array([0.1, 3.0, 7.0])),
    )


@pytest.mark.parametrize(
    "raw, want",
    [
        (-30.0, -9.99999999794),
        (-10.0, -9.306866787),
        (0.0, -0.474004050),
        (0.5, -0.193092109),
        (5.0, 0.488980097),
        (1e9, 0.5000275),
    ],
)
def test_bounded_logvar_golden_values(raw, want):
    low, high = jnp.array([-10.0]), jnp.array([0.5])
    np.testing.assert_allclose(wm.bound_logvar(jnp.array([raw]), low, high), [want], rtol=1e-5)


def test_bounded_logvar_stays_within_and_is_monotone():
    raw = jnp.linspace(-40.0, 40.0, 401)[:, None]
    out = np.asarray(wm.bound_logvar(raw, jnp.array([-10.0]), jnp.array([0.5])))
    assert out.min() >= -10 and out.max() <= 0.5 + 2.8e-5
    assert np.all(np.diff(out[:, 0]) >= 0)


@pytest.mark.parametrize("members", [1, 3])
def test_members_are_plain_gaussian_networks(key, members):
    config = dataclasses.replace(CONFIG, members=members, elites=1)
    state = fitted_normalizers(wm.init(key, config, 2, 1))
    mean, logvar = jax.jit(wm.apply, static_argnums=1)(state, config, OBS, ACTION)
    assert mean.shape == logvar.shape == (members, 2, 3)

    f64 = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)  # noqa: E731
    x = np.concatenate([f64(OBS), f64(ACTION)], axis=-1)
    x = (x - f64(state.input_normalizer.mean)) / f64(state.input_normalizer.std)
    for m in range(members):
        h = x
        *hidden, last = jax.tree.map(lambda leaf, m=m: leaf[m], f64(state.params.net))
        for layer in hidden:
            h = h @ layer["kernel"] + layer["bias"]
            h = h * scipy.special.expit(h)
        out = h @ last["kernel"] + last["bias"]
        std = f64(state.target_normalizer.std)
        want_mean = out[:, :3] * std + f64(state.target_normalizer.mean)
        capped = 0.5 - np.logaddexp(0, 0.5 - out[:, 3:])
        want_logvar = -10 + np.logaddexp(0, capped + 10) + 2 * np.log(std)
        np.testing.assert_allclose(mean[m], want_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logvar[m], want_logvar, rtol=1e-4, atol=1e-5)


def test_deterministic_members_have_no_logvar(key):
    config = dataclasses.replace(CONFIG, deterministic=True, predict_reward=False)
    state = wm.init(key, config, 2, 1)
    mean, logvar = wm.apply(state, config, OBS, ACTION)
    assert mean.shape == (3, 2, 2)
    assert logvar is None
    assert state.params.net[-1]["kernel"].shape == (3, 6, 2)


def test_leading_axes_grad_and_vmap(key):
    state = fitted_normalizers(wm.init(key, CONFIG, 2, 1))
    apply = jax.jit(wm.apply, static_argnums=1)
    mean, _ = apply(state, CONFIG, OBS, ACTION)
    single, _ = apply(state, CONFIG, OBS[1], ACTION[1])
    np.testing.assert_allclose(single, mean[:, 1], rtol=1e-5)

    def total(action):
        return jnp.sum(wm.apply(state, CONFIG, OBS, action)[0])

    slope = jax.jit(jax.grad(total))(ACTION)
    step = 1e-2 * jnp.ones_like(ACTION)
    finite = (total(ACTION + step) - total(ACTION - step)) / 2e-2
    np.testing.assert_allclose(slope.sum(), finite, rtol=1e-2)


def test_regulariser_closed_form(key):
    config = dataclasses.replace(CONFIG, weight_decay=(0.1, 0.2, 0.4))
    state = wm.init(key, config, 2, 1)
    member = jax.tree.map(lambda leaf: leaf[1], state.params)
    squares = [float(np.sum(np.asarray(layer["kernel"], np.float64) ** 2)) for layer in member.net]
    decay = 0.05 * squares[0] + 0.1 * squares[1] + 0.2 * squares[2]
    np.testing.assert_allclose(regulariser(member, config), decay + 0.01 * 3 * 10.5, rtol=1e-5)
    grads = jax.grad(regulariser)(member, config)
    np.testing.assert_allclose(grads.net[2]["kernel"], 0.4 * member.net[2]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(grads.net[2]["bias"], 0)
    fixed = dataclasses.replace(config, learn_bounds=False)
    np.testing.assert_allclose(regulariser(member, fixed), decay, rtol=1e-5)


@pytest.mark.parametrize("learn", [True, False])
def test_bounds_learn_only_if_asked(key, learn):
    config = dataclasses.replace(CONFIG, learn_bounds=learn)
    member = jax.tree.map(lambda leaf: leaf[0], wm.init(key, config, 2, 1).params)
    grads = jax.grad(lambda p: jnp.sum(forward(p, config, jnp.ones((4, 3)))[1]))(member)
    assert bool(jnp.any(grads.max_logvar != 0)) == learn
    assert bool(jnp.any(grads.min_logvar != 0)) == learn


def test_bad_settings_are_named(key):
    with pytest.raises(ValueError, match=r"elites: expected 1 to 3 .*got 4"):
        wm.EnsembleConfig(members=3, elites=4)
    with pytest.raises(ValueError, match=r"activation: .*got 'gelu'"):
        wm.EnsembleConfig(activation="gelu")
    with pytest.raises(ValueError, match=r"weight_decay: .*got 2"):
        wm.EnsembleConfig(hidden=(3, 3), weight_decay=(0.1, 0.1))
    with pytest.raises(ValueError, match="min_logvar"):
        wm.EnsembleConfig(min_logvar=1.0)
    with pytest.raises(ValueError, match="obs_dim"):
        wm.init(key, CONFIG, 0, 1)
    state = wm.init(key, CONFIG, 2, 1)
    for obs, action in ((OBS, jnp.ones((2, 2))), (ACTION, OBS)):  # the latter have changed places
        with pytest.raises(
            ValueError, match=r"obs, action: expected 2 and 1 dimensions, got . and 2"
        ):
            wm.apply(state, CONFIG, obs, action)

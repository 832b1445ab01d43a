import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import worldmodels as wm
from jaxlab.types import Transition
from jaxlab.worldmodels.bootstrap import split_rows

CAPACITY = 120
CONFIG = wm.EnsembleConfig(members=3, elites=2, hidden=(8,), weight_decay=0.0)
DETERMINISTIC = dataclasses.replace(CONFIG, deterministic=True)
ONE_EPOCH = wm.FitConfig(batch_size=32, max_epochs=1)
FIVE_EPOCHS = wm.FitConfig(batch_size=32, max_epochs=5)


def make_data(seed, capacity=CAPACITY, noise=0.1):
    """A linear system of two observations and one action, with noise; reward is the action."""
    rng = np.random.default_rng(seed)
    obs, action = rng.normal(size=(capacity, 2)), rng.uniform(-1, 1, (capacity, 1))
    step = obs @ np.array([[-0.1, 0.3], [-0.2, 0.1]]) + action @ np.array([[0.5, -0.4]])
    next_obs = obs + step + noise * rng.normal(size=(capacity, 2))
    f32 = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    never = jnp.zeros((capacity,), bool)
    return Transition(f32(obs), f32(action), f32(action[:, 0]), never, never, f32(next_obs))


@functools.cache
def compiled_fit(config, fit_config, loss_fn=wm.nll_objective, score_fn=wm.mse_objective):
    def run(key, state, data, count, lr=1e-2):
        return wm.fit(
            key, state, data, count, config, loss_fn, lr, score_fn=score_fn, fit_config=fit_config
        )

    return jax.jit(run)


FIT = compiled_fit(CONFIG, FIVE_EPOCHS)
INIT = jax.jit(wm.init, static_argnums=(1, 2, 3))


def assert_trees(check, a, b):
    jax.tree.map(check, a, b)


def member(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.slow
def test_fit_learns_and_reports(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    new = state
    for i in range(12):
        new, metrics = FIT(jax.random.fold_in(key, i), new, data, CAPACITY)
        if i == 0:
            assert metrics["holdout_mse"] > 0.5  # of an untrained model: about 1
    assert metrics["holdout_mse"] < 0.1
    assert metrics["epochs"] == 5
    assert set(metrics) == {
        "epochs",
        "train_loss",
        "holdout_loss",
        "holdout_mse",
        "holdout_logvar",
    }
    assert all(v.shape == () and v.dtype == jnp.float32 for v in metrics.values())
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert_trees(lambda a, b: (a.dtype, a.shape) == (b.dtype, b.shape) or pytest.fail(), new, state)


def test_only_the_first_count_rows_matter(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    valid = jnp.arange(CAPACITY) < 70
    poison = jax.tree.map(
        lambda x: (
            jnp.where(valid.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.nan)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        data,
    )
    clean, dirty = FIT(key, state, data, 70), FIT(key, state, poison, 70)
    assert_trees(np.testing.assert_array_equal, clean, dirty)
    assert np.isfinite(clean[1]["holdout_loss"])
    other = FIT(key, state, data, 71)
    assert not np.array_equal(other[0].params.net[0]["kernel"], clean[0].params.net[0]["kernel"])


@pytest.mark.slow
def test_changing_a_members_data_leaves_the_other_members_bitwise_equal(key):
    # Constant targets' units, and no early stop: members share nothing but the holdout rows.
    config = dataclasses.replace(CONFIG, normalize_targets=False)
    run = compiled_fit(config, FIVE_EPOCHS)
    data, state = make_data(0), INIT(key, config, 2, 1)
    base, _ = run(key, state, data, CAPACITY)
    split_key, _ = jax.random.split(key)
    rows = split_rows(split_key, 3, CAPACITY, jnp.int32(CAPACITY), 0.2, 5000)
    bags = [set(np.asarray(b[: int(rows.train_count)]).tolist()) for b in rows.bootstrap]
    for m in range(3):
        (only,) = sorted(bags[m].difference(*(bags[j] for j in range(3) if j != m)))[:1]
        changed = dataclasses.replace(data, next_obs=data.next_obs.at[only].add(5.0))
        new, _ = run(key, state, changed, CAPACITY)
        for j in range(3):
            same = all(
                np.array_equal(a, b)
                for a, b in zip(
                    jax.tree.leaves(member(new.params, j)), jax.tree.leaves(member(base.params, j))
                )
            )
            assert same == (j != m)


@pytest.mark.slow
def test_a_member_trains_as_if_it_were_alone(key):
    one = dataclasses.replace(CONFIG, members=1, elites=1)
    data = make_data(0)
    alone, _ = compiled_fit(one, ONE_EPOCH)(key, INIT(key, one, 2, 1), data, CAPACITY)
    three, _ = compiled_fit(CONFIG, ONE_EPOCH)(key, INIT(key, CONFIG, 2, 1), data, CAPACITY)
    assert_trees(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        member(alone.params, 0),
        member(three.params, 0),
    )


def test_affine_changes_of_inputs_leave_predictions_after_a_refit(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    scale, shift = jnp.array([[100.0, 0.01]]), jnp.array([[-5.0, 0.3]])
    moved = dataclasses.replace(
        data,
        obs=data.obs * scale + shift,
        next_obs=data.next_obs * scale + shift,
        action=3 * data.action - 1,
    )
    a, _ = FIT(key, state, data, CAPACITY)
    b, _ = FIT(key, state, moved, CAPACITY)
    mean_a, logvar_a = wm.apply(a, CONFIG, data.obs[:9], data.action[:9])
    mean_b, logvar_b = wm.apply(b, CONFIG, moved.obs[:9], moved.action[:9])
    unit = jnp.concatenate([scale[0], jnp.ones(1)])[None, None]
    np.testing.assert_allclose(mean_b / unit, mean_a, rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(logvar_b - 2 * jnp.log(unit), logvar_a, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_linear_gaussian_system_is_recovered(key):
    config = dataclasses.replace(CONFIG, members=5, elites=5, hidden=(), predict_reward=False)
    # Scored by the likelihood: the squared error stops improving before the variance does.
    schedule = wm.FitConfig(batch_size=256, max_epochs=30, patience=30, improvement=0.0)
    run = compiled_fit(config, schedule, score_fn=wm.nll_objective)
    data, state = make_data(1, capacity=2500), INIT(key, config, 2, 1)
    for i, lr in enumerate((3e-2, 3e-3, 3e-4)):
        state, _ = run(jax.random.fold_in(key, i), state, data, 2500, lr)
    x = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
    mean, logvar = wm.apply(state, config, x[:, :2], x[:, 2:])
    got = np.asarray(jnp.mean(mean, 0))
    want = np.array([[-0.1, 0.3], [-0.2, 0.1], [0.5, -0.4]])
    # 2000 training rows; standard deviation of the inputs 1, 1 and 3^-1/2.
    error = 0.1 / np.sqrt(2000) / np.array([1, 1, 3**-0.5])[:, None]
    np.testing.assert_array_less(np.abs(got[1:] - got[:1] - want) / error, 3 * np.ones((3, 2)))
    np.testing.assert_array_less(np.abs(got[0]), np.full(2, 3 * 0.1 / np.sqrt(2000)))
    np.testing.assert_allclose(np.mean(logvar[:, 0]), np.log(0.01), atol=0.1)


@pytest.mark.slow
def test_distractor_outputs_without_value_never_move(key):
    data, state = make_data(0), INIT(key, DETERMINISTIC, 2, 1)
    g = jnp.stack([data.next_obs[:, 0], jnp.zeros(CAPACITY)], axis=1)
    objective = wm.value_gradient_objective(g)
    run, new = compiled_fit(DETERMINISTIC, FIVE_EPOCHS, objective, objective), state
    for i in range(10):
        new, metrics = run(jax.random.fold_in(key, i), new, data, CAPACITY)
    old_last, new_last = state.params.net[-1], new.params.net[-1]
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(new_last[name][..., 1], old_last[name][..., 1])
        assert np.all(np.any(new_last[name][..., 0] != old_last[name][..., 0], axis=-1))
    np.testing.assert_allclose(metrics["holdout_effective_dims"], 1.0, rtol=1e-6)
    # The dimension that counts is learned.
    mean, _ = wm.apply(new, DETERMINISTIC, data.obs, data.action)
    error = np.asarray(mean[..., 0] - (data.next_obs - data.obs)[None, :, 0])
    change = np.asarray(data.next_obs - data.obs)[:, 0]
    assert np.mean(error**2) < 0.3 * np.var(change)


ONLY_MSE = {"value_coef": 0.0, "reward_coef": 0.0, "mse_coef": 1.0}


@pytest.mark.slow
def test_mse_coefficient_alone_is_the_mse_arm(key):
    data, state = make_data(0), INIT(key, DETERMINISTIC, 2, 1)

    @jax.jit
    def run(g, coefs):
        objective = wm.value_gradient_objective(g, **coefs)
        return wm.fit(
            key, state, data, CAPACITY, DETERMINISTIC, objective, 1e-2, fit_config=ONE_EPOCH
        )[0].params

    a, b = run(data.next_obs, ONLY_MSE), run(5 * data.obs, ONLY_MSE)
    assert_trees(np.testing.assert_array_equal, a, b)
    c = run(data.next_obs, ONLY_MSE | {"value_coef": 0.1})
    assert not np.array_equal(a.net[0]["kernel"], c.net[0]["kernel"])
    # Another program, where the compiler may round elsewhere.
    mse, _ = compiled_fit(DETERMINISTIC, ONE_EPOCH, wm.mse_objective)(key, state, data, CAPACITY)
    assert_trees(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, mse.params)


@pytest.mark.parametrize("kind", ["value_gradient", "taylor", "iter"])
def test_mse_coefficient_alone_gives_the_mse_gradient_bitwise(kind):
    data = jax.tree.map(lambda leaf: leaf[:10], make_data(0))
    objective = {
        "value_gradient": lambda: wm.value_gradient_objective(data.next_obs, **ONLY_MSE),
        "taylor": lambda: wm.taylor_value_aware_objective(data.next_obs, **ONLY_MSE),
        "iter": lambda: wm.iter_value_aware_objective(jnp.sum, **ONLY_MSE),
    }[kind]()
    target = jnp.concatenate([data.next_obs - data.obs, data.reward[:, None]], axis=1)

    def loss(mean, loss_fn):
        prediction = wm.Prediction(mean, None, data.obs + mean[:, :2], mean[:, 2])
        return loss_fn(prediction, wm.Batch(target, data, jnp.arange(10), None))[0]

    got, want = (jax.grad(loss)(0.7 * target, f) for f in (objective, wm.mse_objective))
    np.testing.assert_array_equal(got, want)


def test_value_aware_objectives_are_their_losses_in_environment_units(key):
    data = make_data(0)
    batch = jax.tree.map(lambda leaf: leaf[10:20], data)
    pred, reward = batch.next_obs + 0.3, batch.reward - 2.0
    g = jnp.stack([data.next_obs, data.next_obs**2])
    prediction = wm.Prediction(jnp.ones((10, 3)), None, pred, reward)
    full = wm.Batch(jnp.full((10, 3), 3.0), batch, jnp.arange(10, 20), None)
    value_fn = lambda s: s[0] ** 2 - s[1]  # noqa: E731
    cases = [
        (
            wm.value_gradient_objective(g, reward_coef=0.5, mse_coef=2.0),
            wm.losses.value_gradient_weighted_loss(pred, batch.next_obs, g[:, 10:20])[0],
        ),
        (
            wm.taylor_value_aware_objective(g, reward_coef=0.5, mse_coef=2.0),
            wm.losses.taylor_value_aware_loss(pred, batch.next_obs, g[:, 10:20])[0],
        ),
        (
            wm.iter_value_aware_objective(value_fn, reward_coef=0.5, mse_coef=2.0),
            wm.losses.iter_value_aware_loss(pred, batch.next_obs, value_fn)[0],
        ),
    ]
    for objective, state_part in cases:
        # Reward error 2, so 0.5 * 4; normalised error 2 in 3 dimensions, so 2 * 12.
        loss, metrics = objective(prediction, full)
        np.testing.assert_allclose(loss, state_part + 2.0 + 24.0, rtol=1e-6)
        np.testing.assert_allclose(metrics["reward_loss"], 4.0, rtol=1e-6)


@pytest.mark.slow
def test_elites_and_best_parameters_follow_the_score(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)

    def distance(prediction, batch):
        """Prefers small predictions of the first dimension."""
        return jnp.mean(jnp.abs(prediction.mean[:, 0] + 10)), {}

    new, _ = compiled_fit(CONFIG, ONE_EPOCH, score_fn=distance)(key, state, data, CAPACITY)
    split_key, _ = jax.random.split(key)
    rows = split_rows(split_key, 3, CAPACITY, jnp.int32(CAPACITY), 0.2, 5000).holdout
    mean, _ = wm.apply(new, CONFIG, data.obs[rows], data.action[rows])
    unit = (mean[..., 0] - new.target_normalizer.mean[0]) / new.target_normalizer.std[0]
    score = np.mean(np.abs(np.asarray(unit) + 10), axis=1)
    np.testing.assert_array_equal(new.elites, np.argsort(score)[:2])
    assert new.elites.dtype == jnp.int32


def test_parameters_are_the_best_not_the_last(key):
    # Only the first epoch's score is an improvement on what was there before.
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    first, _ = compiled_fit(CONFIG, ONE_EPOCH)(key, state, data, CAPACITY)
    demanding = dataclasses.replace(FIVE_EPOCHS, improvement=0.999)
    new, metrics = compiled_fit(CONFIG, demanding)(key, state, data, CAPACITY)
    assert_trees(np.testing.assert_array_equal, new.params, first.params)
    assert metrics["epochs"] == 5


@pytest.mark.slow
def test_stops_after_patience_epochs_without_improvement(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    patient = wm.FitConfig(batch_size=32, max_epochs=50, patience=3, improvement=0.01)
    run = jax.jit(jax.vmap(compiled_fit(CONFIG, patient), in_axes=(None, None, None, None, 0)))
    new, metrics = run(key, state, data, CAPACITY, jnp.array([0.0, 1e-2]))
    # Without learning, the first epoch's score is the best, and three more are waited for.
    assert metrics["epochs"][0] == 1 + 3
    assert 4 < metrics["epochs"][1] <= 50
    # The instance that stopped waits for the other one, unchanged.
    assert new.opt_state.count[0] == 4 * 3
    assert_trees(np.testing.assert_array_equal, member(new.params, 0), state.params)


def test_warm_start_goes_on_from_parameters_and_moments(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    one, first = FIT(key, state, data, CAPACITY)
    two, second = FIT(jax.random.fold_in(key, 1), one, data, CAPACITY)
    assert second["train_loss"] < first["train_loss"]
    assert two.opt_state.count == 2 * one.opt_state.count == 2 * 5 * 3  # ceil(96 / 32) steps


@pytest.mark.slow
def test_vmap_is_a_loop_over_seeds(key):
    keys = jax.random.split(key, 2)
    stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731
    data = jax.tree.map(stack, make_data(0), make_data(1))
    state = jax.vmap(lambda k: INIT(k, CONFIG, 2, 1))(keys)
    counts = jnp.array([CAPACITY, 60])
    many, _ = jax.vmap(FIT)(keys, state, data, counts)
    for i in range(2):
        one, _ = FIT(keys[i], member(state, i), member(data, i), counts[i])
        assert_trees(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            member(many.params, i),
            one.params,
        )
        np.testing.assert_array_equal(many.elites[i], one.elites)


def test_divergence_shows_in_the_metrics_and_not_in_the_best_parameters(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    new, metrics = FIT(key, state, data, CAPACITY, jnp.nan)
    assert not np.isfinite(metrics["train_loss"])
    assert_trees(np.testing.assert_array_equal, new.params, state.params)


def test_data_of_numpy_are_those_of_jax(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    plain = jax.tree.map(np.asarray, data)
    one_epoch = compiled_fit(CONFIG, ONE_EPOCH)
    other = jax.jit(
        lambda k, s: wm.fit(k, s, plain, CAPACITY, CONFIG, lr=1e-2, fit_config=ONE_EPOCH)
    )
    assert_trees(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        one_epoch(key, state, data, CAPACITY),
        other(key, state),
    )


def test_bad_arguments_are_named(key):
    data, state = make_data(0), INIT(key, CONFIG, 2, 1)
    wide = dataclasses.replace(data, action=jnp.ones((CAPACITY, 2)))
    with pytest.raises(ValueError, match=r"data: expected obs and action of 3 .*got 4"):
        FIT(key, state, wide, CAPACITY)
    with pytest.raises(ValueError, match="data: expected one leading axis"):
        FIT(key, state, jax.tree.map(lambda x: x[None], data), CAPACITY)
    with pytest.raises(ValueError, match=r"loss_fn: .*deterministic"):
        compiled_fit(DETERMINISTIC, ONE_EPOCH)(key, INIT(key, DETERMINISTIC, 2, 1), data, CAPACITY)
    for count in (1, CAPACITY + 1):
        with pytest.raises(ValueError, match=rf"count: expected 2 .* to 120 \(all\), got {count}"):
            wm.fit(key, state, data, count, CONFIG)
    with pytest.raises(ValueError, match=r"batch_size: .*got 0"):
        wm.FitConfig(batch_size=0)
    with pytest.raises(ValueError, match="holdout_fraction"):
        wm.FitConfig(holdout_fraction=1.0)

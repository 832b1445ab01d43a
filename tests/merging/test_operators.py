"""What the operators compute, against NumPy in float64 and cases known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merging
from jaxlab.merging.factorizations import polar_factor, thin_svd
from jaxlab.merging.leaf import Block
from jaxlab.merging.randomness import leaf_key, uniform_like
from jaxlab.merging.sparsify import keep_probability, row_ranks

RNG = np.random.default_rng(0)
BASE = RNG.normal(size=(9, 14))
MODELS = BASE + 0.1 * RNG.normal(size=(3, 9, 14))
DELTAS = MODELS - BASE
WEIGHT = np.array([0.5, 1.2, 0.8])


def run(name, models=MODELS, base=BASE, **given):
    base = None if base is None else jnp.asarray(base, jnp.float32)
    return np.asarray(merging.METHODS[name](base, jnp.asarray(models, jnp.float32), **given))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


def trimmed(delta, keep, drop=0):
    order = np.argsort(-np.abs(delta), axis=None, kind="stable")
    mask = np.zeros(delta.size)
    mask[order[drop : drop + keep]] = 1
    return delta * mask.reshape(delta.shape)


def elected_mean(deltas, weight, normalize=True):
    weighted = deltas * weight[:, None, None]
    sign = np.where(weighted.sum(0) >= 0, 1, -1)
    agree = np.sign(weighted) == sign
    divisor = (agree * weight[:, None, None]).sum(0)
    total = (weighted * agree).sum(0)
    return total / np.where(divisor == 0, 1, divisor) if normalize else total


def test_averages_and_arithmetic():
    close(run("linear", base=None, weight=WEIGHT), np.average(MODELS, 0, WEIGHT))
    total = np.tensordot(WEIGHT, DELTAS, 1)
    close(run("task_arithmetic", weight=WEIGHT, lam=0.6), BASE + 0.6 * total)
    close(run("task_arithmetic", weight=WEIGHT, normalize=True), BASE + total / WEIGHT.sum())
    close(run("task_arithmetic", weight=[1, -1, 0], normalize=True), BASE + DELTAS[0] - DELTAS[1])
    close(run("expo", MODELS[:1], alpha=0.3), BASE + 1.3 * DELTAS[0])
    with pytest.raises(ValueError, match="weight: expected a sum other than 0"):
        run("linear", base=None, weight=[1.0, -1.0, 0.0])
    mean = jax.jit(lambda w: merging.linear(None, jnp.asarray(MODELS, jnp.float32), weight=w))
    close(mean(jnp.float32([1, -1, 0])), MODELS.mean(0))


def test_one_hot_weights_give_that_model():
    for m in range(3):
        hot = np.eye(3)[m]
        close(run("linear", base=None, weight=hot), MODELS[m])
        close(run("task_arithmetic", weight=hot), MODELS[m])
        close(run("ties", weight=hot), MODELS[m])
        close(run("multislerp", weight=hot), MODELS[m])
    for m in range(2):
        close(run("nuslerp", MODELS[:2], weight=np.eye(2)[m]), MODELS[m])
        close(run("slerp", MODELS[:1], t=float(m)), (BASE, MODELS[0])[m])


def test_ties_trims_elects_and_averages():
    density = [0.2, 0.5, 1.0]
    kept = [trimmed(d, max(1, int(s * d.size))) for d, s in zip(DELTAS, density)]
    expected = BASE + 0.7 * elected_mean(np.stack(kept), WEIGHT)
    close(run("ties", weight=WEIGHT, density=density, lam=0.7), expected)
    negative = np.array([0.5, -1.2, 0.8])
    expected = BASE + elected_mean(np.stack(kept), negative, normalize=False)
    close(run("ties", weight=negative, density=density, normalize=False), expected)
    one = run("ties", MODELS[:1], weight=1.0, density=1e-6)
    assert (np.abs(one - BASE.astype(np.float32)) > 1e-7).sum() == 1
    close(run("ties", weight=WEIGHT, density=0.0), BASE)


def test_a_zero_sum_elects_plus():
    models = np.array([[2.0, -1.0], [-2.0, 1.0]])
    merged = run("ties", models, np.zeros(2), weight=1.0)
    close(merged, [2.0, 1.0])


def test_breadcrumbs_bands():
    n = BASE.size
    kept = [trimmed(d, int(0.4 * n), int(0.1 * n)) for d in DELTAS]
    total = (WEIGHT[:, None, None] * kept).sum(0)
    close(run("breadcrumbs", weight=WEIGHT, keep=0.4, drop_top=0.1), BASE + total)
    elected = elected_mean(np.stack(kept), WEIGHT, normalize=False)
    close(run("breadcrumbs_ties", weight=WEIGHT, keep=0.4, drop_top=0.1), BASE + elected)
    rows = [np.stack([trimmed(r, int(0.4 * 14), int(0.2 * 14)) for r in d]) for d in DELTAS]
    total = (WEIGHT[:, None, None] * rows).sum(0)
    given = {"weight": WEIGHT, "keep": 0.4, "drop_top": 0.2}
    close(run("breadcrumbs", axis=-1, **given), BASE + total)
    close(run("breadcrumbs", weight=WEIGHT), BASE + np.tensordot(WEIGHT, DELTAS, 1))
    one = run("breadcrumbs", MODELS[:, 0, 0], BASE[0, 0], axis=-1, **given)  # has no row
    close(one, BASE[0, 0] + WEIGHT @ DELTAS[:, 0, 0])


def test_sce_selects_weighs_and_erases():
    variance = DELTAS.var(0)
    chosen = np.zeros(BASE.size)
    chosen[np.argsort(-variance, axis=None)[: int(BASE.size * 0.3)]] = 1
    kept = DELTAS * chosen.reshape(BASE.shape)
    squares = (kept**2).mean((1, 2))
    weight = (squares / squares.sum())[:, None, None]
    agree = np.sign(kept) == np.where(kept.sum(0) >= 0, 1, -1)
    votes = (weight * agree).sum(0)
    expected = BASE + (kept * weight * agree).sum(0) / np.maximum(votes, 1e-6)
    close(run("sce", select=0.3), expected)
    # Small task vectors fall to uniform weights unless the limit is moved.
    small = BASE + 1e-4 * DELTAS * np.array([1.0, 1.0, 3.0])[:, None, None]
    differ = np.abs(run("sce", small, BASE, eps=1e-20) - run("sce", small, BASE))
    assert differ.max() > 0


def test_sce_without_a_smallest_divisor():
    models = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    close(run("sce", models, np.zeros(3), eps=0.0), [1.0, 0.0, 1.0])
    close(run("sce", 0 * models, np.zeros(3), eps=0.0), np.zeros(3))
    slope = jax.grad(lambda x: merging.sce(jnp.zeros(3), x, eps=0.0).sum())
    for scale in (0.0, 1.0):
        assert np.isfinite(slope(jnp.asarray(scale * models, jnp.float32))).all()


def test_known_shares_keep_what_float64_says():
    models, base = RNG.normal(size=(3, 2, 100)), np.zeros((2, 100))
    for jit in (lambda f: f, jax.jit):
        rows = jit(lambda b, x: merging.breadcrumbs(b, x, weight=1.0, keep=0.29, axis=-1))
        kept = rows(jnp.asarray(base, jnp.float32), jnp.asarray(models[:1], jnp.float32))
        assert ((kept != 0).sum(1) == 28).all()
    kept = run("sce", models[:, 0], base[0], select=0.29)
    assert (kept != 0).sum() == 28


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_leaves_stay_empty(shape):
    base, models = jnp.zeros(shape), jnp.zeros((1, *shape))
    key = jax.random.key(0)
    assert merging.arcee_fusion(base, models).shape == shape
    assert merging.della(base, models, weight=1.0, density=0.5, key=key).shape == shape
    assert merging.breadcrumbs(base, models, weight=1.0, keep=0.5, axis=-1).shape == shape


def test_ram_counts_who_moved():
    base = np.zeros(4)
    models = np.array([[1.0, 1.0, 0.0, 2.0], [0.0, 3.0, 0.0, -1.0], [0.0, 0.0, 0.0, 2.0]])
    close(run("ram", models, base), [1.0, 2.0, 0.0, 1.0])
    # rho = shared/unique: 2/1 for the first; unique parts grow by 1 + r clip(rho, 0, alpha).
    close(run("ramplus_tl", models, base, r=0.5, alpha=1.0), [1.5, 2.0, 0.0, 1.0])


def test_nearswap_and_magmax():
    base, model = np.zeros(3), np.array([[0.1, 0.5, -2.0]])
    close(run("nearswap", model, base, t=0.5), [0.1, 0.5, -0.5])
    models = np.array([[1.0, -2.0, 1.0], [0.5, 3.0, -1.0]])
    close(run("magmax", models, base, lam=1.0), [1.0, 3.0, -1.0])


def test_spherical_interpolation():
    x, y = np.eye(5)[:2]
    half = run("slerp", y[None], x, t=0.5)
    close(np.linalg.norm(half), 1.0)
    close(half, [np.sqrt(0.5), np.sqrt(0.5), 0, 0, 0])
    close(run("slerp", y[None], x, t=1 / 3), [np.cos(np.pi / 6), np.sin(np.pi / 6), 0, 0, 0])
    close(run("slerp", -x[None], x, t=0.25), 0.5 * x)  # antiparallel: through zero
    close(run("slerp", 0 * x[None], x, t=0.25), np.cos(np.pi / 8) * x)
    close(
        run("nuslerp", np.stack([x, y]), 0 * x, weight=[2.0, 1.0])[:2],
        [np.cos(np.pi / 6), np.sin(np.pi / 6)],
    )
    pairs = RNG.normal(size=(2, 4, 6))
    for axis in (-1, 0):
        merged = run("nuslerp", pairs, None, weight=[1.0, 3.0], axis=axis)
        for i in range(pairs.shape[1 + (axis == 0)]):
            one = pairs[:, i] if axis == -1 else pairs[:, :, i]
            part = merged[i] if axis == -1 else merged[:, i]
            close(part, run("nuslerp", one, None, weight=[1.0, 3.0]))


def test_means_on_the_sphere():
    two = MODELS[:2]
    lengths = np.linalg.norm(two.reshape(2, -1), axis=1)
    units = two / lengths[:, None, None]
    angle = np.arccos((units[0] * units[1]).sum())
    middle = (units[0] + units[1]) * np.sin(angle / 2) / np.sin(angle)
    close(run("karcher", two, None), middle * lengths.mean())
    close(run("multislerp", two, None, weight=1.0), middle * lengths.mean())
    # The mean of the axes is their diagonal; zeros have no direction but count for the length.
    axes = np.concatenate([np.eye(3), np.zeros((1, 3))])
    close(run("karcher", axes, None), np.full(3, 3 / 4 / np.sqrt(3)))
    close(run("karcher", np.stack([axes[0], -axes[0]]), None), axes[0])
    close(run("karcher", np.zeros((2, 3)), None), np.zeros(3))
    # At the Karcher mean the logarithms of the models cancel.
    mean = run("karcher", MODELS, None, steps=50, tol=1e-7).astype(np.float64)
    mean /= np.linalg.norm(mean)
    units = MODELS / np.linalg.norm(MODELS.reshape(3, -1), axis=1)[:, None, None]
    cosines = (units * mean).sum((1, 2))
    logs = (np.arccos(cosines) / np.sqrt(1 - cosines**2))[:, None, None] * (
        units - cosines[:, None, None] * mean
    )
    assert np.linalg.norm(logs.sum(0)) < 1e-5
    with pytest.raises(ValueError, match="weighted directions of the models cancel"):
        ring = [[1, 0], [-0.5, np.sqrt(0.75)], [-0.5, -np.sqrt(0.75)]]
        run("multislerp", np.array(ring), None, weight=1.0)


def test_directions_that_cancel_but_for_rounding():
    rng = np.random.default_rng(1)
    t = jnp.asarray([0.7, 0.3])
    rules = {"karcher": {}, "multislerp": {"weight": 0.5}, "nuslerp": {"weight": t}}
    merge = {
        name: jax.jit(lambda m, name=name: merging.METHODS[name](None, m, **rules[name]))
        for name in rules
    }
    for _ in range(20):
        x = rng.normal(size=256)
        pair = np.stack([x, -rng.uniform(0.3, 3) * x]).astype(np.float32)
        length = np.linalg.norm(pair, axis=1).mean()
        expected = {
            "karcher": x / np.linalg.norm(x) * length,
            "multislerp": pair.mean(0),
            "nuslerp": 0.7 * pair[0] + 0.3 * pair[1],
        }
        for name, merged in expected.items():
            np.testing.assert_allclose(merge[name](pair), merged, atol=1e-5 * length)
            slope = jax.grad(lambda m, name=name: jnp.sum(merge[name](m) ** 2))(pair)
            assert np.isfinite(slope).all()
        plane = np.linalg.qr(rng.normal(size=(200, 2)))[0]
        turns = np.arange(3) * 2 * np.pi / 3
        ring = np.stack([np.cos(turns), np.sin(turns)], 1) @ plane.T
        with pytest.raises(ValueError, match="weighted directions of the models cancel"):
            run("multislerp", ring * rng.uniform(0.5, 2, (3, 1)), None, weight=1.0)


def test_model_stock_ratios():
    orthogonal = BASE + np.stack([np.eye(9, 14), np.eye(9, 14, 3)])
    close(run("model_stock", orthogonal), BASE)
    close(run("model_stock", np.stack([MODELS[0]] * 4)), MODELS[0])
    d = np.stack([[1.0, 0.0], [0.6, 0.8]])  # cosine 0.6: t = 2 * 0.6 / 1.6
    close(run("model_stock", d, np.zeros(2)), 0.75 * d.mean(0))
    close(run("model_stock", np.stack([d[0], -d[0]]), np.zeros(2)), np.zeros(2))
    rows = run("model_stock", filter_wise=True)
    close(rows[3], run("model_stock", MODELS[:, 3], BASE[3]))


def test_the_gram_matrix_decides_and_candidates_are_made_at_once():
    gram = merging.gram_matrix(jnp.asarray(MODELS, jnp.float32), jnp.asarray(BASE, jnp.float32))
    flat = DELTAS.reshape(3, -1)
    np.testing.assert_allclose(gram, flat @ flat.T, rtol=1e-5)
    weights = jnp.asarray(RNG.uniform(0.1, 1, (5, 3)), jnp.float32)
    coefficients = jax.vmap(lambda w: merging.multislerp_coefficients(gram, w)[0])(weights)
    many = merging.combine(
        jnp.asarray(MODELS, jnp.float32), coefficients, jnp.asarray(BASE, jnp.float32)
    )
    for merged, weight in zip(many, weights):
        close(merged, run("multislerp", weight=weight, normalize=False))
    many_models = RNG.normal(size=(20, 30))
    np.testing.assert_allclose(
        merging.gram_matrix(jnp.asarray(many_models, jnp.float32)),
        many_models @ many_models.T,
        rtol=1e-4,
        atol=1e-4,
    )


def test_arcee_fusion_takes_the_outliers():
    x, b = MODELS[0], BASE
    softmax = [np.exp(v) / np.exp(v).sum(-1, keepdims=True) + 1e-8 for v in (x, b)]
    divergence = (softmax[0] * np.log(softmax[0] / softmax[1])).sum(-1, keepdims=True)
    importance = np.abs(x - b) * divergence
    ordered = np.sort(importance, axis=None)
    low, middle, high = (ordered[int(q * (b.size - 1))] for q in (0.25, 0.5, 0.75))
    expected = np.where(importance >= middle + 1.5 * (high - low), x, b)
    close(run("arcee_fusion", MODELS[:1]), expected)
    assert 0 < (expected != b).mean() < 0.3


@pytest.mark.slow
def test_dare_is_unbiased_in_the_papers_form_and_keeps_the_norm_in_mergekits():
    base, model = jnp.zeros(6), jnp.asarray([[1.0, -2.0, 0.5, 0.0, 3.0, -1.0]])
    keys = jax.random.split(jax.random.key(1), 4096)
    given = {"weight": 1.0, "density": 0.3}
    paper = jax.vmap(lambda k: merging.dare_linear(base, model, key=k, semantics="paper", **given))(
        keys
    )
    spread = np.abs(model[0]) * np.sqrt((1 - 0.3) / 0.3 / 4096)
    assert (np.abs(paper.mean(0) - model[0]) <= 5 * spread + 1e-6).all()
    wide = jnp.asarray(RNG.normal(size=(1, 5000)), jnp.float32)
    merged = merging.dare_linear(jnp.zeros(5000), wide, key=keys[0], **given)
    np.testing.assert_allclose(np.abs(merged).sum(), np.abs(wide).sum(), rtol=1e-5)
    assert abs((merged != 0).mean() - 0.3) < 5 * np.sqrt(0.21 / 5000)
    for semantics in ("paper", "mergekit"):
        nothing = merging.dare_ties(
            base, model, weight=1.0, density=0.0, key=keys[0], semantics=semantics
        )
        assert np.array_equal(nothing, base)
    with pytest.raises(ValueError, match="semantics: expected one of"):
        merging.dare_ties(base, model, weight=1.0, key=keys[0], semantics="peft")
    with pytest.raises(ValueError, match="dare_ties: expected a key"):
        merging.dare_ties(base, model, weight=1.0)


def test_della_keeps_large_elements_more_often():
    d = jnp.asarray([[[0.1, -3.0, 2.0, 0.5]]])
    chance = keep_probability(d, jnp.asarray([0.5]), jnp.asarray([0.3]))
    close(chance[0, 0], [0.2, 0.8, 0.6, 0.4])
    column = jnp.ones((1, 3, 1))
    close(keep_probability(column, jnp.asarray([0.5]), jnp.asarray([0.3])), np.full((1, 3, 1), 0.5))
    assert row_ranks(jnp.asarray([2.0, 1.0, 2.0])).tolist() == [2, 0, 1]
    keys = jax.random.split(jax.random.key(2), 4096)
    merged = jax.vmap(
        lambda k: merging.della_linear(
            jnp.zeros((1, 4)),
            d,
            weight=1.0,
            density=0.5,
            epsilon=0.3,
            semantics="paper",
            key=k,
        )
    )(keys)
    spread = np.abs(d[0]) * np.sqrt((1 - chance[0]) / chance[0] / 4096)
    assert (np.abs(merged.mean(0) - d[0]) <= 5 * spread).all()
    with pytest.raises(ValueError, match="epsilon: expected density - epsilon"):
        run("della", weight=1.0, density=0.1, key=keys[0])


def test_random_numbers_belong_to_their_place():
    key = leaf_key(jax.random.key(7), "layers/0/w")
    n = 2**18 + 1000
    whole = Block(None, jnp.zeros((1, n)), 0, None, True)
    numbers = np.asarray(uniform_like(whole, key, 1))
    part = Block(None, jnp.zeros((1, 3, 500)), jnp.int32(2**18 - 700), None, False)
    assert np.array_equal(uniform_like(part, key, 1).reshape(-1), numbers[2**18 - 700 :][:1500])
    second = Block(None, jnp.zeros((1, 1000)), jnp.int32(2**18), None, True)
    assert np.array_equal(uniform_like(second, key, 1), numbers[2**18 :])
    assert not np.array_equal(uniform_like(second, key, 0), numbers[2**18 :])
    # The numbers are part of the format: a merge can be repeated years later.
    np.testing.assert_allclose(numbers[[0, 1, 2**18]], GOLDEN, rtol=0, atol=0)


GOLDEN = np.float32([0.25998198986053467, 0.1894153356552124, 0.8197637796401978])


def test_iso_gives_all_directions_the_same_weight():
    total = DELTAS.sum(0)
    moved = run("iso_c", alpha=0.5) - BASE
    values = np.linalg.svd(moved, compute_uv=False)
    np.testing.assert_allclose(
        values, 0.5 * np.linalg.svd(total, compute_uv=False).mean(), rtol=1e-4
    )
    assert (moved * total).sum() > 0
    u, _, vt = np.linalg.svd(total, full_matrices=False)
    close(moved, values.mean() * u @ vt)
    # With every direction common, or one task only, nothing is replaced.
    close(run("iso_cts", common=1.0), run("iso_c"))
    close(run("iso_cts", MODELS[:1], common=0.5), run("iso_c", MODELS[:1]))
    own = np.linalg.svd(run("iso_cts", common=0.3) - BASE, compute_uv=False)
    assert own.max() / own.min() < 1 + 1e-4
    close(run("iso_c", MODELS[:, 0], BASE[0]), MODELS[:, 0].mean(0))


def test_task_singular_vectors_of_orthogonal_tasks_add_up():
    left, right = (np.linalg.qr(RNG.normal(size=(n, n)))[0] for n in (8, 12))
    deltas = np.zeros((2, 8, 12))
    for m in range(2):
        for i in range(4):
            j = 4 * m + i
            deltas[m] += (i + 1.0) * np.outer(left[:, j], right[:, j])
    close(run("tsv_m", deltas, np.zeros((8, 12))), deltas.sum(0))
    # Tasks that share directions are pulled apart: singular values are those of the tasks.
    moved = run("tsv_m") - BASE
    own = [np.linalg.svd(d, compute_uv=False)[:3] for d in DELTAS]
    assert np.linalg.norm(moved) < 1.2 * np.sqrt(np.square(own).sum())


def test_wudi_lowers_the_interference():
    def interference(merged):
        gap = [(merged - d) @ d.T for d in DELTAS]
        return sum((g**2).sum() / (d**2).sum() for g, d in zip(gap, DELTAS))

    start = interference(DELTAS.sum(0))
    after = interference(run("wudi", learning_rate=1e-3, steps=300) - BASE)
    assert after < 0.7 * start
    close(run("wudi", MODELS[:1], steps=5), MODELS[0])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_derivatives_of_factorizations(shape):
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in shape)
    spectrum = np.zeros(shape)
    np.fill_diagonal(spectrum, np.arange(1, 1 + min(shape)))  # apart, and none near zero
    a = jnp.asarray(left @ spectrum @ right, jnp.float32)
    da = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def rebuilt(a):
        u, s, vt = thin_svd(a)
        return jnp.matmul(u * s[None] ** 2, vt, precision="highest")

    for function in (rebuilt, polar_factor, lambda a: thin_svd(a)[1]):
        _, tangent = jax.jvp(function, (a,), (da,))
        step = 1e-2
        difference = (function(a + step * da) - function(a - step * da)) / (2 * step)
        np.testing.assert_allclose(tangent, difference, rtol=0.02, atol=0.02)
    identity = polar_factor(jnp.eye(4))
    np.testing.assert_allclose(identity, np.eye(4), atol=1e-6)
    _, turned = jax.jvp(polar_factor, (jnp.eye(4),), (da[:4, :4],))
    np.testing.assert_allclose(turned, (da[:4, :4] - da[:4, :4].T) / 2, atol=1e-5)


@pytest.mark.parametrize("disjoint", ["mean", "sum", "max"])
def test_ties_of_the_paper(disjoint):
    base = {"a": np.zeros((3, 4)), "b": np.zeros(5)}
    models = {"a": RNG.normal(size=(3, 3, 4)), "b": RNG.normal(size=(3, 5))}
    flat = np.concatenate([models["a"].reshape(3, -1), models["b"]], axis=1)
    n = flat.shape[1]
    limit = np.sort(np.abs(flat), axis=1)[:, n - int(n * 0.4) - 1][:, None]
    kept = np.where(np.abs(flat) >= limit, flat, 0)
    assert ((kept != 0).sum(1) == int(n * 0.4) + 1).all()
    sign = np.sign(kept.sum(0))
    sign = np.where(sign == 0, np.sign(sign.sum()), sign)
    agree = np.where((sign > 0) == (kept > 0), kept, 0) * (kept != 0)
    moved = {
        "mean": agree.sum(0) / np.maximum((agree != 0).sum(0), 1),
        "sum": agree.sum(0),
        "max": np.abs(agree).max(0) * sign,
    }[disjoint]
    as_jax = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t) for t in (base, models)]
    merged = merging.ties_merging(*as_jax, density=0.4, lam=2.0, disjoint=disjoint)
    close(np.concatenate([merged["a"].ravel(), merged["b"]]), 2 * moved)


def test_bad_arguments_are_named():
    base, models = jnp.zeros((2, 3)), jnp.zeros((2, 2, 3))
    with pytest.raises(ValueError, match=r"weight: expected a scalar or 2 numbers, got shape \(3,"):
        merging.ties(base, models, weight=jnp.ones(3))
    with pytest.raises(ValueError, match="density: expected one number"):
        merging.ties(base, models, weight=1.0, density=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="ties: expected weight, density, lam, normalize, got 'w'"):
        merging.ties(base, models, w=1.0)
    with pytest.raises(ValueError, match="ties: expected weight, got nothing"):
        merging.ties(base, models)
    with pytest.raises(ValueError, match="ties: expected a base model, got none"):
        merging.ties(None, models, weight=1.0)
    with pytest.raises(ValueError, match="linear: expected no base"):
        merging.linear(base, models, weight=1.0)
    with pytest.raises(ValueError, match="nuslerp: expected 2 models, got 3"):
        merging.nuslerp(None, jnp.zeros((3, 2)), weight=1.0)
    with pytest.raises(ValueError, match=r"base: expected the shape of one model, \(2, 3\), got"):
        merging.ties(jnp.zeros(3), models, weight=1.0)
    with pytest.raises(ValueError, match="models: expected floating numbers, got int32"):
        merging.linear(None, jnp.zeros((2, 3), jnp.int32), weight=1.0)


def test_nothing_dropped_is_task_arithmetic():
    plain = run("task_arithmetic", weight=WEIGHT, lam=0.7)
    key = jax.random.key(0)
    for name in ("dare_linear", "della_linear"):
        close(run(name, weight=WEIGHT, lam=0.7, density=1.0, key=key), plain)
    close(run("breadcrumbs", weight=WEIGHT, lam=0.7, keep=1.0, drop_top=0.0), plain)
    elected = BASE + elected_mean(DELTAS, WEIGHT)
    close(run("ties", weight=WEIGHT, density=1.0), elected)
    for name in ("dare_ties", "della"):
        close(run(name, weight=WEIGHT, density=1.0, normalize=True, key=key), elected)


def test_leaves_whose_elements_cannot_be_counted_are_refused():
    huge = jax.ShapeDtypeStruct((2, 2**16, 2**15), jnp.float32)
    with pytest.raises(ValueError, match=r"models: expected leaves of at most 2\^31 - 1 elements"):
        jax.eval_shape(lambda x: merging.linear(None, x, weight=1.0), huge)
    fits = jax.ShapeDtypeStruct((2, 2**16, 2**15 - 1), jnp.float32)
    merged = jax.eval_shape(lambda x: merging.linear(None, x, weight=1.0), fits)
    assert merged.shape == fits.shape[1:]

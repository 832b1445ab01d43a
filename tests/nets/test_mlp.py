import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import nets


def numpy_mlp(params, x):
    """Float64 oracle: SiLU, optional layer norm before it, linear last layer."""
    *hidden, last = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for layer in hidden:
        x = x @ layer["kernel"] + layer["bias"]
        if "scale" in layer:
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * layer["scale"] + layer["offset"]
        x = x / (1 + np.exp(-x))
    return x @ last["kernel"] + last["bias"]


def perturb(key, params):
    """Moves biases, scales and offsets away from their trivial starting values."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(tree, noisy)


@pytest.mark.slow
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_forward_matches_numpy(key, layer_norm, lead):
    params = perturb(key, nets.mlp_init(key, (3, 8, 6, 2), layer_norm=layer_norm))
    x = jax.random.normal(key, (*lead, 3))
    want = numpy_mlp(params, np.asarray(x, np.float64))
    np.testing.assert_allclose(nets.mlp_apply(params, x), want, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(jax.jit(nets.mlp_apply)(params, x), want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [nets.PETS_SCALE, nets.LECUN_SCALE])
def test_kernels_are_truncated_normal_of_the_stated_scale(key, scale):
    first, second = nets.mlp_init(key, (100, 400, 300), kernel_scale=scale)
    for layer, fan_in in ((first, 100), (second, 400)):
        unit = np.asarray(layer["kernel"]) * np.sqrt(fan_in) / scale
        assert np.abs(unit).max() <= 2.0 + 1e-5
        assert np.abs(unit).max() > 1.99
        # The standard deviation of a unit normal cut at two.
        np.testing.assert_allclose(unit.std(), 0.8796256, rtol=0.02)
        assert abs(unit.mean()) < 5 * 0.88 / np.sqrt(unit.size)
        np.testing.assert_array_equal(layer["bias"], 0)


def test_lecun_scale_keeps_unit_variance(key):
    (layer,) = nets.mlp_init(key, (500, 500))
    np.testing.assert_allclose(np.asarray(layer["kernel"]).var() * 500, 1.0, rtol=0.02)


def test_layer_norm_ignores_the_scale_of_the_preactivation(key):
    params = nets.mlp_init(key, (3, 16, 1), layer_norm=True)
    x = jax.random.normal(key, (10, 3))
    first = params[0] | {"kernel": 50 * params[0]["kernel"]}
    scaled = nets.mlp_apply((first, params[1]), x)
    np.testing.assert_allclose(scaled, nets.mlp_apply(params, x), rtol=1e-3, atol=1e-4)


def test_members_are_single_networks_and_the_first_ones_do_not_depend_on_their_number(key):
    sizes = (3, 5, 2)
    three, five = (nets.ensemble_init(key, n, sizes) for n in (3, 5))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:3]), three, five)
    one = nets.mlp_init(jax.random.fold_in(key, 2), sizes)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2], b), three, one)
    assert not np.array_equal(three[0]["kernel"][0], three[0]["kernel"][1])


def test_ensemble_apply_is_a_loop_over_members(key):
    params = nets.ensemble_init(key, 3, (3, 5, 2))
    own = jax.random.normal(key, (3, 7, 3))
    out = nets.ensemble_apply(params, own)
    shared = nets.ensemble_apply(params, own[0], shared_inputs=True)
    for m in range(3):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], params)
        np.testing.assert_allclose(out[m], nets.mlp_apply(member, own[m]), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shared[m], nets.mlp_apply(member, own[0]), rtol=1e-5, atol=1e-6)


def test_vmap_over_keys_and_grad(key):
    keys = jax.random.split(key, 4)
    many = jax.vmap(lambda k: nets.mlp_init(k, (3, 5, 1)))(keys)
    one = nets.mlp_init(keys[3], (3, 5, 1))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[3], b), many, one)
    x = jnp.ones((3,))
    grads = jax.grad(lambda p: nets.mlp_apply(p, x)[0])(one)
    np.testing.assert_array_equal(grads[-1]["bias"], 1.0)


def test_dtype_is_kept(key):
    params = nets.mlp_init(key, (3, 5, 1), dtype=jnp.bfloat16, layer_norm=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert nets.mlp_apply(params, jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


def test_bad_sizes_are_named(key):
    with pytest.raises(ValueError, match=r"sizes: .*got \(3,\)"):
        nets.mlp_init(key, (3,))
    with pytest.raises(ValueError, match="sizes"):
        nets.mlp_init(key, (3, 0, 1))
    with pytest.raises(ValueError, match=r"members: .*got 0"):
        nets.ensemble_init(key, 0, (3, 1))

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import nets


def test_polyak_moves_a_share_and_is_exact_at_both_ends(key):
    target = {"a": jax.random.normal(key, (3,)), "b": (1e6 * jax.random.normal(key, (2, 2)),)}
    online = jax.tree.map(lambda x: x * 1.7 + 0.3, target)
    jax.tree.map(np.testing.assert_array_equal, nets.polyak(target, online, 0.0), target)
    jax.tree.map(np.testing.assert_array_equal, nets.polyak(target, online, 1.0), online)
    moved = jax.jit(nets.polyak)(target, online, jnp.float32(0.25))
    want = jax.tree.map(lambda t, o: 0.75 * np.asarray(t) + 0.25 * np.asarray(o), target, online)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, want)


def test_polyak_after_n_steps_forgets_geometrically():
    target, online = jnp.float32(0.0), jnp.float32(1.0)
    for _ in range(10):
        target = nets.polyak(target, online, 0.1)
    np.testing.assert_allclose(target, 1 - 0.9**10, rtol=1e-6)


def test_polyak_keeps_dtypes_and_whole_numbers():
    target = {"w": jnp.array([4.0], jnp.bfloat16), "n": jnp.int32(3)}
    online = {"w": jnp.array([8.0], jnp.float32), "n": jnp.int32(9)}
    moved = jax.vmap(nets.polyak, (None, None, 0))(target, online, jnp.array([0.0, 0.25]))
    np.testing.assert_array_equal(moved["w"].astype(jnp.float32), [[4.0], [5.0]])
    assert moved["w"].dtype == jnp.bfloat16 and moved["n"].tolist() == [3, 3]


def test_tree_where_selects_along_leading_axes():
    yes = {"v": jnp.arange(3), "m": jnp.ones((3, 2, 2))}
    no = {"v": -jnp.arange(3), "m": jnp.zeros((3, 2, 2))}
    out = jax.jit(nets.tree_where)(jnp.array([True, False, True]), yes, no)
    np.testing.assert_array_equal(out["v"], [0, -1, 2])
    np.testing.assert_array_equal(out["m"][:, 0, 0], [1, 0, 1])
    jax.tree.map(np.testing.assert_array_equal, nets.tree_where(jnp.array(False), yes, no), no)

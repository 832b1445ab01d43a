"""The ring keeps exactly the last rows, whatever the sizes, masks and ratios."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.agents import buffers


def _rows(start, n):
    """Rows numbered from `start` (never 0), in two leaves."""
    number = np.arange(start, start + n, dtype=np.float32)
    return {"x": jnp.asarray(np.stack([number, number], 1)), "flag": jnp.asarray(number % 2 == 1)}


_ROW = {"x": jax.ShapeDtypeStruct((2,), jnp.float32), "flag": jax.ShapeDtypeStruct((), bool)}


def _content(buffer):
    count = int(buffer.count)
    x = np.asarray(buffer.data["x"])[:count]
    np.testing.assert_array_equal(x[:, 0], x[:, 1])
    np.testing.assert_array_equal(np.asarray(buffer.data["flag"])[:count], x[:, 0] % 2 == 1)
    return sorted(x[:, 0].tolist())


@pytest.mark.parametrize("retained,n", [(1, 4), (5, 3), (4, 1)])
def test_keeps_exactly_the_last_batches_and_no_zero_row(retained, n):
    buffer = buffers.init(_ROW, retained * n)
    for batch in range(retained + 3):
        buffer = buffers.add(buffer, _rows(1 + batch * n, n))
        assert 0.0 not in _content(buffer)
        assert int(buffer.count) == min(batch + 1, retained) * n
    assert _content(buffer) == list(range(1 + 3 * n, 1 + (retained + 3) * n))


@pytest.mark.parametrize("n", [1, 4, 13])
def test_random_masks_match_a_deque(n):
    rng = np.random.default_rng(n)
    capacity = 6
    oracle = collections.deque(maxlen=capacity)
    buffer, add = buffers.init(_ROW, capacity), jax.jit(buffers.add)
    for start in range(1, 1 + 20 * n, n):
        valid = rng.random(n) < rng.choice([0.0, 0.3, 0.8, 1.0])
        buffer = add(buffer, _rows(start, n), jnp.asarray(valid))
        oracle.extend(np.arange(start, start + n)[valid].tolist())
        assert _content(buffer) == sorted(oracle)
        # The next row to go is the oldest one.
        if len(oracle) == capacity:
            assert float(np.asarray(buffer.data["x"])[int(buffer.head), 0]) == oracle[0]


def test_invalid_rows_leave_no_trace_even_if_not_finite():
    rows = _rows(1, 4)
    rows["x"] = rows["x"].at[1].set(jnp.nan)
    buffer = buffers.add(buffers.init(_ROW, 6), rows, jnp.array([True, False, True, False]))
    assert _content(buffer) == [1.0, 3.0]
    assert bool(jnp.all(jnp.isfinite(buffer.data["x"])))


def test_samples_are_uniform_over_the_filled_rows_only(key):
    buffer = buffers.add(buffers.init(_ROW, 50), _rows(1, 5))
    sample = buffers.sample(key, buffer, (100, 50))
    assert sample["x"].shape == (100, 50, 2)
    values, counts = np.unique(np.asarray(sample["x"][..., 0]), return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5]
    # 5000 draws: a count of 1000 has a standard deviation of 28.
    assert np.all(np.abs(counts - 1000) < 5 * 28.3)


@pytest.mark.parametrize("traced", [False, True])
def test_mixed_batches_have_fixed_counts(key, traced):
    real = buffers.add(buffers.init(_ROW, 8), _rows(1, 8))
    model = buffers.add(buffers.init(_ROW, 8), _rows(101, 3))
    other = buffers.add(buffers.init(_ROW, 8), _rows(201, 3))

    def draw(key, ratios):
        return buffers.concat_sample(key, (real, model, other), ratios, (7, 20))["x"][..., 0]

    ratios = (0.1, 0.65, 0.25)
    if traced:
        rows = jax.jit(draw)(key, tuple(jnp.float32(r) for r in ratios))
    else:
        rows = draw(key, ratios)
    assert bool(jnp.all(rows[:, :2] <= 8))
    assert bool(jnp.all((rows[:, 2:15] >= 101) & (rows[:, 2:15] <= 103)))
    assert bool(jnp.all(rows[:, 15:] >= 201))
    assert len(np.unique(np.asarray(rows[:, 15:]))) == 3


def test_an_empty_buffer_of_ratio_zero_gives_no_row(key):
    real = buffers.add(buffers.init(_ROW, 8), _rows(1, 8))
    rows = buffers.concat_sample(key, (real, buffers.init(_ROW, 8)), (1.0, 0.0), 64)
    assert bool(jnp.all(rows["x"] >= 1))


def test_jit_equals_eager_and_vmap_equals_loop(key):
    valid = jnp.array([[True, False, True], [False, False, True]])
    batch = jax.tree.map(lambda *x: jnp.stack(x), _rows(1, 3), _rows(11, 3))

    def push_and_draw(batch, valid, key):
        buffer = buffers.add(buffers.init(_ROW, 4), batch, valid)
        buffer = buffers.add(buffer, batch, ~valid)
        return buffer, buffers.sample(key, buffer, 9)

    keys = jax.random.split(key, 2)
    together = jax.jit(jax.vmap(push_and_draw))(batch, valid, keys)
    for i in range(2):
        mine, expected = jax.tree.map(lambda x, i=i: x[i], (batch, together))
        jax.tree.map(
            np.testing.assert_array_equal, push_and_draw(mine, valid[i], keys[i]), expected
        )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="capacity: expected at least one row, got 0"):
        buffers.init(_ROW, 0)
    with pytest.raises(ValueError, match="capacity: expected at most 8388608 rows, got 8388609"):
        buffers.init(_ROW, 2**23 + 1)
    buffer = buffers.init(_ROW, 4)
    with pytest.raises(ValueError, match=r"batch: expected 3 rows of float32\[2\]"):
        buffers.add(buffer, {"x": jnp.ones((3, 5)), "flag": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="ratios: expected one per buffer"):
        buffers.concat_sample(jax.random.key(0), (buffer,), (0.5, 0.5), 4)

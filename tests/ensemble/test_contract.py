"""What `run` refuses, and with which words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ensemble
from jaxlab.ensemble import Experiment


def counter(update=None, evaluate=None, init=None):
    return Experiment(
        init or (lambda key, hparams: {"x": jnp.float32(0), "key": key}),
        update or (lambda s: ({**s, "x": s["x"] + 1}, {"x": s["x"]})),
        evaluate,
    )


def run(experiment=None, **options):
    options = {"steps": 2, "seeds": 2, "progress": False, **options}
    return ensemble.run(experiment or counter(), **options)


def test_non_scalar_metric_is_refused_by_name_and_shape():
    bad = counter(lambda s: (s, {"loss": jnp.zeros(3)}))
    with pytest.raises(ValueError, match=r"metric 'loss' of update has shape \(3,\)"):
        run(bad)
    with pytest.raises(ValueError, match="metric 'z' of update has dtype complex64"):
        run(counter(lambda s: (s, {"z": jnp.complex64(1)})))
    with pytest.raises(ValueError, match="evaluate must be a dict"):
        run(counter(evaluate=lambda s, k: s["x"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, "x": jnp.zeros(2)}, r"update changes state\['x'\] from float32\[\]"),
        (lambda s: {**s, "x": jnp.int32(0)}, r"state\['x'\] .* to int32\[\]"),
        (lambda s: {"key": s["key"]}, r"update drops state\['x'\]"),
        (lambda s: {**s, "y": s["x"]}, r"update adds state\['y'\]"),
    ],
)
def test_changed_state_is_refused_by_leaf(change, words):
    with pytest.raises(ValueError, match=words):
        run(counter(lambda s: (change(s), {})))


def test_update_must_return_a_pair():
    with pytest.raises(TypeError, match="a pair"):
        run(counter(lambda s: s))


def test_weakly_typed_state_is_no_change():
    data = run(counter(init=lambda key, h: {"x": 0.0, "key": key}))
    assert data.x.values.tolist() == [[0, 1], [0, 1]]


def test_shared_or_reserved_metric_names_are_refused():
    with pytest.raises(ValueError, match=r"both return the metrics \['x'\]"):
        run(counter(evaluate=lambda s, k: {"x": s["x"]}))
    with pytest.raises(ValueError, match=r"metrics \['seed'\] have the name of a dimension"):
        run(counter(lambda s: (s, {"seed": s["x"]})))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": [1, 2, 1, 2, 3]}, r"these repeat: \[1, 2\]"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [-1]}, r"\[0, 2\*\*32\)"),
        ({"seeds": [0.0, 0.5]}, r"seeds must be integers .* got \[0.0, 0.5\]"),
        ({"points": {"a": jnp.zeros(2), "b": jnp.zeros(3)}}, r"\['?a.*2.*b.*3|'a': 2, 'b': 3"),
        ({"points": {"a": jnp.float32(0)}}, "share one leading size"),
        ({"grid": {"a": []}}, "grid axis 'a' must be a non-empty list"),
        ({"grid": {"a": ["x"]}}, "ensemble.sweep"),
        ({"grid": {"seed": [1]}}, "names? the results use|is a name the results use"),
        ({"grid": {"a": [1]}, "points": {"a": jnp.zeros(1)}}, "not both"),
        ({"mode": "quick"}, '"fast" or "exact"'),
        ({"steps": 3, "record_every": 2}, "multiple of record_every, got 3 and 2"),
        ({"microbatch": 0}, "at least 1, got 0"),
        ({"shard": (2, 2)}, r"shard \(2, 2\)"),
    ],
)
def test_bad_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)


def test_keys_other_than_threefry_are_refused():
    with pytest.raises(ValueError, match=r"key is .*rbg.*, expected threefry2x32"):
        run(key=jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match="typed key"):
        run(key=jax.random.PRNGKey(0))
    rbg = counter(init=lambda key, h: {"x": jnp.float32(0), "k": jax.random.key(1, impl="rbg")})
    with pytest.raises(ValueError, match=r"state\['k'\] is a .*rbg"):
        run(rbg)


def test_static_sweep_needs_values():
    with pytest.raises(ValueError, match="static needs at least one axis"):
        ensemble.sweep(counter, static={}, steps=1, seeds=1)


@pytest.mark.parametrize("name", ["a", "seed"])
def test_static_names_are_not_those_of_other_dimensions(name):
    def make(**point):
        raise AssertionError("nothing is made before the names are checked")

    with pytest.raises(ValueError, match=rf"static axes \['{name}'\] have the name of another"):
        ensemble.sweep(make, static={name: [1, 2]}, grid={"a": [1.0]}, steps=1, seeds=1)


def test_arrays_are_seeds_and_static_values():
    data = ensemble.sweep(
        lambda m: counter(lambda s: ({**s, "x": s["x"] + m}, {"x": s["x"] + m})),
        static={"m": np.array([1, 2])}, steps=1, seeds=jnp.arange(2), progress=False,
    )  # fmt: skip
    assert data.x.values.tolist() == [[[1], [1]], [[2], [2]]]
    assert data.seed.values.tolist() == [0, 1] and data.m.values.tolist() == [1, 2]

"""The contract of an experiment, and the check that a pair of functions keeps it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

State = Any
HParams = Any
Metrics = Mapping[str, jax.Array]


class Experiment(NamedTuple):
    """One experiment as pure functions; the engine runs many of them as one program.

    Static choices (architecture, arm, environment) are closed over by the function that makes the
    experiment. Whatever one may sweep arrives in `hparams` as traced arrays.

    Attributes:
        init: `(key, hparams) -> state`. The state carries its own random key. Its float leaves
            stay finite in a healthy run: a NaN or Inf in any of them marks the member as dead.
        update: `state -> (state, metrics)`, one iteration; the metrics are real scalars by name.
        evaluate: `(state, key) -> metrics`, run at every recorded step; or None.
    """

    init: Callable[[jax.Array, HParams], State]
    update: Callable[[State], tuple[State, Metrics]]
    evaluate: Callable[[State, jax.Array], Metrics] | None = None


class Signature(NamedTuple):
    """What tracing an experiment once tells: shapes, metric names and an identity."""

    state: Any  # pytree of jax.ShapeDtypeStruct
    update_metrics: dict[str, Any]  # name -> jax.ShapeDtypeStruct
    evaluate_metrics: dict[str, Any]
    fingerprint: str  # sha256 of the traced functions and the constants they close over


def strong(tree):
    """Gives every leaf its own dtype for good (a weakly typed leaf would change in a loop)."""
    return jax.tree.map(
        lambda x: x if _is_key(x) else jax.lax.convert_element_type(x, jnp.result_type(x)), tree
    )


def is_float(leaf) -> bool:
    """Whether a leaf holds floating-point (or complex) numbers."""
    return not _is_key(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def inspect(experiment: Experiment, key: Any, hparams: Any) -> Signature:
    """Traces the functions of an experiment and checks that they fit together.

    Args:
        experiment: the functions. Those that come in already jitted are traced only once.
        key: abstract key of one member.
        hparams: abstract hyper-parameters of one member.

    Raises:
        ValueError: `update` changes the structure, a shape or a dtype of its state (the leaf is
            named), a metric is not a real scalar, or `update` and `evaluate` share a metric name.
        TypeError: `update` does not return a pair.
    """
    digest = hashlib.sha256()

    def trace(name, function, *args):
        traced = jax.jit(function).trace(*args)
        # Addresses of Python functions differ between processes and mean nothing.
        digest.update(f"{name}:{re.sub(r' at 0x[0-9a-f]+', '', str(traced.jaxpr))}".encode())
        for const in _constants(traced.jaxpr):
            const = jax.random.key_data(const) if _is_key(const) else const
            digest.update(np.asarray(const).tobytes())
        return traced.out_info

    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        trace("init", lambda k, h: strong(experiment.init(k, h)), key, hparams),
    )
    for name, leaf in _leaves(state).items():
        check_threefry(name, leaf)
    out = trace("update", experiment.update, state)
    if not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(
            f"update must return (state, metrics), a pair; it returned {type(out).__name__}"
        )
    _check_state(state, out[0])
    update_metrics = _check_metrics("update", out[1])
    evaluate_metrics: dict[str, Any] = {}
    if experiment.evaluate is not None:
        evaluate_metrics = _check_metrics(
            "evaluate", trace("evaluate", experiment.evaluate, state, key)
        )
        both = sorted(set(update_metrics) & set(evaluate_metrics))
        if both:
            raise ValueError(f"update and evaluate both return the metrics {both}: rename one")
    return Signature(state, update_metrics, evaluate_metrics, digest.hexdigest())


def _constants(jaxpr) -> Iterator[Any]:
    """Every array that a traced function closes over, those of functions it calls included."""
    yield from getattr(jaxpr, "consts", ())
    for equation in jaxpr.eqns:
        yield from (v.val for v in equation.invars if hasattr(v, "val"))
        parameters = list(equation.params.values())
        for inner in jax.tree.leaves(parameters, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _constants(inner)


def check_threefry(name: str, leaf) -> None:
    """Refuses random keys whose bits depend on how many members are vmapped together."""
    if _is_key(leaf) and leaf.dtype != jax.eval_shape(_threefry).dtype:
        raise ValueError(
            f"{name} is a {leaf.dtype}, expected threefry2x32: the bits of other generators "
            "differ between a member alone and the same member in an ensemble"
        )


def _threefry():
    return jax.random.key(0, impl="threefry2x32")


def _leaves(tree) -> dict[str, Any]:
    return {
        f"state{jax.tree_util.keystr(path)}": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_state(before, after) -> None:
    old, new = _leaves(before), _leaves(after)
    for name in [*old, *new]:
        if name not in new:
            raise ValueError(f"update drops {name}: it must return the state it was given")
        if name not in old:
            raise ValueError(f"update adds {name}, which init did not make")
        was, now = old[name], new[name]
        if (was.shape, was.dtype) != (now.shape, now.dtype):
            raise ValueError(
                f"update changes {name} from {was.dtype}{list(was.shape)} (as init made it) "
                f"to {now.dtype}{list(now.shape)}: shapes and dtypes must stay"
            )
    was_tree, now_tree = str(jax.tree.structure(before)), str(jax.tree.structure(after))
    if was_tree != now_tree:
        raise ValueError(
            f"update changes the structure of its state: from {was_tree} to {now_tree}"
        )


def _check_metrics(source: str, metrics) -> dict[str, Any]:
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"the metrics of {source} must be a dict of scalars by name, "
            f"got {type(metrics).__name__}"
        )
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise ValueError(f"a metric of {source} is named {name!r}: names are strings")
        if not hasattr(value, "shape") or value.shape != ():
            shape = getattr(value, "shape", type(value).__name__)
            raise ValueError(
                f"metric {name!r} of {source} has shape {shape}, expected a scalar: "
                "reduce it, for example with .mean()"
            )
        real = any(jnp.issubdtype(value.dtype, t) for t in (jnp.floating, jnp.integer, jnp.bool_))
        if not real:
            raise ValueError(f"metric {name!r} of {source} has dtype {value.dtype}, expected real")
    return dict(metrics)

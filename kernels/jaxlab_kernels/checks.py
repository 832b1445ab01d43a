"""Refusals: what an argument should have been and what came, said before anything is computed."""

import difflib
from collections.abc import Iterable

import jax
import jax.numpy as jnp

CHUNKS = (16, 32, 64, 128)
PRECISIONS = ("bf16", "float32")


def check_name(argument: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones, and suggest the nearest."""
    known = tuple(known)
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{argument} must be one of {', '.join(known)}; got {name!r}{hint}")


def _check_dtype(name: str, x: jax.Array) -> None:
    if x.dtype == jnp.float16:
        raise ValueError(
            f"{name} is float16, whose exp overflows at 11.1 while a chunk of 64 tokens needs 20: "
            "use bfloat16 or float32"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be a real floating-point array; got {x.dtype}")


def _check_state(name: str, x: jax.Array, shape: tuple[int, ...]) -> None:
    _check_dtype(name, x)
    if x.shape not in (shape, shape[1:]):
        batch, heads, values, keys = shape
        raise ValueError(
            f"{name} must be [B, H, D, K] = {shape} or [H, D, K] = {shape[1:]} (value rows, key "
            f"columns: B = {batch}, H = {heads}, D = {values}, K = {keys}); got {x.shape}"
        )


Tokens = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def check_arguments(
    inputs: Tokens,
    s0: jax.Array | None,
    reset: jax.Array | None,
    reset_state: jax.Array | None,
    chunk: int | None,
    precision: str | None,
) -> None:
    """Refuse arguments that do not fit together.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """
    r, _, _, v, _, _ = inputs
    for name, x in zip(("r", "logw", "k", "v", "a", "b"), inputs, strict=True):
        _check_dtype(name, x)
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, T, H, N]; got shape {x.shape}")
        if name != "v" and x.shape != r.shape:
            raise ValueError(f"{name} must have r's shape [B, T, H, K] = {r.shape}; got {x.shape}")
    if v.shape[:3] != r.shape[:3]:
        raise ValueError(
            f"v must be [B, T, H, D] with r's B, T, H = {r.shape[:3]}; got shape {v.shape}"
        )
    if 0 in (r.shape[0], *r.shape[2:], v.shape[3]):
        raise ValueError(f"only T may be 0; got r {r.shape} and v {v.shape}")
    shape = (r.shape[0], r.shape[2], v.shape[3], r.shape[3])
    if s0 is not None:
        _check_state("s0", s0, shape)
    if reset_state is not None:
        _check_state("reset_state", reset_state, shape)
        if reset is None:
            raise ValueError("reset_state was given but reset was not: say which tokens start anew")
    if reset is not None and (reset.shape != r.shape[:2] or reset.dtype != jnp.bool_):
        raise ValueError(
            f"reset must be bool [B, T] = {r.shape[:2]}; got {reset.dtype} {reset.shape}"
        )
    if chunk is not None and chunk not in CHUNKS:
        raise ValueError(f"chunk must be one of {CHUNKS} or None; got {chunk!r}")
    if precision is not None:
        check_name("precision", precision, PRECISIONS)

"""WKV-7 over several devices: batch and heads for free, the sequence by composing affine maps."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxlab_kernels.checks import check_arguments, check_name
from jaxlab_kernels.op import wkv7


def wkv7_along_axis(
    r: jax.Array,
    logw: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array | None = None,
    *,
    axis_name: str,
    reset: jax.Array | None = None,
    reset_state: jax.Array | None = None,
    impl: str = "auto",
    chunk: int | None = None,
    precision: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`wkv7` on one stretch of a sequence whose stretches lie along a mapped axis, in order.

    For use inside `shard_map` or `vmap(axis_name=...)`. A stretch is an affine map of the state
    that enters it, S P + Q. Every device runs its stretch once, with K more value rows that start
    as the identity and take no values: their last state is P, and their outputs show how y depends
    on the state that was still unknown. Only P and Q travel.

    Args:
        r: [B, T, H, K], T being the stretch's.
        logw: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, D].
        a: [B, T, H, K].
        b: [B, T, H, K].
        s0: what enters the first stretch, the same on all devices of the axis.
        axis_name: the mapped axis.
        reset: as in `wkv7`, of this stretch.
        reset_state: as in `wkv7`.
        impl: as in `wkv7`.
        chunk: as in `wkv7`.
        precision: as in `wkv7`.

    Returns:
        y of this stretch, and the state after the whole sequence (the same on all devices).

    Raises:
        ValueError: what `wkv7` refuses.
    """
    check_arguments((r, logw, k, v, a, b), s0, reset, reset_state, chunk, precision)
    batch, length, heads, keys = r.shape
    values = v.shape[3]
    low = all(x.dtype == jnp.bfloat16 for x in (r, k, v, a, b))
    precision = precision or ("bf16" if low else "float32")
    wide = jnp.float64 if jnp.float64 in {x.dtype for x in (r, logw, k, v, a, b)} else jnp.float32
    shape = (batch, heads, values, keys)

    def rows_below(top, bottom):
        return jnp.concatenate([top.astype(wide), bottom], axis=-2)

    like = partial(jnp.full_like, r, 0, dtype=wide)  # varies over the mesh as r does
    identity = like(shape=(batch, heads, keys, keys)) + jnp.eye(keys, dtype=wide)[None, None]
    start = rows_below(like(shape=shape), identity)
    extended = None
    if reset_state is not None:
        full = reset_state if reset_state.ndim == 4 else reset_state[None]
        extended = rows_below(jnp.broadcast_to(full, shape), jnp.zeros_like(identity))
    y, last = wkv7(
        *(r, logw, k),
        jnp.concatenate([v.astype(wide), like(shape=(batch, length, heads, keys))], axis=-1),
        *(a, b, start),
        reset=reset,
        reset_state=extended,
        impl=impl,
        chunk=chunk,
        precision=precision,
    )
    maps = lax.all_gather(last, axis_name)  # [devices, B, H, D + K, K]
    if s0 is None:
        state = like(shape=shape)
    else:
        state = jnp.broadcast_to(s0 if s0.ndim == 4 else s0[None], shape).astype(wide)

    def compose(state, stretch):
        shift, transition = stretch[..., :values, :], stretch[..., values:, :]
        product = jnp.einsum("bhdk,bhkj->bhdj", state, transition, precision=lax.Precision.HIGHEST)
        return product + shift, state

    final, entering = lax.scan(compose, state, maps)
    mine = entering[lax.axis_index(axis_name)]
    carried = jnp.einsum("bhdk,bthk->bthd", mine, y[..., values:], precision=lax.Precision.HIGHEST)
    return (y[..., :values] + carried).astype(v.dtype), final


def sharded_wkv7(
    r: jax.Array,
    logw: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array | None = None,
    *,
    mesh: Mesh,
    batch_axis: str | None = None,
    head_axis: str | None = None,
    sequence_axis: str | None = None,
    reset: jax.Array | None = None,
    reset_state: jax.Array | None = None,
    impl: str = "auto",
    chunk: int | None = None,
    precision: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`wkv7` on global arrays, each device of a mesh holding a part.

    Batch and heads need no communication; along the sequence one state and one transition per head
    are exchanged. Differentiable.

    Args:
        r: [B, T, H, K], like all arrays whole; every split dimension must divide.
        logw: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, D].
        a: [B, T, H, K].
        b: [B, T, H, K].
        s0: as in `wkv7`.
        mesh: of devices, with axes of type Auto (or Explicit, and the arguments already so placed).
        batch_axis: the mesh axis that splits B; None keeps it whole.
        head_axis: the mesh axis that splits H.
        sequence_axis: the mesh axis that splits T.
        reset: as in `wkv7`.
        reset_state: as in `wkv7`.
        impl: as in `wkv7`.
        chunk: as in `wkv7`.
        precision: as in `wkv7`.

    Returns:
        y and the last state, as `wkv7`.

    Raises:
        ValueError: an axis the mesh does not have, or a dimension that it does not divide.
    """
    sizes = dict(zip(mesh.axis_names, mesh.devices.shape, strict=True))
    split = {"batch_axis": (batch_axis, 0), "sequence_axis": (sequence_axis, 1)}
    for argument, (axis, dimension) in (split | {"head_axis": (head_axis, 2)}).items():
        if axis is None:
            continue
        check_name(argument, axis, sizes)
        if r.shape[dimension] % sizes[axis]:
            raise ValueError(
                f"{argument}={axis!r} has {sizes[axis]} devices, which do not divide "
                f"{r.shape[dimension]} (axis {dimension} of r, shape {r.shape})"
            )
    tokens = PartitionSpec(batch_axis, sequence_axis, head_axis, None)
    state = PartitionSpec(batch_axis, head_axis, None, None)

    def state_spec(x):
        return state if x is None or x.ndim == 4 else PartitionSpec(head_axis, None, None)

    local: Callable = wkv7
    if sequence_axis is not None:
        local = partial(wkv7_along_axis, axis_name=sequence_axis)

    def part(inputs, s0, reset, reset_state):
        options = {"impl": impl, "chunk": chunk, "precision": precision}
        return local(*inputs, s0, reset=reset, reset_state=reset_state, **options)

    run = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(
            (tokens,) * 6,
            state_spec(s0),
            PartitionSpec(batch_axis, sequence_axis),
            state_spec(reset_state),
        ),
        out_specs=(tokens, state),
        # The final state is equal along the sequence axis, which the checker cannot see; and
        # interpreted kernels cannot be checked.
        check_vma=sequence_axis is None and not impl.startswith("pallas"),
    )
    return run((r, logw, k, v, a, b), s0, reset, reset_state)

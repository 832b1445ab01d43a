"""The compiled programs: guarded updates of one member, batched fast or exactly."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Bool, Int32

from jaxlab.ensemble.experiment import Experiment, Signature, is_float, strong


@flax.struct.dataclass
class Member:
    """One running experiment with what the engine keeps about it."""

    state: Any
    key: Array  # key of this member's evaluations
    step: Int32[Array, ""]  # updates done, dead or alive
    alive: Bool[Array, ""]
    died_at: Int32[Array, ""]  # number of the update that went non-finite; -1 while alive


def finite(tree) -> Bool[Array, ""]:
    """Whether every float leaf is finite."""
    # The largest magnitude, NaN if any is, costs a CPU less than `isfinite(x).all()`.
    leaves = [jnp.abs(x).max(initial=0) for x in jax.tree.leaves(tree) if is_float(x)]
    return jnp.stack([jnp.isfinite(x) for x in leaves]).all() if leaves else jnp.array(True)


def start(experiment: Experiment, base: Array, seed: Array, hparams: Any) -> Member:
    """Makes one member. Its key depends on the seed alone, so equal seeds are paired everywhere."""
    key = jax.random.fold_in(base, seed)
    state = strong(experiment.init(key, hparams))
    alive = finite(state)
    return Member(
        state=state,
        key=jax.random.fold_in(key, 0x6576616C),
        step=jnp.int32(0),
        alive=alive,
        died_at=jnp.where(alive, jnp.int32(-1), jnp.int32(0)),
    )


def advance(
    experiment: Experiment,
    signature: Signature,
    capacity: int,
    member: Member,
    rows: Array,
    every: Array,
) -> tuple[Member, dict[str, Array]]:
    """Runs `rows` windows of `every` updates and records one row of metrics after each.

    Both counts are traced, so one compiled program serves every length: that is why the way a run
    is cut into chunks cannot change a number.

    Returns:
        The member and, per metric, an array [capacity] whose first `rows` entries are filled.
    """
    names = [*signature.update_metrics, *signature.evaluate_metrics]
    real = jnp.result_type(float)

    def one_update(_, carry):
        member, _ = carry
        state, metrics = experiment.update(member.state)
        alive = member.alive & finite(state)
        step = member.step + 1
        member = member.replace(
            state=jax.tree.map(partial(jnp.where, alive), state, member.state),
            step=step,
            died_at=jnp.where(member.alive & ~alive, step, member.died_at),
            alive=alive,
        )
        return member, {k: jnp.asarray(v).astype(real) for k, v in metrics.items()}

    def one_row(row, carry):
        member, table = carry
        blank = {k: jnp.zeros((), real) for k in signature.update_metrics}
        member, metrics = jax.lax.fori_loop(0, every, one_update, (member, blank))
        if experiment.evaluate is not None:
            key = jax.random.fold_in(member.key, member.step)
            evaluated = experiment.evaluate(member.state, key)
            metrics |= {k: jnp.asarray(v).astype(real) for k, v in evaluated.items()}
        values = {k: jnp.where(member.alive, v, jnp.nan) for k, v in metrics.items()}
        return member, {k: table[k].at[row].set(values[k]) for k in names}

    table = {k: jnp.full((capacity,), jnp.nan, real) for k in names}
    return jax.lax.fori_loop(0, rows, one_row, (member, table))


def compile_fast(step: Callable, members: Any, mesh: Mesh) -> Any:
    """Compiles `step(member, rows, every)` vmapped over the members of each device of a mesh."""
    batched = jax.vmap(step, in_axes=(0, None, None))
    if mesh.size > 1:
        # shard_map, not the partitioner, so that no collective can appear between members.
        spec, whole = PartitionSpec("members"), PartitionSpec()
        batched = jax.shard_map(
            batched,
            mesh=mesh,
            in_specs=(spec, whole, whole),
            out_specs=(spec, spec),
            axis_names={"members"},
            check_vma=False,
        )
    place = NamedSharding(mesh, PartitionSpec())
    if len(mesh.axis_names) == 1:
        # Asked for, because XLA replicates a leaf without elements, which the next call refuses.
        kept = jax.tree.map(lambda x: x.sharding, members)
        return _compile(batched, members, place, out_shardings=(kept, None))
    # An update that spreads a member over the further axes decides how its state lies between
    # calls, or every call would gather it.
    shardings = _compile(batched, members, place).output_shardings[0]
    members = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), members, shardings
    )
    return _compile(batched, members, place, out_shardings=(shardings, None))


def compile_exact(step: Callable, members: Any, device: jax.Device) -> Any:
    """Compiles `step` unbatched, in a loop over the first `count` members of a stack.

    The trip count is traced, so the compiled body is the same whatever the number of members, and
    with it every bit of a member's numbers.
    """

    def looped(stack, rows, every, count):
        def one(i, carry):
            stack, table = carry
            member, values = step(jax.tree.map(lambda x: x[i], stack), rows, every)
            put = partial(jax.tree.map, lambda all_, x: all_.at[i].set(x))
            return put(stack, member), put(table, values)

        shapes = jax.eval_shape(lambda s: step(jax.tree.map(lambda x: x[0], s), rows, every), stack)
        size = stack.step.shape[0]
        table = {k: jnp.full((size, *v.shape), jnp.nan, v.dtype) for k, v in shapes[1].items()}
        return jax.lax.fori_loop(0, count, one, (stack, table))

    return _compile(looped, members, SingleDeviceSharding(device), extra=1)


def _compile(function, members, scalar_sharding, extra: int = 0, **options):
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=scalar_sharding)
    jitted = jax.jit(function, donate_argnums=0, **options)
    return jitted.lower(members, scalar, scalar, *[scalar] * extra).compile()

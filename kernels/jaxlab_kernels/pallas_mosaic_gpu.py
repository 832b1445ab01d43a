"""WKV-7 on Hopper GPUs through Pallas' Mosaic GPU backend, on warpgroup matrix instructions.

One warpgroup per (batch, head) walks the sequence in chunks of 64 for N = 64 and bfloat16 operands,
the sizes of one `wgmma`. Tiles come and go by the tensor memory accelerator; each operand is
rounded and written to shared memory once, and read as it is or transposed. Sums are float32.

The mathematics is `algebra`'s, in the full [64, 64] tiles that these instructions know: a row for
every row, or a sum over rows, is a product with a matrix of 0 and 1, and a float32 product is a sum
of products of bfloat16 pieces. A reset to zero masks pairs and scales factors by 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxlab_kernels import calls, compat
from jaxlab_kernels.mosaic_gpu_tiles import SIZE, Masks, Shared, keep, marks_of, pieces

FORWARD_TILES = ("r", "k", "v", "a", "b", "r_mid", "k_mid", "a_mid", "b_mid", "state", "u")
BACKWARD_TILES = (*FORWARD_TILES, "dy", "dstate", "inverse", "dz")
PIECES = ("p0", "p1", "p2", "p3")


def supports(inputs, reset_state, chunk: int, operand_dtype) -> bool:
    """Whether these kernels can run a call with inputs r, g, k, v, a, b.

    They need chunk = K = D = 64, bfloat16 inputs (but for g) and operands, and resets to zero only.
    """
    r, _, k, v, a, b = inputs
    dtypes = {jnp.dtype(operand_dtype), *(x.dtype for x in (r, k, v, a, b))}
    fits = {chunk, r.shape[-1], v.shape[-1]} == {SIZE} and dtypes == {jnp.dtype(jnp.bfloat16)}
    return fits and reset_state is None


def forward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    s0: jax.Array,
    count: jax.Array | None,
    reset_state: None,
    *,
    chunk: int,
    operand_dtype,
    save: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Run the recurrence; arguments and results as for every `gradients.Implementation`.

    With `interpret` it runs on any platform, slowly.
    """
    inputs = (r, g, k, v, a, b)
    _check(inputs, reset_state, chunk, operand_dtype)
    batch, length, heads, _ = r.shape
    chunks = length // SIZE
    shape = jax.ShapeDtypeStruct
    outputs = [shape(v.shape, jnp.bfloat16), shape(s0.shape, jnp.float32)]
    if save:
        outputs.append(shape((batch, chunks, heads, SIZE, SIZE), jnp.bfloat16))

    def kernel(r, g, k, v, a, b, s0, *refs, shared):
        rest = list(refs)
        marks = None if count is None else rest.pop(0)
        y, last, *saved = rest
        smem = Shared(shared, interpret)
        i, head = lax.axis_index("batch"), lax.axis_index("head")

        def body(n, state):
            rows = pl.ds(n * SIZE, SIZE)
            sources = {"r": r, "g": g, "k": k, "v": v, "a": a, "b": b}
            sources = {name: x.at[i, rows, head] for name, x in sources.items()}
            if marks is not None:
                sources["marks"] = marks.at[i, n]
            smem.fetch("tiles", sources)
            smem.put(state=state)
            for ref in saved:
                smem.send("state", ref.at[i, n, head])
            masks = Masks(smem, has_resets=marks is not None)
            decays = _write_factors(smem, masks)
            _write_solution(smem, masks)
            smem.put(
                p0=keep(masks.lower(), smem.product(("r_mid", "b_mid.T"))),
                p1=keep(masks.lower(), smem.product(("r_mid", "k_mid.T"))),
            )
            smem.put(p2=smem.product(("r", "state.T"), ("p0", "u"), ("p1", "v")))
            smem.send("p2", y.at[i, rows, head])
            return state * decays.whole() + smem.product(("u.T", "b"), ("v.T", "k"))

        smem.fetch("one", {"g": s0.at[i, head]})
        smem.put(g=lax.fori_loop(0, chunks, body, smem.read("g")))
        smem.send("g", last.at[i, head])

    operands = _operands(inputs, s0, count)
    tiles = FORWARD_TILES + PIECES
    results = _call(kernel, (batch, heads), outputs, operands, tiles, 6, count, interpret)
    return results[0].astype(v.dtype), results[1], results[2] if save else None


def backward(
    r: jax.Array,
    g: jax.Array,
    k: jax.Array,
    v: jax.Array,
    a: jax.Array,
    b: jax.Array,
    count: jax.Array | None,
    reset_state: None,
    checkpoints: jax.Array,
    dy: jax.Array,
    ds1: jax.Array,
    *,
    chunk: int,
    operand_dtype,
    interpret: bool = False,
) -> tuple[jax.Array | None, ...]:
    """Pull cotangents of y and of the last state back; arguments and results likewise."""
    inputs = (r, g, k, v, a, b)
    _check(inputs, reset_state, chunk, operand_dtype)
    batch, length, heads, _ = r.shape
    chunks = length // SIZE
    outputs = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32 if x is g else jnp.bfloat16) for x in inputs
    ]
    outputs.append(jax.ShapeDtypeStruct(ds1.shape, jnp.float32))

    def kernel(r, g, k, v, a, b, saved, dy, ds1, *refs, shared):
        rest = list(refs)
        marks = None if count is None else rest.pop(0)
        dr, dg, dk, dv, da, db, ds0 = rest
        smem = Shared(shared, interpret)
        i, head = lax.axis_index("batch"), lax.axis_index("head")

        def body(step, dstate):
            n = chunks - 1 - step
            rows = pl.ds(n * SIZE, SIZE)
            sources = {"r": r, "g": g, "k": k, "v": v, "a": a, "b": b, "dy": dy}
            sources = {name: x.at[i, rows, head] for name, x in sources.items()}
            sources["state"] = saved.at[i, n, head]
            if marks is not None:
                sources["marks"] = marks.at[i, n]
            smem.fetch("tiles", sources)
            targets = {"r": dr, "g": dg, "k": dk, "v": dv, "a": da, "b": db}
            targets = {name: x.at[i, rows, head] for name, x in targets.items()}
            masks = Masks(smem, has_resets=marks is not None)
            return _chunk_backward(smem, masks, dstate, targets)

        smem.fetch("one", {"g": ds1.at[i, head]})
        smem.put(g=lax.fori_loop(0, chunks, body, smem.read("g")))
        smem.send("g", ds0.at[i, head])

    operands = _operands(inputs, checkpoints, dy.astype(jnp.bfloat16), ds1, count)
    tiles = BACKWARD_TILES + PIECES
    results = _call(kernel, (batch, heads), outputs, operands, tiles, 8, count, interpret)
    return *(d.astype(x.dtype) for d, x in zip(results, inputs)), results[6], None


def _check(inputs, reset_state, chunk, operand_dtype):
    if not supports(inputs, reset_state, chunk, operand_dtype):
        raise ValueError(
            "Mosaic GPU kernels need chunk = K = D = 64, bfloat16 r, k, v, a, b and operands, and "
            f"no reset_state; got chunk = {chunk}, K = {inputs[0].shape[-1]}, "
            f"D = {inputs[3].shape[-1]}, {', '.join(x.dtype.name for x in inputs)}, operands "
            f"{jnp.dtype(operand_dtype)}, reset_state {'no' if reset_state is None else 'yes'}"
        )


def _operands(inputs, *others) -> list[jax.Array]:
    """Inputs in the dtypes of their tiles; then others; marks instead of counts."""
    tiles = [x.astype(jnp.float32 if i == 1 else jnp.bfloat16) for i, x in enumerate(inputs)]
    *states, count = others
    return [*tiles, *states, *([] if count is None else [marks_of(count)])]


def _call(kernel, grid, outputs, operands, tiles, arrivals, count, interpret):
    def tile(dtype):
        inner = 128 // jnp.dtype(dtype).itemsize
        transforms = (plgpu.TilingTransform((8, inner)), plgpu.SwizzleTransform(128))
        return plgpu.SMEM((SIZE, SIZE), dtype, transforms=transforms)

    if count is not None:
        tiles, arrivals = (*tiles, "marks"), arrivals + 1
    shared: dict[str, Any] = {name: tile(jnp.bfloat16) for name in tiles}
    shared |= {name: tile(jnp.float32) for name in ("g", "c_mid", "c_state", "c_last")}
    shared["tiles"] = plgpu.Barrier(num_arrivals=arrivals)
    shared["one"] = plgpu.Barrier(num_arrivals=1)
    results = plgpu.kernel(
        kernel,
        out_type=outputs,
        scratch_types={"shared": shared},
        grid=grid,
        grid_names=("batch", "head"),
        kernel_name="wkv7",
        interpret=compat.gpu_interpreter() if interpret else None,
    )(*operands)
    axes = tuple(calls.varying_axes(operands))  # of a `shard_map` around, which the kernel forgets
    return [lax.pcast(x, axes, to="varying") if axes else x for x in results]


class _Decays:
    """As in `algebra`, [64, 64], evaluated where they are used: registers cannot hold them all."""

    def __init__(self, smem: Shared, masks: Masks):
        """Write the cumulative sums of the chunk's log-decays to shared memory."""
        self.read_tile, self.masks = smem.read, masks
        c, ref, c_state, c_last = smem.select(
            [masks.before(), masks.first_half(), masks.lower(), masks.columns_to_end()],
            smem.read("g"),
        )
        smem.put(c_mid=c - ref, c_state=c_state, c_last=c_last)

    def centred_read(self) -> jax.Array:
        return jnp.exp(self.read_tile("c_mid") - self.read_tile("g"))

    def centred_out(self) -> jax.Array:
        return jnp.exp(self.read_tile("c_mid"))

    def centred_write(self) -> jax.Array:
        return jnp.exp(-self.read_tile("c_mid"))

    def read(self) -> jax.Array:
        return self.masks.from_start(jnp.exp(self.read_tile("c_state") - self.read_tile("g")))

    def out(self) -> jax.Array:
        return self.masks.from_start(jnp.exp(self.read_tile("c_state")))

    def write(self) -> jax.Array:
        distance = self.read_tile("c_last") - self.read_tile("c_state")
        return self.masks.to_end(jnp.exp(self.masks.to_end(distance)))

    def whole(self) -> jax.Array:
        """One row, repeated."""
        return self.masks.survives(jnp.exp(self.read_tile("c_last")))


def _write_factors(smem: Shared, masks: Masks) -> _Decays:
    """Replace r, k, a, b by the factors that meet a state; write those that meet each other."""
    decays = _Decays(smem, masks)
    for name, centred, whole in (
        ("a", decays.centred_read, decays.read),
        ("r", decays.centred_out, decays.out),
        ("b", decays.centred_write, decays.write),
        ("k", decays.centred_write, decays.write),
    ):
        x = smem.read(name).astype(jnp.float32)
        smem.put(**{f"{name}_mid": x * centred(), name: x * whole()})
    return decays


def _inverse(smem: Shared, masks: Masks, m: jax.Array) -> jax.Array:
    """(I - m)^-1 by `algebra.ladder_inverse`, with operands of two pieces."""
    row, col = masks.index(0), masks.index(1)
    inverse = jnp.where(row == col, jnp.float32(1), jnp.float32(0))
    for level in range(SIZE.bit_length() - 1):
        shift = jnp.full_like(row, level)
        block_row = lax.shift_right_logical(row, shift)
        block_col = lax.shift_right_logical(col, shift)
        below = keep((block_row == block_col + 1) & ((block_row & 1) == 1), m)
        if level == 0:
            inverse = inverse + below
            continue
        left, right = pieces(below, 2), pieces(inverse, 2)
        smem.put(p0=left[0], p1=left[1], p2=right[0], p3=right[1])
        step = pieces(smem.product(("p1", "p2"), ("p0", "p3"), ("p0", "p2")), 2)
        smem.put(p0=step[0], p1=step[1])
        inverse = inverse + smem.product(("p3", "p0"), ("p2", "p1"), ("p2", "p0"))
    return inverse


def _write_solution(smem: Shared, masks: Masks, keep_inverse: str = "p1") -> None:
    """Solve for u, the states as the removal keys read them; leaves the inverse as a tile too."""
    inverse = _inverse(smem, masks, keep(masks.strict(), smem.product(("a_mid", "b_mid.T"))))
    smem.put(p0=keep(masks.strict(), smem.product(("a_mid", "k_mid.T"))))
    z = smem.product(("a", "state.T"), ("p0", "v"))
    smem.put(**{keep_inverse: inverse, "p2": z})
    smem.put(u=smem.product((keep_inverse, "p2")))


def _chunk_backward(smem: Shared, masks: Masks, dstate, targets) -> jax.Array:
    """`algebra.chunk_backward` on one chunk's tiles; returns the incoming state's cotangent."""
    decays = _write_factors(smem, masks)
    _write_solution(smem, masks, keep_inverse="inverse")

    def wide(name):
        return smem.read(name).astype(jnp.float32)

    def send(name, gradient):
        smem.put(p2=gradient)
        smem.send("p2", targets[name])

    # A product's transpose is the product of its operands the other way round.
    smem.put(p0=keep(masks.lower_t(), smem.product(("b_mid", "r_mid.T"))), dstate=dstate)
    smem.put(p2=smem.product(("p0", "dy"), ("b", "dstate.T")))
    smem.put(
        dz=smem.product(("inverse.T", "p2")),
        p0=keep(masks.lower_t(), smem.product(("k_mid", "r_mid.T"))),
        p1=keep(masks.strict_t(), smem.product(("k_mid", "a_mid.T"))),
    )
    send("v", smem.product(("p0", "dy"), ("k", "dstate.T"), ("p1", "dz")))

    smem.put(
        p0=keep(masks.strict(), smem.product(("dz", "u.T"))),
        p1=keep(masks.strict(), smem.product(("dz", "v.T"))),
    )
    middle, edge = smem.product(("p0", "b_mid"), ("p1", "k_mid")), smem.product(("dz", "state"))
    de = wide("a_mid") * middle + wide("a") * edge
    send("a", edge * decays.read() + middle * decays.centred_read())

    smem.put(
        p0=keep(masks.lower(), smem.product(("dy", "u.T"))),
        p1=keep(masks.lower(), smem.product(("dy", "v.T"))),
    )
    middle, edge = smem.product(("p0", "b_mid"), ("p1", "k_mid")), smem.product(("dy", "state"))
    total = de + wide("r_mid") * middle + wide("r") * edge
    send("r", edge * decays.out() + middle * decays.centred_out())

    smem.put(
        p0=keep(masks.strict_t(), smem.product(("u", "dz.T"))),
        p1=keep(masks.lower_t(), smem.product(("u", "dy.T"))),
    )
    middle, edge = smem.product(("p0", "a_mid"), ("p1", "r_mid")), smem.product(("u", "dstate"))
    written = wide("b") * edge
    total = total - wide("b_mid") * middle
    send("b", edge * decays.write() + middle * decays.centred_write())

    smem.put(
        p0=keep(masks.strict_t(), smem.product(("v", "dz.T"))),
        p1=keep(masks.lower_t(), smem.product(("v", "dy.T"))),
    )
    middle, edge = smem.product(("p0", "a_mid"), ("p1", "r_mid")), smem.product(("v", "dstate"))
    written = written + wide("k") * edge
    total = total - wide("k_mid") * middle
    send("k", edge * decays.write() + middle * decays.centred_write())

    (after,) = smem.select([masks.lower_t()], total - written)
    ends = written + wide("state") * dstate * decays.whole()
    (at_end,) = smem.select([masks.everything()], ends)
    smem.put(g=after + masks.to_end(at_end) - de)
    smem.send("g", targets["g"])
    return dstate * decays.whole() + smem.product(("dy.T", "r"), ("dz.T", "a"))

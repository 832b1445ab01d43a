"""The runs of the learngene experiment: what is trained once, and descendants of many depths.

All descendants are one program: their layers are padded to the deepest one's, and those beyond a
model's own depth write nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key

from jaxlab import ensemble, posttrain, rwkv7
from jaxlab.merging import growth
from jaxlab.merging.growth import Gene
from jaxlab.merging.trees import leaf_path

from . import _growth_models as gm

SCRATCH, LONG, AGAIN = "scratch", "scratch, five times as long", "scratch, other data"
GENE, CONSTANT, FITTED = "learngene", "constant gene", "gene fitted to the teacher"
STACK, PERMUTED = "stack", "learngene, layers permuted"
ARMS = (SCRATCH, LONG, AGAIN, GENE, CONSTANT, FITTED, STACK, PERMUTED)
STACKED = 2  # layers of the model that is stacked
LONGER = 5


@dataclass(frozen=True)
class Config:
    """Sizes and schedules."""

    kind: gm.Kind = "transformer"
    width: int = 32
    head_size: int = 16
    batch: int = 8
    teacher_depth: int = 12
    teacher_steps: int = 800
    aux_depth: int = 8
    aux_steps: int = 400
    depths: tuple[int, ...] = (2, 4, 6, 8, 10)
    short: int = 120  # steps of a descendant
    blocks: int = 4  # records of a short run
    parts: int = 8  # calls of the engine for each training of what comes before
    rate: float = 2.5e-3  # of teacher, auxiliary and small model; it ends at a tenth
    held_out: int = 128

    def __post_init__(self) -> None:
        """Refuses what is not whole."""
        for name, count in (
            ("short", self.blocks),
            ("teacher_steps", self.parts),
            ("aux_steps", self.parts),
            ("batch", len(gm.SOURCES)),
        ):
            if getattr(self, name) % count:
                raise ValueError(
                    f"{name}: expected a multiple of {count}, got {getattr(self, name)}"
                )
        if not self.depths or any(depth % STACKED for depth in self.depths):
            raise ValueError(f"depths: expected multiples of {STACKED}, got {self.depths}")

    @property
    def model(self) -> gm.Architecture:
        """Of every model."""
        return gm.architecture(self.kind, self.width, self.head_size)

    @property
    def room(self) -> int:
        """Layers of the deepest descendant."""
        return max(self.depths)


@flax.struct.dataclass
class Fit:
    """Something in training."""

    params: Any
    moments: Any


@flax.struct.dataclass
class Ancestors:
    """What is trained once per seed."""

    key: Key[Array, ""]
    step: Int[Array, ""]  # calls of the engine
    teacher: Fit
    aux: Fit  # leaves [2, ...]: a gene with its stem, and one whose slope stays zero
    small: Fit


def flops_of(config: Config) -> dict[str, float]:
    """FLOPs of a step of training: "teacher", "aux" (with the teacher's part), "small", depths."""
    model = config.model
    lines = jax.eval_shape(lambda: gm.sample_lines(jax.random.key(0), config.batch, "train"))

    def params(depth: int) -> gm.Params:
        return jax.eval_shape(lambda key: model.init(key, depth), jax.random.key(0))

    def step(depth: int) -> float:
        return growth.matmul_flops(jax.grad(partial(gm.line_loss, model)), params(depth), lines)

    counted = {str(depth): step(depth) for depth in config.depths}
    reading = partial(gm.line_loss, model)
    teacher = growth.matmul_flops(reading, params(config.teacher_depth), lines)
    return counted | {
        "teacher": step(config.teacher_depth),
        "aux": step(config.aux_depth) + teacher,
        "small": step(STACKED),
    }


def total_costs(config: Config) -> dict[str, float]:
    """FLOPs for models of all depths: by the gene, from scratch for long, and the teacher's."""
    flops = flops_of(config)
    short = config.short * sum(flops[str(depth)] for depth in config.depths)
    return {
        GENE: config.aux_steps * flops["aux"] + short,
        LONG: LONGER * short,
        "teacher": config.teacher_steps * flops["teacher"],
    }


def small_steps(config: Config) -> int:
    """Steps of the model to be stacked, for the FLOPs of the auxiliary model."""
    flops = flops_of(config)
    steps = int(config.aux_steps * flops["aux"] / flops["small"])
    return steps // config.parts * config.parts


def optimizer(rate: Any, total: Any) -> optax.GradientTransformation:
    """AdamW of the RWKV recipe without decay."""
    return rwkv7.optimizer(rate, 0.1 * rate, total, weight_decay=0.0)


def descend(
    key: Key[Array, ""],
    fit: Fit,
    loss: Callable[[Any, gm.Lines], Array],
    transform: optax.GradientTransformation,
    batch: int,
    count: int,
) -> Fit:
    """Takes steps on fresh lines, drawn all at once."""
    lines = jax.vmap(lambda k: gm.sample_lines(k, batch, "train"))(jax.random.split(key, count))

    def step(fit: Fit, rows: gm.Lines) -> tuple[Fit, None]:
        grads = jax.grad(loss)(fit.params, rows)
        updates, moments = transform.update(grads, fit.moments, fit.params)
        return Fit(optax.apply_updates(fit.params, updates), moments), None

    return jax.lax.scan(step, fit, lines)[0]


def distillation(student: Array, teacher: Array, lines: gm.Lines) -> Array:
    """Mean divergence of the teacher from the student where the solver writes.

    Args:
        student: logits [B, T - 1, V].
        teacher: logits of the same shape.
        lines: text [B, T].
    """
    return posttrain.distillation_loss(student, teacher, lines.mask[:, 1:])[0]


def split_gene(params: dict[str, Any]) -> tuple[Gene, gm.Params]:
    """The gene and the stem of an auxiliary model."""
    stem = {name: leaf for name, leaf in params.items() if name not in Gene._fields}
    return Gene(params["slope"], params["base"]), stem


def make_ancestors(config: Config) -> ensemble.Experiment:
    """Trains the teacher, then two genes by distillation, and a small model; no hyper-parameters.

    Args:
        config: sizes.

    Returns:
        An experiment for exact mode; its update is a part of one training. An evaluation reports
        held-out losses, and how linear the teacher's layers are in their depth.
    """
    model, parts = config.model, config.parts
    judged = gm.held_out(config.held_out)
    steps = {"teacher": config.teacher_steps, "aux": config.aux_steps}
    steps["small"] = small_steps(config)

    def start(params: Any) -> Fit:
        return Fit(params, optimizer(0.0, 1).init(params))

    def init(key: Array, hparams: Any) -> Ancestors:
        del hparams
        stem = model.init(jax.random.fold_in(key, 1), config.aux_depth)
        block = jax.tree.map(lambda x: x[0], stem.pop("blocks"))
        gene = {"slope": jax.tree.map(jnp.zeros_like, block), "base": block} | stem
        return Ancestors(
            key=key,
            step=jnp.int32(0),
            teacher=start(model.init(jax.random.fold_in(key, 0), config.teacher_depth)),
            aux=jax.tree.map(lambda x: jnp.stack([x, x]), start(gene)),
            small=start(model.init(jax.random.fold_in(key, 2), STACKED)),
        )

    def plain(params: gm.Params, lines: gm.Lines) -> Array:
        return gm.line_loss(model, params, lines)

    def train(name: str, state: Ancestors) -> Ancestors:
        key = jax.random.fold_in(state.key, 10 + state.step)
        transform = optimizer(config.rate, steps[name])
        go = partial(descend, transform=transform, batch=config.batch, count=steps[name] // parts)
        if name != "aux":
            trained: Any = {name: go(key, getattr(state, name), plain)}
            return replace(state, **trained)

        def one(pair: tuple[Fit, Array]) -> Fit:
            fit, sloped = pair

            def loss(params: Any, lines: gm.Lines) -> Array:
                gene, stem = split_gene(params)
                slope = jax.tree.map(lambda x: sloped * x, gene.slope)
                blocks = growth.le_expand(gene._replace(slope=slope), config.aux_depth)
                read = lines.tokens[:, :-1]
                teacher = model.apply(state.teacher.params, read)
                return distillation(model.apply({**stem, "blocks": blocks}, read), teacher, lines)

            return go(key, fit, loss)

        return replace(state, aux=jax.lax.map(one, (state.aux, jnp.array([1.0, 0.0]))))

    def update(state: Ancestors) -> tuple[Ancestors, dict[str, Array]]:
        branches = [partial(train, name) for name in ("teacher", "aux", "small")]
        state = jax.lax.switch(state.step // parts, branches, state)
        return replace(state, step=state.step + 1), {}

    def evaluate(state: Ancestors, key: Array) -> dict[str, Array]:
        found = growth.linearity_report(key, state.teacher.params["blocks"])
        return {
            "teacher": plain(state.teacher.params, judged),
            "small": plain(state.small.params, judged),
            "linear": found.linear,
            "quadratic": found.quadratic,
            "component": found.component,
            "null": jnp.mean(found.null),
            "null_95": jnp.quantile(found.null, 0.95),
        }

    return ensemble.Experiment(init, update, evaluate)


def silence(params: gm.Params, active: Bool[Array, " L"], writes: tuple[str, ...]) -> gm.Params:
    """A model whose inactive layers write nothing.

    Args:
        params: a model.
        active: which layers are part of it.
        writes: patterns of the leaves through which a block writes.
    """

    def hush(path: Any, leaf: Array) -> Array:
        if not any(re.search(pattern, leaf_path(path)) for pattern in writes):
            return leaf
        return jnp.where(active.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)

    return {**params, "blocks": jax.tree_util.tree_map_with_path(hush, params["blocks"])}


def descendants(
    key: Key[Array, ""], ancestors: Ancestors, depth: Int[Array, ""], config: Config
) -> dict[str, Callable[[], gm.Params]]:
    """How each arm starts a model of some depth.

    Args:
        key: random key.
        ancestors: trained.
        depth: of the model, may be traced.
        config: sizes.

    Returns:
        By arm a function that gives parameters with room for the deepest model's layers; those
        from `depth` on are to be silenced.
    """
    model, room = config.model, config.room

    def expanded(gene: Gene, stem: gm.Params) -> gm.Params:
        return {**stem, "blocks": growth.le_expand(gene, depth, room=room)}

    def aux(which: int) -> tuple[Gene, gm.Params]:
        return split_gene(jax.tree.map(lambda x: x[which], ancestors.aux.params))

    def scratch(stream: int) -> gm.Params:
        params = model.init(jax.random.fold_in(key, stream), room)
        if config.kind == "rwkv7":
            return params
        # What writes to the residual stream is drawn for the deepest model.
        blocks = params["blocks"]
        factor = jnp.sqrt(room / depth.astype(jnp.float32))
        scaled = {name: factor * blocks[name] for name in ("out", "down")}
        return {**params, "blocks": {**blocks, **scaled}}

    def constant() -> gm.Params:
        gene, stem = aux(1)
        return expanded(gene._replace(slope=jax.tree.map(jnp.zeros_like, gene.slope)), stem)

    def fitted() -> gm.Params:
        teacher = ancestors.teacher.params
        return expanded(growth.le_fit(teacher["blocks"])[0], teacher)

    def stacked() -> gm.Params:
        small = ancestors.small.params
        blocks = growth.stack(small["blocks"], room // STACKED, borrowed=model.borrowed)
        return {**small, "blocks": blocks}

    def permuted() -> gm.Params:
        params = expanded(*aux(0))
        draws = jax.random.uniform(jax.random.fold_in(key, 7), (room,))
        order = jnp.argsort(jnp.where(jnp.arange(room) < depth, draws, 2.0))
        return {**params, "blocks": jax.tree.map(lambda x: x[order], params["blocks"])}

    return {
        SCRATCH: partial(scratch, 0),
        LONG: partial(scratch, 0),
        AGAIN: partial(scratch, 1),
        GENE: lambda: expanded(*aux(0)),
        CONSTANT: constant,
        FITTED: fitted,
        STACK: stacked,
        PERMUTED: permuted,
    }


@flax.struct.dataclass
class Descendant:
    """A model of some depth in training."""

    key: Key[Array, ""]
    hparams: dict[str, Array]
    block: Int[Array, ""]
    fit: Fit
    zero_shot: Array
    loss: Array


def make_descendants(config: Config, ancestors: Ancestors) -> ensemble.Experiment:
    """Trains a model that starts by an arm; `hparams` has "base", "arm", "depth", "rate".

    Args:
        config: sizes.
        ancestors: of all seeds, leaves [seeds, ...].

    Returns:
        An experiment for exact mode; its update is a block of steps. An evaluation reports the
        held-out "loss" and "zero_shot", that before any training.
    """
    model = config.model
    judged = gm.held_out(config.held_out)
    count = config.short // config.blocks

    def look(params: gm.Params, lines: gm.Lines, depth: Array) -> Array:
        active = jnp.arange(config.room) < depth
        return gm.line_loss(model, silence(params, active, model.writes), lines)

    def init(key: Array, hparams: Any) -> Descendant:
        base, arm, depth = (hparams[name] for name in ("base", "arm", "depth"))
        key = jax.random.fold_in(key, base)
        mine = jax.tree.map(lambda x: x[base], ancestors)
        starts = descendants(key, mine, depth, config)
        params = jax.lax.switch(arm, [starts[name] for name in ARMS])
        loss = look(params, judged, depth)
        fit = Fit(params, optimizer(0.0, 1).init(params))
        other = (arm == ARMS.index(AGAIN)).astype(jnp.int32)
        return Descendant(
            jax.random.fold_in(key, 30 + other), hparams, jnp.int32(0), fit, loss, loss
        )

    def train(state: Descendant) -> Descendant:
        numbers = state.hparams
        longer = numbers["arm"] == ARMS.index(LONG)
        total = jnp.where(longer, LONGER * config.short, config.short)
        fit = descend(
            jax.random.fold_in(state.key, state.block),
            state.fit,
            partial(look, depth=numbers["depth"]),
            optimizer(numbers["rate"], total),
            config.batch,
            count,
        )
        return replace(state, fit=fit, loss=look(fit.params, judged, numbers["depth"]))

    def update(state: Descendant) -> tuple[Descendant, dict[str, Array]]:
        longer = state.hparams["arm"] == ARMS.index(LONG)
        active = longer | (state.block < config.blocks)
        state = jax.lax.cond(active, train, lambda s: s, state)
        return replace(state, block=state.block + 1), {
            "loss": state.loss,
            "zero_shot": state.zero_shot,
        }

    return ensemble.Experiment(init, update)

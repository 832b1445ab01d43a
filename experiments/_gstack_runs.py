"""One training of the growth experiment: small, grown, large, within one budget of FLOPs.

The budget is cut into slices of equal cost. Before its slice of growth a run trains a small model,
afterwards the target, so that runs that grow at different times, or never, cost the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, merging, rwkv7
from jaxlab.merging import growth
from jaxlab.merging.trees import leaf_path

from . import _growth_models as gm

SCRATCH, HALF, AGAIN = "scratch", "scratch, half the budget", "scratch, other data"
STACK, INTERLEAVED = "stack", "interleaved"
ZERO, RANDOM, LEARNED = "depth, zeros", "depth, random", "depth, learned"
COPIED, PADDED = "width, copies", "width, zeros"
CONTROLS = (SCRATCH, HALF, AGAIN)
DEPTH = (STACK, INTERLEAVED, ZERO, RANDOM, LEARNED)
WIDTH = (COPIED, PADDED)
ARMS = (*CONTROLS, *DEPTH, *WIDTH)
NOISE = 0.01  # of each leaf's deviation, so that copied units can part


@dataclass(frozen=True)
class Config:
    """Sizes and schedule of one architecture."""

    kind: gm.Kind = "transformer"
    width: int = 32
    head_size: int = 16
    depth: int = 8  # of the target
    factor: int = 4  # how often stacking repeats the small model
    batch: int = 8
    rate: float = 2.5e-3  # at its peak, of the middle of the grid; it ends at a tenth
    slices: int = 20
    steps: int = 240  # of the target from scratch
    fade: int = 2  # slices in which random layers are faded in
    held_out: int = 128

    def __post_init__(self) -> None:
        """Refuses what is not whole."""
        whole = {"steps": self.slices, "depth": self.factor, "slices": 2, "batch": len(gm.SOURCES)}
        for name, parts in whole.items():
            if getattr(self, name) % parts:
                raise ValueError(
                    f"{name}: expected a multiple of {parts}, got {getattr(self, name)}"
                )

    @property
    def arms(self) -> tuple[str, ...]:
        """RWKV-7's recurrent heads are not grown in width."""
        return ARMS if self.kind == "transformer" else (*CONTROLS, *DEPTH)


class Fit(NamedTuple):
    """A model in training."""

    params: gm.Params
    moments: Any


class Costs(NamedTuple):
    """Steps of each model in a slice, and the FLOPs of a step."""

    steps: dict[str, int]
    flops: dict[str, int]


@flax.struct.dataclass
class State:
    """One run."""

    key: Key[Array, ""]
    hparams: dict[str, Array]
    slice: Int[Array, ""]
    fits: dict[str, Fit]  # "small", "narrow" (of the transformer), "large"


def models_of(config: Config) -> dict[str, tuple[gm.Architecture, int]]:
    """Architecture and depth of the target and of the models that it grows from."""
    wide = gm.architecture(config.kind, config.width, config.head_size)
    models = {"large": (wide, config.depth), "small": (wide, config.depth // config.factor)}
    if config.kind == "transformer":
        narrow = gm.architecture(config.kind, config.width // 2, config.head_size)
        models["narrow"] = narrow, config.depth
    return models


def costs(config: Config) -> Costs:
    """Counts FLOPs of a training step from shapes, and what fits in a slice."""
    lines = jax.eval_shape(lambda: gm.sample_lines(jax.random.key(0), config.batch, "train"))
    flops = {}
    for name, (model, depth) in models_of(config).items():
        params = jax.eval_shape(lambda key: model.init(key, depth), jax.random.key(0))
        step = jax.grad(partial(gm.line_loss, model))
        flops[name] = growth.matmul_flops(step, params, lines)
    share = config.steps // config.slices * flops["large"]
    return Costs({name: share // each for name, each in flops.items()}, flops)


def spent(config: Config, arm: str, start: int) -> float:
    """FLOPs of a whole run.

    Args:
        config: sizes.
        arm: out of `ARMS`.
        start: slice of growth.
    """
    steps, flops = costs(config)
    before = "narrow" if arm in WIDTH else "small"
    small = steps[before] * flops[before] * start
    return small + steps["large"] * flops["large"] * (config.slices - start)


def optimizer(rate: Any, final: Any, total: Any) -> optax.GradientTransformation:
    """AdamW of the RWKV recipe without decay, for both architectures."""
    return rwkv7.optimizer(rate, final, total, weight_decay=0.0)


def layer_axes(params: gm.Params) -> merging.AxisSpec:
    """A specification that knows of layers alone."""
    blocks = jax.tree_util.tree_leaves_with_path({"blocks": params["blocks"]})
    named = [
        (f"^{leaf_path(path)}$", merging.LeafAxes(("layer", *(None,) * (leaf.ndim - 1))))
        for path, leaf in blocks
    ]
    return merging.AxisSpec(tuple(named), ())


def widen(key: Key[Array, ""], params: gm.Params, config: Config, arm: str) -> gm.Params:
    """Doubles the width of a transformer.

    Args:
        key: random key.
        params: of half the width.
        config: sizes.
        arm: `COPIED` or `PADDED`. With layer norms new zeros change the function, unlike copies.

    Returns:
        Parameters of the target.
    """
    spec = merging.transformer_axes()
    sizes = {
        "residual": config.width,
        "heads": config.width // config.head_size,
        "hidden": 2 * config.width,
    }
    split = merging.split_heads(params, config.head_size)
    if arm == PADDED:
        return merging.join_heads(growth.width_zero(key, split, spec, sizes))
    wide = merging.join_heads(growth.width_direct(split, spec, sizes))
    leaves, structure = jax.tree.flatten(wide)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + NOISE * jnp.std(x) * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, noisy)


def deepen(
    params: gm.Params, fresh: gm.Params, config: Config, arm: str, borrowed: str | None = None
) -> gm.Params:
    """Makes a target out of a model with fewer layers, without any training.

    Args:
        params: of the small model.
        fresh: an untrained target.
        config: sizes.
        arm: of growth in depth, but `LEARNED`.
        borrowed: see `Architecture`.

    Returns:
        Parameters of the target.
    """
    blocks, small = params["blocks"], config.depth // config.factor
    if arm == STACK:
        grown = growth.stack(blocks, config.factor, borrowed=borrowed)
    elif arm == INTERLEAVED:
        grown = growth.interleave(blocks, config.factor, borrowed=borrowed)
    elif arm == ZERO:
        writes = models_of(config)["large"][0].writes
        grown = growth.identity_depth(blocks, config.depth, zero=writes, borrowed=borrowed)
    else:
        rest = jax.tree.map(lambda x: x[small:], fresh["blocks"])
        grown = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), blocks, rest)
    return {**params, "blocks": grown}


def strength(config: Config, steps: int, slices: Array, step: Array) -> Float[Array, ""]:
    """How much random new layers count, from 0 at the growth to 1 after `fade` slices.

    Args:
        config: sizes.
        steps: of the target in a slice.
        slices: since the growth.
        step: within the slice.
    """
    done = (slices * steps + step).astype(jnp.float32)
    return jnp.minimum(done / (config.fade * steps), 1)


def make(config: Config) -> ensemble.Experiment:
    """A run; `hparams` has "arm" (place in `ARMS`), "start", "rate".

    Args:
        config: sizes.

    Returns:
        An experiment whose update is one slice of the budget. It is meant for exact mode, where
        only the model at hand is computed. An evaluation reports the held-out "loss" of it.
    """
    models, steps = models_of(config), costs(config).steps
    model = models["large"][0]
    small = config.depth // config.factor
    place = {arm: i for i, arm in enumerate(ARMS)}
    judged = gm.held_out(config.held_out)

    def init(key: Array, hparams: Any) -> State:
        # The control differs in nothing but its random stream.
        key = jax.random.fold_in(key, (hparams["arm"] == place[AGAIN]).astype(jnp.int32))
        fits = {}
        for i, (name, (one, depth)) in enumerate(models.items()):
            params = one.init(jax.random.fold_in(key, i), depth)
            fits[name] = Fit(params, optimizer(0.0, 0.0, 1).init(params))
        hparams = {name: jnp.asarray(value) for name, value in hparams.items()}
        return State(key, hparams, jnp.int32(0), fits)

    most = max(steps.values())

    def draw(state: State) -> gm.Lines:
        """The text of a slice [most, ...]; it depends on seed and slice, and not on the arm."""
        stream = jax.random.fold_in(jax.random.fold_in(state.key, 10), state.slice)
        keys = jax.vmap(partial(jax.random.fold_in, stream))(jnp.arange(most))
        return jax.vmap(lambda k: gm.sample_lines(k, config.batch, "train"))(keys)

    def descend(
        lines: gm.Lines, fit: Fit, loss: Callable[..., Array], transform: Any, count: int
    ) -> Fit:
        def step(fit: Fit, at: tuple[gm.Lines, Array]) -> tuple[Fit, None]:
            grads = jax.grad(loss)(fit.params, *at)
            updates, moments = transform.update(grads, fit.moments, fit.params)
            return Fit(optax.apply_updates(fit.params, updates), moments), None

        lines = jax.tree.map(lambda x: x[:count], lines)
        return jax.lax.scan(step, fit, (lines, jnp.arange(count)))[0]

    def train_first(name: str, state: State, text: gm.Lines) -> State:
        """The small model keeps its rate: it is not the end of its training."""
        rate = state.hparams["rate"]
        one = models[name][0]

        def loss(params: gm.Params, lines: gm.Lines, i: Array) -> Array:
            return gm.line_loss(one, params, lines)

        fit = descend(text, state.fits[name], loss, optimizer(rate, rate, 1), steps[name])
        return replace(state, fits={**state.fits, name: fit})

    def learn(state: State, text: gm.Lines) -> gm.Params:
        """Layers as combinations of the small model's, learned for a slice of the budget."""
        params, rate = state.fits["small"].params, state.hparams["rate"]
        twice = growth.stack(params["blocks"], 2, borrowed=model.borrowed)
        params = {**params, "blocks": jax.tree.map(lambda x: x[small:], twice)}
        spec = layer_axes(params)
        operator = growth.ligo_init(params, spec, {}, layers=config.depth)

        def loss(depth: dict[str, Array], lines: gm.Lines, i: Array) -> Array:
            grown = growth.ligo_apply(operator._replace(depth=depth), params, spec)
            return gm.line_loss(model, grown, lines)

        transform = optimizer(rate, 0.1 * rate, steps["large"])
        start = Fit(operator.depth, transform.init(operator.depth))
        found = descend(text, start, loss, transform, steps["large"])
        return growth.ligo_apply(operator._replace(depth=found.params), params, spec)

    def grow(state: State, text: gm.Lines) -> State:
        fits, key = state.fits, jax.random.fold_in(state.key, 20)
        fresh = fits["large"].params
        found: list[Callable[[], gm.Params]] = [lambda: fresh] * len(CONTROLS)
        for arm in DEPTH:
            deeper = partial(deepen, fits["small"].params, fresh, config, arm, model.borrowed)
            found.append(partial(learn, state, text) if arm == LEARNED else deeper)
        if "narrow" in fits:
            found += [partial(widen, key, fits["narrow"].params, config, arm) for arm in WIDTH]
        params = jax.lax.switch(state.hparams["arm"], found)
        large = Fit(params, optimizer(0.0, 0.0, 1).init(params))
        return replace(state, fits={**fits, "large": large})

    def train_target(state: State, text: gm.Lines) -> State:
        arm, start, rate = (state.hparams[name] for name in ("arm", "start", "rate"))
        state = jax.lax.cond(state.slice == start, grow, lambda s, _: s, state, text)
        end = jnp.where(arm == place[HALF], config.slices // 2, config.slices)
        first = start + (arm == place[LEARNED]).astype(jnp.int32)  # of training, after growth

        def loss(params: gm.Params, lines: gm.Lines, i: Array) -> Array:
            faded_in = strength(config, steps["large"], state.slice - start, i)
            ramp = jnp.where(arm == place[RANDOM], faded_in, 1.0)
            old, new = (
                jax.tree.map(lambda x: x[part], params["blocks"])
                for part in (slice(small), slice(small, None))
            )
            _, faded = growth.random_depth(old, new, zero=model.writes)
            return gm.line_loss(model, {**params, "blocks": faded(ramp)}, lines)

        def train(state: State) -> State:
            transform = optimizer(rate, 0.1 * rate, (end - first) * steps["large"])
            fit = descend(text, state.fits["large"], loss, transform, steps["large"])
            return replace(state, fits={**state.fits, "large": fit})

        active = (state.slice >= first) & (state.slice < end)
        return jax.lax.cond(active, train, lambda s: s, state)

    phases = {name: partial(train_first, name) for name in models if name != "large"}

    def phase(state: State) -> Int[Array, ""]:
        """Place among the models, the target's last."""
        narrow = state.hparams["arm"] >= place[COPIED]
        before = state.slice < state.hparams["start"]
        return jnp.where(before, narrow.astype(jnp.int32), len(phases))

    def update(state: State) -> tuple[State, dict[str, Array]]:
        state = jax.lax.switch(phase(state), [*phases.values(), train_target], state, draw(state))
        return replace(state, slice=state.slice + 1), {}

    def evaluate(state: State, key: Array) -> dict[str, Array]:
        del key
        names = [*phases, "large"]
        looks = [
            (lambda s, n=name: gm.line_loss(models[n][0], s.fits[n].params, judged))
            for name in names
        ]
        last = replace(state, slice=state.slice - 1)
        return {"loss": jax.lax.switch(phase(last), looks, state)}

    return ensemble.Experiment(init, update, evaluate)

"""The arms of state tuning, each on the same base, targets and words.

A world has three targets: a rule that was shown, one with a surface of its own, and a rule that was
not. Of its 512 words some are to learn from, some to choose a rate by, and some to test. Every arm
tries as many rates with as many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import ensemble, rwkv7
from jaxlab.rwkv7 import state_tuning as st

from . import _state_tuning_rules as rules

TARGETS = ("shown rule", "shown rule, new surface", "rule not shown")
LORA = ("receptance", "key", "value", "output")


class Arm(NamedTuple):
    """What is learned, and how fast."""

    wkv: float  # factor on the updates of the base state
    enlarged: float  # factor on those of the second state and of its writing
    mixing: float  # step size of the decorrelation


STATES = {
    "state": Arm(1.0, 0.0, 0.0),
    "enlarged": Arm(0.0, 1.0, 0.0),
    "decorrelated": Arm(0.0, 1.0, 0.1),
}


@dataclass(frozen=True)
class Config:
    """Sizes of the tuning."""

    steps: int = 200
    batch: int = 16
    train: int = 64  # words
    validation: int = 64
    test: int = 384
    support: int = 32  # support vectors M, twice the width of a head
    state_rates: tuple[float, ...] = (3.0, 1.0, 0.3)
    weight_rates: tuple[float, ...] = (3e-2, 1e-2, 3e-3)
    rank: int = 4  # of LoRA
    inner: int = 4  # steps of test-time tuning
    instances: int = 64  # tuned for one by one, to choose by and to test
    shots: int = 4  # worked examples in a prompt, or of a guide

    def __post_init__(self) -> None:
        """Refuses more words than there are, and unequal budgets."""
        words = self.train + self.validation + self.test
        if words > rules.WORDS:
            raise ValueError(f"test: expected {rules.WORDS} words in all, got {words}")
        if len(self.state_rates) != len(self.weight_rates):
            raise ValueError("weight_rates: expected as many as state_rates: budgets are equal")


class Target(NamedTuple):
    """A rule with its words."""

    shift: Int[Array, ""]
    surface: Int[Array, " 8"]
    train: Int[Array, " n"]
    validation: Int[Array, " n"]
    test: Int[Array, " n"]

    def write(self, words: Int[Array, "B E"]) -> rules.Sequences:
        """Examples of this rule."""
        return rules.examples(words, jnp.full(len(words), self.shift), self.surface)


def targets(key: Key[Array, ""], config: Config) -> Target:
    """All targets of a world; leaves lead with them."""

    def one(key: Array, shifts: tuple[int, ...], plain: bool) -> Target:
        which, looks, order = jax.random.split(key, 3)
        shift = jnp.asarray(shifts)[jax.random.randint(which, (), 0, len(shifts))]
        digits = jnp.arange(rules.BASE)
        surface = digits if plain else jax.random.permutation(looks, digits)
        words = jax.random.permutation(order, rules.WORDS)
        ends = [config.train, config.train + config.validation]
        train, validation, rest = jnp.split(words, ends)
        return Target(shift, surface, train, validation, rest[: config.test])

    kinds = ((rules.SHOWN_RULES, True), (rules.SHOWN_RULES, False), (rules.HELD_OUT, True))
    drawn = [one(k, *kind) for k, kind in zip(jax.random.split(key, 3), kinds, strict=True)]
    return jax.tree.map(lambda *x: jnp.stack(x), *drawn)


def accuracy(
    params: Any,
    model: rwkv7.Config,
    target: Target,
    words: Int[Array, " n"],
    learned: rwkv7.State | None = None,
) -> Float[Array, ""]:
    """Share of words whose image is written without a mistake, greedily and without help."""
    written = target.write(words[:, None]).tokens
    state = rwkv7.initial_state(model, len(words), learned)
    given = rules.WORD + 1
    out = rwkv7.generate(
        params, model, written[:, :given], rules.WORD, jax.random.key(0),
        rwkv7.Sampler(0.0), state=state,
    ).tokens  # fmt: skip
    right = jnp.all(out == written[:, given : given + rules.WORD], axis=1)
    return jnp.mean(right.astype(jnp.float32))


def after_shots(
    params: Any, model: rwkv7.Config, target: Target, count: int, start: rwkv7.State | None = None
) -> rwkv7.State:
    """The state behind a prompt of worked examples, to go on from."""
    shots = target.write(target.train[None, :count]).tokens
    _, state = rwkv7.forward(params, model, shots, rwkv7.initial_state(model, 1, start))
    return jax.tree.map(lambda leaf: leaf[:, 0], state)


def as_batch(drawn: rules.Sequences) -> st.Batch:
    """Examples as something to tune on: images count, words do not."""
    return st.Batch(drawn.tokens, drawn.weight[:, 1:])


def batches(key: Key[Array, ""], target: Target, config: Config) -> st.Batch:
    """Training words in random order, a batch per step."""
    keys = jax.random.split(key, config.steps)
    rows = jax.vmap(lambda k: jax.random.permutation(k, config.train)[: config.batch])(keys)
    drawn = jax.vmap(lambda words: target.write(words[:, None]))(target.train[rows])
    return jax.vmap(as_batch)(drawn)


def _by_target(values: Array, name: str) -> dict[str, Array]:
    return {f"{name}; {target}": values[i] for i, target in enumerate(TARGETS)}


def _each(key: Array) -> Array:
    return jax.random.split(key, len(TARGETS))


def _best(scores: Float[Array, " R"], tried: Any) -> Any:
    """What did best where rates are chosen."""
    return jax.tree.map(lambda leaf: leaf[jnp.argmax(scores)], tried)


def _once(
    bases: Any, compute: Callable[[Array, Any, Any], tuple[Any, dict[str, Array]]], kept: Any
) -> ensemble.Experiment:
    """An experiment of one update on the base that `hparams["base"]` names.

    Worlds differ by base alone, so that all arms meet the same targets and words.
    """

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        params = jax.tree.map(lambda leaf: leaf[hparams["base"]], bases)
        numbers = {k: v for k, v in hparams.items() if k != "base"}
        key = jax.random.fold_in(key, hparams["base"])
        return {"key": key, "params": params, "hparams": numbers, "kept": kept}

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        found, told = compute(state["key"], state["params"], state["hparams"])
        return {**state, "kept": found}, told

    return ensemble.Experiment(init, update)


def make_frozen(model: rwkv7.Config, bases: Any, config: Config) -> ensemble.Experiment:
    """What a model does untuned: nothing but the question, and with worked examples before it."""

    def compute(key: Array, params: Any, hparams: Any) -> tuple[Any, dict[str, Array]]:
        del hparams

        def one(target: Target) -> tuple[Array, Array]:
            shots = after_shots(params, model, target, config.shots)
            zero = accuracy(params, model, target, target.test)
            return zero, accuracy(params, model, target, target.test, shots)

        zero, few = jax.vmap(one)(targets(jax.random.split(key, 3)[0], config))
        return (), {**_by_target(zero, "zero-shot"), **_by_target(few, "few-shot")}

    return _once(bases, compute, ())


def steps_to(losses: Float[Array, " S"], share: float = 0.9) -> Float[Array, ""]:
    """Steps until so much of the whole fall of a loss is done, by means over ten steps."""
    window = min(10, losses.shape[0])
    smooth = jnp.convolve(losses, jnp.ones(window) / window, mode="valid")
    goal = smooth[0] + share * (smooth[-1] - smooth[0])
    return jnp.argmax(smooth <= goal).astype(jnp.float32) + window


def make_states(model: rwkv7.Config, bases: Any, config: Config) -> ensemble.Experiment:
    """Tuned states; `hparams` has the arm's factors "wkv" and "enlarged" and the rate "mixing".

    Keeps the base state learned for the first target. Reports accuracies on all targets, with
    the state's read disabled ("off"), few-shot on the next target from the tuned state
    ("elsewhere"), the last loss, and the steps to nine tenths of its fall.
    """
    optimizers = partial(st.state_optimizer, config.steps)

    def compute(key: Array, params: Any, hparams: Any) -> tuple[Any, dict[str, Array]]:
        drawing, ordering, choosing = jax.random.split(key, 3)
        trainable = st.Tuned(hparams["wkv"], hparams["enlarged"], hparams["enlarged"])
        rule = st.Decorrelation(hparams["mixing"])

        def one(target: Target, key: Array, other: Target) -> Any:
            shown = target.write(target.train[:, None]).tokens
            _, seen = rwkv7.receptances_and_keys(params, model, shown)
            samples = jnp.concatenate(seen, axis=1)
            lead, tail = samples.shape[0], samples.shape[-2:]
            wide = st.upscaled(
                params,
                st.init_upscaling(
                    choosing, samples.reshape(lead, -1, *tail), config.support, "kmeans"
                ),
            )
            start = st.init_tuned_state(model, config.support)
            drawn = batches(key, target, config)

            def tune(rate: Array) -> tuple[Array, Any]:
                tuning, told = st.tune_state(
                    start, wide, model, drawn, optimizers(rate, 0.01 * rate), rule=rule,
                    trainable=trainable,
                )  # fmt: skip
                learned = st.learned_state(tuning.tuned, model, 1.0, tuning.decorrelation)
                tuned = st.tuned_model(wide, tuning.tuned)
                score = accuracy(tuned, model, target, target.validation, learned)
                return score, (tuning.tuned.writing, learned, told["nll"])

            scores, tried = jax.vmap(tune)(jnp.asarray(config.state_rates))
            writing, learned, losses = _best(scores, tried)
            tuned = st.tuned_model(wide, start._replace(writing=writing))
            off = st.tuned_model(wide, start)  # neither read nor written
            shots = after_shots(tuned, model, other, config.shots, learned)
            nothing = st.learned_state(start, model)
            return {
                "accuracy": accuracy(tuned, model, target, target.test, learned),
                "off": accuracy(off, model, target, target.test, nothing),
                "elsewhere": accuracy(tuned, model, other, other.test, shots),
                "nll": losses[-1],
                "steps": steps_to(losses),
                "rate": jnp.asarray(config.state_rates)[jnp.argmax(scores)],
            }, learned.wkv  # fmt: skip

        drawn = targets(drawing, config)
        others = jax.tree.map(lambda leaf: jnp.roll(leaf, -1, axis=0), drawn)
        told, learned = jax.vmap(one)(drawn, _each(ordering), others)
        flat: dict[str, Array] = {}
        for name, values in told.items():
            flat |= _by_target(values, name)
        return learned[0], flat

    size = model.head_size
    kept = jnp.zeros((model.n_layer, model.n_head, size, size))
    return _once(bases, compute, kept)


def make_test_time(model: rwkv7.Config, bases: Any, config: Config) -> ensemble.Experiment:
    """A state of its own for every test problem, from worked examples of its siblings."""

    def compute(key: Array, params: Any, hparams: Any) -> tuple[Any, dict[str, Array]]:
        del hparams
        drawing, ordering, _ = jax.random.split(key, 3)

        def one(target: Target, key: Array) -> tuple[Array, Array]:
            def solve(rate: Array, word: Array, key: Array) -> Array:
                siblings = jax.random.permutation(key, target.train)[: config.shots]
                guide = as_batch(target.write(siblings[:, None]))
                optimizer = st.state_optimizer(config.inner, rate, 0.01 * rate)
                tuned = st.test_time_tune(params, model, guide, config.inner, optimizer)
                learned = st.learned_state(tuned, model)
                return accuracy(params, model, target, word[None], learned)

            def score(rate: Array, words: Array) -> Array:
                keys = jax.random.split(key, config.instances)
                words = words[: config.instances]
                return jnp.mean(jax.vmap(solve, (None, 0, 0))(rate, words, keys))

            rates = jnp.asarray(config.state_rates)
            scores = jax.lax.map(lambda rate: score(rate, target.validation), rates)
            rate = rates[jnp.argmax(scores)]
            return score(rate, target.test), rate

        right, rate = jax.vmap(one)(targets(drawing, config), _each(ordering))
        return (), {**_by_target(right, "accuracy"), **_by_target(rate, "rate")}

    return _once(bases, compute, ())


def make_weights(
    model: rwkv7.Config, bases: Any, config: Config, low_rank: bool
) -> ensemble.Experiment:
    """Learning in the weights instead, all of them or low-rank additions to the attention's."""

    def compute(key: Array, params: Any, hparams: Any) -> tuple[Any, dict[str, Array]]:
        del hparams
        drawing, ordering, factors = jax.random.split(key, 3)
        att = params["blocks"]["att"]

        def start() -> Any:
            if not low_rank:
                return params
            lead, width = att["key"].shape[0], att["key"].shape[-1]
            keys = jax.random.split(factors, len(LORA))
            shape = (lead, config.rank, width)
            return {
                name: (jnp.zeros((lead, width, config.rank)), jax.random.normal(k, shape) / width)
                for name, k in zip(LORA, keys, strict=True)
            }

        def whole(trained: Any) -> Any:
            if not low_rank:
                return trained
            changed = {name: att[name] + b @ a for name, (b, a) in trained.items()}
            return params | {"blocks": params["blocks"] | {"att": att | changed}}

        def loss_of(trained: Any, batch: st.Batch) -> Array:
            logits, _ = rwkv7.forward(whole(trained), model, batch.tokens[:, :-1])
            return rwkv7.l2wrap_cross_entropy(logits, batch.tokens[:, 1:], batch.weight > 0, 0.0)

        def one(target: Target, key: Array) -> tuple[Array, Array]:
            drawn = batches(key, target, config)

            def tune(rate: Array) -> tuple[Array, Any]:
                optimizer = st.state_optimizer(config.steps, rate, 0.01 * rate)

                def step(carry: tuple[Any, Any], batch: st.Batch) -> tuple[Any, None]:
                    trained, moments = carry
                    grads = jax.grad(loss_of)(trained, batch)
                    updates, moments = optimizer.update(grads, moments)
                    return (optax.apply_updates(trained, updates), moments), None

                first = start()
                (trained, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), drawn)
                return accuracy(whole(trained), model, target, target.validation), trained

            scores, tried = jax.vmap(tune)(jnp.asarray(config.weight_rates))
            trained = whole(_best(scores, tried))
            rate = jnp.asarray(config.weight_rates)[jnp.argmax(scores)]
            return accuracy(trained, model, target, target.test), rate

        right, rate = jax.vmap(one)(targets(drawing, config), _each(ordering))
        return (), {**_by_target(right, "accuracy"), **_by_target(rate, "rate")}

    return _once(bases, compute, ())

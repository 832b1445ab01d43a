"""Hidden rules, and small models that have read many of them.

A rule shifts each digit of a word of three, x -> x + c (mod 8). An episode shows several words with
their images under one rule, which nothing names: a model can only infer it. Some rules are never
shown. A target may besides have a surface of its own, a permutation of the digits of its images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxlab import ensemble, posttrain, rwkv7

BASE = 8  # digits
DIGIT, EQUALS, NEXT = 1, 1 + BASE, 2 + BASE  # ids of 0, "=" and ";"; id 0 ends a document
VOCAB = 3 + BASE
WORD = 3  # digits
SHOWN = 2 * WORD + 2  # tokens of an example
WORDS = BASE**WORD
HELD_OUT = (3, 6)  # shifts that pretraining never shows
SHOWN_RULES = tuple(c for c in range(BASE) if c not in HELD_OUT)


@dataclass(frozen=True)
class Size:
    """A model and how it is pretrained."""

    n_embd: int = 32
    n_layer: int = 2
    head_size: int = 16
    ranks: tuple[int, int, int, int] = (8, 8, 8, 8)
    steps: int = 1200
    batch: int = 32  # episodes per step
    shots: int = 4  # examples before the last one of an episode
    lr: float = 1e-2  # at its peak; it ends at a tenth
    block: int = 50  # steps in one call of the engine

    def __post_init__(self) -> None:
        """Refuses steps that are not whole blocks."""
        if self.steps % self.block:
            raise ValueError(f"steps: expected a multiple of {self.block}, got {self.steps}")

    @property
    def model(self) -> rwkv7.Config:
        """RWKV-7 in float32."""
        return rwkv7.Config(
            VOCAB, self.n_layer, self.n_embd, head_size=self.head_size, ranks=self.ranks,
            dtype=jnp.float32,
        )  # fmt: skip


class Sequences(NamedTuple):
    """Examples of one rule next to each other."""

    tokens: Int[Array, "B T"]
    weight: Float[Array, "B T"]  # 1 on images


def examples(
    words: Int[Array, "B E"], shift: Int[Array, " B"], surface: Int[Array, " 8"] | None = None
) -> Sequences:
    """Writes words and their images.

    Args:
        words: numbers below `WORDS`, E per row.
        shift: the rule of each row.
        surface: what the digits of images are written as; themselves if None.

    Returns:
        E examples of eight tokens per row.
    """
    powers = jnp.asarray([BASE**i for i in reversed(range(WORD))], jnp.int32)
    digits = (words[..., None] // powers[None, None]) % BASE
    image = (digits + shift[:, None, None]) % BASE
    image = image if surface is None else surface[image]
    lead = jnp.zeros((*words.shape, 1), jnp.int32)
    tokens = jnp.concatenate([DIGIT + digits, lead + EQUALS, DIGIT + image, lead + NEXT], axis=-1)
    place = jnp.arange(SHOWN)
    weight = ((place > WORD) & (place <= 2 * WORD)).astype(jnp.float32)
    weight = jnp.broadcast_to(jnp.tile(weight, words.shape[1]), (len(words), tokens[0].size))
    return Sequences(tokens.reshape(len(words), -1), weight)


def pretraining(size: Size) -> ensemble.Experiment:
    """Training on episodes of the rules that are shown; no hyper-parameters.

    Args:
        size: of the model and its training.

    Returns:
        An update is a block of steps and reports "nll" of the images; an evaluation
        "few_shot_accuracy" of the last image's digits and "first_accuracy" of the first's.
    """
    config = size.model
    optimizer = rwkv7.optimizer(size.lr, 0.1 * size.lr, size.steps, weight_decay=0.0)

    def episodes(key: Array, rows: int) -> Sequences:
        rules, words = jax.random.split(key)
        shown = jnp.asarray(SHOWN_RULES)
        rule = shown[jax.random.randint(rules, (rows,), 0, len(SHOWN_RULES))]
        # With repetition: it seldom happens, and permuting costs more.
        drawn = jax.random.randint(words, (rows, size.shots + 1), 0, WORDS)
        return examples(drawn, rule)

    def init(key: Array, hparams: Any) -> dict[str, Any]:
        del hparams
        key, start = jax.random.split(key)
        params = rwkv7.init(start, config)
        return {"params": params, "optimizer": optimizer.init(params), "key": key}

    def loss_of(params: Any, drawn: Sequences) -> Array:
        logits, _ = rwkv7.forward(params, config, drawn.tokens[:, :-1])
        return posttrain.sft_loss(logits, drawn.tokens[:, 1:], drawn.weight[:, 1:])[0]

    def step(state: dict[str, Any], _: None) -> tuple[dict[str, Any], Array]:
        key, drawing = jax.random.split(state["key"])
        loss, grads = jax.value_and_grad(loss_of)(state["params"], episodes(drawing, size.batch))
        updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimizer": moments, "key": key}, loss

    def update(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
        state, losses = jax.lax.scan(step, state, None, length=size.block)
        return state, {"nll": jnp.mean(losses)}

    def evaluate(state: dict[str, Any], key: Array) -> dict[str, Array]:
        drawn = episodes(key, 256)
        logits, _ = rwkv7.forward(state["params"], config, drawn.tokens[:, :-1])
        right = (jnp.argmax(logits, axis=-1) == drawn.tokens[:, 1:]).astype(jnp.float32)
        right = jnp.where(drawn.weight[:, 1:] > 0, right, 0)
        last = jnp.sum(right[:, -SHOWN:]) / (WORD * len(right))
        first = jnp.sum(right[:, : SHOWN - 1]) / (WORD * len(right))
        return {"few_shot_accuracy": last, "first_accuracy": first}

    return ensemble.Experiment(init, update, evaluate)


def vocabulary() -> str:
    """The vocabulary as a file for `jaxlab generate`."""
    return "".join(f"{index} {text!r} 1\n" for index, text in enumerate("01234567=;", start=DIGIT))


def text_of(tokens: Any) -> str:
    """Tokens as `vocabulary` spells them."""
    return "".join("01234567=;"[int(t) - DIGIT] for t in np.asarray(tokens))

"""Small language models of two architectures and any depth, and the text that they learn.

Half of the text are chains of modular arithmetic, half are running sums of looked-up values: both
are copied, looked up and added step by step, which takes layers that build on one another.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxlab import nets, posttrain, rwkv7, tasks
from jaxlab.merging import growth
from jaxlab.posttrain import grpo
from jaxlab.tasks import chain, kvsum

Params = dict[str, Any]
Kind = Literal["transformer", "rwkv7"]
LENGTH = 33  # tokens of a line: 32 are read
SOURCES = (chain.Config(n_steps=3), kvsum.Config(n_keys=5, turns=4))


class Lines(NamedTuple):
    """A batch of text."""

    tokens: Int[Array, "B T"]
    mask: Float[Array, "B T"]  # 1 where a token follows from those before


class Architecture(NamedTuple):
    """A language model whose depth is that of its parameters.

    Attributes:
        init: (key, layers) -> parameters.
        apply: (parameters, tokens) -> logits.
        writes: patterns of the leaves through which a block writes to the residual stream.
        borrowed: pattern of leaves that the first layer has but does not use.
    """

    init: Callable[[Key[Array, ""], int], Params]
    apply: Callable[[Params, Int[Array, "B T"]], Float[Array, "B T V"]]
    writes: tuple[str, ...]
    borrowed: str | None


def architecture(kind: Kind, width: int, head_size: int) -> Architecture:
    """Makes an architecture; its position-wise layers are twice as wide as the model.

    Args:
        kind: "transformer" or "rwkv7".
        width: of the residual stream.
        head_size: channels of a head.

    Returns:
        The functions.
    """
    if kind == "transformer":

        def sized(layers: int) -> nets.TransformerConfig:
            return nets.TransformerConfig(tasks.VOCAB_SIZE, layers, width, head_size, 2 * width)

        return Architecture(
            lambda key, layers: nets.transformer_init(key, sized(layers)),
            lambda params, tokens: nets.transformer_apply(
                params, sized(growth.depth_of(params["blocks"])), tokens
            ),
            ("out$", "down$"),
            None,
        )

    def shaped(layers: int) -> rwkv7.Config:
        return rwkv7.Config(
            tasks.VOCAB_SIZE,
            layers,
            width,
            head_size=head_size,
            dim_ffn=2 * width,
            ranks=(8, 8, 8, 8),
            dtype=jnp.float32,
        )

    return Architecture(
        lambda key, layers: rwkv7.init(key, shaped(layers)),
        lambda params, tokens: rwkv7.forward(
            params, shaped(growth.depth_of(params["blocks"])), tokens
        )[0],
        ("att/output$", "ffn/value$"),
        "v[012]$",
    )


def sample_lines(key: Key[Array, ""], rows: int, split: Literal["train", "test"]) -> Lines:
    """Draws lines, in equal parts of each source.

    Args:
        key: random key.
        rows: how many, a multiple of the number of sources.
        split: side of the split of problems.

    Returns:
        Problems with their solutions; the mask is 1 on what the solver writes.
    """

    def of(key: Array, config: Any) -> Lines:
        task = tasks.make_task(config)
        count = rows // len(SOURCES)
        problems, prompts, _ = grpo.sample_problems(key, task, count, split)
        solutions = jax.vmap(task.solution)(problems)
        mine = jax.vmap(lambda p, s: tasks.policy_mask(task, p, s))(problems, solutions)
        tokens = jnp.concatenate([prompts, solutions], axis=1)
        mask = jnp.concatenate([jnp.zeros(prompts.shape), mine], axis=1)
        fill = ((0, 0), (0, LENGTH - tokens.shape[1]))
        return Lines(jnp.pad(tokens, fill), jnp.pad(mask, fill))

    parts = [of(jax.random.fold_in(key, i), source) for i, source in enumerate(SOURCES)]
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def held_out(rows: int) -> Lines:
    """The lines that every model is judged by."""
    return jax.jit(lambda key: sample_lines(key, rows, "test"))(jax.random.key(17))


def token_entropy() -> float:
    """Entropy of what the solver writes, in nats: the loss of one who knows frequencies alone."""
    lines = held_out(1024)
    counts = np.bincount(np.asarray(lines.tokens)[np.asarray(lines.mask) > 0])
    share = counts[counts > 0] / counts.sum()
    return float(-share @ np.log(share))


def line_loss(model: Architecture, params: Params, lines: Lines) -> Float[Array, ""]:
    """Nats per token that the solver writes."""
    logits = model.apply(params, lines.tokens[:, :-1])
    return posttrain.sft_loss(logits, lines.tokens[:, 1:], lines.mask[:, 1:])[0]

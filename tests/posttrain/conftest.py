"""A table as a language model, whose every number is a parameter, and a small RWKV-7."""

import jax
import jax.numpy as jnp
import pytest

from jaxlab import posttrain, rwkv7


def table_model(vocab_size, length):
    """One row of logits for every prefix of up to `length` tokens."""
    prefixes = sum(vocab_size**t for t in range(length + 1))

    def step(state, token):
        state = vocab_size * state + token + 1
        return state, state

    def extend(params, state, tokens, lengths):
        moved, states = jax.lax.scan(step, state, tokens.T)
        if lengths is not None:
            whole = jnp.concatenate([state[None], states])
            moved = jnp.take_along_axis(whole, lengths[None], axis=0)[0]
        return params[jnp.minimum(states.T, prefixes - 1)], moved

    return posttrain.LanguageModel(
        vocab_size=vocab_size,
        init=lambda key: jax.random.normal(key, (prefixes, vocab_size)),
        initial_state=lambda rows: jnp.zeros(rows, jnp.int32),
        extend=extend,
        take_rows=lambda state, rows: state[rows],
    )


@pytest.fixture(scope="session")
def make_table():
    return table_model


@pytest.fixture(scope="session")
def small_rwkv7():
    """One layer with all parameters away from their initial values."""
    config = rwkv7.Config(
        20, n_layer=1, n_embd=16, head_size=8, ranks=(4, 4, 4, 4), dtype=jnp.float32
    )
    leaves, tree = jax.tree.flatten(
        jax.eval_shape(lambda k: rwkv7.init(k, config), jax.random.key(0))
    )
    keys = jax.random.split(jax.random.key(7), len(leaves))
    drawn = [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    return posttrain.rwkv7_model(config), jax.tree.unflatten(tree, drawn), config

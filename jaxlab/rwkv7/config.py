"""Sizes and dtypes of an RWKV-7 language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


class Ranks(NamedTuple):
    """Widths of the low-rank factors."""

    w: int  # decay
    a: int  # in-context learning rate
    v: int  # value residual
    g: int  # output gate


@dataclass(frozen=True)
class Config:
    """Sizes and dtypes; fields left at None are filled in with what the recipe says.

    Pitfall: the ranks of released models do not follow the formula, so a loader reads them from
    the tensors.
    """

    vocab_size: int
    n_layer: int
    n_embd: int
    head_size: int = 64
    dim_ffn: int | None = None  # 4 n_embd
    ranks: tuple[int, int, int, int] | None = None  # `default_ranks`
    ln_x_eps: float = 64e-5  # of the per-head normalisation, whatever the head size
    dtype: Any = jnp.bfloat16  # of activations; the recurrent state is always float32
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_embd", "head_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.n_embd % self.head_size:
            raise ValueError(
                f"n_embd: expected a multiple of head_size {self.head_size}, got {self.n_embd}"
            )
        if self.dim_ffn is None:
            object.__setattr__(self, "dim_ffn", 4 * self.n_embd)
        elif self.dim_ffn < 1:
            raise ValueError(f"dim_ffn: expected at least 1, got {self.dim_ffn}")
        ranks = default_ranks(self.n_embd) if self.ranks is None else Ranks(*self.ranks)
        if min(ranks) < 1:
            raise ValueError(f"ranks: expected at least 1 each, got {tuple(ranks)}")
        object.__setattr__(self, "ranks", ranks)
        for name in ("dtype", "param_dtype"):
            dtype = jnp.dtype(getattr(self, name))
            if dtype.name not in DTYPES:
                raise ValueError(f"{name}: expected one of {', '.join(DTYPES)}, got {dtype.name}")
            object.__setattr__(self, name, dtype)

    @property
    def n_head(self) -> int:
        """Number of heads."""
        return self.n_embd // self.head_size


def default_ranks(n_embd: int) -> Ranks:
    """The recipe's widths of the low-rank factors.

    Args:
        n_embd: width C.

    Returns:
        Multiples of 32 near 2.5, 2.5, 1.7 and 5 times sqrt(C); halves round to even.
    """

    def near(factor: float) -> int:
        return max(32, 32 * round(factor * math.sqrt(n_embd) / 32))

    return Ranks(w=near(2.5), a=near(2.5), v=near(1.7), g=near(5.0))

"""Where the probability mass of a categorical value sits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxlab.values.transforms import Transform

SupportKind = Literal["atoms", "bins"]


@dataclass(frozen=True)
class Support:
    """A fixed grid of values; hashable, closed over by jitted code.

    Args:
        vmin: lower end, in transformed units if there is a transform.
        vmax: upper end, likewise.
        num_bins: number of locations m.
        kind: "atoms" puts the first and last location at the ends (spacing (vmax - vmin)/(m - 1));
            "bins" cuts the range into m bins of width (vmax - vmin)/m and locates at their centres.
        tx: targets are transformed before the projection, and the mean is transformed back after
            the expectation.
        unbiased: transform the grid instead: locations tx.inverse(z), so that the expectation is
            taken in the units of the values. Only for "atoms".

    Reference:
        Bellemare et al. 2017 (C51) for atoms, Imani & White 2018 for bins, Hafner et al. 2023
        (DreamerV3) for the transformed grid.

    Pitfall:
        The two kinds differ: 51 locations on [-10, 10] are 0.4 apart as atoms and 0.3922 as bins.
    """

    vmin: float
    vmax: float
    num_bins: int
    kind: SupportKind = "atoms"
    tx: Transform | None = None
    unbiased: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible grids."""
        if self.kind not in get_args(SupportKind):
            raise ValueError(f"kind: expected one of {get_args(SupportKind)}, got {self.kind!r}")
        if not (math.isfinite(self.vmin) and math.isfinite(self.vmax) and self.vmin < self.vmax):
            raise ValueError(
                f"vmin, vmax: expected finite vmin < vmax, got {self.vmin} and {self.vmax}"
            )
        if self.num_bins < 2:
            raise ValueError(f"num_bins: expected at least 2, got {self.num_bins}")
        if self.unbiased and (self.tx is None or self.kind != "atoms"):
            raise ValueError(
                f"unbiased: expected a transform and kind 'atoms', got {self.tx} and {self.kind!r}"
            )

    @property
    def spacing(self) -> float:
        """Distance of neighbouring locations before any transform; the width of a bin."""
        parts = self.num_bins - 1 if self.kind == "atoms" else self.num_bins
        return (self.vmax - self.vmin) / parts

    @property
    def centre(self) -> float:
        """Middle of the range before any transform."""
        return 0.5 * (self.vmin + self.vmax)

    @property
    def locations(self) -> Float[Array, " m"]:
        """Increasing values that the probabilities belong to; see `value_of` for their units."""
        grid = jnp.asarray(self.centre + self._offsets(), jnp.float32)
        return self.tx.inverse(grid) if self.unbiased and self.tx is not None else grid

    @property
    def edges(self) -> Float[Array, " m+1"]:
        """Borders of the bins, before any transform; only for "bins"."""
        if self.kind != "bins":
            raise ValueError(f"support: expected kind 'bins', got {self.kind!r}")
        half = (np.arange(self.num_bins + 1) - 0.5 * self.num_bins) * self.spacing
        return jnp.asarray(self.centre + half, jnp.float32)

    def project_units(self, y: Num[Array, "*b"]) -> Float[Array, "*b"]:
        """Takes values into the units of `locations`.

        Args:
            y: values in the environment's units.

        Returns:
            float32, transformed if the support has a transform and is not `unbiased`.
        """
        y = jnp.asarray(y).astype(jnp.float32)
        return y if self.tx is None or self.unbiased else self.tx.forward(y)

    def value_of(self, z: Float[Array, "*b"]) -> Float[Array, "*b"]:
        """Takes numbers in the units of `locations` back into the environment's units.

        Args:
            z: expectations, or the locations themselves.

        Returns:
            Values.
        """
        return z if self.tx is None or self.unbiased else self.tx.inverse(z)

    def expectation(self, probs: Float[Array, "*b m"]) -> Float[Array, "*b"]:
        """sum_i p_i z_i in the units of `locations`.

        Args:
            probs: probabilities, adding up to 1.

        Returns:
            float32 expectations.

        Raises:
            ValueError: if there are not m probabilities.

        Pitfall:
            Summed from one end, equal probabilities leave a rounding error instead of the centre;
            here mirrored pairs are subtracted before they are summed. A dot product would also run
            in bfloat16 on a TPU.
        """
        if probs.shape[-1:] != (self.num_bins,):
            raise ValueError(
                f"probs: expected a last axis of {self.num_bins} bins, got shape {probs.shape}"
            )
        probs = probs.astype(jnp.float32)
        if self.unbiased and self.centre != 0:
            return jnp.sum(probs * jnp.broadcast_to(self.locations, probs.shape), axis=-1)
        half = self.num_bins // 2
        upper = jnp.asarray(self._offsets()[-half:], jnp.float32)  # the lower half mirrors it
        middle: float | Array = self.centre
        if self.unbiased:
            # A mirror image too, if the transform is odd; what it is off by, otherwise.
            grid = self.locations
            upper = 0.5 * (grid - jnp.flip(grid))[-half:]
            off = jnp.broadcast_to(0.5 * (grid + jnp.flip(grid)), probs.shape)
            middle = jnp.sum(probs * off, axis=-1)
        pairs = probs[..., -half:] - jnp.flip(probs[..., :half], axis=-1)
        return middle + jnp.sum(pairs * jnp.broadcast_to(upper, pairs.shape), axis=-1)

    def _offsets(self) -> np.ndarray:
        return (np.arange(self.num_bins) - 0.5 * (self.num_bins - 1)) * self.spacing


def suggest_support(
    returns: Sequence[float] | np.ndarray | jax.Array,
    num_bins: int,
    *,
    margin_bins: float = 3.0,
    tx: Transform | None = None,
) -> Support:
    """Chooses bins for observed returns with room at both ends, on the host.

    Args:
        returns: finite values that the head shall represent, not all equal.
        num_bins: number of bins m.
        margin_bins: bins kept free at either end; HL-Gauss needs three standard deviations, which
            are 2.25 bins at the usual ratio of 0.75.
        tx: transform of the support.

    Returns:
        A support of kind "bins".

    Raises:
        ValueError: if the returns are not finite, have no spread, or leave no bin for themselves.
    """
    values = np.asarray(returns, np.float64)
    if tx is not None:
        values = np.asarray(tx.forward(jnp.asarray(values, jnp.float32)), np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.min() == values.max():
        raise ValueError(f"returns: expected finite, unequal numbers, got {values.size} of them")
    if not 0 <= 2 * margin_bins < num_bins:
        raise ValueError(f"margin_bins: expected 0 to {num_bins / 2} exclusive, got {margin_bins}")
    width = (values.max() - values.min()) / (num_bins - 2 * margin_bins)
    low, high = values.min() - margin_bins * width, values.max() + margin_bins * width
    return Support(float(low), float(high), num_bins, "bins", tx)

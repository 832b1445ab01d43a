"""One value head with many losses: switch the kind, keep everything else."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num

from jaxlab.nets import LayerParams
from jaxlab.values import categorical, quantile
from jaxlab.values.arrays import at_least_float32, check_same_shape, hide, masked_mean
from jaxlab.values.supports import Support

HeadKind = Literal["scalar", "scalar_clip", "mse_softmax", "two_hot", "hl_gauss", "c51", "quantile"]
Metrics = dict[str, Float[Array, ""]]

_CATEGORICAL = ("mse_softmax", "two_hot", "hl_gauss", "c51")
_CROSS_ENTROPY = ("two_hot", "hl_gauss", "c51")
_INIT_SCALE = 0.01


@dataclass(frozen=True)
class ValueHead:
    """The last layer of a value network, with its reading and its loss; hashable.

    Args:
        kind: "scalar" (squared error), "scalar_clip" (targets clipped to the support),
            "mse_softmax" (squared error of the categorical mean: the control for a bounded
            output), "two_hot", "hl_gauss", "c51" (cross-entropy) or "quantile".
        support: grid of the categorical kinds ("hl_gauss" needs bins) and range of "scalar_clip".
            Scalar kinds and "quantile" learn in the units of its transform, and start at its
            centre, as the categorical ones do.
        sigma_ratio: of "hl_gauss", in bin widths.
        num_quantiles: of "quantile".
        kappa: of "quantile".

    Reference:
        Farebrother et al. 2024 (Stop regressing); Dabney et al. 2018 (QR-DQN).

    Pitfall:
        With an ordinary initial scale the arms of a comparison start from different values, and a
        scalar head without bias starts at 0 while a categorical one starts at the centre.
    """

    kind: HeadKind = "scalar"
    support: Support | None = None
    sigma_ratio: float = 0.75
    num_quantiles: int = 51
    kappa: float = 1.0

    def __post_init__(self) -> None:
        """Refuses impossible combinations."""
        if self.kind not in get_args(HeadKind):
            raise ValueError(f"kind: expected one of {get_args(HeadKind)}, got {self.kind!r}")
        if self.support is None:
            if self.kind not in ("scalar", "quantile"):
                raise ValueError(f"support: expected a Support for kind {self.kind!r}, got None")
        elif self.kind == "hl_gauss" and self.support.kind != "bins":
            raise ValueError(f"support: expected kind 'bins', got {self.support.kind!r}")
        elif self.kind not in _CATEGORICAL and self.support.unbiased:
            raise ValueError(f"support: a head of kind {self.kind!r} takes no unbiased support")
        if self.num_quantiles < 1:
            raise ValueError(f"num_quantiles: expected at least 1, got {self.num_quantiles}")

    @property
    def width(self) -> int | None:
        """Numbers per value: None for a scalar kind, which has no axis for them."""
        if self.kind == "quantile":
            return self.num_quantiles
        return self._grid.num_bins if self.kind in _CATEGORICAL else None

    def init(
        self, key: Key[Array, ""], d_model: int, out: int, dtype: jnp.dtype = jnp.float32
    ) -> LayerParams:
        """Draws the layer.

        Args:
            key: random key.
            d_model: length of the features.
            out: values per row, for instance one per action.
            dtype: floating dtype of the parameters.

        Returns:
            kernel[d_model, out * width] of scale 0.01 / sqrt(d_model), and the bias.
        """
        columns = out * (self.width or 1)
        kernel = _INIT_SCALE / math.sqrt(d_model) * jax.random.normal(key, (d_model, columns))
        start = 0.0
        if self.support is not None and self.kind not in _CATEGORICAL:
            start = self.support.centre
        return {"kernel": kernel.astype(dtype), "bias": jnp.full((columns,), start, dtype)}

    def apply(self, params: LayerParams, h: Float[Array, "*b d"]) -> Float[Array, "..."]:
        """Evaluates the layer.

        Args:
            params: from `init`.
            h: features with any leading axes.

        Returns:
            Raw outputs: [..., out] for scalar kinds, [..., out, width] for the others.
        """
        raw = h @ params["kernel"]
        raw = raw + jnp.broadcast_to(params["bias"], raw.shape)
        return raw if self.width is None else raw.reshape(*raw.shape[:-1], -1, self.width)

    def mean(self, raw: Float[Array, "..."]) -> Float[Array, "*b"]:
        """Reads values off raw outputs.

        Args:
            raw: outputs of `apply`.

        Returns:
            Values in the environment's units, at least float32.
        """
        if self.kind in _CATEGORICAL:
            return categorical.categorical_mean(raw, self._grid)
        (raw,) = at_least_float32(raw)
        if self.kind == "quantile":
            return jnp.mean(self._to_value(raw), axis=-1)
        return self._to_value(raw)

    def select(self, raw: Float[Array, "..."], action: Int[Array, "*b"]) -> Float[Array, "..."]:
        """Takes the outputs of one action per row.

        Args:
            raw: outputs of `apply`, one value per action.
            action: indices.

        Returns:
            Outputs without the axis of the actions.

        Raises:
            ValueError: if there is not one action per row.
        """
        axis = raw.ndim - (1 if self.width is None else 2)
        if action.shape != raw.shape[:axis]:
            raise ValueError(f"action: expected shape {raw.shape[:axis]}, got {action.shape}")
        index = action.reshape(*action.shape, *(1,) * (raw.ndim - axis))
        return jnp.squeeze(jnp.take_along_axis(raw, index, axis=axis), axis=axis)

    def loss_per_example(self, raw: Float[Array, "..."], y: Num[Array, "*b"]) -> Float[Array, "*b"]:
        """Loss of every example against a scalar target.

        Args:
            raw: outputs of one value per example.
            y: targets in the environment's units, taken as constants.

        Returns:
            Losses: squared errors (in the transform's units), cross-entropies or quantile losses.

        Raises:
            ValueError: if there is not one target per example.
        """
        y = jax.lax.stop_gradient(at_least_float32(y)[0])
        shape = raw.shape if self.width is None else raw.shape[:-1]
        if y.shape != shape:
            raise ValueError(f"y: expected shape {shape}, got {y.shape}")
        if self.kind in _CROSS_ENTROPY:
            return categorical.categorical_value_loss_per_example(raw, self._project(y))
        if self.kind == "quantile":
            return self._quantile_loss(raw, self._to_units(y)[..., None])
        if self.kind == "mse_softmax":
            probs = jax.nn.softmax(raw.astype(jnp.float32), axis=-1)
            return (self._grid.expectation(probs) - self._to_units(y)) ** 2
        target = self._to_units(y)
        if self.kind == "scalar_clip":
            target = jnp.clip(target, self._grid.vmin, self._grid.vmax)
        raw, target = at_least_float32(raw, target)
        return (raw - target) ** 2

    def loss(
        self, raw: Float[Array, "..."], y: Num[Array, "*b"], mask: ArrayLike | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss against scalar targets.

        Args:
            raw: outputs of one value per example.
            y: targets in the environment's units, taken as constants.
            mask: examples that count; None for all.

        Returns:
            The loss, and "td_error" (root mean square, whatever the kind) with "edge_fraction" for
            "hl_gauss".
        """
        raw, y = hide(mask, raw, jnp.asarray(y))
        (target,) = at_least_float32(y)
        loss = masked_mean(self.loss_per_example(raw, y), mask)
        error = self.mean(raw) - target.astype(self.mean(raw).dtype)
        metrics = {"td_error": jnp.sqrt(masked_mean(error**2, mask))}
        if self.kind == "hl_gauss":
            metrics["edge_fraction"] = categorical.edge_fraction(
                y, self._grid, self.sigma_ratio, mask
            )
        return loss, jax.lax.stop_gradient(metrics)

    def bootstrap_loss(
        self,
        raw: Float[Array, "..."],
        r: Num[Array, "*b"],
        discount: Num[Array, "*b"],
        raw_next: Float[Array, "..."],
        mask: ArrayLike | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss against the one-step target that the kind bootstraps with.

        The distributional kinds "c51" and "quantile" move the next state's whole distribution; the
        others take its mean first, which for "hl_gauss" is the method.

        Args:
            raw: outputs of one value per example.
            r: rewards.
            discount: gamma (1 - terminated).
            raw_next: outputs for the next state and its chosen action, taken as constants.
            mask: examples that count; None for all.

        Returns:
            The loss, and the metrics of `loss`.
        """
        r, discount = at_least_float32(r, discount)
        check_same_shape(r=r, discount=discount)
        raw, r, discount, raw_next = hide(mask, raw, r, discount, raw_next)
        y = r + discount * self.mean(raw_next).astype(r.dtype)
        loss, metrics = self.loss(raw, y, mask)
        if self.kind == "c51":
            target = categorical.c51_target(r, discount, raw_next, self._grid)
            loss, _ = categorical.categorical_value_loss(raw, target, mask)
        elif self.kind == "quantile":
            following = self._to_value(at_least_float32(raw_next)[0])
            moved = r[..., None] + discount[..., None] * following
            loss = masked_mean(self._quantile_loss(raw, self._to_units(moved)), mask)
        return loss, metrics

    @property
    def _grid(self) -> Support:
        if self.support is None:
            raise ValueError(f"support: a head of kind {self.kind!r} has none")
        return self.support

    def _project(self, y: Array) -> Array:
        if self.kind == "hl_gauss":
            return categorical.hl_gauss(y, self._grid, self.sigma_ratio)
        return categorical.two_hot(y, self._grid)

    def _quantile_loss(self, raw: Array, target: Array) -> Array:
        tau = jnp.broadcast_to(quantile.quantile_midpoints(self.num_quantiles), raw.shape)
        return quantile.quantile_huber_loss_per_example(raw, tau, target, self.kappa)

    def _to_units(self, y: Array) -> Array:
        return y if self.support is None else self.support.project_units(y)

    def _to_value(self, z: Array) -> Array:
        return z if self.support is None else self.support.value_of(z)

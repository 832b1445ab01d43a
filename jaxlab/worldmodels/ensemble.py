"""Ensembles of (Gaussian) one-step dynamics networks with a bounded log-variance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jaxlab import nets

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}
_BOUND_WEIGHT = 0.01


@dataclass(frozen=True)
class EnsembleConfig:
    """Architecture of a dynamics ensemble; hashable, closed over by jitted code.

    Targets are the observation's change and, with `predict_reward`, the reward as last output.
    """

    members: int = 7
    elites: int = 5
    hidden: tuple[int, ...] = (200, 200, 200, 200)
    activation: Literal["silu", "relu", "tanh"] = "silu"
    deterministic: bool = False  # mean only: no log-variance head
    min_logvar: float = -10.0
    max_logvar: float = 0.5
    learn_bounds: bool = True
    predict_reward: bool = True
    normalize_targets: bool = True
    # One coefficient, or one per layer: PETS has (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4).
    weight_decay: float | tuple[float, ...] = 5e-5

    def __post_init__(self) -> None:
        """Refuses impossible settings."""
        if not 1 <= self.elites <= self.members:
            raise ValueError(f"elites: expected 1 to {self.members} (members), got {self.elites}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {sorted(_ACTIVATIONS)}, got {self.activation!r}"
            )
        if not self.min_logvar < self.max_logvar:
            raise ValueError(
                "min_logvar: expected less than max_logvar, "
                f"got {self.min_logvar} and {self.max_logvar}"
            )
        layers = len(self.hidden) + 1
        if isinstance(self.weight_decay, tuple) and len(self.weight_decay) != layers:
            raise ValueError(
                f"weight_decay: expected one number or {layers} (one per layer), "
                f"got {len(self.weight_decay)}"
            )


class EnsembleParams(NamedTuple):
    """Learned parameters; a leading member axis E on every leaf, none for a single member."""

    net: nets.MLPParams
    min_logvar: Float[Array, "E d"] | None  # None if deterministic
    max_logvar: Float[Array, "E d"] | None


@flax.struct.dataclass
class ModelState:
    """Everything that a dynamics model learns, warm-started from fit to fit."""

    params: EnsembleParams
    opt_state: optax.OptState  # Adam's moments, stacked as the parameters
    input_normalizer: nets.Normalizer  # of [obs, action]
    target_normalizer: nets.Normalizer  # of [next_obs - obs, reward]; identity if switched off
    elites: Int[Array, " K"]  # members of lowest holdout score, best first


OPTIMIZER = optax.scale_by_adam()


def init(key: Key[Array, ""], config: EnsembleConfig, obs_dim: int, action_dim: int) -> ModelState:
    """Draws an untrained ensemble.

    Args:
        key: random key.
        config: architecture.
        obs_dim: length o of an observation.
        action_dim: length a of an action.

    Returns:
        The model's state; normalisers are the identity until the first fit.

    Raises:
        ValueError: if a dimension is not positive.

    Reference:
        Chua et al. 2018 (PETS); Janner et al. 2019 (MBPO).

    Pitfall:
        Log-variance bounds that all members share, tie the members' training together; here
        every member has its own, so that a member's training never depends on the others.
    """
    if obs_dim < 1 or action_dim < 1:
        raise ValueError(
            f"obs_dim, action_dim: expected positive lengths, got {obs_dim} and {action_dim}"
        )
    dim = obs_dim + int(config.predict_reward)
    outputs = dim if config.deterministic else 2 * dim
    sizes = (obs_dim + action_dim, *config.hidden, outputs)
    net = nets.ensemble_init(key, config.members, sizes, kernel_scale=nets.PETS_SCALE)
    low = high = None
    if not config.deterministic:
        low = jnp.full((config.members, dim), config.min_logvar, jnp.float32)
        high = jnp.full((config.members, dim), config.max_logvar, jnp.float32)
    params = EnsembleParams(net=net, min_logvar=low, max_logvar=high)
    return ModelState(
        params=params,
        opt_state=OPTIMIZER.init(params),
        input_normalizer=nets.identity_normalizer(obs_dim + action_dim),
        target_normalizer=nets.identity_normalizer(dim),
        elites=jnp.arange(config.elites, dtype=jnp.int32),
    )


def bound_logvar(
    raw: Float[Array, "*b d"], low: Float[Array, " d"], high: Float[Array, " d"]
) -> Float[Array, "*b d"]:
    """Squashes a log-variance softly between two bounds.

    Args:
        raw: unbounded log-variance.
        low: lower bounds; the result is never below them.
        high: upper bounds; passed by at most log(1 + exp(low - high)).

    Returns:
        Bounded log-variance, with non-zero gradients within float range.

    Reference:
        Chua et al. 2018 (PETS), appendix A.1.
    """
    low = jnp.broadcast_to(low, raw.shape)
    high = jnp.broadcast_to(high, raw.shape)
    capped = high - jax.nn.softplus(high - raw)
    return low + jax.nn.softplus(capped - low)


def forward(
    params: EnsembleParams, config: EnsembleConfig, x: Float[Array, "*b i"]
) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"] | None]:
    """Evaluates one member in normalised units.

    Args:
        params: one member's parameters (no member axis).
        config: architecture.
        x: normalised [obs, action].

    Returns:
        Mean and log-variance (None if deterministic) of the normalised target.
    """
    out = nets.mlp_apply(params.net, x, _ACTIVATIONS[config.activation])
    if params.min_logvar is None or params.max_logvar is None:
        return out, None
    mean, raw = jnp.split(out, 2, axis=-1)
    low, high = params.min_logvar, params.max_logvar
    if not config.learn_bounds:
        low, high = jax.lax.stop_gradient((low, high))
    return mean, bound_logvar(raw, low, high)


def regulariser(params: EnsembleParams, config: EnsembleConfig) -> Float[Array, ""]:
    """One member's penalty: bounds' width and weight decay coupled to the loss.

    Args:
        params: one member's parameters (no member axis).
        config: architecture and coefficients.

    Returns:
        0.01 (sum max_logvar - sum min_logvar) + sum_k decay_k / 2 |kernel_k|^2.

    Reference:
        Chua et al. 2018 (PETS). Decoupled decay (AdamW) is another method.
    """
    decays = config.weight_decay
    if not isinstance(decays, tuple):
        decays = (decays,) * len(params.net)
    penalty = jnp.zeros((), params.net[0]["kernel"].dtype)
    for decay, layer in zip(decays, params.net):
        penalty += 0.5 * decay * jnp.sum(layer["kernel"] ** 2)
    if config.learn_bounds and params.min_logvar is not None and params.max_logvar is not None:
        penalty += _BOUND_WEIGHT * (jnp.sum(params.max_logvar) - jnp.sum(params.min_logvar))
    return penalty


def apply(
    state: ModelState,
    config: EnsembleConfig,
    obs: Float[Array, "*b o"],
    action: Float[Array, "*b a"],
) -> tuple[Float[Array, "E *b d"], Float[Array, "E *b d"] | None]:
    """Predicts the target's distribution with every member, in the environment's units.

    Args:
        state: the model.
        config: architecture.
        obs: observations.
        action: actions in [-1, 1].

    Returns:
        Mean and log-variance (None if deterministic) of [next_obs - obs, reward].

    Raises:
        ValueError: if obs or action does not have the model's dimensions.
    """
    obs_dim = state.target_normalizer.mean.shape[-1] - int(config.predict_reward)
    expected = (obs_dim, state.input_normalizer.mean.shape[-1] - obs_dim)
    if (obs.shape[-1], action.shape[-1]) != expected:
        raise ValueError(
            f"obs, action: expected {expected[0]} and {expected[1]} dimensions, "
            f"got {obs.shape[-1]} and {action.shape[-1]}"
        )
    x = nets.normalize(state.input_normalizer, jnp.concatenate([obs, action], axis=-1))
    # Fast but coarse accelerator matmuls would drown changes of 1e-4 per step.
    with jax.default_matmul_precision("float32"):
        mean, logvar = jax.vmap(lambda p: forward(p, config, x))(state.params)
    if logvar is not None:
        shift = 2 * jnp.log(state.target_normalizer.std)
        logvar = logvar + jnp.broadcast_to(shift, logvar.shape)
    return nets.denormalize(state.target_normalizer, mean), logvar

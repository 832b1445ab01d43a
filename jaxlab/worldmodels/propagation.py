"""From an ensemble's predictions to sampled next states."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab.arrays import safe_sqrt
from jaxlab.worldmodels.ensemble import EnsembleConfig, ModelState, apply
from jaxlab.worldmodels.uncertainty import Uncertainty, uncertainty

Propagation = Literal["ts1", "ts_inf", "expectation"]
StepFn = Callable[
    [Key[Array, ""], Float[Array, "*b o"], Float[Array, "*b a"]],
    tuple[Float[Array, "*b o"], Float[Array, "*b"], Bool[Array, "*b"], dict[str, Any]],
]


def propagate(
    key: Key[Array, ""],
    mean: Float[Array, "E *b d"],
    logvar: Float[Array, "E *b d"] | None,
    elites: Int[Array, " K"],
    mode: Propagation = "ts1",
    particle_member: Int[Array, "*b"] | None = None,
) -> Float[Array, "*b d"]:
    """Draws one outcome per row from the elites' predictions.

    Args:
        key: random key.
        mean: every member's mean.
        logvar: every member's log-variance; None for a deterministic ensemble.
        elites: members to draw from.
        mode: "ts1" draws an elite per row and call; "ts_inf" uses `particle_member`, drawn once per
            particle and kept by the caller; "expectation" averages the elites' means, no noise.
        particle_member: positions in `elites` (0 to K - 1), one per row; "ts_inf" only.

    Returns:
        One sample (or the average mean) per row.

    Raises:
        ValueError: if the mode is unknown, or `particle_member` is missing or superfluous.

    Reference:
        Chua et al. 2018 (PETS), section 4: trajectory sampling TS1 and TS-infinity.
    """
    if mode not in ("ts1", "ts_inf", "expectation"):
        raise ValueError(f"mode: expected 'ts1', 'ts_inf' or 'expectation', got {mode!r}")
    if (particle_member is not None) != (mode == "ts_inf"):
        raise ValueError(
            "particle_member: expected with mode 'ts_inf' and only there, "
            f"got {None if particle_member is None else particle_member.shape} with {mode!r}"
        )
    if mode == "expectation":
        return jnp.mean(mean[elites], axis=0)
    member_key, noise_key = jax.random.split(key)
    if particle_member is None:
        particle_member = jax.random.randint(member_key, mean.shape[1:-1], 0, elites.shape[0])
    row_member = elites[particle_member][None, ..., None]
    chosen = jnp.take_along_axis(mean, row_member, axis=0)[0]
    if logvar is None:
        return chosen
    std = jnp.exp(0.5 * jnp.take_along_axis(logvar, row_member, axis=0)[0])
    return chosen + std * jax.random.normal(noise_key, chosen.shape, chosen.dtype)


def total_variance(
    mean: Float[Array, "E *b d"], logvar: Float[Array, "E *b d"] | None
) -> tuple[Float[Array, "*b d"], Float[Array, "*b d"]]:
    """Splits the equal mixture's variance by the law of total variance.

    Args:
        mean: every member's mean.
        logvar: every member's log-variance; None for a deterministic ensemble.

    Returns:
        Aleatoric part, mean_e exp(logvar_e), and epistemic part, var_e(mean_e); they add up.
    """
    epistemic = jnp.var(mean, axis=0)
    if logvar is None:
        return jnp.zeros_like(epistemic), epistemic
    return jnp.mean(jnp.exp(logvar), axis=0), epistemic


def make_step_fn(
    state: ModelState,
    config: EnsembleConfig,
    termination_fn: Callable[[Array, Array, Array], Bool[Array, "*b"]],
    reward_fn: Callable[[Array, Array, Array], Float[Array, "*b"]] | None = None,
    *,
    mode: Propagation = "ts1",
    particle_member: Int[Array, "*b"] | None = None,
    penalty: Uncertainty | None = None,
) -> StepFn:
    """Turns a model into an environment step of the elites alone.

    Args:
        state: the model.
        config: architecture.
        termination_fn: given rule (obs, action, next_obs) -> bool; never learned.
        reward_fn: given rule (obs, action, next_obs) -> reward; None takes the model's reward.
        mode: see `propagate`.
        particle_member: see `propagate`.
        penalty: kind of `uncertainty` to report; None for none.

    Returns:
        step(key, obs, action) -> (next_obs, reward, terminated, info), over any leading axes.
        `info["disagreement"]`: root mean square over outputs of the elites' standard deviation, in
        units of the targets' standard deviation. `info["uncertainty"]`: of the elites, if asked.

    Raises:
        ValueError: if nothing gives a reward.
    """
    if reward_fn is None and not config.predict_reward:
        raise ValueError("reward_fn: expected a function, for the model predicts no reward")
    # Gathered once, so that a scan over steps neither repeats it nor evaluates the other members.
    elite = dataclasses.replace(
        state, params=jax.tree.map(lambda leaf: leaf[state.elites], state.params)
    )
    elites = jnp.arange(config.elites, dtype=jnp.int32)

    def step(key: Array, obs: Array, action: Array) -> tuple[Array, Array, Array, dict[str, Any]]:
        mean, logvar = apply(elite, config, obs, action)
        outcome = propagate(key, mean, logvar, elites, mode, particle_member)
        next_obs = obs + outcome[..., : obs.shape[-1]]
        reward = outcome[..., -1] if reward_fn is None else reward_fn(obs, action, next_obs)
        variance = total_variance(mean, None)[1]
        scale = jnp.broadcast_to(state.target_normalizer.std, variance.shape)
        info = {"disagreement": safe_sqrt(jnp.mean(variance / scale**2, axis=-1))}
        if penalty is not None:
            info["uncertainty"] = uncertainty(mean, logvar, penalty)
        return next_obs, reward, termination_fn(obs, action, next_obs), info

    return step

"""Advantages of sampled completions; all are constants of differentiation."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxlab import values as value_functions
from jaxlab.posttrain.masking import masked_var, masked_whiten, select
from jaxlab.values import affine_reverse_scan

Scale = Literal["group", "batch", "none"]


def _groups(rewards: Array, group: int) -> tuple[Array, Array, Array]:
    """Rewards [N, G], 1 where a reward is a number, and the number of those per group [N, 1]."""
    if rewards.ndim != 1 or group < 1 or rewards.shape[0] % group:
        raise ValueError(
            f"rewards: expected [B] with B a multiple of group {group}, got shape {rewards.shape}"
        )
    table = jax.lax.stop_gradient(rewards.astype(jnp.float32)).reshape(-1, group)
    scored = (~jnp.isnan(table)).astype(jnp.float32)
    return jnp.where(scored > 0, table, 0), scored, jnp.sum(scored, axis=1, keepdims=True)


def _centred(rewards: Array, group: int, tolerance: float) -> tuple[Array, Array, Array]:
    """Rewards minus their group's mean, exactly 0 in groups of equal rewards; mask and counts."""
    table, scored, count = _groups(rewards, group)
    mean = jnp.sum(table, axis=1, keepdims=True) / jnp.maximum(count, 1)
    highest = jnp.max(jnp.where(scored > 0, table, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(scored > 0, table, jnp.inf), axis=1, keepdims=True)
    counts = (scored > 0) & (highest - lowest > tolerance)
    return jnp.where(counts, table - mean, 0), scored, count


def grpo_advantages(
    rewards: Num[Array, " B"],
    group: int,
    *,
    scale: Scale = "group",
    ddof: int = 1,
    eps: float = 1e-4,
    tolerance: float = 1e-6,
) -> Float[Array, " B"]:
    """Rewards relative to their group, in units of a standard deviation.

    Args:
        rewards: one per completion; NaN for one that cannot be scored.
        group: completions per prompt.
        scale: "group": the group's deviation; "batch": that of all rewards; "none": no scaling.
        ddof: 1 for the unbiased deviation.
        eps: added to the deviation.
        tolerance: groups whose rewards differ by no more than this have advantage exactly 0.

    Returns:
        Advantages, 0 for NaN rewards.

    Raises:
        ValueError: groups that do not fit, or an unknown scale.

    Reference: Shao et al. 2024, DeepSeekMath, eq. 3.

    Pitfall: equal rewards have a tiny deviation in float32, which would blow up rounding errors.
    """
    if scale not in get_args(Scale):
        raise ValueError(f"scale: expected one of {', '.join(get_args(Scale))}, got {scale!r}")
    centred, scored, count = _centred(rewards, group, tolerance)
    if scale == "group":
        variance = jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - ddof, 1)
        centred = centred / (jnp.sqrt(variance) + eps)
    elif scale == "batch":
        table, _, _ = _groups(rewards, group)
        centred = centred / (jnp.sqrt(masked_var(table, scored, ddof)) + eps)
    return centred.reshape(-1)


def dr_grpo_advantages(rewards: Num[Array, " B"], group: int) -> Float[Array, " B"]:
    """Rewards minus the mean of their group, which contains them.

    Args:
        rewards: one per completion; NaN for one that cannot be scored.
        group: completions per prompt.

    Returns:
        Advantages; the gradient they estimate is (1 - 1/G) times the true one.

    Reference: Liu et al. 2025, Understanding R1-Zero-Like Training, eq. 4.
    """
    return grpo_advantages(rewards, group, scale="none")


def rloo_advantages(rewards: Num[Array, " B"], group: int) -> Float[Array, " B"]:
    """Rewards minus the mean of the others in their group.

    Args:
        rewards: one per completion; NaN for one that cannot be scored.
        group: completions per prompt.

    Returns:
        Advantages, exactly unbiased; 0 where there are no others.

    Reference: Kool et al. 2019, Buy 4 REINFORCE Samples, Get a Baseline for Free!
    """
    centred, _, count = _centred(rewards, group, 0.0)
    return (centred * count / jnp.maximum(count - 1, 1)).reshape(-1)


def returns_to_go(
    rewards: Num[Array, "B T"], mask: Num[Array, "B T"], gamma: float | Float[Array, ""] = 1.0
) -> Float[Array, "B T"]:
    """Discounted sums of the rewards from each token on; tokens that do not count take no time.

    Args:
        rewards: per token.
        mask: 1 where the policy chose the token.
        gamma: discount per chosen token.

    Returns:
        Returns, 0 where nothing counts.
    """
    factor = jnp.where(mask > 0, gamma, 1.0).astype(jnp.float32)
    summed = affine_reverse_scan(
        factor.T, select(rewards, mask).T, jnp.zeros(mask.shape[0], jnp.float32)
    ).T
    return jax.lax.stop_gradient(select(summed, mask))


def reinforce_pp_advantages(
    rewards: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    gamma: float | Float[Array, ""] = 1.0,
    *,
    baseline_group: int | None = None,
) -> Float[Array, "B T"]:
    """Returns to go, whitened over the whole batch.

    Args:
        rewards: per token; NaN in a row that cannot be scored.
        mask: 1 where the policy chose the token.
        gamma: discount per chosen token; without a `baseline_group`.
        baseline_group: every token gets the total reward of its row, minus the mean of each group
            of so many rows, in place of its return to go.

    Returns:
        Advantages per token, 0 in rows that cannot be scored.

    Reference: Hu 2025, REINFORCE++, eq. 5 and 6.
    """
    totals = jnp.sum(select(rewards, mask), axis=1)
    mask = jnp.where(jnp.isnan(totals)[:, None], jnp.zeros_like(mask), mask)
    if baseline_group is not None:
        centred = dr_grpo_advantages(totals, baseline_group)
        spread = jnp.broadcast_to(centred[:, None], mask.shape)
        return jax.lax.stop_gradient(masked_whiten(spread, mask))
    return jax.lax.stop_gradient(masked_whiten(returns_to_go(rewards, mask, gamma), mask))


def terminal_rewards(rewards: Num[Array, " B"], mask: Num[Array, "B T"]) -> Float[Array, "B T"]:
    """Puts each completion's reward on its last chosen token, which is its stop token.

    Args:
        rewards: one per completion.
        mask: 1 where the policy chose the token.

    Returns:
        Rewards per token.
    """
    place = jnp.arange(mask.shape[1])[None, :]
    last = jnp.max(jnp.where(mask > 0, place, -1), axis=1, keepdims=True)
    return jnp.where(place == last, rewards[:, None].astype(jnp.float32), 0)


def gae(
    rewards: Num[Array, "B T"],
    values: Num[Array, "B T"],
    mask: Num[Array, "B T"],
    gamma: float | Float[Array, ""] = 1.0,
    lam: float | Float[Array, ""] = 0.95,
    *,
    bootstrap: Num[Array, " B"] | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantage estimates over chosen tokens; others are stepped over.

    Args:
        rewards: per token.
        values: of the state in which each token was chosen.
        mask: 1 where the policy chose the token.
        gamma: discount per chosen token.
        lam: trade-off between bias and variance.
        bootstrap: value behind the last token of truncated rows, 0 for the others; None for zeros.

    Returns:
        Advantages, not whitened, and returns (advantages plus values); both constants, 0 where
        nothing counts.

    Reference: Schulman et al. 2016, High-dimensional continuous control using GAE, eq. 16.
    """
    chosen = mask > 0
    clean = select(values, mask)
    end = jnp.zeros(mask.shape[0]) if bootstrap is None else bootstrap
    end = end.astype(jnp.float32)
    # The value of the next chosen token: carried backwards over what lies between.
    carried = affine_reverse_scan((~chosen).astype(jnp.float32).T, clean.T, end).T
    following = jnp.concatenate([carried[:, 1:], end[:, None]], axis=1)

    def one(r: Array, v: Array, v_next: Array, takes_part: Array) -> Array:
        discount = jnp.where(takes_part, gamma, 1.0).astype(jnp.float32)
        trace = jnp.where(takes_part, lam, 1.0).astype(jnp.float32)
        return value_functions.gae(r, discount, jnp.where(takes_part, v, v_next), v_next, trace)

    advantage = jax.vmap(one)(select(rewards, mask), clean, following, chosen)
    advantage = select(advantage, mask)
    return jax.lax.stop_gradient((advantage, select(advantage + clean, mask)))


def step_advantages(q: Num[Array, "B S"], value: Num[Array, " B"]) -> Float[Array, "B S"]:
    """What each step adds to the probability of success: Q_i - Q_{i-1}, Q_0 = V.

    Args:
        q: value after each step.
        value: of the question.

    Returns:
        Advantages per step.
    """
    q = q.astype(jnp.float32)
    before = jnp.concatenate([value[:, None].astype(jnp.float32), q[:, :-1]], axis=1)
    return jax.lax.stop_gradient(q - before)


def broadcast_steps(advantages: Num[Array, "B S"], step: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Gives every token the advantage of its step.

    Args:
        advantages: per step.
        step: which step a token belongs to; outside of [0, S) for none.

    Returns:
        Advantages per token.
    """
    size = advantages.shape[1]
    chosen = jnp.take_along_axis(advantages, jnp.clip(step, 0, size - 1), axis=1)
    return jnp.where((step >= 0) & (step < size), chosen, 0).astype(jnp.float32)

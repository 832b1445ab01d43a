"""Factored one-step models of binary observations: every next bit is an independent coin."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxlab import nets
from jaxlab.worldmodels.losses import Metrics

Sampling = Literal["bernoulli", "threshold"]


class BernoulliParams(NamedTuple):
    """Three perceptrons on [obs, one-hot action]."""

    next_obs: nets.MLPParams
    reward: nets.MLPParams
    continues: nets.MLPParams | None  # None for a task that never ends


class BernoulliPrediction(NamedTuple):
    """Distributions of what follows."""

    next_obs: Float[Array, "*b o"]  # logits
    reward: Float[Array, "*b"]  # mean of a Gaussian of unit variance
    continues: Float[Array, "*b"] | None  # logit; None for a task that never ends


def init(
    key: Key[Array, ""], obs_dim: int, actions: int, hidden: tuple[int, ...], episodic: bool
) -> BernoulliParams:
    """Draws an untrained model.

    Args:
        key: random key.
        obs_dim: bits o of an observation.
        actions: number of actions A.
        hidden: widths of each perceptron's hidden layers.
        episodic: whether the task can end.

    Returns:
        Parameters.
    """
    keys = jax.random.split(key, 3)
    one, other, last = (
        nets.mlp_init(k, (obs_dim + actions, *hidden, outputs))
        for k, outputs in zip(keys, (obs_dim, 1, 1))
    )
    return BernoulliParams(one, other, last if episodic else None)


def apply(
    params: BernoulliParams, obs: Float[Array, "*b o"], action: Int[Array, "*b"]
) -> BernoulliPrediction:
    """Predicts the next observation, the reward and whether the task goes on.

    Args:
        params: the model.
        obs: bits.
        action: indices.

    Returns:
        The predicted distributions.
    """
    actions = params.reward[0]["kernel"].shape[0] - obs.shape[-1]
    x = jnp.concatenate([obs, jax.nn.one_hot(action, actions, dtype=obs.dtype)], axis=-1)
    reward = nets.mlp_apply(params.reward, x, jax.nn.elu)[..., 0]
    continues = None
    if params.continues is not None:
        continues = nets.mlp_apply(params.continues, x, jax.nn.elu)[..., 0]
    return BernoulliPrediction(nets.mlp_apply(params.next_obs, x, jax.nn.elu), reward, continues)


def negative_log_likelihood(
    prediction: BernoulliPrediction,
    next_obs: Float[Array, "*b o"],
    reward: Float[Array, "*b"],
    terminated: Bool[Array, "*b"],
) -> tuple[Float[Array, ""], Metrics]:
    """Bits' and continuation's cross-entropies plus the reward's Gaussian term, in nats.

    Args:
        prediction: of `apply`.
        next_obs: bits that followed; those after a termination do not count.
        reward: rewards.
        terminated: whether the task ended.

    Returns:
        The mean over rows of their sum, and its parts "obs_nll", "reward_nll", "continues_nll".

    Reference:
        Young et al. 2023, The Benefits of Model-Based Generalization in RL, section 4 (simple).
    """
    bits = _cross_entropy(prediction.next_obs, next_obs)
    obs_nll = jnp.mean(jnp.where(terminated, 0.0, jnp.sum(bits, axis=-1)))
    squared = 0.5 * (reward - prediction.reward) ** 2
    reward_nll = jnp.mean(squared) + 0.5 * math.log(2 * math.pi)
    metrics = {"obs_nll": obs_nll, "reward_nll": reward_nll}
    loss = obs_nll + reward_nll
    if prediction.continues is not None:
        goes_on = 1.0 - terminated.astype(jnp.float32)
        metrics["continues_nll"] = jnp.mean(_cross_entropy(prediction.continues, goes_on))
        loss += metrics["continues_nll"]
    return loss, jax.lax.stop_gradient(metrics)


def make_soft_step(
    params: BernoulliParams, sampling: Sampling = "bernoulli"
) -> Callable[..., tuple[Float[Array, "B o"], Float[Array, " B"], Float[Array, " B"]]]:
    """Turns a model into a step for `soft_rollout`.

    Args:
        params: the model.
        sampling: "bernoulli" draws every bit; "threshold" takes the likelier value.

    Returns:
        (key, obs[B, o], action[B]) -> next bits, mean reward, probability that the task goes on.

    Raises:
        ValueError: if the sampling is unknown.

    Pitfall:
        A logit is no probability: drawing bits with the logit itself as their probability is
        nearly a threshold, and what happens seldom is never imagined.
    """
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling: expected one of {get_args(Sampling)}, got {sampling!r}")

    def step(key: Key[Array, ""], obs: Array, action: Array) -> tuple[Any, Array, Array]:
        prediction = apply(params, obs, action)
        logits = prediction.next_obs
        if sampling == "bernoulli":
            bits = jax.random.uniform(key, logits.shape, logits.dtype) < jax.nn.sigmoid(logits)
        else:
            bits = logits > 0
        continues = jnp.ones_like(prediction.reward)
        if prediction.continues is not None:
            continues = jax.nn.sigmoid(prediction.continues)
        return bits.astype(obs.dtype), prediction.reward, continues

    return step


def _cross_entropy(logits: Float[Array, "*b"], bits: Float[Array, "*b"]) -> Float[Array, "*b"]:
    return jax.nn.softplus(logits) - bits * logits

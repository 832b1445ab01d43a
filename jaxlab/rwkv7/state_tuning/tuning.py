"""Learning the state before the first token, all weights frozen.

The gradient is the one that the recurrence's kernel has for its initial state. What was learned
becomes an ordinary `State` (`learned_state`), which every function of the model starts from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.rwkv7.config import Config
from jaxlab.rwkv7.initialization import Params
from jaxlab.rwkv7.model import receptances_and_keys
from jaxlab.rwkv7.optimization import OptimizerState, learning_rate_schedule
from jaxlab.rwkv7.state import State, initial_state
from jaxlab.rwkv7.state_tuning.decorrelation import Decorrelation, Scalar, dbp_update
from jaxlab.rwkv7.upscaling import UPSCALING, kernel_features, upscaled


class Tuned(NamedTuple):
    """What is learned; a part that is None is neither learned nor used."""

    wkv: Float[Array, "L H N N"] | None
    enlarged: Float[Array, "L H M M"] | None = None
    writing: Float[Array, " L"] | None = None  # zeta of `Upscaling`
    att_shift: Float[Array, "L C"] | None = None
    ffn_shift: Float[Array, "L C"] | None = None


class Batch(NamedTuple):
    """Sequences to learn from.

    With samples of the model's own as sequences and their advantages as weights the gradient is
    that of REINFORCE, the third term of test-time tuning.
    """

    tokens: Int[Array, "B T+1"]
    weight: Float[Array, "B T"]  # of predicting tokens[:, 1:]; 0 on prompts and padding
    reset: Bool[Array, "B T"] | None = None  # packing: a new sequence starts at this token
    teacher: Float[Array, "B T V"] | None = None  # logits of a guide


class Tuning(NamedTuple):
    """A tuning on its way."""

    tuned: Tuned
    moments: Any
    decorrelation: Float[Array, "L H M M"] | None


def init_tuned_state(
    config: Config,
    upscaling: int = 0,
    *,
    base: bool = True,
    tune_shift: bool = False,
) -> Tuned:
    """The state that changes nothing: zeros.

    Args:
        config: sizes.
        upscaling: M of the second state, 0 without one.
        base: learn the state of the first recurrence.
        tune_shift: learn the token shifts too; off in the field, and files have no room for them.

    Returns:
        What is to be learned.
    """
    lead = (config.n_layer, config.n_head)
    shift = jnp.zeros((config.n_layer, config.n_embd)) if tune_shift else None
    size = config.head_size
    return Tuned(
        jnp.zeros((*lead, size, size)) if base else None,
        jnp.zeros((*lead, upscaling, upscaling)) if upscaling else None,
        jnp.zeros(config.n_layer) if upscaling else None,
        shift,
        shift,
    )


def learned_state(
    tuned: Tuned,
    config: Config,
    alpha: Scalar = 1.0,
    decorrelation: Float[Array, "L H M M"] | None = None,
) -> State:
    """What was learned as a state without a batch axis, for `initial_state` and `reset_state`.

    Args:
        tuned: differentiable.
        config: sizes.
        alpha: factor on the matrix states at use; 0 disables them.
        decorrelation: R of the second state: S0_eff = S0 R, whose gradient is that of S0_eff times
            R^T; the identity if None.

    Returns:
        The state; parts that are not learned are zero, but the second one, which is None.
    """
    zero = jax.tree.map(lambda leaf: leaf[:, 0], initial_state(config, 1))
    enlarged = tuned.enlarged
    if enlarged is not None and decorrelation is not None:
        enlarged = enlarged @ decorrelation
    return State(
        zero.att_shift if tuned.att_shift is None else tuned.att_shift.astype(config.dtype),
        zero.wkv if tuned.wkv is None else alpha * tuned.wkv,
        zero.ffn_shift if tuned.ffn_shift is None else tuned.ffn_shift.astype(config.dtype),
        None if enlarged is None else alpha * enlarged,
    )


def tuned_model(params: Params, tuned: Tuned) -> Params:
    """The model with the learned strength of writing into its second state.

    Args:
        params: those of `upscaled` if there is a second state; constants from here on.
        tuned: what was learned.

    Returns:
        Parameters; the same ones without a second state.

    Raises:
        ValueError: a second state for a model that has none.
    """
    params = jax.lax.stop_gradient(params)
    if tuned.writing is None:
        return params
    if UPSCALING not in params["blocks"]:
        raise ValueError("params: expected those of `upscaled`, got a model without a second state")
    return upscaled(params, params["blocks"][UPSCALING]._replace(writing=tuned.writing))


def state_tuning_loss(
    tuned: Tuned,
    params: Params,
    config: Config,
    batch: Batch,
    *,
    alpha: Scalar = 1.0,
    l2: Scalar = 0.0,
    beta: Scalar = 0.0,
    decorrelation: Float[Array, "L H M M"] | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Cross-entropy of the weighted tokens as a function of the learned state alone.

    Args:
        tuned: what is learned.
        params: frozen: their gradient is exactly zero.
        config: sizes.
        batch: sequences.
        alpha: see `learned_state`.
        l2: weight of the sum of squares of what is learned.
        beta: weight of KL(guide || model), for batches with a guide.
        decorrelation: see `learned_state`.
        impl: see `forward`.

    Returns:
        The loss, and "nll" and "accuracy" of the tokens that count and "seen", what every state
        was read and written with (see `receptances_and_keys`).

    Pitfall: weights on prompt tokens teach the state the distribution of prompts.
    """
    model = tuned_model(params, tuned)
    start = learned_state(tuned, config, alpha, decorrelation)
    logits, seen = receptances_and_keys(
        model,
        config,
        batch.tokens[:, :-1],
        initial_state(config, batch.tokens.shape[0], start),
        batch.reset,
        reset_state=None if batch.reset is None else start,
        impl=impl,
    )
    targets, counts = batch.tokens[:, 1:], batch.weight != 0
    log_p = jax.nn.log_softmax(jnp.where(counts[..., None], logits, 0), axis=-1)
    nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    number = jnp.maximum(jnp.sum(counts.astype(jnp.float32)), 1)
    loss = jnp.sum(batch.weight * nll) / number
    if batch.teacher is not None:
        log_q = jax.nn.log_softmax(jnp.where(counts[..., None], batch.teacher, 0), axis=-1)
        apart = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
        loss = loss + beta * jnp.sum(apart) / number
    loss = loss + l2 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tuned))
    right = (jnp.argmax(logits, axis=-1) == targets) & counts
    metrics = {
        "nll": jnp.sum(jnp.where(counts, nll, 0)) / number,
        "accuracy": jnp.sum(right.astype(jnp.float32)) / number,
        "seen": seen,
    }
    return loss, jax.lax.stop_gradient(metrics)


def state_optimizer(
    total_steps: int | Int[Array, ""],
    peak: Scalar = 1.0,
    final: Scalar = 0.01,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
) -> optax.GradientTransformation:
    """The field's recipe: Adam with a very high rate and no warm-up, decayed along a cosine.

    Args:
        total_steps: where `final` is reached.
        peak: first learning rate.
        final: last learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.

    Returns:
        `init` and `update`.

    Reference: RWKV-PEFT's demonstration of state tuning; the numbers are its own.

    Pitfall: a rate of 1 is meant for Adam, whose steps have this size; plain gradient descent
        explodes.
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def init(tuned: Any) -> OptimizerState:
        return OptimizerState(jnp.zeros((), jnp.int32), adam.init(tuned))

    def update(grads: Any, state: OptimizerState, params: Any = None) -> tuple[Any, OptimizerState]:
        del params
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            directions, moments = adam.update(grads, state.moments)
        rate = learning_rate_schedule(state.updates, total_steps, peak, final, 0)
        updates = jax.tree.map(lambda x: -rate * x, directions)
        return updates, OptimizerState(state.updates + 1, moments)

    return optax.GradientTransformation(init, update)


def tune_state(
    tuned: Tuned,
    params: Params,
    config: Config,
    batches: Batch,
    optimizer: optax.GradientTransformation,
    *,
    alpha: Scalar = 1.0,
    l2: Scalar = 0.0,
    beta: Scalar = 0.0,
    rule: Decorrelation | None = None,
    trainable: Any = None,
    impl: str = "auto",
) -> tuple[Tuning, dict[str, Float[Array, " S"]]]:
    """One step per batch; vmap over `tuned`, `batches` and whatever is traced.

    Args:
        tuned: where to start, `init_tuned_state`.
        params: frozen; those of `upscaled` if there is a second state.
        config: sizes.
        batches: leaves lead with the number of steps.
        optimizer: `state_optimizer(...)` or another one.
        alpha: see `learned_state`.
        l2: see `state_tuning_loss`.
        beta: see `state_tuning_loss`.
        rule: decorrelates the features that the second state is read and written with, one R per
            head, trained in the same loop by its own rule [R]; None: R = I.
        trainable: factors on the updates, a tree prefix of `tuned`, for arms of one program.
        impl: see `forward`.

    Returns:
        What was learned, and "loss", "nll", "accuracy" of each step before its update, with a rule
        also "correlation", the loss that it lowers.
    """
    upscaling = params["blocks"].get(UPSCALING)
    if rule is not None and upscaling is None:
        raise ValueError("rule: expected a model with a second state to decorrelate, got none")
    slope = jax.value_and_grad(state_tuning_loss, has_aux=True)

    def decorrelated(old: Array, seen: tuple[Array, Array]) -> tuple[Array, Array]:
        assert rule is not None and upscaling is not None

        def layer(old: Array, r: Array, k: Array, support: Array, gamma: Array) -> Any:
            x = kernel_features(jnp.concatenate([r, k], axis=1), support, gamma)
            z = jnp.einsum("bthm,hnm->hbtn", x, old)
            z = z.reshape(z.shape[0], -1, z.shape[-1])
            return jax.vmap(lambda m, z: dbp_update(m, z, rule.lr, rule.kappa))(old, z)

        new, loss = jax.vmap(layer)(old, *seen, upscaling.support, upscaling.gamma)
        return new, jnp.mean(loss)

    def step(carry: Tuning, batch: Batch) -> tuple[Tuning, dict[str, Array]]:
        (loss, metrics), grads = slope(
            carry.tuned, params, config, batch, alpha=alpha, l2=l2, beta=beta,
            decorrelation=carry.decorrelation, impl=impl,
        )  # fmt: skip
        seen = metrics.pop("seen")
        updates, moments = optimizer.update(grads, carry.moments, carry.tuned)
        if trainable is not None:
            updates = jax.tree.map(
                lambda factor, part: jax.tree.map(lambda x: factor * x, part), trainable, updates
            )
        told = {"loss": loss, **metrics}
        mixing = carry.decorrelation
        if mixing is not None and rule is not None:
            mixing, told["correlation"] = decorrelated(mixing, seen)
        return Tuning(optax.apply_updates(carry.tuned, updates), moments, mixing), told

    mixing = None if rule is None or upscaling is None else upscaling.decorrelation
    start = Tuning(tuned, optimizer.init(tuned), mixing)
    return jax.lax.scan(step, start, batches)


def test_time_tune(
    params: Params,
    config: Config,
    instance: Batch,
    n_inner: int,
    optimizer: optax.GradientTransformation,
    *,
    beta: Scalar = 0.0,
    alpha: Scalar = 1.0,
    impl: str = "auto",
) -> Tuned:
    """A few steps on what a guide wrote about one problem [R]; vmap over problems.

    Args:
        params: frozen.
        config: sizes.
        instance: the guide's worked solutions of the problem or of perturbed ones, with the
            guide's logits if there are any.
        n_inner: steps, 0 or more.
        optimizer: `state_optimizer(n_inner)` or another one.
        beta: weight of the divergence from the guide.
        alpha: see `learned_state`.
        impl: see `forward`.

    Returns:
        What was learned, to answer this problem from; it starts from zero for each.

    Pitfall: a guide's solution of the very problem contains its answer.
    """
    batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (n_inner, *x.shape)), instance)
    start = init_tuned_state(config)
    tuning, _ = tune_state(
        start, params, config, batches, optimizer, alpha=alpha, beta=beta, impl=impl
    )
    return tuning.tuned


test_time_tune.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name

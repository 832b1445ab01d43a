"""Targets of action values: one step, and multi-step with traces. Conventions as in `targets`."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num

from jaxlab.values.arrays import (
    at_least_float32,
    check_same_shape,
    check_trajectory,
    maybe_stop,
    per_step,
)
from jaxlab.values.recursion import Backend, affine_reverse_scan
from jaxlab.values.targets import lambda_return, td0_target


def sarsa_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    q_next: Num[Array, "*b A"],
    a_next: Int[Array, "*b"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """r + d q(s', a') for the action that was taken next.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next: values of all actions in the next state.
        a_next: the next action.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Targets, at least float32.
    """
    value = take_action(q_next, a_next)
    return td0_target(r, discount, value, stop_target_gradients=stop_target_gradients)


def expected_sarsa_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    q_next: Num[Array, "*b A"],
    pi_next: Num[Array, "*b A"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """r + d sum_a pi(a|s') q(s', a).

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next: values of all actions in the next state; -inf is fine where `pi_next` is 0.
        pi_next: probabilities of the actions in the next state.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Targets, at least float32.

    Reference:
        van Seijen et al. 2009 (A theoretical and empirical analysis of expected Sarsa).
    """
    value = _expectation(q_next, pi_next)
    return td0_target(r, discount, value, stop_target_gradients=stop_target_gradients)


def q_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    q_next: Num[Array, "*b A"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """r + d max_a q(s', a).

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next: values of all actions in the next state.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Targets, at least float32.

    Reference:
        Watkins & Dayan 1992 (Q-learning).
    """
    value = jnp.max(q_next, axis=-1)
    return td0_target(r, discount, value, stop_target_gradients=stop_target_gradients)


def double_q_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    q_next_value: Num[Array, "*b A"],
    q_next_selector: Num[Array, "*b A"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """One network chooses the next action, the other one values it.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next_value: values by the network that is asked, usually the target network.
        q_next_selector: values by the network that chooses, usually the online network.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        r + d q_value(s', argmax_a q_selector(s', a)), at least float32.

    Reference:
        van Hasselt et al. 2016 (Deep RL with double Q-learning), eq. 4.
    """
    check_same_shape(q_next_value=q_next_value, q_next_selector=q_next_selector)
    value = take_action(q_next_value, jnp.argmax(q_next_selector, axis=-1))
    return td0_target(r, discount, value, stop_target_gradients=stop_target_gradients)


def conservative_q_target(
    r: Num[Array, "*b"],
    discount: Num[Array, "*b"],
    q_next: Num[Array, "*b A"],
    q_ref_logits: Num[Array, "*b A"],
    *,
    stop_target_gradients: bool = True,
) -> Float[Array, "*b"]:
    """The next action is that of a frozen reference policy, never of the network that is trained.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next: values by the network that is trained (or its target).
        q_ref_logits: the reference policy's logits in the next state.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        r + d q(s', argmax_a reference(a|s')), at least float32.

    Reference:
        Yu et al. 2024 (B-Coder), the conservative Bellman operator.
    """
    return double_q_target(
        r, discount, q_next, q_ref_logits, stop_target_gradients=stop_target_gradients
    )


def q_lambda(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    q_next_all: Num[Array, "T *b A"],
    lam: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """lambda-return with the greedy value as bootstrap.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next_all: values of all actions in the next states.
        lam: weight of the longer targets, a scalar or one per step.
        cut: 1 where the recursion stops after this step: time limits, and for Watkins's variant
            `non_greedy(q_next_all, a_next)`; None for nowhere (Peng's variant).
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        Targets of q(s_t, a_t).

    Reference:
        Peng & Williams 1994; Sutton & Barto 2018, section 12.10, for Watkins's Q(lambda).
    """
    return lambda_return(
        r,
        discount,
        jnp.max(q_next_all, axis=-1),
        lam,
        cut,
        backend=backend,
        stop_target_gradients=stop_target_gradients,
    )


def non_greedy(q_next_all: Num[Array, "*b A"], a_next: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """1 where the next action is worth less than the best one, else 0.

    Args:
        q_next_all: values of all actions in the next states.
        a_next: the next actions.

    Returns:
        The cut of Watkins's Q(lambda), for `q_lambda`.
    """
    return (take_action(q_next_all, a_next) < jnp.max(q_next_all, axis=-1)).astype(jnp.float32)


def retrace(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    q_next_all: Num[Array, "T *b A"],
    a_next: Int[Array, "T *b"],
    pi_next: Num[Array, "T *b A"],
    mu_next_a: Num[Array, "T *b"],
    lam: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """Off-policy return with traces c = lam min(1, pi(a'|s') / mu(a'|s')).

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next_all: values of all actions in the next states; -inf is fine where `pi_next` is 0.
        a_next: actions taken in the next states; not used at the window's end and at cuts.
        pi_next: the target policy's probabilities in the next states.
        mu_next_a: the behaviour policy's probability of `a_next`, positive where that is used.
        lam: a scalar or one per step.
        cut: 1 where the recursion stops after this step (time limits); None for nowhere.
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        G_t = r_t + d_t [E_pi q(s_{t+1}) + c_{t+1} (G_{t+1} - q(s_{t+1}, a_{t+1}))], without the
        second term at the window's end and at cuts.

    Reference:
        Munos et al. 2016 (Safe and efficient off-policy RL), eq. 4.
    """

    def trace(pi_a: Array, lam: Array) -> Array:
        (mu,) = at_least_float32(mu_next_a)
        check_same_shape(r=lam, mu_next_a=mu)
        return lam * jnp.minimum(1.0, pi_a / mu.astype(pi_a.dtype))

    target = _traced_return(r, discount, q_next_all, a_next, pi_next, lam, cut, trace, backend)
    return maybe_stop(target, stop_target_gradients)


def tree_backup(
    r: Num[Array, "T *b"],
    discount: Num[Array, "T *b"],
    q_next_all: Num[Array, "T *b A"],
    a_next: Int[Array, "T *b"],
    pi_next: Num[Array, "T *b A"],
    lam: ArrayLike,
    cut: Num[Array, "T *b"] | None = None,
    *,
    backend: Backend = "auto",
    stop_target_gradients: bool = True,
) -> Float[Array, "T *b"]:
    """Off-policy return with traces c = lam pi(a'|s'), which needs no behaviour probabilities.

    Args:
        r: rewards.
        discount: gamma (1 - terminated).
        q_next_all: values of all actions in the next states; -inf is fine where `pi_next` is 0.
        a_next: actions taken in the next states; not used at the window's end and at cuts.
        pi_next: the target policy's probabilities in the next states.
        lam: a scalar or one per step.
        cut: 1 where the recursion stops after this step (time limits); None for nowhere.
        backend: see `affine_reverse_scan`.
        stop_target_gradients: return a constant of differentiation.

    Returns:
        As `retrace`, with another trace.

    Reference:
        Precup et al. 2000 (Eligibility traces for off-policy policy evaluation).
    """
    target = _traced_return(
        r, discount, q_next_all, a_next, pi_next, lam, cut, lambda pi_a, lam: lam * pi_a, backend
    )
    return maybe_stop(target, stop_target_gradients)


def take_action(q: Num[Array, "*b A"], action: Int[Array, "*b"]) -> Num[Array, "*b"]:
    """Values of the given actions.

    Args:
        q: values of all actions.
        action: indices.

    Returns:
        q[..., action].

    Raises:
        ValueError: if there is not one action per row.
    """
    if action.shape != q.shape[:-1]:
        raise ValueError(f"action: expected shape {q.shape[:-1]}, got {action.shape}")
    return jnp.take_along_axis(q, action[..., None], axis=-1)[..., 0]


def _expectation(q: Num[Array, "*b A"], pi: Num[Array, "*b A"]) -> Float[Array, "*b"]:
    q, pi = at_least_float32(q, pi)
    check_same_shape(q_next=q, pi_next=pi)
    # An illegal action may carry -inf: 0 * inf would be NaN.
    return jnp.sum(pi * jnp.where(pi > 0, q, 0), axis=-1)


def _traced_return(
    r: Array,
    discount: Array,
    q_next_all: Array,
    a_next: Array,
    pi_next: Array,
    lam: ArrayLike,
    cut: Array | None,
    trace_fn: Callable[[Array, Array], Array],
    backend: Backend,
) -> Array:
    r, discount, q_next_all, pi_next = at_least_float32(r, discount, q_next_all, pi_next)
    expected = _expectation(q_next_all, pi_next)
    check_trajectory(r=r, discount=discount, q_next_all=expected)
    trace = trace_fn(take_action(pi_next, a_next), per_step("lam", lam, r))
    going_on = jnp.ones_like(r) if cut is None else 1 - per_step("cut", cut, r)
    going_on = going_on.at[-1].set(0)
    # Where the return stops there may be no next action: whatever stands there is not used.
    trace = jnp.where(going_on != 0, trace * going_on, 0)
    taken = jnp.where(trace != 0, take_action(q_next_all, a_next), 0)
    b = r + discount * (expected - trace * taken)
    return affine_reverse_scan(discount * trace, b, jnp.zeros_like(r[0]), backend=backend)

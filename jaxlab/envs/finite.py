"""Finite Markov decision processes: random ones, their exact values, draws of their steps."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

_TOLERANCE = 1e-5  # relative gain below which another action is not better, only rounded otherwise
_DOUBLINGS = 24  # 2^24 steps: (1 - 1e-6)^(2^24) is 5e-8


@flax.struct.dataclass
class FiniteMDP:
    """S states and A actions, both indices; nothing ever terminates."""

    transition: Float[Array, "S A S"]  # probabilities of the next state
    reward: Float[Array, "S A"]  # expected reward of a step


def garnet(
    key: Key[Array, ""],
    states: int,
    actions: int,
    branching: int,
    *,
    reward_density: float = 1.0,
) -> FiniteMDP:
    """Draws a random process without structure.

    Args:
        key: random key.
        states: number of states S.
        actions: number of actions A.
        branching: distinct next states of every state and action; their probabilities are the
            pieces of the unit interval between sorted uniform cuts.
        reward_density: share of the state-action pairs with a reward, uniform in [0, 1]; the others
            earn nothing.

    Returns:
        The process.

    Raises:
        ValueError: if a size or the share is out of range.

    Reference:
        Archibald, McKinnon & Thomas 1995, On the generation of Markov decision processes.
    """
    if min(states, actions) < 1:
        raise ValueError(f"states, actions: expected positive, got {states} and {actions}")
    if not 1 <= branching <= states:
        raise ValueError(f"branching: expected 1 to {states} (states), got {branching}")
    if not 0 <= reward_density <= 1:
        raise ValueError(f"reward_density: expected within [0, 1], got {reward_density}")
    # One draw for everything: compiling a generator per array takes seconds.
    u = jax.random.uniform(key, (states, actions, states + branching + 1))
    chance, cuts, reward, place = jnp.split(
        u, (states, states + branching - 1, states + branching), axis=-1
    )
    # The places of the largest of S independent draws are a uniform subset.
    _, following = jax.lax.top_k(chance, branching)
    borders = [jnp.zeros_like(reward), jnp.sort(cuts, axis=-1), jnp.ones_like(reward)]
    pieces = jnp.diff(jnp.concatenate(borders, axis=-1), axis=-1)
    transition = jnp.sum(pieces[..., None] * jax.nn.one_hot(following, states), axis=-2)
    count = round(reward_density * states * actions)
    chosen = jnp.argsort(place.ravel())[:count]
    reward = jnp.zeros_like(reward.ravel()).at[chosen].set(reward.ravel()[chosen])
    return FiniteMDP(transition, reward.reshape(states, actions))


def greedy_policy(q: Float[Array, "*b A"]) -> Float[Array, "*b A"]:
    """Policy that takes the action of highest value, the first of equals.

    Args:
        q: action values.

    Returns:
        Probabilities 0 and 1.
    """
    return jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1], dtype=q.dtype)


def action_values(
    mdp: FiniteMDP, value: Float[Array, " S"], gamma: ArrayLike
) -> Float[Array, "S A"]:
    """One exact Bellman backup r(s, a) + gamma E V(s').

    Args:
        mdp: the process.
        value: values of the next states.
        gamma: discount factor per step.

    Returns:
        Action values.
    """
    with jax.default_matmul_precision("float32"):
        return mdp.reward + jnp.asarray(gamma, mdp.reward.dtype) * (mdp.transition @ value)


def policy_value(
    mdp: FiniteMDP, policy: Float[Array, "S A"], gamma: ArrayLike
) -> Float[Array, " S"]:
    """Discounted value of a policy, (I - gamma P_pi)^-1 r_pi, exact but for rounding.

    Args:
        mdp: the process.
        policy: probabilities of the actions in every state.
        gamma: discount factor per step, at most 1 - 1e-6.

    Returns:
        Values of all states: the sum of (gamma P)^t r over t, of twice as many t at every turn.
        Products of matrices alone run everywhere and compile fast. In float32 the relative error is
        below 1e-7 / (1 - gamma): 1e-5 at 0.99, but 10 % at 1 - 1e-6.

    Raises:
        ValueError: if the policy does not have the shape of the rewards.

    Reference:
        Puterman 1994, Markov decision processes, theorem 6.1.1.
    """
    if policy.shape != mdp.reward.shape:
        raise ValueError(f"policy: expected shape {mdp.reward.shape}, got {policy.shape}")
    reward = jnp.sum(policy * mdp.reward, axis=-1)
    chain = jnp.sum(policy[..., None] * mdp.transition, axis=1)

    def double(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        value, power = carry
        return value + power @ value, power @ power

    start = reward, jnp.asarray(gamma, reward.dtype) * chain
    with jax.default_matmul_precision("float32"):
        value, _ = jax.lax.fori_loop(0, _DOUBLINGS, double, start)
    return value


def optimal_value(mdp: FiniteMDP, gamma: ArrayLike) -> Float[Array, " S"]:
    """Values of the best policy, by policy iteration; exact but for rounding.

    Args:
        mdp: the process.
        gamma: discount factor per step, at most 1 - 1e-6.

    Returns:
        Values of all states, less at most 1e-5 / (1 - gamma) of the largest one: an action is kept
        that is worse by less than 1e-5 of it.

    Reference:
        Howard 1960, Dynamic programming and Markov processes.

    Pitfall:
        Two equally good actions, apart by rounding alone, would change places for ever: a policy
        keeps its action unless another one is better by more than that.
    """

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        action, _, _ = carry
        policy = jax.nn.one_hot(action, mdp.reward.shape[1], dtype=mdp.reward.dtype)
        value = policy_value(mdp, policy, gamma)
        q = action_values(mdp, value, gamma)
        kept = jnp.take_along_axis(q, action[:, None], axis=1)[:, 0]
        gain = jnp.max(q, axis=1) - kept
        better = gain > _TOLERANCE * jnp.max(jnp.abs(value))
        return jnp.where(better, jnp.argmax(q, axis=1), action), value, jnp.any(better)

    greedy = jnp.argmax(mdp.reward, axis=1)
    start = (greedy, jnp.zeros_like(mdp.reward[:, 0]), jnp.ones((), bool))
    _, value, _ = jax.lax.while_loop(lambda carry: carry[2], improve, start)
    return value


def sample_next(
    key: Key[Array, ""], mdp: FiniteMDP, state: Int[Array, "*b"], action: Int[Array, "*b"]
) -> Int[Array, "*b"]:
    """Draws next states.

    Args:
        key: random key.
        mdp: the process.
        state: where the steps begin.
        action: what is done there.

    Returns:
        Where they end.
    """
    cumulative = jnp.cumsum(mdp.transition[state, action], axis=-1)
    # A draw of the last piece's rounding error would fall beyond all states.
    u = jax.random.uniform(key, (*state.shape, 1)) * cumulative[..., -1:]
    return jnp.sum((cumulative <= u).astype(jnp.int32), axis=-1)
